"""What calls are charged, whatever their provider says and however they end: the same in the budget's counter, in
`/v1/usage`, in `switchyard usage`, in the request log and among the recent requests.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Serve
from tests.money import bank as banks
from tests.money.bank import INPUT, OUTPUT, Account, Bank
from tests.simulators.client import CLIENTS, OLLAMA, OPENAI, ClientDialect
from tests.simulators.router import ROOT, UNHURRIED
from tests.simulators.scripts import ANSWER, PART
from tests.simulators.server import Exchange, Script, Simulator
from tests.simulators.waiting import until

# Counted by hand. The prompt `Hello` has 5 characters, rounded up to 2 tokens, and 4 of a message. ANSWER has 30 ASCII
# characters and 2 Chinese ones; PART has 18 characters.
PROMPT = 6
COUNTED = 10
COUNTED_PART = 5


@dataclass(frozen=True)
class Charge:
    """What a call comes to. cost: micro-USD, None: tokens at the plain price."""

    input: int
    output: int
    mark: str = "measured"
    requests: int = 1
    cached: int = 0
    reasoning: int = 0
    price: int | None = None
    metrics: Mapping[str, int] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        return self.input * INPUT + self.output * OUTPUT if self.price is None else self.price

    def all_metrics(self) -> dict[str, int]:
        found = {"calls": 1, "in": self.input, "out": self.output, "cost": self.cost, **self.metrics}
        found |= {"cached": self.cached, "reasoning": self.reasoning}
        if self.mark != "measured":
            found[self.mark] = 1
        return {name: amount for name, amount in found.items() if amount}


def telling(usages: Sequence[object], text: str = ANSWER) -> Script:
    """An answer with these usage objects, one after the other."""

    async def script(x: Exchange) -> None:
        whole = json.loads(x.dialect.whole(x.request, text))
        whole.pop("usage")
        if not x.stream:
            if usages:
                whole["usage"] = usages[-1]
            await x.answer(200, json.dumps(whole).encode())
            return
        await x.open_stream()
        await x.chunk(x.dialect.opening(x.request))
        await x.chunk(x.dialect.content(x.request, text))
        await x.chunk(x.dialect.finish(x.request)[0])
        base = {**whole, "object": "chat.completion.chunk", "choices": []}
        for usage in usages:
            await x.chunk(b"data: " + json.dumps({**base, "usage": usage}).encode() + b"\n\n")
        await x.chunk(b"data: [DONE]\n\n")
        await x.end_chunks()

    return script


def usage(prompt: object, completion: object, total: object = None, **details: object) -> dict[str, object]:
    found: dict[str, object] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if total is not None:
        found["total_tokens"] = total
    if "cached" in details:
        found["prompt_tokens_details"] = {"cached_tokens": details["cached"]}
    if "reasoning" in details:
        found["completion_tokens_details"] = {"reasoning_tokens": details["reasoning"]}
    return found


ESTIMATED = Charge(PROMPT, COUNTED, "estimated")
REPORTED: Mapping[str, tuple[Sequence[object], Charge]] = {
    "sane": ([usage(7, 3, 10)], Charge(7, 3)),
    "missing": ([], ESTIMATED),
    "null": ([None], ESTIMATED),
    "empty": ([{}], ESTIMATED),
    "zero": ([usage(0, 0, 0)], ESTIMATED),
    "no output": ([usage(7, 0, 7)], Charge(7, COUNTED, "estimated")),
    "half": ([{"completion_tokens": 3}], Charge(PROMPT, 3, "estimated")),
    "negative": ([usage(-7, -3, -10)], ESTIMATED),
    "strings": ([usage("7", "3", "10")], ESTIMATED),
    "10^18": ([usage(10**18, 10**18, 2 * 10**18)], ESTIMATED),
    "a huge answer": ([usage(7, 2**39)], Charge(7, COUNTED, "estimated")),
    "a huge prompt": ([usage(2**39, 3)], Charge(PROMPT, 3, "estimated")),
    "booleans": ([usage(True, True)], ESTIMATED),
    "fractions": ([usage(7.5, 3.5)], ESTIMATED),
    "an array": ([[7, 3]], ESTIMATED),
    "twice": ([usage(7, 3, 10), usage(7, 3, 10)], Charge(7, 3)),
    "growing": ([usage(7, 1, 8), usage(7, 3, 10)], Charge(7, 3)),
}

PARTS: Mapping[str, tuple[object, Charge]] = {
    "cached": (
        usage(7, 3, 10, cached=4),
        Charge(7, 3, cached=4, price=3 * 1000 + 4 * 100 + 3 * 2000),
    ),
    "reasoning": (
        usage(7, 3, 10, reasoning=2),
        Charge(7, 3, reasoning=2, price=7 * 1000 + 2000 + 2 * 5000),
    ),
    "reasoning apart": (  # as xAI counts: the total tells
        usage(7, 3, 19, reasoning=9),
        Charge(7, 12, reasoning=9, price=7 * 1000 + 3 * 2000 + 9 * 5000),
    ),
    "reasoning beyond the output": (
        usage(7, 3, 10, reasoning=9),
        Charge(7, 12, "estimated", reasoning=9, price=7 * 1000 + 3 * 2000 + 9 * 5000),
    ),
    "cached beyond the input": (usage(7, 3, 10, cached=8), Charge(7, 3)),
    "negative cached": (usage(7, 3, 10, cached=-4), Charge(7, 3)),
}  # fmt: skip


@pytest.fixture(scope="module")
def paying(
    module_serve: Serve, cloud: Simulator, local: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bank]:
    """A router with paid providers; `hasty` waits 0.3 s for a first word."""
    row = {"priced*": {"input": INPUT, "output": OUTPUT, "cached": 100, "reasoning": 5000}}
    prices = banks.price_file(tmp_path_factory.mktemp("prices"), "cloud", "hasty", "broken", "idle", **row)
    hasty = {**banks.SECONDS, "first_content": 0.3}
    idle = {**banks.SECONDS, "idle": 0.5}
    config = {
        "providers": {
            "cloud": banks.cloud(cloud.url),
            "hasty": banks.cloud(cloud.url, timeouts=hasty),
            "broken": banks.cloud(cloud.url),
            "idle": banks.cloud(cloud.url, timeouts=idle),
            "local": banks.local(local.url),
        },
        "models": {
            "silent-first": {"targets": ["hasty/silent", {"to": "cloud/telling-sane", "priority": 2}]},
            "broken-first": {"targets": ["broken/500", {"to": "cloud/telling-sane", "priority": 2}]},
            "wordless-first": {"targets": ["hasty/headers-then-silence", {"to": "cloud/telling-sane", "priority": 2}]},
        },
        "prices": {"file": prices},
    }
    for name, (usages, _) in REPORTED.items():
        cloud.scripts["telling-" + name.replace(" ", "-")] = telling(usages)
    for name, (one, _) in PARTS.items():
        cloud.scripts["priced-" + name.replace(" ", "-")] = telling([one])
    with banks.bank(module_serve(config, UNHURRIED)) as opened:
        yield opened


ALL: dict[str, Charge] = {}
"""By key: what the tests of this module have charged."""
LIMITS = {"budget": {"total": "100000usd"}, "max_requests": 1000, "max_tokens": {"day": "500m"}}


@pytest.fixture
def account(paying: Bank) -> Account:
    return paying.key(limits=LIMITS)


def assert_charged(at: Bank, account: Account, charge: Charge, *, status: int | None = 200) -> dict[str, Any]:
    """Everywhere the same. Gives the log's line."""
    ALL[account.id] = charge
    (line,) = at.wait_lines(account.id, 1)
    at.at_rest(account.team)
    until(lambda: len(at.tombstones(account.team)) == 1)
    assert at.counter(account, "budget_total") == (charge.cost, 0), line["attempts"]
    assert at.counter(account, "max_requests") == (charge.requests, 0)
    assert at.counter(account, "max_tokens_day") == (charge.input + charge.output, 0)
    assert at.usage(account.team, account.id) == charge.all_metrics()
    assert (line["mark"], line["cost"], line["status"]) == (charge.mark, charge.cost, status or line["status"])
    assert (line["tokens_in"] or 0, line["tokens_out"] or 0) == (charge.input, charge.output)
    _, last = at.recent(account.team)
    assert (last["id"], last["cost"], last["mark"]) == (line["request_id"], charge.cost, charge.mark)
    reply = account.client.request("GET", "/v1/usage")
    assert reply.status == 200, reply
    own = reply.json
    assert own["today"]["cost_micro_usd"] == charge.cost
    assert (own["today"]["tokens_in"], own["today"]["tokens_out"]) == (charge.input, charge.output)
    (limit,) = (limit for limit in own["limits"] if limit["name"] == "budget_total")
    assert round(float(limit["spent"]) * 1_000_000) == charge.cost
    return line


