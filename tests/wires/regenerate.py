"""Writes `answer.*` and `upstream_request.*` of cases for review: `python -m tests.wires.regenerate kimi/text
[openai-stream]`.

What it writes is what the code does, not what is right: read every file before it is committed.
"""

from __future__ import annotations

import sys

import orjson

from tests.wires.cases import KEY, Case, cases, run


def write(case: Case) -> None:
    answer = run(case, 0)
    label = f".{case.label}" if case.label else ""
    for old in case.folder.glob(f"answer{label}.*"):
        if old.name.count(".") == label.count(".") + 1:
            old.unlink()
    (case.folder / f"answer{label}.{answer.ending}").write_bytes(answer.body)
    request_file = case.folder / f"upstream_request{label}.json"
    request_file.unlink(missing_ok=True)
    if answer.request is not None:
        shown = {"method": answer.request["method"], "path": answer.request["path"], "body": answer.request["body"]}
        credential = {name: value for name, value in answer.request["headers"].items() if KEY in value}
        if credential:
            shown["headers"] = credential
        request_file.write_bytes(orjson.dumps(shown, option=orjson.OPT_INDENT_2) + b"\n")
    print(f"{case.id}: {answer.status} {type(answer.error).__name__ if answer.error else ''}")


def main(wanted: list[str]) -> int:
    found = [
        case
        for case in cases()
        if any(case.id == name or case.id.startswith(f"{name}/") or case.id.startswith(f"{name}-") for name in wanted)
    ]
    for case in found:
        write(case)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
