"""Write docs/contracts.md: what each component gives an implementation, and what it must return.

python -m benchmarks.contracts
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from npudiff.api import components
from npudiff.show.listing import OF_TENSORS, InputField, ListedComponent

PAGE = Path(__file__).parent.parent / "docs" / "contracts.md"

HEAD = """# Contracts

What each component gives an implementation, what that has to return, and the axes of cases. `npudiff list COMPONENT`
shows the same, with the implementations that there are and what each supports. This page is written by
`python -m benchmarks.contracts` from the source: the text is that of the classes of inputs and of the references.

An implementation is called with `(inputs, target)`: inputs are on the host, or on `target.device` with
`on_device=True`. It returns a tensor, which is the first output, or a mapping from output name to tensor; outputs that
it leaves out are not compared.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    found = components()
    names = " · ".join(f"[{one.name}](#{one.name})" for one in found)
    return "\n".join([HEAD, names, *(line for one in found for line in _component(one))]) + "\n"


def _component(one: ListedComponent) -> Iterator[str]:
    yield f"\n## {one.name}\n"
    yield f"{one.summary[:1].upper()}{one.summary[1:]}. Inputs: `{one.inputs_class}`.\n"
    yield from _fields(one.inputs, "")
    if one.methods:
        yield "\nIt opens an object with these methods:\n"
        for method in one.methods:
            yield f"- `{method.name}{method.signature}`: {_inline(method.meaning)}"
    if one.ranks:
        yield "\n[Several ranks](ranks.md) compute it: these are the inputs of one, and each returns its rows."
    yield f"\nOutputs: {', '.join(f'`{name}`' for name in one.outputs)}. {_inline(one.returns)}\n"
    yield "| axis | what it is | values |\n| --- | --- | --- |"
    for axis in one.axes:
        yield f"| `{axis.name}` | {_cell(axis.meaning)} | {_cell(axis.values)} |"
    if not one.history:
        yield f"\nIllegal inputs, for `checks=True`: {'; '.join((*one.illegal, OF_TENSORS))}."


def _fields(fields: Sequence[InputField], indent: str) -> Iterator[str]:
    for one in fields:
        yield f"{indent}- `{one.name}`: `{one.type}`. {_inline(one.meaning)}"
        yield from _fields(one.fields, indent + "  ")


def _inline(text: str) -> str:
    """Return text of several lines, in reStructuredText, as one line of Markdown."""
    return " ".join(text.split()).replace("``", "`")


def _cell(text: str) -> str:
    return _inline(text).replace("|", "\\|")


if __name__ == "__main__":
    main()
