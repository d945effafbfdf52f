"""`python -m tools.dashboards` writes config/grafana/dashboards and the list of alerts in docs/dashboards.md; with
`--check` it writes nothing, names the files that differ from what it would write, and ends with 1 if there are any."""

import sys

from tools.dashboards.files import ROOT, files


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m tools.dashboards [--check]", file=sys.stderr)
        return 2
    different = [(path, text) for path, text in files() if not path.exists() or path.read_text("utf-8") != text]
    for path, text in different:
        if arguments:
            print(f"{path.relative_to(ROOT)}: not what tools/dashboards makes; run: make dashboards", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return int(bool(arguments and different))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
