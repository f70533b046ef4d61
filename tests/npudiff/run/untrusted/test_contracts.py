"""A candidate's process has contracts of npudiff, and neither references nor what judges."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import npudiff
from npudiff.run.discovery import component_names, load_component
from npudiff.run.untrusted.contracts import REFERENCE, hide_references, needed_by_contracts

FOLDER = Path(npudiff.__path__[0]) / "reference"


def hidden(code):
    """What a fresh process prints that has hidden its references."""
    begin = "from npudiff.run.untrusted.contracts import hide_references\nhide_references()\n"
    command = [sys.executable, "-c", begin + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_no_reference_is_there_and_every_contract_is():
    references = {}
    for name in component_names():
        reference = load_component(name).reference
        references.setdefault(reference.__module__, []).append(reference.__name__)
    functions = [
        (module, name) for module, names in references.items() for name in names if module.startswith(REFERENCE)
    ]
    assert len(functions) > 20
    result = hidden(f"""
        import importlib
        for module, name in {functions}:
            there = importlib.import_module(module)
            assert not hasattr(there, name), (module, name)
            assert any(one.endswith("Inputs") for one in vars(there)) or module.count(".") > 2, module
        import npudiff.device.ascend
        from npudiff.reference.swiglu import SwigluInputs, Activation
        print("fine")
    """)
    assert result.stdout == "fine\n", result.stderr


@pytest.mark.parametrize(
    "module", ["npudiff.properties", "npudiff.judge.compare", "npudiff.draw.cases", "npudiff.device.mutants"]
)
def test_what_judges_cannot_be_imported(module):
    result = hidden(f"import {module}")
    assert "is not there for a candidate, which gets inputs and gives outputs" in result.stderr


@pytest.mark.slow
def test_nothing_that_computes_an_expected_value_is_needed_by_a_contract():
    needed = needed_by_contracts(FOLDER)
    for path in FOLDER.rglob("*.py"):
        module = ".".join(
            (REFERENCE, *(part for part in path.relative_to(FOLDER).with_suffix("").parts if part != "__init__"))
        )
        for one in ast.parse(path.read_bytes()).body:
            if isinstance(one, ast.FunctionDef) and one.returns is not None and "Expected" in ast.unparse(one.returns):
                assert (module, one.name) not in needed


def test_it_is_refused_where_a_reference_was_imported_before():
    with pytest.raises(RuntimeError, match=r"^imported already: npudiff\."):
        hide_references()


def test_it_is_refused_where_what_draws_cases_was_imported_before(monkeypatch):
    others = {name: one for name, one in sys.modules.items() if not name.startswith("npudiff.")}
    monkeypatch.setattr(sys, "modules", {**others, "npudiff.draw.cases": None})
    with pytest.raises(RuntimeError, match=r"^imported already: npudiff\.draw\.cases$"):
        hide_references()
