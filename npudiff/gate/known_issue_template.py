"""A template of known issues: an entry per finding, whose link and expiry date somebody has to fill in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from npudiff.findings.finding import Finding
from npudiff.model.case import dumps
from npudiff.text import printable

_HEAD = """# Findings of this gate as entries of a file of known issues. Each needs the link of an issue, and the day on
# which it expires, in the place of the last line; "where" says which cases fail, in the words of 'npudiff list
# COMPONENT'. Where it stays empty, no case is run but to see that the issue is still there.
"""


def draft(findings: Sequence[Finding]) -> str:
    """Return the file, which is TOML; without what has to be filled in it is refused."""
    return _HEAD + "".join(f"\n{''.join(_entry(finding))}" for finding in findings)


def _entry(finding: Finding) -> Iterator[str]:
    yield f"# {printable(str(finding.detail.get('line', '')))}\n[[issue]]\n"
    values = {
        "component": finding.component,
        "implementation": finding.implementation,
        "property": finding.property_name,
        "verdict": finding.verdict,
        "case": dumps(dict(finding.case)),
        "target": [finding.target],
        "link": "",
    }
    for name, value in values.items():
        yield f"{name} = {_quoted(value) if isinstance(value, str) else '[' + ', '.join(map(_quoted, value)) + ']'}\n"
    where = ", ".join(_quoted(str(one)) for one in finding.detail.get("region") or ())
    yield f"where = [{where}]\n# expires = YEAR-MONTH-DAY\n"


def _quoted(text: str) -> str:
    """A basic string of TOML, which JSON's strings are as well once they have no surrogates."""
    return json.dumps(printable(text), ensure_ascii=False)
