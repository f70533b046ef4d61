"""The tables of docs/real-bugs.md: ``python tests/support/real_bugs.py`` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from npudiff.model.implementation import Implementation
from npudiff.run.discovery import built_in_implementations

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "real-bugs.md"
BEGIN = "## Mutants, by component\n"


def tables() -> str:
    """Return a table for each component: its mutants, what is wrong with them, and where that comes from."""
    mutants: dict[str, list[Implementation]] = {}
    for item in built_in_implementations():
        if item.wrong:
            mutants.setdefault(item.component, []).append(item)
    parts = []
    for component in sorted(mutants):
        rows = "\n".join(_row(item) for item in mutants[component])
        parts.append(f"\n### `{component}`\n\n| mutant | what is wrong | from |\n| --- | --- | --- |\n{rows}\n")
    return "".join(parts)


def _row(item: Implementation) -> str:
    origin, _, what = str(item.wrong).partition(": ")
    what = what or item.summary
    link = re.search(r"https://github\.com/(\S+)", origin)
    source = f"[{link.group(1)}]({link.group(0)})" if link else re.sub(r"^[A-Z]{3}-\d\d ", "", origin)
    return f"| `{item.name}` | {what[0].upper()}{what[1:]} | {source} |".replace("\n", " ")


def main() -> None:
    """Replace what stands behind the heading."""
    before, _, _ = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + tables(), encoding="utf-8")


if __name__ == "__main__":
    main()
