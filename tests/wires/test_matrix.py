"""The cases of the five main vendors are complete: every feature, streamed and whole, for both kinds of client.

A new vendor of that rank is a row in `VENDORS` and folders; a hole in the folders fails here by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.wires.cases import ROOT, Case, cases

VENDORS = ("openai", "ollama", "gemini", "doubao", "kimi")
CLIENTS = ("openai", "ollama")
MODES = ("stream", "whole")

FEATURES = {
    "text": ("text",),
    "multi-turn": ("multi-turn",),
    "image": ("image",),
    "tool call": ("tool-call",),
    "tool result": ("tool-result",),
    "parallel tools": ("parallel-tools",),
    "parallel results": ("parallel-results", "parallel-tools-results"),
    "json schema": ("json-schema",),
    "reasoning": ("reasoning",),
    "error before the answer": ("error-key", "error-model"),
    "provider busy": ("error-rate-limit", "error-busy"),
    "error in the stream": ("stream-error",),
    "embeddings": ("embeddings", "embeddings-float"),
}
"""Each feature's case folders, the one or the other of which a vendor has: all but those of `ALL_OF` are different
names of one thing. An error in a stream that was not asked for is a 200 with an error in it."""
ALL_OF = frozenset({"error before the answer"})
WHOLE_ONLY = frozenset({"embeddings"})
REFUSED = {("kimi", "embeddings"): "Kimi has no embeddings: the case shows the refusal, and that nothing is sent"}


def combinations() -> Iterator[Any]:
    for vendor in VENDORS:
        for feature, folders in FEATURES.items():
            for folder in folders if feature in ALL_OF else (folders,):
                names = (folder,) if isinstance(folder, str) else folder
                for mode in ("whole",) if feature in WHOLE_ONLY else MODES:
                    for client in CLIENTS:
                        label = f"{vendor}-{feature}-{names[0]}-{mode}-{client}"
                        yield pytest.param(vendor, feature, names, mode, client, id=label)


def streams(case: Case) -> bool:
    client = case.json("client")
    return bool(client["body"].get("stream", client["wire"] == "ollama" and client["op"] in ("chat", "generate")))


def found(vendor: str, names: tuple[str, ...], mode: str, client: str) -> list[Case]:
    return [
        case
        for case in cases(vendor)
        if case.folder.name in names and case.json("client")["wire"] == client and streams(case) == (mode == "stream")
    ]


@pytest.mark.parametrize(("vendor", "feature", "names", "mode", "client"), list(combinations()))
def test_there_is_a_case_for(vendor: str, feature: str, names: tuple[str, ...], mode: str, client: str) -> None:
    there = found(vendor, names, mode, client)
    assert there, f"no case {vendor}/{' or '.join(names)} with a {mode} call of an {client} client"
    for case in there:
        asked = case.file("upstream_request", "json")
        if (vendor, feature) in REFUSED:
            assert asked is None, REFUSED[vendor, feature]
        else:
            assert asked is not None, f"{case.id} has no upstream_request"


@pytest.mark.parametrize("vendor", [path.name for path in sorted(ROOT.iterdir())])
def test_every_case_is_complete(vendor: str) -> None:
    """An answer for each client, a request for each that is not refused, and no file that belongs to nobody."""
    told: set[str] = set()
    for case in cases(vendor):
        expect = (case.json("case") or {}).get("expect", {})
        assert case.file("answer", "sse", "ndjson", "json") is not None, f"{case.id} has no answer"
        refused = expect.get("error") == "UnsupportedFeature"
        assert (case.file("upstream_request", "json") is None) == refused, f"{case.id}: request, or refusal expected"
        told.add(f"{case.folder.name}/{case.label}")
    assert told
    for path in (ROOT / vendor).glob("*/*"):
        stem, *middle, _ = path.name.split(".")
        assert stem in ("case", "client", "upstream", "upstream_request", "answer"), path
        if middle:
            assert f"{path.parent.name}/{'.'.join(middle)}" in told, f"{path} is for a client that is not there"


@pytest.mark.parametrize("vendor", VENDORS)
def test_answers_are_of_their_kind(vendor: str) -> None:
    """Streams end in what their client reads as a stream; errors before the answer and whole answers are one object."""
    endings = {"openai": ".sse", "ollama": ".ndjson"}
    for case in cases(vendor):
        answer = case.file("answer", "sse", "ndjson", "json")
        assert answer is not None
        wire = case.json("client")["wire"]
        if not streams(case):
            assert answer.suffix == ".json", case.id
        elif answer.suffix != ".json":
            assert answer.suffix == endings[wire], case.id
            text = answer.read_text(encoding="utf-8")
            assert text.endswith("data: [DONE]\n\n" if wire == "openai" else "}\n"), case.id
