"""Every combination of the flags: the same answer within the bound, or a refusal with a reason."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from npudiff.device import targets
from npudiff.device.ascend.decoder_layer import composed_layer, layer_by_flags
from npudiff.device.ascend.layer_flags import FLAGS, FlagsRefused, reason_against
from npudiff.judge.compare import compare
from npudiff.properties.decoder_layer import DecoderLayerCase, LayerRequest, component
from npudiff.reference.spread import CONFIDENCE

REQUESTS = (LayerRequest(0, 3), LayerRequest(2, 4))
CASES = {
    "full": DecoderLayerCase(REQUESTS, decode_steps=2, seed=1),
    "sliding": DecoderLayerCase(REQUESTS, decode_steps=2, window=2, seed=1),
    "latent": DecoderLayerCase(REQUESTS, kind="deepseek", decode_steps=2, seed=1),
}
CHOICES = list(itertools.product((False, True), repeat=len(FLAGS)))

NOT_LATENT_NZ = "SGLANG_USE_FIA_NZ lays out pages of latents, and this layer caches keys and values of heads"
NOT_LATENT_MLAPO = "SGLANG_NPU_USE_MLAPO prepares queries and keys from latents, and this layer has none"
NOT_GEMMA = "SGLANG_NPU_FORWARD_NATIVE_GEMMA_RMS_NORM is for Gemma norms, and the norms of this layer are plain"
NO_WINDOW = (
    "without ASCEND_USE_FIA a layer with a window reads the block table of the full pool, and sees every key "
    "(ascend_backend.py 3300-3326)"
)
ND_ONLY = "SGLANG_USE_FIA_NZ without ASCEND_USE_FIA: paged attention reads ND pages (ascend_backend.py 3450)"


def flagged(case, choice):
    return replace(case, **dict(zip(FLAGS, choice, strict=True)))


def refusal(layer, use_fia, fia_nz, mlapo, native_norm):
    """The reason that this backend must give, written down by hand."""
    if layer == "latent":
        return NOT_GEMMA if native_norm else ND_ONLY if fia_nz and not use_fia else ""
    if fia_nz or mlapo:
        return NOT_LATENT_NZ if fia_nz else NOT_LATENT_MLAPO
    return NO_WINDOW if layer == "sliding" and not use_fia else ""


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "".join("-+"[flag] for flag in choice))
@pytest.mark.parametrize("layer", CASES)
def test_every_combination_is_right_or_refused_with_a_reason(layer, choice):
    case = flagged(CASES[layer], choice)
    inputs, target = component.inputs(case), targets.sim(None)
    outside = layer_by_flags.constraints.reason_against(component.values(case))
    reason = refusal(layer, *choice)
    with target.activate():
        if reason:
            assert outside is not None
            with pytest.raises(FlagsRefused) as caught:
                layer_by_flags(inputs, target)
            assert str(caught.value) == reason
            return
        assert outside is None
        assert compare(component.reference(inputs), layer_by_flags(inputs, target)).worst <= 1


def test_every_reason_is_given_for_some_combination():
    given = {refusal(layer, *choice) for layer in CASES for choice in CHOICES}
    assert given == {"", NOT_LATENT_NZ, NOT_LATENT_MLAPO, NOT_GEMMA, NO_WINDOW, ND_ONLY}
    flags = dict.fromkeys(FLAGS, False)
    assert reason_against(latent=False, window=False, **flags) == ""


@pytest.mark.parametrize("layout", [False, True], ids=["ND", "NZ"])
def test_sizes_of_the_prolog_operator_take_it(layout, monkeypatch):
    """Production sizes of hidden states: MLAPO without quantised weights is npu_mla_prolog_v3."""
    from npudiff.device.ascend import mla_preprocess

    called = []
    original = mla_preprocess.prolog_v3
    monkeypatch.setattr(mla_preprocess, "prolog_v3", lambda *given: called.append(given[1]) or original(*given))
    case = DecoderLayerCase((LayerRequest(0, 2),), kind="deepseek", decode_steps=1, hidden_size=6144, query_rank=1536,
                            mlapo=True, fia_nz=layout, width=4, seed=2)  # fmt: skip
    inputs, target = component.inputs(case), targets.sim(None)
    with target.activate():
        result = compare(component.reference(inputs), layer_by_flags(inputs, target))
    assert called == ["PA_NZ" if layout else "PA_BSND"]
    assert result.worst <= 1


@pytest.mark.parametrize("cann", ["8.5", "9.0", "pessimistic"])
@pytest.mark.parametrize("layer", CASES)
def test_every_version_of_cann_gives_the_same_answer(layer, cann):
    """The pessimistic profile takes documented sizes only, and wants pools with room for latents in NZ."""
    requests = (LayerRequest(0, 3), LayerRequest(2, 4))
    case = replace(CASES[layer], requests=requests, page_size=128, head_dim=128)
    inputs, target = component.inputs(case), targets.sim(cann)
    if cann == "pessimistic" and layer == "latent":
        inputs = roomy(inputs)
    with target.activate():
        assert compare(component.reference(inputs), layer_by_flags(inputs, target)).worst <= 1


def roomy(inputs):
    """The same layer with more pages that are nobody's."""
    more = {name: torch.cat([getattr(inputs, name)] * 4) for name in ("key_cache", "value_cache")}
    return replace(inputs, **more)


def test_a_prefill_of_one_token_relies_on_a_band_that_not_every_version_may_honour():
    """In TND the window of such a request is left to the band, which the documentation ignores at length 1."""
    requests = (LayerRequest(3, 1), LayerRequest(2, 4))
    case = replace(CASES["sliding"], requests=requests, page_size=128, head_dim=128, decode_steps=0)
    inputs = component.inputs(case)
    worst = {}
    for cann in ("8.5", "pessimistic"):
        target = targets.sim(cann)
        with target.activate():
            result = compare(component.reference(inputs), layer_by_flags(inputs, target))
        worst[cann] = {output.name: output.worst for output in result.outputs}
    assert max(worst["8.5"].values()) <= 1
    assert worst["pessimistic"]["residual"] > 1 >= worst["pessimistic"]["keys"]


@pytest.mark.parametrize("kind", ["step-3.5", "deepseek"])
def test_typical_errors_are_as_large_as_the_scales_say(kind):
    """A composed layer rounds nearly wherever a device may; numbers have two thirds of their largest rounding."""
    ratios = {}
    for seed in range(6):
        case = DecoderLayerCase(REQUESTS, kind=kind, decode_steps=2, seed=seed, top_k=2, kv_heads=1, group=2)
        inputs, target = component.inputs(case), targets.sim(None)
        with target.activate():
            result = compare(component.reference(inputs), composed_layer(inputs, target))
        for output in result.outputs:
            ratios.setdefault(output.name, []).append(output.ratio[output.bound.isfinite()].flatten())
    typical = {name: float(torch.cat(parts).square().mean().sqrt()) for name, parts in ratios.items()}
    least = {"keys": 0.4, "values": 0.4, "residual": 0.35, "hidden": 0.15}  # weights of experts have bounds, not scales
    assert all(least[name] / CONFIDENCE < ratio < 0.9 / CONFIDENCE for name, ratio in typical.items()), typical
