"""Adapters: their answers are right at the edges, under every profile that documents what they rely on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff.device import ascend, targets
from npudiff.device.ascend.swa_mask import window_mask
from npudiff.judge.compare import compare
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.sliding_attention import component
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.properties.swa_mask import SwaMaskCase
from npudiff.properties.swa_mask import component as mask_component
from npudiff.run.engine import run_job

ATTENTION = [item for item in map(vars(ascend).get, ascend.__all__) if item.component == "sliding_attention"]
DECODES = [item for item in ATTENTION if "decode" in item.name]
WINDOWLESS = ("fia_v1_extend_tnd",)


def by_name(item):
    return item.name


def laid_out(item, drawn):
    """The same case with pages as the implementation wants them."""
    return replace(drawn, layout="PA_NZ" if item.name.endswith("_nz") else "PA_BSND")


def case(*lengths, window=4, page_size=16, **changes):
    requests = tuple(Request(query, kv) for query, kv in lengths)
    return SlidingAttentionCase(requests, window, page_size, **{"kv_heads": 2, "group": 3, "spare_pages": 1, **changes})


def answer(item, drawn, cann=None):
    inputs, target = component.inputs(laid_out(item, drawn)), targets.sim(cann)
    with target.activate():
        outputs = Subject(component, item, target).run(inputs)
    return inputs, outputs, compare(component.reference(inputs), outputs)


DECODE = case((1, 9), (1, 40), (1, 1), padded_rows=2)
EDGES = {
    "padding": replace(DECODE, padded_rows=3, page_size=128),
    "empty request": case((1, 0), (1, 7), (1, 0), page_size=128, recipe="needle"),
    "only empty requests": case((1, 0), page_size=128, padded_rows=1),
    "window of one": case((1, 9), (1, 1), window=1, page_size=128, recipe="needle"),
    "window as long as the history": case((1, 9), window=9, page_size=128, recipe="needle"),
    "border of a page": case((1, 128), (1, 129), (1, 127), window=128, page_size=128, recipe="needle"),
    "no window": case((1, 300), (1, 2), window=None, page_size=128, recipe="needle"),
    "hybrid": case((1, 300), (1, 2), page_size=128, hybrid=True, recipe="needle"),
}


@pytest.mark.few(44)
@pytest.mark.parametrize("item", ATTENTION, ids=by_name)
@pytest.mark.parametrize("edge", EDGES)
def test_a_decode_is_right_at_the_edges(item, edge):
    drawn = laid_out(item, EDGES[edge])
    drawn = drawn if item.name not in WINDOWLESS else replace(drawn, window=None)
    assert item.constraints.reason_against(component.values(drawn)) is None
    _, outputs, comparison = answer(item, drawn)
    assert comparison.holds, comparison.worst_output.name
    assert outputs["output"].any() or edge == "only empty requests"
    rows = sum(request.query for request in drawn.requests)
    assert not outputs["output"][rows:].any()


@pytest.mark.parametrize("item", [item for item in ATTENTION if item not in DECODES], ids=by_name)
@pytest.mark.parametrize("lengths", [[(3, 9), (3, 40), (3, 3)], [(2, 128), (2, 129)], [(8, 8)]])
def test_several_rows_are_right_at_the_edges(item, lengths):
    window = None if item.name in WINDOWLESS else 4
    drawn = case(*lengths, window=window, page_size=128, padded_rows=2, recipe="needle")
    _, outputs, comparison = answer(item, drawn)
    assert 0 < comparison.worst <= 1
    assert not outputs["output"][-2:].any()


@pytest.mark.parametrize("item", [*DECODES, ascend.fia_extend_tnd], ids=by_name)
def test_a_request_without_keys_has_output_zero_and_an_lse_of_minus_infinity(item):
    _, outputs, _ = answer(item, case((1, 0), (1, 7)))
    assert not outputs["output"][0].any()
    assert outputs["lse"][0].tolist() == [-math.inf] * 6
    assert outputs["lse"][1].isfinite().all()


@pytest.mark.parametrize("item", [ascend.fia_extend_tnd, ascend.fia_verify_tnd, ascend.fia_decode_tnd], ids=by_name)
def test_a_request_without_keys_has_the_lse_of_its_sink(item):
    inputs, outputs, comparison = answer(item, case((1, 0), (1, 7), sinks=True))
    assert torch.equal(outputs["lse"][0], inputs.sinks.float())
    assert comparison.holds


DOCUMENTED = {"page_size": 128, "head_dim": 128, "value_head_dim": 128, "recipe": "needle"}


@pytest.mark.parametrize("item", [item for item in ATTENTION if not item.name.endswith("_nz")], ids=by_name)
def test_every_adapter_runs_where_every_open_question_goes_against_it(item):
    lengths = [(1, 9), (1, 40)] if item in DECODES else [(3, 9), (3, 40)]
    # Graph decode leaves the window to the band, which is not documented at query length 1: see the next test.
    window = None if item.name in (*WINDOWLESS, "fia_decode_tnd") else 4
    assert answer(item, case(*lengths, window=window, **DOCUMENTED), "pessimistic")[2].holds


@pytest.mark.parametrize("item", [ascend.fia_decode_nz, ascend.fia_extend_nz], ids=by_name)
def test_nz_pages_are_an_open_question_and_the_pessimistic_profile_refuses_them(item):
    """The operator's documentation has caches of five axes for rope and int8 only; the one of aclnn for all."""
    with pytest.raises(ImplementationRaised, match="key was a rank 5"):
        answer(item, case((1, 9), **DOCUMENTED), "pessimistic")


