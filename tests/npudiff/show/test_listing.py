"""The contract of components: nobody has to open the source to know what an implementation is given and returns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from npudiff.run.discovery import component_names, load_component, select_implementations
from npudiff.show.listing import fields_of, lines_of, listed, section_of


def all_fields(fields):
    for one in fields:
        yield one
        yield from all_fields(one.fields)


@pytest.mark.parametrize("name", component_names())
def test_every_input_and_every_output_of_a_component_is_said(name):
    component = load_component(name)
    said = listed(component, select_implementations([component], []))
    assert said.inputs_class.startswith("npudiff.reference.")
    assert [one.name for one in all_fields(said.inputs) if not one.meaning] == []
    assert [output for output in said.outputs if f"``{output}``" not in said.returns] == []
    assert bool(said.methods) is said.history
    assert [one.name for one in said.methods if not one.meaning] == []
    lines = lines_of(said, full=True)
    assert all(any(line.strip().startswith(f"{one.name}: ") for line in lines) for one in said.inputs)
    assert len(lines_of(said, full=False)) < len(lines)


@dataclass
class Inner:
    """Something in something else."""

    depth: int
    """How deep."""


@dataclass
class Outer:
    """Has all that a class of inputs may have."""

    first: int
    second: int
    """Of two fields at once."""
    inner: Inner
    """One more."""
    again: tuple[Inner, ...]
    """The same, several times."""
    silent: float


@dataclass
class Grown(Outer):
    """Has the fields of another one."""

    own: int
    """Its own."""


def test_what_stands_under_a_field_is_its_meaning():
    said = {one.name: one for one in fields_of(Grown)}
    assert said["first"].meaning == said["second"].meaning == "Of two fields at once."
    assert said["silent"].meaning == ""
    assert said["own"].meaning == "Its own."
    assert [one.name for one in said["inner"].fields] == ["depth"]
    assert said["again"].fields == ()  # told above
    assert said["again"].type == "tuple[Inner, ...]"


def test_a_class_without_source_has_fields_without_meaning():
    made = dataclass(type("Made", (), {"__annotations__": {"size": "int"}, "__module__": __name__}))
    assert [(one.name, one.meaning) for one in fields_of(made)] == [("size", "")]


def test_a_section_of_a_docstring():
    text = "Do.\n\nReturns\n-------\ndict\n    ``a``: one.\n\n    ``b``: two.\n\nRaises\n------\nValueError\n    No."
    assert section_of(text, "Returns") == "``a``: one.\n\n``b``: two."
    assert section_of(text, "Raises") == "No."
    assert section_of(text, "Notes") == ""
