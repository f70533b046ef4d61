"""Adapters of attention over int8: they are right at the edges, whichever way an open question goes."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from npudiff.device import ascend, simulator, targets
from npudiff.device.ascend import quantised_kv_attention as adapters
from npudiff.judge.judge import EQUIVALENCE, check
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.properties.quantised_kv_attention import QuantisedKvAttentionCase, build_inputs, component
from npudiff.properties.sliding_attention.case import Request
from npudiff.reference import quantised_kv_attention as reference

ADAPTERS = [item for item in map(vars(ascend).get, ascend.__all__) if item.component == "quantised_kv_attention"]
NZ = ("c8_decode_nz", "c8_decode_out", "fia_int8_draft_nz")
SEVERAL = ("fia_int8_draft_nz", "fia_int8_dense", "c8_prefill_dequantised", "torch_int8_float32")

PLAIN = QuantisedKvAttentionCase((), page_size=128, kv_heads=1, group=10, padded_rows=2, spread="wide", seed=3)
"""Sizes that every source has of pages in NZ."""

adapters_of = pytest.mark.parametrize("item", ADAPTERS, ids=lambda item: item.name)


def case(item, *lengths, **changes):
    layout = "PA_NZ" if item.name in NZ else "PA_BSND"
    return replace(PLAIN, requests=tuple(Request(*one) for one in lengths), **{"layout": layout, **changes})


def holds(item, drawn, profile=None):
    assert item.constraints.reason_against(component.values(drawn)) is None
    target = targets.sim(profile)
    with target.activate():
        return check(EQUIVALENCE, Subject(component, item, target), drawn).holds


@pytest.mark.few(30)
@adapters_of
@pytest.mark.parametrize("lengths", [[(1, 1)], [(1, 128), (1, 129), (1, 127)], [(1, 0), (1, 7)], [(1, 0)], [(1, 1000)]])
@pytest.mark.parametrize("recipe", ["needle", "saturated"])
def test_a_decode_is_right_at_the_edges(item, lengths, recipe):
    assert holds(item, case(item, *lengths, recipe=recipe))


@pytest.mark.parametrize("item", [item for item in ADAPTERS if item.name in SEVERAL], ids=lambda item: item.name)
@pytest.mark.parametrize("lengths", [[(3, 9), (1, 40), (16, 16)], [(2, 128), (0, 7), (2, 129)], [(0, 3), (0, 1)]])
def test_several_rows_are_right_at_the_edges(item, lengths):
    assert holds(item, case(item, *lengths, recipe="needle"))


@adapters_of
@pytest.mark.parametrize("profile", list(simulator.PROFILES))
def test_every_adapter_runs_in_the_sizes_that_every_source_has(item, profile):
    assert holds(item, case(item, (1, 40), (1, 129)), profile)


@pytest.mark.parametrize("item", [item for item in ADAPTERS if item.name in NZ], ids=lambda item: item.name)
def test_other_sizes_of_pages_in_nz_are_an_open_question(item):
    """Documented are pages of 128 and 512 and four pairs of heads; vllm-ascend has what heads a rank has."""
    for changes, message in (({"page_size": 96}, "block_size was 96"), ({"group": 4}, "4 over 1")):
        drawn = case(item, (1, 40), **changes)
        assert holds(item, drawn)
        with pytest.raises(ImplementationRaised, match=message):
            holds(item, drawn, "pessimistic")


@adapters_of
@pytest.mark.parametrize("sums", ["query_dtype", "float32"])
def test_where_elements_are_rounded_is_an_open_question_and_either_answer_is_right(item, sums):
    profile = dataclasses.replace(simulator.PROFILES["8.5"], antiquant_sums=sums)
    inputs = build_inputs(drawn := case(item, (1, 300), (1, 77)))
    assert item.constraints.reason_against(component.values(drawn)) is None
    expected = component.reference(inputs)
    with simulator.use_profile(profile):
        for name, actual in item(inputs, targets.sim(None)).items():
            error = (actual.double() - expected[name].value).abs()
            assert bool((error <= expected[name].bound)[:2].all()), name


@pytest.mark.parametrize("sums", ["query_dtype", "float32"])
def test_a_bound_that_knew_one_answer_would_accuse_the_other(monkeypatch, sums):
    item, other = ascend.fia_int8_decode_bsh, {"query_dtype": "float32", "float32": "query"}[sums]
    inputs = build_inputs(case(item, (1, 2), (1, 3), offsets="fractional", scale=64.0, head_dim=32))
    with simulator.use_profile(dataclasses.replace(simulator.PROFILES["8.5"], antiquant_sums=sums)):
        actual = item(inputs, targets.sim(None))["output"].double()
    monkeypatch.setattr(reference, "DEQUANTISED_IN", (other,))
    alone = component.reference(inputs)["output"]
    assert float(((actual - alone.value).abs() / alone.bound)[:2].max()) > 1.5


def test_the_call_of_vllm_ascend():
    call = adapters.c8_decode_call(build_inputs(case(ascend.c8_decode_nz, (1, 40), kv_heads=2, group=3)))
    assert (call.query.shape, call.key.shape[1:]) == ((1, 6, 1, 128), (2, 4, 128, 32))
    for side in ("key", "value"):
        scale = call.arguments[f"{side}_antiquant_scale"]
        assert (tuple(scale.shape), scale.dtype) == ((2, 1, 128), torch.bfloat16)
        assert call.arguments[f"{side}_antiquant_mode"] == 0
        assert f"{side}_antiquant_offset" not in call.arguments
    named = ("inner_precise", "sparse_mode", "antiquant_mode", "block_size")
    assert [call.arguments[name] for name in named] == [1, 0, 0, 128]


@pytest.mark.parametrize(
    ("form", "modes", "shapes"),
    [
        ("channel", (0, 0), ((256,), (256,))),
        ("tensor", (0, 0), ((1,), (1,))),
        ("head", (2, 2), ((2,), (2,))),
        ("token", (4, 4), ((None, 128), (None, 128))),
        ("token and head", (5, 5), ((None, 2, 128), (None, 2, 128))),
        ("channel, values token", (0, 1), ((256,), (1, 128))),
    ],
)
def test_modes_and_shapes_of_scales_over_pages(form, modes, shapes):
    inputs = build_inputs(case(ascend.fia_int8_decode_bsh, (1, 40), kv_heads=2, group=3, form=form))
    given = adapters.decode_bsh_call(inputs).arguments
    for side, mode, shape in zip(("key", "value"), modes, shapes, strict=True):
        assert given[f"{side}_antiquant_mode"] == mode
        own = tuple(given[f"{side}_antiquant_scale"].shape)
        assert own == tuple(len(inputs.pool.key) if size is None else size for size in shape)