@pytest.mark.parametrize("item", [ascend.fia_decode_tnd, ascend.fia_verify_tnd, ascend.fia_extend_tnd], ids=by_name)
def test_a_band_at_query_length_1_is_an_open_question_and_profiles_differ_on_it(item):
    """The backend relies on it (sglang 0.5.23, ascend_backend.py 2846-2911), and so the adapter does.

    torch_npu's documentation says that ``pre_tokens`` has no effect at query length 1. The default profile honours the
    band in this layout, as the backend assumes; under the pessimistic one the adapter must be found.
    """
    drawn = case((1, 40), window=4, **DOCUMENTED)
    assert answer(item, drawn, "8.5")[2].holds
    assert not answer(item, drawn, "pessimistic")[2].holds


@pytest.mark.slow
def test_graph_decode_with_a_window_is_found_under_the_pessimistic_profile():
    item, target = ascend.fia_decode_tnd, targets.sim("pessimistic")
    within = item.constraints.within(
        Constraints.of({"window": range(1, 65), "head_dims": ("128",), "page_size": (128,), "sinks": (False,)})
    )
    outcome = run_job(Job(Subject(component, item, target), EQUIVALENCE, within), Budget(seed=0))
    assert outcome.verdict is Verdict.WRONG
    assert [(request.query, request.kv) for request in outcome.failure.case.requests] == [(1, 2)]
    assert outcome.failure.case.window == 1


@pytest.mark.parametrize("item", [ascend.swa_mask_eager, ascend.swa_mask_graph], ids=by_name)
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("window", [1, 4, 9, None])
def test_masks_are_right_at_the_edges(item, column, dtype, window):
    inputs = mask_component.inputs(SwaMaskCase((0, 9, 4, 1), window, 2, dtype, column))
    outputs = Subject(mask_component, item, targets.sim(None)).run(inputs)
    assert compare(mask_component.reference(inputs), outputs).holds
    assert outputs["mask"].is_contiguous()


def test_the_mask_of_a_window_is_what_it_is_by_hand():
    mask = window_mask(torch.tensor([5, 0, 2]), 6, 3)
    assert mask.int().tolist() == [[[1, 1, 0, 0, 0, 1]], [[1, 1, 1, 1, 1, 1]], [[0, 0, 1, 1, 1, 1]]]
    assert window_mask(torch.tensor([[5]]), 6, None).int().tolist() == [[[0, 0, 0, 0, 0, 1]]]
