"""The ledger: who may call, what a call may take, and what it took. Nothing else touches quota keys.

`reserve` before a call, `settle` once after it, each one question to the store's functions (`router/ledger.lua`), sent
together with those of the calls beside it. The reservation names the records it reckons with and is refused as stale
when they have changed, so a revoked key is refused on the very next call and no cache has to be told.

Every decision falls within `DECISION_LIMIT`. When the store cannot answer, callers are refused (`StoreUnavailable`);
only local models go on, for keys that were seen a moment ago and have no limits that such a call could break. What
could not be settled is kept in the journal and sent when the store is back.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any, Final, NamedTuple

from providers.errors import InternalError, StoreUnavailable, SwitchyardError, Unauthorized
from router.allowance import refusal
from router.checks import NO_AMOUNTS, Amounts, Calendar, Check, checks_of, learn_windows, pack_value, packed
from router.credentials import digest, key_id_of, missing, not_a_key
from router.functions import account_keys, fcall
from router.holds import LEASE, Hold, Live
from router.journal import Journal
from router.keys import Keys, anonymous_id
from router.known import Known, Memory
from router.limits import Limit
from router.link import Links, Refused, Unanswered
from router.records import Key
from router.settlements import Settlements
from router.store import Store, explain
from router.throttle import Throttle

__all__ = ["Ask", "Bill", "Hold", "Ledger"]

log = logging.getLogger("switchyard.ledger")

DECISION_LIMIT = 0.2
"""Seconds from asking to an answer or a refusal."""
OUTAGE_MEMORY: Final = 60.0
"""Seconds for which a key that was seen counts as known while the store is away."""
OUTAGE_CALLS: Final = 4
"""Calls of local models that a worker runs at once while the store is away."""
STRANGERS: Final = 200
"""Keys that do not exist, in a row, for which the store is asked on behalf of one address; then one every ..."""
STRANGERS_PACE: Final = 0.05
"""... so many seconds. Keys that are known pass whatever their neighbours do."""
TRIES: Final = 5
"""Reservations of one call: its records may change, and a calendar window may end, while it asks."""

_OK, _REFUSED, _STALE, _CLOCK, _DONE, _EXPIRED = 1, 0, 2, 4, 5, 6


class Ask(NamedTuple):
    """What a call asks for. counts(pattern): whether a limit for these models counts it. row: JSON for the recent
    requests."""

    amounts: Amounts = NO_AMOUNTS
    counts: Callable[[str], bool] = bool
    row: bytes = b""


class Bill(NamedTuple):
    """What a call used: for its counters (requests, tokens, micro-USD), for the usage of its key (`metrics`), and for
    the recent requests (`row`, JSON)."""

    requests: int = 0
    tokens: int = 0
    cost: int = 0
    metrics: Sequence[str | int] = ()
    """Names (`<model>\\t<provider>\\t<metric>`) and amounts in turn."""
    row: bytes = b""


NOTHING: Final = Bill()
NEVER: Final = -1
"""Requests of a call that was not admitted, as far as we know: also its place in a rate is given back."""
Prepare = Callable[[Known, bool], Ask]
"""What a call asks for, given its key; True: it may use local models only. Raises what refuses the call."""


def _anything(_known: Known, _local_only: bool) -> Ask:
    return Ask()


class Ledger:
    """Check keys and account for calls. Make it inside the running loop; `close` it before the store."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        *,
        data_dir: Path | None = None,
        yuan_per_dollar: Callable[[], float] = lambda: 7.0,
        providers: Callable[[], Iterable[str]] = tuple,
        decided: Callable[[float], object] = bool,
        overshot: Callable[[], object] = bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`providers()`: the names of those with shared limits. `decided` is told the seconds of every decision,
        `overshot` of calls that used more than they held."""
        self._store = store
        self._keys = keys
        self._clock = clock
        self._monotonic = monotonic
        self._yuan_per_dollar = yuan_per_dollar
        self._providers = providers
        self._decided = decided
        self._overshot = overshot
        self._loop = asyncio.get_running_loop()
        self.links = Links(store)
        self.memory = Memory(self.links, monotonic)
        self.journal = Journal(data_dir or Path("data"), clock)
        if data_dir is not None:
            self.journal.open()
        self._settlements = Settlements(self.links, self.journal)
        self.live = Live(self.links, self._recheck, monotonic, self._heard, self._accounts)
        self._ahead = 0.0
        """Seconds by which the store's clock is ahead of ours."""
        self._calendars: dict[tzinfo, Calendar] = {}
        self._anonymous: dict[str, str] = {}
        self._outage = 0
        self._strangers = Throttle(monotonic, burst=STRANGERS, pace=STRANGERS_PACE, what="API keys")
        self._closed = False
        self.settled_twice = 0
        """Calls that were settled more than once: a bug of the caller's, without effect here."""

    # --- the calls' side

    async def reserve(
        self, credential: str | None, *, call_id: str, prepare: Prepare = _anything, address: str = ""
    ) -> Hold:
        """Admit a call by its credential. Raises `Unauthorized`, `TooManyAttempts`, `StoreUnavailable`,
        `RateLimitExceeded`, `QuotaExceeded`, and what `prepare` raises."""
        return await self._reserve(*self._read(credential), call_id, prepare, address)

    async def reserve_anonymous(self, name: str, *, call_id: str, prepare: Prepare = _anything) -> Hold:
        """Admit a keyless call of a listener that is open to `name` (see `Keys.ensure_anonymous`)."""
        return await self._reserve(self._anonymous_id(name), None, call_id, prepare)

    async def identify(self, credential: str | None, address: str = "") -> Key:
        """The active key of a credential, as `reserve` finds it, without a call."""
        return await self._identify(*self._read(credential), address)

    async def identify_anonymous(self, name: str) -> Key:
        """The active key of a keyless listener, as `reserve_anonymous` finds it, without a call."""
        return await self._identify(self._anonymous_id(name), None)

    async def take(self, provider: str, limits: Sequence[Limit], amounts: Amounts, call_id: str, counts: Any) -> Hold:
        """A place within a provider's shared limits, for one attempt. Raises `LimitReached` and `StoreUnavailable`."""
        account = f"p:{provider}"
        checks = checks_of(limits, "all", "", counts, 1.0)
        now = self._now()
        hold = Hold(account, f"sy:{{{account}}}:", call_id, str(int(now // 3600)), now, amounts=amounts)
        hold.checks = packed(checks, amounts, self._calendar(UTC), now, {})
        answer = await self._question(hold, ("", ""), ("", ""), 0, b"", self._loop.time() + DECISION_LIMIT)
        if answer[0] == _REFUSED:
            _, _, index, why, spent, held, retry = answer
            raise refusal(checks[index], amounts, why, spent, held, retry, now)
        self._begin(hold)
        return hold

    def settle(self, hold: Hold, bill: Bill = NOTHING) -> None:
        """End a call, whatever became of it. Exactly once per hold: a second time does nothing and is counted.

        Returns at once and cannot be cancelled: what is to be written goes out by itself.
        """
        if hold.settled:
            self.settled_twice += 1
            log.error("a call was settled twice", extra={"call_id": hold.call_id})
            return
        hold.settled = True
        self.live.remove(hold)
        if not hold.reserved:
            self._outage -= 1
        elif bill.cost > hold.amounts.cost or bill.tokens > hold.amounts.tokens > 0:
            self._overshot()
        key_id = hold.known.key.id if hold.known is not None else ""
        self._send(hold, self.bill(hold, bill), key_id)

    def bill(self, hold: Hold, bill: Bill) -> bytes:
        """A bill as the store's functions take it."""
        known = hold.known
        usage = f"{known.key.id}\t" if known is not None and bill.metrics else ""
        row = bill.row.decode()  # as text: the store's unpacker knows no binary
        return pack_value([bill.requests, bill.tokens, bill.cost, usage, list(bill.metrics), hold.hour, hold.day, row])

    async def close(self) -> None:
        """Write what is left, refuse who still waits, drop the connections. What the store did not take stays in the
        journal."""
        self._closed = True
        await self.live.close()
        await self._settlements.finish()
        await self.links.close()
        await asyncio.sleep(0)  # what the links gave up goes to the journal
        self.journal.close()

    # --- admission

    def _read(self, credential: str | None) -> tuple[str, bytes]:
        """The id and the digest of a credential. Raises Unauthorized for what is none."""
        if credential is None:
            raise missing()
        key_id = key_id_of(credential)
        if key_id is None:
            raise not_a_key(credential)
        return key_id, digest(self._keys.pepper, credential)

    def _anonymous_id(self, name: str) -> str:
        return self._anonymous.get(name) or self._anonymous.setdefault(name, anonymous_id(name))

    async def _identify(self, key_id: str, shown: bytes | None, address: str = "") -> Key:
        known = self.memory.get(key_id)
        if known is None or (shown is not None and not hmac.compare_digest(shown, known.digest)):
            self._strangers.admit(address)
        known = await self.memory.fetch(key_id)
        if known is None:
            raise self._stranger(shown, address)
        try:
            self._admit(known, shown)
        except _Unknown:
            self._strangers.failed(address)
            raise
        return known.key

    def _stranger(self, shown: bytes | None, address: str) -> SwitchyardError:
        """The error for a key that does not exist. An address that asks for many is not looked up any more."""
        self._strangers.failed(address)
        return _unknown() if shown is not None else missing()

    def _admit(self, known: Known, shown: bytes | None) -> int:
        """Until when (ms of the store's clock, 0 for ever) this secret opens this key. Raises Unauthorized."""
        key = known.key
        ends = key.expires_at
        if shown is None:
            if not key.anonymous:
                raise missing()
        elif not hmac.compare_digest(shown, known.digest):
            if key.old_until is None or not hmac.compare_digest(shown, known.old_digest):
                raise _unknown()
            if self._now() >= key.old_until:
                raise Unauthorized("This secret was replaced by a newer one: use that.")
            ends = min(key.old_until, ends or key.old_until)
        # Told only to who showed the right secret.
        if key.state != "active":
            raise Unauthorized(f"This API key is {key.state}.")
        if known.team.state != "active":
            raise Unauthorized(f"The team of this API key is {known.team.state}.")
        if ends is None:
            return 0
        if self._now() >= ends:
            raise Unauthorized("This API key has expired.")
        return ends * 1000

    async def _reserve(
        self, key_id: str, shown: bytes | None, call_id: str, prepare: Prepare, address: str = ""
    ) -> Hold:
        if self._closed or self.journal.full:
            raise StoreUnavailable("No calls are taken until their settlements can be kept.", retry_after=1)
        known, fresh = self.memory.get(key_id), False
        until = self._loop.time() + DECISION_LIMIT
        for _ in range(TRIES):
            if known is None:
                if fresh:
                    raise self._stranger(shown, address)
                self._strangers.admit(address)
                known, fresh = await self.memory.fetch(key_id, until - self._loop.time()), True
                continue
            try:
                ends = self._admit(known, shown)
                ask = prepare(known, False)
            except SwitchyardError as error:
                # By what was remembered. What the store says counts.
                if fresh:
                    if isinstance(error, _Unknown):
                        self._strangers.failed(address)
                    raise
                if isinstance(error, _Unknown):
                    self._strangers.admit(address)
                known, fresh = await self.memory.fetch(key_id, until - self._loop.time()), True
                continue
            now = self._now()
            team = known.team.id
            calendar = self._calendar(known.zone)
            hold = Hold(team, known.prefix, call_id, str(int(now // 3600)), now, amounts=ask.amounts, known=known)
            hold.shown = shown
            hold.day = calendar.day(now)
            checks = self._checks(known, ask)
            hold.checks = packed(checks, ask.amounts, calendar, now, known.windows)
            try:
                answer = await self._question(hold, known.names, known.etags, ends, ask.row, until)
            except StoreUnavailable as error:
                return self._without_store(known, hold, prepare, error)
            code = answer[0]
            if code == _OK:
                known.seen = self._monotonic()
                if checks:
                    hold.standing = tuple(zip(checks, answer[2::2], answer[3::2], strict=True))
                self._begin(hold)
                return hold
            if code == _REFUSED:
                _, _, index, why, spent, held, retry = answer
                raise refusal(checks[index], ask.amounts, why, spent, held, retry, self._now())
            if code == _STALE:
                known, fresh = self.memory.learn(key_id, team, answer[2], answer[3]), True
                if known is None:
                    fresh = False  # it may have moved to another team
            elif code == _CLOCK:
                learn_windows(known.windows, checks, answer[2:])
            elif code == _EXPIRED:
                self._admit(known, shown)  # by the store's clock, which we know now
            else:
                raise InternalError("the id of this call was used before")
        raise StoreUnavailable("The key is being changed: try again.", retry_after=1)

    async def _question(
        self,
        hold: Hold,
        names: tuple[str, str],
        etags: tuple[str, str],
        ends: int,
        row: bytes,
        until: float,
    ) -> Sequence[Any]:
        """Ask to reserve, with an answer before `until` (the loop's time)."""
        command = fcall(
            "reserve",
            account_keys(hold.prefix),
            (
                *(hold.prefix, hold.call_id, hold.hour, hold.checks, _LEASE_MS),
                *(names[0], etags[0], names[1], etags[1], ends, row),
                *(hold.known.key.id if hold.known is not None else "", hold.day),
            ),
        )
        began = self._monotonic()
        try:
            answer: Sequence[Any] = await self.links.ask(hold.account, command, limit=until - self._loop.time())
        except (Unanswered, asyncio.CancelledError) as why:
            # It may hold by now, or soon: what comes first counts.
            end = _ABORTED if isinstance(why, asyncio.CancelledError) else _UNDECIDED
            self._send(hold, self.bill(hold, Bill(NEVER, row=row[:-1] + end if row else b"")), "")
            raise
        except Refused as error:
            raise StoreUnavailable(
                f"Quotas cannot be checked: {explain(self._store.name, error)}.", retry_after=1
            ) from error
        finally:
            self._decided(self._monotonic() - began)
        self._heard(answer[1])
        return answer

    def _begin(self, hold: Hold) -> None:
        hold.since = self._monotonic()
        self.live.add(hold)

    def _without_store(self, known: Known, hold: Hold, prepare: Prepare, error: StoreUnavailable) -> Hold:
        """A local model costs no money: a key that was seen a moment ago may use it, if no limit but money's counts."""
        if (
            self._monotonic() - known.seen > OUTAGE_MEMORY
            or self._outage >= OUTAGE_CALLS
            or any(limit.measure != "cost" for limit in known.limits)
        ):
            raise error
        try:
            ask = prepare(known, True)
        except SwitchyardError:
            raise error from None
        if ask.amounts.cost:
            raise error  # a local model that somebody gave a price
        self._outage += 1
        without = Hold(hold.account, hold.prefix, hold.call_id + "-", hold.hour, hold.moment, known=known)
        without.reserved, without.day, without.shown = False, hold.day, hold.shown
        without.since = self._monotonic()
        return without

    async def _recheck(self, hold: Hold, changed: bool) -> SwitchyardError | None:
        """Why a running call may not go on: its key, its team, or the secret that it began with."""
        known = hold.known
        assert known is not None
        if changed:
            known = await self.memory.fetch(known.key.id)
            if known is None:
                return Unauthorized("This API key is gone.")
            if known.prefix == hold.prefix:
                hold.known = known  # else it has moved: this call stays with the team that it began in
        try:
            self._admit(known, hold.shown)
        except Unauthorized as why:
            return why
        return None

    # --- limits

    def _checks(self, known: Known, ask: Ask) -> tuple[Check, ...]:
        if not known.key.limits and not known.team.limits:
            return ()
        patterns = tuple(pattern for pattern in known.patterns if ask.counts(pattern))
        rate = self._yuan_per_dollar()
        found = known.checks.get((patterns, rate))
        if found is None:
            shared = known.team_checks.get((patterns, rate))
            if shared is None:
                shared = checks_of(known.team.limits, "team", "team.", patterns.__contains__, rate)
                known.team_checks[patterns, rate] = shared
            found = (*checks_of(known.key.limits, known.key.id, "", patterns.__contains__, rate), *shared)
            known.checks[patterns, rate] = found
        return found

    def _calendar(self, zone: tzinfo) -> Calendar:
        found = self._calendars.get(zone)
        if found is None:
            found = self._calendars[zone] = Calendar(zone)
        return found

    def _accounts(self) -> Iterable[str]:
        return (f"p:{name}" for name in self._providers())

    # --- the store's clock

    def _now(self) -> float:
        return self._clock() + self._ahead

    def _heard(self, milliseconds: int) -> None:
        self._ahead = milliseconds / 1000 - self._clock()

    # --- settlements

    def _send(self, hold: Hold, bill: bytes, key_id: str) -> None:
        command = fcall(
            "settle",
            account_keys(hold.prefix),
            (hold.prefix, hold.call_id, hold.hour, hold.checks, bill, key_id),
        )
        self._settlements.send(hold.account, command)


_LEASE_MS: Final = int(LEASE * 1000)
_ABORTED: Final = b',"status":499,"outcome":"aborted"}'
_UNDECIDED: Final = b',"status":503,"outcome":"quota_store"}'
"""What the row of a call becomes whose reservation nobody waited for, or that was refused without an answer."""


class _Unknown(Unauthorized):
    """No such key, or not its secret: both look alike."""


def _unknown() -> _Unknown:
    return _Unknown("Incorrect API key provided.")