def ask(account: Account, dialect: ClientDialect, model: str, *, stream: bool) -> None:
    reply = account.client.ask(dialect, model, stream=stream)
    assert reply.status == 200, reply
    told = dialect.read(reply, stream=stream)
    assert told.complete, told
    assert told.text == ANSWER


EACH = pytest.mark.parametrize("dialect", CLIENTS, ids=lambda dialect: dialect.name)
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@EACH
@STREAM
@pytest.mark.parametrize("name", REPORTED)
def test_what_the_provider_reports(
    paying: Bank, account: Account, name: str, dialect: ClientDialect, stream: bool
) -> None:
    ask(account, dialect, f"cloud/telling-{name.replace(' ', '-')}", stream=stream)
    assert_charged(paying, account, REPORTED[name][1])


@STREAM
@pytest.mark.parametrize("name", PARTS)
def test_parts_have_their_own_price(paying: Bank, account: Account, name: str, stream: bool) -> None:
    ask(account, OPENAI, f"cloud/priced-{name.replace(' ', '-')}", stream=stream)
    assert_charged(paying, account, PARTS[name][1])


def test_embeddings(paying: Bank, cloud: Simulator) -> None:
    async def script(x: Exchange) -> None:
        body = json.loads(x.dialect.whole(x.request, ""))
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": 99, "total_tokens": 106}
        await x.answer(200, json.dumps(body).encode())

    async def mute(x: Exchange) -> None:
        body = json.loads(x.dialect.whole(x.request, ""))
        del body["usage"]
        await x.answer(200, json.dumps(body).encode())

    cloud.scripts |= {"embed-more": script, "embed-mute": mute}
    for model, charge in (
        ("answer", Charge(7, 0)),
        ("embed-more", Charge(7, 0)),
        ("embed-mute", Charge(2, 0, "estimated")),
    ):
        account = paying.key(limits=LIMITS)
        reply = account.client.request("POST", "/v1/embeddings", {"model": f"cloud/{model}", "input": "Hello"})
        assert reply.status == 200, reply
        assert_charged(paying, account, charge)


