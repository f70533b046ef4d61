"""npudiff as functions: what a notebook, a test and a program call."""

from __future__ import annotations

import functools
import subprocess
import sys
import types

import jsonschema
import pytest

import npudiff
from npudiff.device.ascend import int4_pack
from npudiff.errors import UsageError

SHOWS = "  case       1 matrix of 1 x 8"


def right(inputs, target):
    """Composed of shifts."""
    return int4_pack.shifted(int4_pack.signed(inputs), range(8))


def doubled(inputs, target):
    return right(inputs, target) * 2


def test_a_function_is_checked(tmp_path):
    result = npudiff.check(right, "int4_pack", examples=10, seed=1, target="sim", output=tmp_path)
    assert result
    assert result.require() is result
    assert (result.verdict, result.findings, result.compared) == ("clean", (), ("words",))
    assert result.cases >= 10
    assert set(result.margins) >= {"equivalence"}
    assert str(result).startswith("npudiff: clean: ")
    jsonschema.validate(result.document, npudiff.schema())


def test_a_finding_is_told_kept_and_replayed(tmp_path):
    result = npudiff.check(doubled, "int4_pack", examples=10, seed=1, output=tmp_path)
    assert not result
    assert SHOWS in str(result)
    with pytest.raises(AssertionError, match="wrong value"):
        result.require()
    one = result.findings[0]
    assert one.finding.case["columns"] == 8
    (again,) = npudiff.replay(one.folder, doubled)
    assert str(again) == f"FAILED {again.line}"
    assert len(repr(again)) < 1000
    line = f"npudiff.replay({str(one.folder)!r}, doubled)"
    assert line in str(result)
    assert "npudiff replay" not in str(result)
    assert [again.verdict.value for again in eval(line)] == ["FAILED"]  # noqa: S307 - the line that was shown
    assert [again.verdict.value for again in npudiff.replay(one.folder, right)] == ["FIXED"]
    assert [again.verdict.value for again in npudiff.replay(one.folder)] == ["ERROR"]  # nothing built in is called so
    page = result._repr_html_()
    assert "<iframe srcdoc=" in page
    assert "int4_pack.doubled" in page
    assert "<script" not in page


def test_the_same_seed_draws_the_same(tmp_path):
    first, second = (npudiff.check(doubled, "int4_pack", examples=5, seed=3, output=tmp_path) for _ in range(2))
    assert first.findings[0].finding.key == second.findings[0].finding.key


@pytest.mark.slow
def test_files_names_and_implementations_are_checked(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import npudiff\nfrom npudiff.device.ascend import int4_pack\n"
        "@npudiff.implementation('int4_pack')\n"
        "def mine(inputs, target):\n    return int4_pack.shifted(int4_pack.signed(inputs), range(8))\n"
    )
    for what in (file, str(file), "int4_pack.shifted_words", int4_pack.shifted_words):
        assert npudiff.check(what, "int4_pack", examples=3, output=tmp_path)
    untrusted = npudiff.check(file, "int4_pack", examples=3, untrusted=True, output=tmp_path)
    assert untrusted
    several = npudiff.check([right, doubled], "int4_pack", examples=3, output=tmp_path)
    assert {one["implementation"]: one["verdict"] for one in several.document["implementations"]} == {
        "right": "holds",
        "doubled": "findings",
    }


def test_what_a_function_supports_is_said(tmp_path):
    result = npudiff.check(
        right, "int4_pack", examples=10, supports={"columns": (8, 16)}, where=["columns=16"], output=tmp_path
    )
    assert result
    with pytest.raises(UsageError, match="column"):
        npudiff.check(right, "int4_pack", supports={"column": (8,)}, output=tmp_path)


def test_what_has_no_name_is_checked_too(tmp_path):
    result = npudiff.check(
        lambda inputs, target: right(inputs, target).clone(), "int4_pack", examples=2, output=tmp_path
    )
    assert result.document["implementations"][0]["implementation"] == "given"
    assert npudiff.check(functools.partial(right), "int4_pack", examples=2, output=tmp_path)


def test_a_function_that_was_made_by_text_has_no_module(tmp_path):
    made = types.FunctionType(right.__code__, {"int4_pack": int4_pack}, "mine")
    made.__module__ = None
    assert npudiff.check(made, "int4_pack", examples=1, output=tmp_path)


def test_what_no_case_can_say_of_is_not_true(tmp_path):
    @npudiff.implementation("int4_pack", requires=lambda: "a card")
    def elsewhere(inputs, target):
        return right(inputs, target)

    with pytest.raises(UsageError, match="a card"):
        npudiff.check(elsewhere, output=tmp_path)
    beside = npudiff.check([right, elsewhere], "int4_pack", examples=2, output=tmp_path)
    assert beside.document["left_out"][0]["why"] == "a card"


@pytest.mark.parametrize(
    ("what", "more", "said"),
    [
        (right, {}, "component= says what a function computes"),
        (["shifted_words", right], {"component": "int4_pack"}, "either functions, or names and files"),
        ("shifted_words", {"component": "int4_pack", "supports": {"columns": (8,)}}, "supports= is of functions"),
        (lambda inputs: inputs, {"component": "int4_pack"}, "takes"),
        (right, {"component": "int4_pck"}, "did you mean 'int4_pack'"),
    ],
)
def test_what_makes_no_sense_is_refused(what, more, said, tmp_path):
    with pytest.raises((UsageError, TypeError), match=said):
        npudiff.check(what, output=tmp_path, **more)


def test_components_have_their_contract():
    (one,) = npudiff.components(["int4_pack"])
    assert one.outputs == ("words",)
    assert all(field.meaning for field in one.inputs)
    assert len(npudiff.components()) > 20


def test_importing_npudiff_imports_no_torch():
    program = "import sys, npudiff; npudiff.check.__name__ if 0 else None; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'chek'"):
        npudiff.chek  # noqa: B018 - that is the test
