"""Signing in: the form, the count of wrong secrets, and what is answered."""

from __future__ import annotations

import logging
import math
from typing import Final
from urllib.parse import parse_qsl

from providers.errors import TooLarge, UnsupportedMedia
from router.admin.pages.sessions import Sessions
from router.http import Headers, Receive, read_body
from router.keys import Keys
from router.throttle import TooManyAttempts

LARGEST_FORM: Final = 4096
"""Bytes."""
LONGEST_SECRET: Final = 512

_log = logging.getLogger("switchyard.pages")


class SignInRefused(Exception):
    """problem: `wrong`, `too_many` or `too_large`; retry_after in seconds. Says no more: who guesses learns nothing."""

    def __init__(self, status: int, problem: str, retry_after: int | None = None) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem
        self.retry_after = retry_after


async def read_form(headers: Headers, receive: Receive) -> dict[str, str]:
    """The fields of a form, whatever the browser calls it; the first of each name. Raises TooLarge, ClientGone."""
    try:
        body = await read_body(headers, receive, LARGEST_FORM)
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except (ValueError, UnsupportedMedia):  # UnicodeDecodeError is a ValueError
        return {}
    return dict(reversed(pairs))


class SignIn:
    """Wrong secrets count together with wrong tokens of the admin API."""

    def __init__(self, keys: Keys, sessions: Sessions) -> None:
        self._keys = keys
        self._sessions = sessions

    async def open(self, headers: Headers, receive: Receive, address: str) -> str:
        """A session's secret for who shows the admin token or a key. Raises SignInRefused, StoreUnavailable."""
        try:
            secret = (await read_form(headers, receive)).get("secret", "").strip()
        except TooLarge:
            raise SignInRefused(413, "too_large") from None
        try:
            async with self._keys.turn(secret, address):
                if 0 < len(secret) <= LONGEST_SECRET and secret.isprintable():
                    made = await self._sessions.open(secret, address)
                    if made is not None:
                        return made
                self._keys.throttle.failed(address)
        except TooManyAttempts as error:
            raise SignInRefused(429, "too_many", max(1, math.ceil(error.retry_after or 0))) from None
        _log.info("a wrong secret was shown at the sign-in page from %s", address or "a socket")
        raise SignInRefused(401, "wrong")
