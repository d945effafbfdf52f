"""Whether test_properties.py would notice: the library with one mistake in it, against the same model.

Each mutant names a text that must occur in ledger.lua exactly once, so a change there is a change here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.ledger import books
from tests.ledger.books import LUA, Books, replaced
from tests.ledger.machine import against
from tests.ledger.test_properties import USUAL

pytestmark = pytest.mark.slow


class Mutant(NamedTuple):
    """What the mistake is, and where."""

    name: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "a settled call keeps its places and money",
        "          let_go(key, field, amount)",
        "          local _ = amount",
    ),
    Mutant(
        "charged twice",
        "          let_go(key, field, amount)\n          add(key, field .. ':s', actual)",
        "          let_go(key, field, amount)\n          add(key, field .. ':s', actual * 2)",
    ),
    Mutant("another time zone opens a window anew", " or (window < start and ends * 1000 > now)", ""),
    Mutant("a call that ended early frees its place in the rate", "elseif measure == REQUESTS or used", "elseif used"),
    Mutant("money goes to whatever window it is", "if window == check[6] then", "if window then"),
    Mutant(
        "a new window keeps what was held in the old",
        ", field .. ':s', '0', field .. ':h', '0')",
        ", field .. ':s', '0') redis.call('HSETNX', key, field .. ':h', '0')",
    ),
    Mutant("an old window is opened again", "if stored == nil or stored < start then", "if stored ~= start then"),
    Mutant("no tombstone", "  redis.call('HSET', key, id, what)", "  local _ = what"),
    Mutant("a tombstone of another hour", "bury(prefix, hour, id, '')", "bury(prefix, hour + 1, id, '')"),
    Mutant(
        "a refund to the second it is now",
        "      charge(prefix, cmsgpack.unpack(held[3]), true, held[2], bill, NOTHING)\n    else",
        "      charge(prefix, cmsgpack.unpack(held[3]), true, math.floor(now / 1000), bill, NOTHING)\n    else",
    ),
    Mutant(
        "the end of a lease charges all that was held",
        "measure == PLACES and 0 or math.max(",
        "measure == PLACES and 0 or (used == before and amount) or math.max(",
    ),
    Mutant("etags compared by their beginning", "string.sub(raw, 1, #etag + 1)", "string.sub(raw, 1, #etag) .. '\\n'"),
    Mutant("changed records are not noticed", "        stale = true", "        stale = false"),
    Mutant(
        "what is held does not count",
        "if amount > 0 and spent + held + amount > limit then",
        "if spent + amount > limit then",
    ),
    Mutant(
        "one too many",
        "if amount > 0 and spent + held + amount > limit then",
        "if spent + held + amount > limit + 1 then",
    ),
    Mutant(
        "one too many in a minute",
        "      if amount > 0 and sum + amount > limit then",
        "      if sum + amount > limit + 1 then",
    ),
    Mutant(
        "a repeated reservation takes once more",
        "    if again then\n      amount = 0",
        "    if again then\n      again = false",
    ),
    Mutant("a window of 59 seconds", "local MINUTE = 60", "local MINUTE = 59"),
    Mutant("the clock may step back and free a minute", "if latest > second then", "if latest > second + 90000 then"),
    Mutant(
        "the end of a lease comes after the tombstone is looked for",
        "  sweep_some(prefix, now, 20) -- first: it may end this very call\n",
        "  if redis.call('HEXISTS', prefix .. 'done:' .. argv[3], id) == 1 then return {DONE, now} end\n"
        "  sweep_some(prefix, now, 20)\n  argv[3] = argv[3] .. '0'\n",
    ),
    Mutant(
        "a late settlement charges all again",
        "charge(prefix, cmsgpack.unpack(argv[4]), false, nil, bill, before)",
        "charge(prefix, cmsgpack.unpack(argv[4]), false, nil, bill, NOTHING)",
    ),
    Mutant("usage counts a late settlement twice", "    note(prefix, before, -1)\n  else", "  else"),
    Mutant(
        "a call that lives on stays charged", "charge(prefix, list, false, nil, NOTHING, before)", "local _ = before"
    ),
    Mutant("a call that lives on holds nothing", "        hold_budgets(prefix, list)\n      end", "      end"),
    Mutant("a heartbeat after the end brings a call back", "    if tombstone ~= '' then", "    if true then"),
    Mutant(
        "a heartbeat does not renew the lease",
        "redis.call('ZADD', prefix .. LEASES, int(now + tonumber(argv[2])), id)\n    end\n    at",
        "end\n    at",
    ),
    Mutant(
        "settled calls keep their lease", "      redis.call('ZREM', prefix .. LEASES, id)\n      charge", "      charge"
    ),
    Mutant(
        "a refusal after something was taken",
        "  if refusal then\n    if argv[12]",
        "  if refusal then\n    hold_rates(prefix, checks, second)\n    if argv[12]",
    ),
    Mutant("the shortest wait is told", "      if weight > worst then", "      if worst < 0 or weight < worst then"),
    Mutant("expired keys pass", "now >= ends and not again", "now > ends + 10 and not again"),
    Mutant(
        "every window is today's", "(stop > 0 and now >= stop * 1000)", "(stop > 0 and now >= stop * 1000 + 86400000)"
    ),
    Mutant("tomorrow's budget is open today", "(start * 1000 > now and window ~= start)", "false"),
    Mutant(
        "what a page shows is counted twice",
        "sum(all, shown .. '\\t' .. name, amount,",
        "sum(all, shown .. '\\t' .. name, amount * 2,",
    ),
    Mutant("a key's own sums cannot be found", "redis.call('SADD', used, where)", "redis.call('SADD', used, 'x')"),
    Mutant(
        "a late settlement stays in the order of keys",
        "{cost = 0, tokens = 0}",
        "{cost = sign, tokens = 0}",
    ),
    Mutant("refusals are not counted", "    if argv[12] ~= '' then", "    if false then"),
    Mutant("anybody may write a record", "if argv[1] ~= '*' and argv[1] ~= etag then", "if false then"),
)
SHORT = settings(USUAL, phases=[Phase.generate])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_scripts_find_a_mistake(tmp_path_factory: pytest.TempPathFactory, mutant: Mutant) -> None:
    source = replaced(LUA.read_text(), mutant.old, mutant.new)
    with books.valkey(Path(tmp_path_factory.mktemp("store"))) as client:
        machine = against(Books(client, source))
        with pytest.raises(AssertionError):
            run_state_machine_as_test(machine, settings=SHORT)
