"""Loaded by Python itself at start, in routers whose tests count and do not measure: their store may take as long to
answer as a machine needs that is busy with other tests. A router refuses calls when it takes longer than this.
"""

import router.admin.pages.overview_page
import router.admin.pages.sessions
import router.holders
import router.known
import router.ledger
import router.link
import router.link_node
import router.otel
import router.store
import router.store_client

PATIENT = 20.0

router.ledger.DECISION_LIMIT = PATIENT
router.link_node.PATIENCE = PATIENT
router.store.ANSWER_LIMIT = PATIENT
router.holders.ANSWER_LIMIT = PATIENT  # type: ignore[attr-defined]  # imported there by its name
router.known.Memory.fetch.__defaults__ = (PATIENT,)
router.link.Links.ask.__kwdefaults__["limit"] = PATIENT  # type: ignore[index]  # it has some
router.store_client._CLIENT["socket_timeout"] = PATIENT  # type: ignore[index]  # a dict
router.store_client.TURN_LIMIT = PATIENT
router.otel.FLUSH_SECONDS = PATIENT  # type: ignore[misc]  # a constant where nobody is patient
router.admin.pages.sessions.ANSWER = PATIENT  # type: ignore[misc]  # so are these
router.admin.pages.overview_page.PATIENCE = PATIENT  # type: ignore[misc]
router.admin.pages.overview_page.OWN_PATIENCE = PATIENT  # type: ignore[misc]
