"""`switchyard` without a part of it, to see what the part costs: `python -m tests.bench.unmetered PART serve ...`.

`ledger`: keys are checked against what is remembered of them, nothing is asked of the store and nothing written.
`accounts`: the same, and calls are neither estimated nor priced nor billed. The parts are replaced here, in a process
of the benchmark's own; the router has no such switch.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final

from providers.call import Call
from providers.events import Usage
from router import runtime, settlement
from router.accounts import Accounts
from router.checks import Amounts
from router.cli.main import main
from router.credentials import missing
from router.holds import Hold
from router.known import Known
from router.ledger import NOTHING, Ask, Bill, Ledger, Prepare
from router.routing import Plan
from router.trace import Trace


class Unmetered(Ledger):
    async def _reserve(self, key_id: str, shown: bytes | None, call_id: str, prepare: Prepare, *_: Any) -> Hold:
        known = self.memory.get(key_id) or await self.memory.fetch(key_id)
        if known is None:
            raise missing()
        self._admit(known, shown)
        ask = prepare(known, False)
        return Hold(known.team.id, known.prefix, call_id, "0", 0.0, amounts=ask.amounts, known=known)

    def settle(self, hold: Hold, bill: Bill = NOTHING) -> None:
        hold.settled = True


_FREE: Final = settlement.Bill("measured", 1, 0, 0, False, Usage(0, 0), {})


class Unbilled(Accounts):
    def ask(self, call: Call, plan: Plan, known: Known, trace: Trace) -> Ask:
        trace.plan, trace.amounts = plan, Amounts()
        return Ask()

    def final(self, trace: Trace, hold: Hold, row: Mapping[str, Any], label: str) -> tuple[Bill, settlement.Bill]:
        return NOTHING, _FREE


if __name__ == "__main__":
    vars(runtime)["Ledger"] = Unmetered
    if sys.argv.pop(1) == "accounts":
        vars(runtime)["Accounts"] = Unbilled
    main()
