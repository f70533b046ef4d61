"""Print the table of measurements, and with --update keep it in docs/measured.md between its markers."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.measure import Row

MODULES = (
    "start",
    "engine",
    "reference",
    "long_references",
    "layouts",
    "experts",
    "shrinking",
    "margins",
    "state_machine",
    "virtual",
    "ranks",
    "isolation",
    "regions",
    "judge",
    "campaign",
)
DOCUMENT = Path(__file__).parent.parent / "docs" / "measured.md"
"""Page that shows the table."""

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> int:
    """Run the measurements; 1 if one of them is not what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[[], *MODULES], help="which to run; all by default")
    parser.add_argument(
        "--update", type=Path, nargs="?", const=DOCUMENT, metavar="FILE", help="replace the table in docs/measured.md"
    )
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.modules or MODULES:
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            print(f"{'ok  ' if row.holds else 'MISS'} {row.what}: {row.measured} (asked: {row.asked})", flush=True)
            rows.append(row)
    if options.update is not None:
        _update(options.update, rows)
    return 0 if all(row.holds for row in rows) else 1


def _update(path: Path, rows: list[Row]) -> None:
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"{path}: no {BEGIN} ... {END}")
    lines = ["| measured | result | asked for |", "| --- | --- | --- |"]
    lines += [f"| {row.what} | {row.measured}{'' if row.holds else ' **(missed)**'} | {row.asked} |" for row in rows]
    path.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
