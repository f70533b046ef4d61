"""Every adapter on drawn cases, through the operators that torch_npu registers, beside its own shape functions.

The simulator's shape functions, which stand in for those where torch_npu is absent, are asked about the same calls.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from npudiff.device import targets
from npudiff.device.contract.calls import recorded_calls, watching
from npudiff.device.contract.drawing import implementations, run_drawn
from npudiff.device.contract.shapes import ShapeWatch, is_of_torch_npu
from npudiff.device.simulator.library import operators
from npudiff.device.simulator.schemas import namespace, qualified_name
from npudiff.run.discovery import component_names, load_component

EXAMPLES = 15
"""Cases of each implementation, if nobody asks for fewer."""

NOT_TORCH_NPUS = {
    "npu::mla_preprocess", "npu::apply_token_bitmask", "npu::causal_conv1d", "npu::chunk_gated_delta_rule",
    "npu::recurrent_gated_delta_rule", "npu::sgl_sparse_flash_attention", "npu::build_tree_kernel_efficient",
    "npu::cache_loc_update",
}  # fmt: skip


def _norm_that_nobody_asked_for(simulated, wheel):
    """Documented to be there with ``out_flag`` only, which no adapter sets; the shape function always has it."""
    return simulated == "None" and wheel[1] == torch.float32


def _argument_without_a_default(simulated, wheel):
    """The schema has None for k, and the shape function no default: where k is left out, it cannot be called."""
    return "missing 1 required positional argument: 'k'" in str(wheel)


def _number_that_is_computed(simulated, wheel):
    """How many weights a dropout would have bits for: the shape function says 0, and so does the simulator's own."""
    return str(simulated).isdecimal() and wheel == "0"


AGREED = {
    ("npu::npu_fusion_attention", 6): _number_that_is_computed,
    ("npu::npu_top_k_top_p", 0): _argument_without_a_default,
    ("npu::npu_moe_gating_top_k", 2): _norm_that_nobody_asked_for,
}
"""Where the simulator knows better than the shape function, or another profile would agree: by operator and output."""

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("torch_npu")]


def is_agreed(disagreement):
    known = AGREED.get((disagreement.operator, disagreement.output))
    return known is not None and known(disagreement.simulated, disagreement.wheel)


@pytest.fixture(scope="module")
def account():
    """What all tests of this module have seen."""
    ours = {f"{namespace(one.schema)}::{qualified_name(one.schema)}": one.meta for one in operators()}
    total = {"ours": ours, "components": set(), "agreed": set(), "cases": 0, "calls": Counter(), "compared": Counter()}
    yield total
    print(
        f"\n{total['cases']} cases, {total['calls'].total()} calls of {len(total['calls'])} operators; "
        f"{total['compared'].total()} calls of {len(total['compared'])} compared with the wheel's shape functions"
    )


IN_THIS_PROCESS = [name for name in component_names() if load_component(name).ranks is None]
"""Calls of ranks are made in processes into which nobody looks."""


@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_calls_bind_are_recorded_and_give_the_wheels_shapes(name, account, at_most):
    component, target, recorded = load_component(name), targets.sim(None), recorded_calls()
    account["components"].add(name)
    for item in implementations(component):
        watch, made = ShapeWatch(account["ours"]), []
        with watching(made.append), watch:
            outcome = run_drawn(component, item, target, at_most(EXAMPLES))
        assert outcome.failure is None, f"{item.name}: {outcome.failure}"
        assert outcome.cases
        assert sorted({str(call) for call in made if not call.is_among(recorded)}) == [], item.name
        assert {one for one in watch.calls if not is_of_torch_npu(one)} <= NOT_TORCH_NPUS
        assert len(made) == watch.calls.total(), f"{item.name}: a call went past the dispatcher"
        assert [str(one) for one in watch.disagreements if not is_agreed(one)][:3] == [], item.name
        account["agreed"] |= {(one.operator, one.output) for one in watch.disagreements}
        account["cases"] += outcome.cases
        account["calls"] += watch.calls
        account["compared"] += watch.compared


def test_no_exception_has_become_needless(account, at_most):
    if account["components"] != set(IN_THIS_PROCESS) or at_most(EXAMPLES) < EXAMPLES:
        pytest.skip("not all components ran, or with fewer cases")
    assert account["agreed"] == set(AGREED)
