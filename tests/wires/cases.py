"""Runs the cases under tests/fixtures/vendors: client body in, upstream request out, upstream answer in, client bytes
out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from providers import registry
from providers.call import Call
from providers.errors import SwitchyardError, UnsupportedFeature, UpstreamError
from providers.vendor import Vendor
from providers.wire import Meter, Stamp, Wire

ROOT = Path(__file__).resolve().parent.parent / "fixtures" / "vendors"
KEY = "test-key-of-the-router"
REQUEST_ID = "req_00000000000000000000000000000001"
CREATED = 1793203201.0
"""2026-10-28T16:00:01Z; the clock stands 1.5 s later."""
VENDORS = {"compatible": "openai-compatible"}
"""Folders that are not named like their vendor."""
CHUNKS = (1, 7, 0)
"""Bytes a chunk; 0: the whole body at once."""
NO_SPEC: Mapping[str, Any] = {}


class Case(Struct, frozen=True):
    folder: Path
    label: str
    """`openai-stream` for `client.openai-stream.json`; '' for `client.json`."""

    @property
    def id(self) -> str:
        parts = self.folder.relative_to(ROOT).parts
        return "/".join((*parts, self.label)) if self.label else "/".join(parts)

    def file(self, stem: str, *endings: str) -> Path | None:
        """`answer.openai-stream.sse`, else `answer.sse` for what all clients of the case share."""
        for name in (f"{stem}.{self.label}", stem) if self.label else (stem,):
            for ending in endings:
                path = self.folder / f"{name}.{ending}"
                if path.exists():
                    return path
        return None

    def json(self, stem: str) -> Any:
        path = self.file(stem, "json")
        return None if path is None else orjson.loads(path.read_bytes())


class Answer(Struct):
    """What the client got, and what the router learned."""

    body: bytes
    ending: str
    """`sse`, `ndjson` or `json`: how the file of the answer ends."""
    status: int
    error: SwitchyardError | None
    meter: Meter | None
    request: dict[str, Any] | None


def cases(*vendors: str) -> Iterator[Case]:
    """Every client file of every case folder, of the vendors named or of all."""
    for path in sorted(ROOT.glob("*/*/client*.json")):
        if not vendors or path.parent.parent.name in vendors:
            yield Case(path.parent, path.name.removeprefix("client").removesuffix(".json").removeprefix("."))


def stamp(model: str) -> Stamp:
    return Stamp(request_id=REQUEST_ID, created=CREATED, clock=lambda: CREATED + 1.5, answered_by=model)


def run(case: Case, chunk: int) -> Answer:
    spec: Mapping[str, Any] = case.json("case") or NO_SPEC
    client = case.json("client")
    vendor_name = case.folder.parent.name
    vendor = registry.vendor(VENDORS.get(vendor_name, vendor_name), spec.get("options"))
    wire = registry.wire(client["wire"])
    call = wire.read_call(client["op"], client["body"], path_model=client.get("path_model"))
    model = spec.get("model", call.asked_model)
    try:
        made = vendor.request(call, model, KEY)
    except UnsupportedFeature as error:
        return Answer(wire.write_error(error, REQUEST_ID), "json", error.status, error, None, None)
    request = {
        "method": made.method,
        "path": made.path,
        "headers": dict(made.headers),
        "body": orjson.loads(made.body),
    }
    status = spec.get("status", 200)
    headers = spec.get("headers", {})
    upstream = _upstream(case, call, status)
    if status >= 400:
        return _refused(wire, vendor.classify(status, headers, upstream), None, request)
    if not call.stream:
        return _whole(vendor, wire, call, model, upstream, request)
    return _stream(vendor, wire, call, model, upstream, chunk, request)


def _upstream(case: Case, call: Call, status: int) -> bytes:
    endings = ("sse", "ndjson", "json", "txt") if call.stream and status < 400 else ("json", "txt")
    path = case.file("upstream", *endings)
    assert path is not None, f"{case.id}: there is no upstream.{'|'.join(endings)}"
    return path.read_bytes()


def _refused(wire: Wire, error: UpstreamError, meter: Meter | None, request: dict[str, Any]) -> Answer:
    return Answer(wire.write_error(error, REQUEST_ID), "json", error.status, error, meter, request)


def _whole(vendor: Vendor, wire: Wire, call: Call, model: str, upstream: bytes, request: dict[str, Any]) -> Answer:
    lane = vendor.lane(call, wire, stamp(model))
    try:
        body = lane.whole(upstream)
    except UpstreamError as error:
        return _refused(wire, error, lane.meter, request)
    return Answer(body, "json", 200, None, lane.meter, request)


def _stream(
    vendor: Vendor, wire: Wire, call: Call, model: str, upstream: bytes, chunk: int, request: dict[str, Any]
) -> Answer:
    """As the engine does it: nothing goes out before content; an error after it is told inside the stream."""
    lane = vendor.lane(call, wire, stamp(model))
    size = chunk or max(len(upstream), 1)
    frames = [frame for start in range(0, len(upstream), size) for frame in lane.feed(upstream[start : start + size])]
    frames += lane.close()
    sent: list[bytes] = []
    committed = False
    for position, frame in enumerate(frames):
        if frame.kind == "error":
            assert frame.error is not None
            assert position == len(frames) - 1, "frames after the error frame"
            assert not frame.data
            if not committed:
                return _refused(wire, frame.error, lane.meter, request)
            sent.append(wire.write_stream_error(call, frame.error, REQUEST_ID))
            return Answer(b"".join(sent), _ending(wire), 200, frame.error, lane.meter, request)
        committed = committed or frame.kind in ("content", "terminal")
        sent.append(frame.data)
    assert frames, "no frame at all"
    assert frames[-1].kind == "terminal", "the last frame must end the answer"
    return Answer(b"".join(sent), _ending(wire), 200, None, lane.meter, request)


def _ending(wire: Wire) -> str:
    return "ndjson" if "ndjson" in wire.stream_type else "sse"


def facts(answer: Answer) -> dict[str, Any]:
    """What `expect` in case.json may name."""
    usage = answer.meter.usage if answer.meter is not None else None
    error = answer.error
    return {
        "status": answer.status,
        "error": type(error).__name__ if error is not None else None,
        "retry_after": error.retry_after if error is not None else None,
        "usage": {name: value for name, value in msgspec.structs.asdict(usage).items() if value is not None}
        if usage is not None
        else None,
        "finish": answer.meter.finish if answer.meter is not None else None,
        "answered_model": answer.meter.model if answer.meter is not None else None,
    }
