from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch

from npudiff.reference.rms_norm import RmsNormInputs, rms_norm

GENERATOR = torch.Generator().manual_seed(6)


def inputs(kind="plain", dtype=torch.float32, residual=True, size=16, tokens=5):
    def random(*shape):
        return torch.randn(*shape, generator=GENERATOR).to(dtype)

    other = random(tokens, size) if residual else None
    return RmsNormInputs(random(tokens, size), other, random(size), 1e-5, kind)


@pytest.mark.parametrize("kind", ["plain", "gemma"])
@pytest.mark.parametrize("residual", [True, False])
def test_it_is_a_loop_over_single_elements(kind, residual):
    given = inputs(kind, residual=residual)
    result = rms_norm(given)
    for token in range(5):
        row = [float(x) for x in given.hidden[token].double()]
        if residual:
            row = [x + float(y) for x, y in zip(row, given.residual[token].double(), strict=True)]
        rstd = 1 / math.sqrt(sum(x * x for x in row) / len(row) + 1e-5)
        assert float(result["rstd"].value[token]) == pytest.approx(rstd, rel=1e-13)
        for column, x in enumerate(row):
            weight = float(given.weight[column].double()) + (1 if kind == "gemma" else 0)
            assert float(result["output"].value[token, column]) == pytest.approx(
                x * rstd * weight, rel=1e-12, abs=1e-13
            )
            assert float(result["sum"].value[token, column]) == x


def test_it_is_the_norm_of_torch():
    given = inputs(residual=False, dtype=torch.float64)
    right = torch.nn.functional.rms_norm(given.hidden, (16,), given.weight, 1e-5)
    assert torch.allclose(rms_norm(given)["output"].value, right, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("kind", "module", "name"), [
    ("plain", "transformers.models.llama.modeling_llama", "LlamaRMSNorm"),
    ("gemma", "transformers.models.gemma.modeling_gemma", "GemmaRMSNorm"),
])  # fmt: skip
def test_it_is_the_norm_of_transformers(kind, module, name):
    norm = getattr(importlib.import_module(module), name)(16, eps=1e-5)
    given = inputs(kind, residual=False)
    with torch.no_grad():
        norm.weight.copy_(given.weight)
        right = norm(given.hidden)
    expected = rms_norm(given)["output"]
    assert bool(((right.double() - expected.value).abs() <= expected.bound).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["plain", "gemma"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("chain", ["once", "before the weight", "weight rounded"])
def test_correct_devices_stay_within_the_bound(dtype, kind, residual, chain):
    """Rounding once at the end, also before the weight, and of the Gemma weight: all three are in use."""
    given = inputs(kind, dtype, residual, size=576, tokens=100)
    total = given.hidden + given.residual if residual else given.hidden
    wide = total.float()
    rstd = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-5)
    weight = given.weight.float() + (1.0 if kind == "gemma" else 0.0)
    if chain == "weight rounded":
        weight = weight.to(dtype).float()
    normalised = wide * rstd
    if chain != "once":
        normalised = normalised.to(dtype).float()
    actual = {"output": (normalised * weight).to(dtype), "rstd": rstd, "sum": total}
    for name, expected in rms_norm(given).items():
        error = (actual[name].double() - expected.value).abs()
        assert bool((error <= expected.bound).all()), (name, float((error / expected.bound).max()))


@pytest.mark.parametrize(("other", "specified"), [(5470.0, True), (5490.0, False)])
def test_a_sum_that_may_just_be_held_has_a_norm(other, specified):
    """float16 holds 65504, and a sum of 65470 may be 32 more."""
    hidden, residual = torch.full((1, 16), 60_000.0).half(), torch.full((1, 16), other).half()
    expected = rms_norm(RmsNormInputs(hidden, residual, torch.ones(16).half(), 1e-5, "plain"))
    assert bool(expected["output"].bound.isfinite().all()) is specified


def test_the_bound_is_a_few_roundings():
    given = inputs(dtype=torch.bfloat16, size=4096, tokens=8)
    expected = rms_norm(given)["output"]
    size = expected.value.abs().clamp(min=1e-3)
    assert (
        1.0 < float((expected.bound / (2.0**-8 * size)).median()) < 4.1
    )  # sum, its norm, before the weight, at the end


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "layer"}, "kind is one of plain, gemma, got layer"),
        ({"weight": torch.ones(15)}, "weight must be \\[16\\], got \\[15\\]"),
        ({"residual": torch.ones(5, 15)}, "residual must be \\[5, 16\\]"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(replace(inputs(), **changed))