@EACH
@pytest.mark.parametrize("script", ["content-then-error", "content-then-reset", "content-then-end"])
def test_a_failure_after_content(
    paying: Bank, account: Account, cloud: Simulator, script: str, dialect: ClientDialect
) -> None:
    """What was delivered is charged; the text of the error is not."""
    model = f"{script}@{account.id}"
    reply = account.client.listen(dialect, f"cloud/{model}", cloud.until_told(model), PART)
    told = dialect.read(reply, stream=True)
    assert (told.text, told.complete) == (PART, False)
    assert_charged(paying, account, Charge(PROMPT, COUNTED_PART, "estimated", metrics={"errors": 1}))


def test_usage_and_then_a_failure(paying: Bank, account: Account, cloud: Simulator) -> None:
    """The larger of what was reported and what was counted."""

    async def script(x: Exchange) -> None:
        await x.open_stream()
        frame = json.loads(x.dialect.content(x.request, PART)[6:])
        await x.chunk(b"data: " + json.dumps({**frame, "usage": usage(7, 1, 8)}).encode() + b"\n\n")
        await x.chunk(x.dialect.content(x.request, ""))
        x.peer.reset()

    cloud.scripts["usage-then-reset"] = script
    account.client.ask(OPENAI, "cloud/usage-then-reset", stream=True)
    assert_charged(paying, account, Charge(7, COUNTED_PART, "estimated", metrics={"errors": 1}))


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422, 429, 500, 503])
def test_a_provider_that_refuses_costs_nothing(paying: Bank, account: Account, code: int) -> None:
    reply = account.client.ask(OPENAI, f"cloud/{code}@{account.id}", stream=True)
    assert reply.status >= 400
    assert_charged(paying, account, Charge(0, 0, requests=0, metrics={"errors": 1}), status=reply.status)


def leave(account: Account, cloud: Simulator, model: str, *, stream: bool, after: Callable[[bytes], bool]) -> None:
    """Send a call and hang up, once `after(what came)`."""
    body = json.dumps(OPENAI.body(f"cloud/{model}", stream=stream)).encode()
    with socket.create_connection(("127.0.0.1", account.client.port), timeout=60) as link:
        link.sendall(account.client.post_bytes(OPENAI.path, body))
        cloud.wait_for(model)
        seen = b""
        while not after(seen):
            seen += link.recv(65536)


