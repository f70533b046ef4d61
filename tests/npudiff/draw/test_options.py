"""Options of implementations: a field more in a case, drawn, shown, kept, and carried by inputs."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.draw.options import with_options
from npudiff.errors import ExitCode, UsageError
from npudiff.model.case import dumps, loads
from npudiff.model.constraints import Constraints
from npudiff.run.discovery import load_component, load_components

OPTIONS = {"FLAG": ("0", "1"), "pool": ("own", "shared")}
MASK = {"kv_lengths": [2], "window": 1, "spare": 0, "dtype": "int32", "column": False}


def drawn(component, constraints, count=60):
    seen = []

    @settings(max_examples=count, database=None, derandomize=True, deadline=None)
    @given(st.data())
    def collect(data):
        seen.append(data.draw(component.strategy(constraints)))

    collect()
    return seen


@pytest.mark.parametrize(
    "component", [one for one in load_components(()) if one.history is None], ids=lambda one: one.name
)
def test_cases_of_every_component_have_them_and_come_back_from_text(component):
    made = with_options(component, OPTIONS)
    for case in drawn(made, Constraints(), 5):
        assert case.FLAG in OPTIONS["FLAG"]
        made.check_case(case)
        assert loads(made.case_type, dumps(case)) == case
        assert made.values(case)["pool"] == (case.pool,)
        assert component.describe(case) in made.describe(case)


def test_all_values_are_drawn_together_and_the_smallest_case_has_the_usual_ones():
    made = with_options(load_component("swa_mask"), OPTIONS)
    seen = {(case.FLAG, case.pool) for case in drawn(made, Constraints())}
    assert seen == {("0", "own"), ("0", "shared"), ("1", "own"), ("1", "shared")}


@pytest.mark.slow
def test_constraints_say_which_go_with_what():
    made = with_options(load_component("swa_mask"), OPTIONS)
    within = Constraints.of([{"FLAG": ("1",), "window": (3,)}, {"FLAG": ("0",), "pool": ("shared",), "window": (5,)}])
    seen = {(case.FLAG, case.pool, case.window) for case in drawn(made, within)}
    assert seen == {("1", "own", 3), ("1", "shared", 3), ("0", "shared", 5)}


def test_only_what_is_not_usual_is_told():
    made = with_options(load_component("swa_mask"), OPTIONS)
    case = loads(made.case_type, json.dumps({**MASK, "FLAG": "0", "pool": "shared"}))
    assert made.describe(case).endswith(" · pool shared")
    assert "FLAG" not in made.describe(case)
    assert "pool shared" in made.features(case)


def test_inputs_carry_them_to_the_device_and_the_reference_takes_them():
    component = load_component("rms_norm")
    made = with_options(component, OPTIONS)
    (case, *_) = drawn(made, Constraints.of({"FLAG": ("1",), "pool": ("shared",)}), 1)
    inputs = made.inputs(case)
    assert inputs.to("cpu").options == {"FLAG": "1", "pool": "shared"}
    assert isinstance(inputs, type(component.inputs(case)))
    assert made.reference(inputs)["output"].value.shape == inputs.hidden.shape
    assert dataclasses.replace(inputs, epsilon=1.0).options == inputs.options


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"window": ("1",)}, "as an axis or a field of its cases is"),
        ({"kv_lengths": ("1",)}, "as an axis or a field of its cases is"),
        ({"flag": ()}, "has no value"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, why):
    with pytest.raises(UsageError, match=why):
        with_options(load_component("swa_mask"), options)


def test_a_value_that_there_is_not_is_no_case():
    made = with_options(load_component("swa_mask"), OPTIONS)
    with pytest.raises(ValueError, match="pool is one of own, shared, got gone"):
        made.check_case(loads(made.case_type, json.dumps({**MASK, "FLAG": "0", "pool": "gone"})))


def test_the_same_options_make_the_same_component():
    component = load_component("swa_mask")
    assert with_options(component, OPTIONS) is with_options(component, dict(OPTIONS))
    assert with_options(component, {}) is component


KERNEL = '''
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="mine", options={"FLAG": ("0", "1"), "mode": ("a", "b")}, on_device=True)
def mine(inputs, target):
    """Wrong with one flag."""
    window = inputs.window
    if inputs.options["FLAG"] == "1" and window is not None:
        window += 1
    return window_mask(inputs.kv_lengths, inputs.capacity, window)
'''


@pytest.mark.slow
def test_a_run_finds_the_option_shows_it_and_replays_with_it(cli, kernel, tmp_path):
    path = kernel(KERNEL)
    result = cli("check", "swa_mask", "--impl", path, "--target", "sim", "--seed", 1)
    assert result.code == ExitCode.FINDINGS
    assert "case       kv2 · window 1 · capacity 2 · int32 · FLAG 1\n" in result.out
    (folder,) = (tmp_path / ".npudiff" / "findings").glob("*equivalence*")
    case = json.loads((folder / "finding.json").read_text())["case"]
    assert (case["FLAG"], case["mode"]) == ("1", "a")
    assert cli("replay", folder, "--impl", path).code == ExitCode.FINDINGS
    text = json.dumps({**case, "FLAG": "0"})
    assert cli("check", "swa_mask", "--impl", path, "--target", "sim", "--case", text).code == ExitCode.CLEAN
    right = cli("check", "swa_mask", "--impl", path, "--target", "sim", "--where", "FLAG=0", "--examples", 10)
    assert right.code == ExitCode.CLEAN
    listed = cli("list", "swa_mask", "--impl", path).out
    assert "option FLAG: 0, 1" in listed


def test_every_run_of_a_relation_has_the_options_of_its_case(cli, kernel):
    source = """
import npudiff
from npudiff.device.ascend.rotary import npu_mrope

@npudiff.implementation("rotary", name="mine", options={"FLAG": ("0", "1")}, supports=npu_mrope.constraints.boxes)
def mine(inputs, target):
    assert inputs.options["FLAG"] == "1"
    return npu_mrope.function(inputs, target)
"""
    where = ("--where", "FLAG=1", "--target", "sim", "--examples", 20)
    result = cli("check", "rotary", "--impl", kernel(source), *where)
    assert result.code == ExitCode.CLEAN, result.out


@pytest.mark.slow
def test_a_known_issue_may_name_an_option(cli, kernel, tmp_path):
    path = kernel(KERNEL)
    (tmp_path / "known_issues.toml").write_text(
        '[[issue]]\ncomponent = "swa_mask"\nimplementation = "mine"\nwhere = ["FLAG=1"]\n'
        f'link = "https://example.org/1"\nexpires = {datetime.now(timezone.utc).date() + timedelta(days=30)}\n'
    )
    arguments = ("gate", "swa_mask", "--impl", path, "--target", "sim", "--budget", "60s", "--rotating", "off")
    result = cli(*arguments, "--known", tmp_path / "known_issues.toml")
    assert result.code == ExitCode.CLEAN, result.out + result.err


def test_a_component_with_options_may_get_others():
    once = with_options(load_component("swa_mask"), {"FLAG": ("0", "1")})
    made = with_options(once, {"pool": ("own", "shared")})
    case = loads(made.case_type, json.dumps({**MASK, "FLAG": "1", "pool": "shared"}))
    assert made.inputs(case).options == {"FLAG": "1", "pool": "shared"}
