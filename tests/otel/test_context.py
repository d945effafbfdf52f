"""W3C Trace Context: what is taken from a caller, what is dropped, and what a provider is told."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.otel_context import MAX_STATE, TraceContext, Tracer, incoming, trace_state

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def sent(*parents: str, states: Sequence[str] = ()) -> TraceContext | None:
    headers = [(b"host", b"x"), *((b"traceparent", parent.encode("latin-1")) for parent in parents)]
    return incoming([*headers, *((b"tracestate", state.encode("latin-1")) for state in states)])


@pytest.mark.parametrize(
    ("parent", "sampled"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"00-{TRACE}-{SPAN}-ff", True),
        pytest.param(f"cc-{TRACE}-{SPAN}-01", True, id="a later version"),
        pytest.param(f"01-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True, id="a later version with more"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-", True, id="a later version with a dash"),
    ],
)
def test_what_is_taken(parent: str, sampled: bool) -> None:
    context = sent(parent)
    assert context is not None
    assert (context.trace_id, context.parent_id, context.sampled) == (TRACE, SPAN, sampled)
    assert context.attempt() == (None, {"traceparent": parent}), "where no spans are made it goes on as it came"


@pytest.mark.parametrize("space", [" ", "\t", " \t "])
def test_space_around_a_value_does_not_belong_to_it(space: str) -> None:
    for parent in (f"{PARENT}{space}", f"{space}{PARENT}", f"{space}{PARENT}{space}"):
        context = sent(parent, states=[f"{space}foo=1 , bar=2{space}", space, f"baz=3{space}"])
        assert context is not None
        assert context.trace_id == TRACE
        assert context.attempt()[1] == {"traceparent": PARENT, "tracestate": "foo=1 , bar=2,baz=3"}
    assert sent(space) is None
    assert sent(PARENT, space) is None, "two are none, whatever the second says"


@pytest.mark.parametrize(
    "parent",
    [
        *("", "-", "00", TRACE, f"{PARENT}-extra", f"{PARENT}-", f"{PARENT}.", f"{PARENT}0"),
        pytest.param(f"ff-{TRACE}-{SPAN}-01", id="version ff"),
        pytest.param(f"00-{'0' * 32}-{SPAN}-01", id="trace of zeros"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="span of zeros"),
        pytest.param(PARENT.upper(), id="upper case"),
        pytest.param(f"0-{TRACE}-{SPAN}-01", id="short version"),
        pytest.param(f".0-{TRACE}-{SPAN}-01", id="no hex in the version"),
        pytest.param(f"00-{TRACE[:-1]}-{SPAN}-01", id="short trace"),
        pytest.param(f"00-{TRACE}ab-{SPAN}-01", id="long trace"),
        pytest.param(f"00-{TRACE[:-1]}.-{SPAN}-01", id="no hex in the trace"),
        pytest.param(f"00-{TRACE}-{SPAN[:-1]}-01", id="short span"),
        pytest.param(f"00-{TRACE}-{SPAN}-1", id="short flags"),
        pytest.param(f"00-{TRACE}-{SPAN}-.1", id="no hex in the flags"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01.what", id="a later version, wrongly joined"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-\xff", id="a later version that is not ASCII"),
        pytest.param(f"cc-{TRACE}-{SPAN}-01-{'x' * 500}", id="a later version that is too long"),
    ],
)
def test_what_is_dropped(parent: str) -> None:
    assert sent(parent, states=["a=1"]) is None
    assert Tracer(1.0, random.getrandbits).begin([(b"traceparent", parent.encode("latin-1"))]).trace_id != TRACE


def test_two_parents_are_none() -> None:
    assert sent(PARENT, PARENT) is None
    assert sent(states=["a=1"]) is None


LONGEST_KEY = "z" * 256
MEMBERS = [f"k{index}=v" for index in range(33)]


@pytest.mark.parametrize(
    ("states", "passed"),
    [
        pytest.param(["foo=1,bar=2"], "foo=1,bar=2", id="as it came"),
        pytest.param(["foo=1 \t , \t bar=2"], "foo=1 \t , \t bar=2", id="with spaces between"),
        pytest.param(["foo=1", "bar=2"], "foo=1,bar=2", id="several headers"),
        pytest.param(["foo=1", ",bar=2,"], "foo=1,,bar=2,", id="empty members are allowed"),
        pytest.param(["", "foo=1", "", "bar=2", ""], "foo=1,bar=2", id="empty headers say nothing"),
        pytest.param(["foo=1,bar=2,foo=3"], "foo=1,bar=2", id="the first of one key"),
        pytest.param([f"{LONGEST_KEY}=1"], f"{LONGEST_KEY}=1", id="the longest key"),
        pytest.param([f"{LONGEST_KEY}z=1"], "", id="a key too long"),
        pytest.param([f"{'t' * 241}@{'v' * 14}=1"], f"{'t' * 241}@{'v' * 14}=1", id="the longest tenant"),
        pytest.param([f"{'t' * 242}@v=1"], "", id="a tenant too long"),
        pytest.param([f"t@{'v' * 15}=1"], "", id="a system too long"),
        pytest.param(["0t@v=1"], "0t@v=1", id="a tenant may begin with a digit"),
        pytest.param(["foo=" + "v" * 256], "foo=" + "v" * 256, id="the longest value"),
        pytest.param(["foo=" + "v" * 257], "", id="a value too long"),
        pytest.param(["foo=! #$%&'()*+-./:;<>?@[]^_`{|}~"], "foo=! #$%&'()*+-./:;<>?@[]^_`{|}~", id="every sign"),
        pytest.param([",".join(MEMBERS[:32])], ",".join(MEMBERS[:32]), id="32 members"),
        pytest.param([",".join(MEMBERS)], "", id="33 members"),
        *(
            pytest.param([state], "", id=state)
            for state in ("foo", "foo=", "=1", "Foo=1", "1a=1", "foo =1", "foo=bar=baz", "foo@=1", "@foo=1")
        ),
        *(
            pytest.param([state], "", id=repr(state))
            for state in ("foo@@bar=1", "f@b@c=1", "foo=\xe9", "é=1", "", ",,")
        ),
    ],
)
def test_states(states: list[str], passed: str) -> None:
    context = sent(PARENT, states=states)
    assert context is not None
    assert context.tracestate == passed
    assert context.attempt()[1].get("tracestate", "") == passed


def test_a_long_state_loses_its_longest_and_then_its_last_members() -> None:
    short = [f"k{index}={'v' * 40}" for index in range(14)]
    state = [*short[:3], "long=" + "x" * 200, *short[3:]]
    found = trace_state([",".join(state).encode()])
    assert found == ",".join(short[:11])
    assert len(found) <= MAX_STATE < len(",".join(state))
    fitting = [*short[:5], "long=" + "x" * 200]
    assert trace_state([",".join(fitting).encode()]) == ",".join(fitting)
    two = ["a=" + "x" * 250, short[0], "b=" + "x" * 250]
    assert trace_state([",".join(two).encode()]) == ",".join(two[:2]), "only as many as it takes"


@given(st.lists(st.binary(max_size=300), max_size=4), st.lists(st.binary(max_size=80), max_size=2))
def test_whatever_comes_goes_out_clean(states: list[bytes], parents: list[bytes]) -> None:
    headers = [(b"traceparent", PARENT.encode()), *((b"tracestate", state) for state in states)]
    context = incoming([*headers, *((b"traceparent", parent) for parent in parents)])
    for value in context.attempt()[1].values() if context is not None else ():
        assert value.isascii()
        assert value.isprintable() or "\t" in value
        assert "\r" not in value
        assert "\n" not in value


def test_with_spans_the_attempt_is_the_parent() -> None:
    tracer = Tracer(1.0, random.Random(7).getrandbits)
    context = tracer.begin([(b"traceparent", PARENT.encode()), (b"tracestate", b"foo=1")])
    assert (context.trace_id, context.parent_id, context.sampled) == (TRACE, SPAN, True)
    first, told = context.attempt()
    second, _ = context.attempt()
    assert told == {"traceparent": f"00-{TRACE}-{first}-01", "tracestate": "foo=1"}
    assert len({first, second, context.span_id, SPAN}) == 4
    unsampled = tracer.begin([(b"traceparent", PARENT[:-1].encode() + b"0")])
    assert unsampled.attempt()[1]["traceparent"].endswith("-00"), "the caller decides"
    later = tracer.begin([(b"traceparent", f"cc-{TRACE}-{SPAN}-01-more".encode())])
    assert later.attempt()[1]["traceparent"].startswith(f"00-{TRACE}-"), "we speak version 00"


def test_a_trace_of_our_own() -> None:
    context = Tracer(1.0, random.Random(7).getrandbits).begin([(b"host", b"x")])
    assert context.parent_id is None
    assert incoming([(b"traceparent", context.attempt()[1]["traceparent"].encode())]) is not None
    assert Tracer(1.0, lambda bits: 0).begin([]).attempt()[1]["traceparent"] == f"00-{1:032x}-{1:016x}-01"


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (0.25, 400, 600), (1.0, 2000, 2000)])
def test_the_share_of_traces(ratio: float, least: int, most: int) -> None:
    tracer = Tracer(ratio, random.Random(3).getrandbits)
    assert least <= sum(tracer.begin([]).sampled for _ in range(2000)) <= most