@pytest.mark.parametrize(
    ("script", "stream", "output"),
    [
        pytest.param("silent", True, 0, id="before the head"),
        pytest.param("headers-then-silence", True, 0, id="before the first byte"),
        pytest.param("silent", False, 0, id="whole"),
        pytest.param("headers-then-silence", False, 0, id="whole, after the head"),
        pytest.param("content-then-silence", True, COUNTED_PART, id="in mid-stream"),
    ],
)
def test_a_client_that_leaves(
    paying: Bank, account: Account, cloud: Simulator, script: str, stream: bool, output: int
) -> None:
    part = PART.encode() if output else b""
    leave(account, cloud, f"{script}@{account.id}", stream=stream, after=lambda seen: part in seen)
    line = assert_charged(paying, account, Charge(PROMPT, output, "aborted"), status=499)
    assert line["outcome"] == "aborted"


def test_a_client_that_leaves_after_the_last_byte(paying: Bank, account: Account, cloud: Simulator) -> None:
    leave(account, cloud, f"answer@{account.id}", stream=True, after=lambda seen: b"[DONE]" in seen)
    assert_charged(paying, account, Charge(7, 3))


@EACH
@pytest.mark.parametrize(
    ("model", "billed"),
    [("silent-first", True), ("wordless-first", True), ("broken-first", False)],
)
def test_the_failed_attempt_before(
    paying: Bank, account: Account, model: str, billed: bool, dialect: ClientDialect
) -> None:
    """One that took the prompt may be billed for it; one that refused is not. Each by its own provider's row."""
    ask(account, dialect, model, stream=True)
    charge = Charge(PROMPT + 7, 3, "estimated") if billed else Charge(7, 3)
    assert_charged(paying, account, charge)
    report = paying.admin.request("GET", f"/admin/api/usage?key={account.id}&group_by=provider&since=2d").json
    rows = {row["provider"]: row for row in report["data"]}
    assert (rows["cloud"]["cost_micro_usd"], rows["cloud"]["calls"]) == (7 * INPUT + 3 * OUTPUT, 1)
    if billed:
        assert (rows["hasty"]["cost_micro_usd"], rows["hasty"]["calls"]) == (PROMPT * INPUT, 0)
    else:
        assert "broken" not in rows


def test_a_provider_that_falls_silent(paying: Bank, account: Account) -> None:
    reply = account.client.ask(OPENAI, f"idle/content-then-silence@{account.id}", stream=True)
    assert OPENAI.read(reply, stream=True).error is not None
    assert_charged(paying, account, Charge(PROMPT, COUNTED_PART, "estimated", metrics={"errors": 1}))


def test_local_models_cost_nothing(paying: Bank, account: Account) -> None:
    reply = account.client.ask(OLLAMA, "local/llama3.2", stream=True)
    assert reply.status == 200
    assert_charged(paying, account, Charge(7, 3, price=0))


def test_a_call_that_never_reached_a_provider(paying: Bank, account: Account) -> None:
    """Not allowed, unknown, wrong: nothing is counted, not even an error, and nothing is held."""
    for model in ("nobody", "cloud/"):
        assert account.client.ask(OPENAI, model, stream=False).status in (400, 404)
    assert account.client.request("POST", OPENAI.path, b"{").status == 400
    assert paying.usage(account.team) == {}
    assert paying.holds(account.team) == 0
    assert paying.recent(account.team) == []
    assert paying.tombstones(account.team) == {}


def test_the_command_says_the_same(paying: Bank) -> None:
    """After the tests above: `switchyard usage` on the same store."""
    if not ALL:
        ask(paying.key(limits=LIMITS), OPENAI, "cloud/answer", stream=False)
    command = [sys.executable, "-m", "router.cli.main", "usage", "--config", str(paying.router.config_path)]
    env = {**paying.router._env}
    said = subprocess.run(
        [*command, "--json", "--group-by", "key", "--since", "2d"],
        cwd=ROOT, env=env, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    rows = {row["key_id"]: row for row in json.loads(said.stdout)["data"]}
    for key, charge in ALL.items():
        row = rows[key]
        assert (row["cost_micro_usd"], row["tokens_in"], row["tokens_out"], row["calls"]) == (
            charge.cost, charge.input, charge.output, 1,
        )  # fmt: skip
