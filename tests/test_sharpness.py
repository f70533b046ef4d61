"""How small an error may be and is still found: it must not become blunter than what is recorded, or than was asked."""

from __future__ import annotations

import json

import pytest

from benchmarks import sharpness
from benchmarks.sharpness import CASE, NONE, RUN, SOFTMAX_SCALE, TRUNCATED
from npudiff.run.discovery import load_component

RECORDED = json.loads(sharpness.RECORD.read_text(encoding="utf-8"))

ASKED = {
    ("decoder_layer", "hidden"): -7,
    ("decoder_layer", "keys"): -8,
    ("decoder_layer", "values"): -8,
    ("decoder_layer", "residual"): -8,
    ("moe_experts", "output"): -8,
    ("mla_preprocess", "query_rope"): -8,
    ("sliding_attention", "output"): -9,
    ("rotary", "query"): -9,
    ("rotary", "key"): -9,
    ("swiglu", "output"): -9,
}
"""The largest factor ``1 + 2**exponent`` that half of the runs must find."""

FAST = ("moe_finalize", "swiglu")
"""Measured again in the default suite, with one seed."""


@pytest.mark.parametrize(("component", "output"), ASKED, ids=".".join)
def test_the_record_is_as_sharp_as_asked(component, output):
    assert RECORDED[component][output][RUN] <= ASKED[component, output]


def test_every_component_with_bounds_is_recorded():
    assert {component.name for component in sharpness.subjects() if component.name in RECORDED} == set(RECORDED)
    assert all(line[NONE][RUN] == line[NONE][CASE] == 0 for outputs in RECORDED.values() for line in outputs.values())


@pytest.mark.parametrize("component", ["swiglu", "moe_finalize"])
def test_truncation_is_recorded_as_found(component):
    assert RECORDED[component]["output"][TRUNCATED][RUN] >= 0.5


def test_a_softmax_scale_that_is_a_thousandth_off_is_recorded_as_found():
    assert RECORDED["sliding_attention"]["output"][SOFTMAX_SCALE][RUN] >= 0.5


def test_the_page_shows_the_record():
    text = sharpness.DOCUMENT.read_text(encoding="utf-8")
    shown = text.partition(sharpness.BEGIN)[2].partition(sharpness.END)[0].strip().splitlines()
    assert shown == sharpness.table(RECORDED)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_a_run_is_as_sharp_as_recorded(name):
    assert_as_sharp(name, seeds=(4,))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_runs_are_as_sharp_as_recorded(name):
    assert_as_sharp(name, seeds=(5, 6))


def assert_as_sharp(name, seeds):
    """No method of npudiff may be blunter than recorded by more than a factor of 2, which other draws may cost."""
    now = sharpness.measured(load_component(name), seeds)
    assert set(now) == set(RECORDED[name])
    for output, line in now.items():
        assert line[NONE][RUN] == 0, output
        for method in (RUN, CASE):
            recorded, found = RECORDED[name][output][method], line[method]
            assert recorded is None or (found is not None and found <= recorded + 1), (output, method, line)
        if RECORDED[name][output][TRUNCATED][RUN] == 1:
            assert line[TRUNCATED][RUN] == 1, output
