"""The reference of split, norm and rotation in one, against transformers and against its parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from npudiff.properties.fused_qk_norm_rope import FusedQkNormRopeCase, build_inputs
from npudiff.reference.fused_qk_norm_rope import fused_qk_norm_rope
from npudiff.reference.rms_norm import RmsNormInputs, rms_norm
from npudiff.reference.rotary import RotaryInputs, rotary

PLAIN = FusedQkNormRopeCase(7, kv_heads=2, group=3, head_dim=64, rotary_dim=64, seed=5)


def test_transformers_agrees():
    """Qwen3's norm of heads and its rotation, in float32."""
    inputs = build_inputs(PLAIN)
    query, key, value = torch.split(inputs.qkv.float(), (6 * 64, 2 * 64, 2 * 64), dim=1)
    parts = []
    for states, weight in ((query, inputs.query_weight), (key, inputs.key_weight)):
        norm = Qwen3RMSNorm(64, eps=inputs.epsilon)
        norm.weight.data = weight.float()
        parts.append(norm(states.reshape(1, 7, -1, 64)).transpose(1, 2))
    cosine, sine = inputs.cos_sin_cache[inputs.positions].float().chunk(2, dim=-1)
    wide = [torch.cat([one, one], dim=-1)[None] for one in (cosine, sine)]
    turned = apply_rotary_pos_emb(*parts, *wide)
    expected = fused_qk_norm_rope(inputs)
    for name, theirs in zip(("query", "key"), turned, strict=True):
        error = (theirs[0].transpose(0, 1).detach().double() - expected[name].value).abs()
        assert float(error.max()) < 1e-5
        assert bool((error <= expected[name].bound).all())
    assert torch.equal(expected["value"].value, value.reshape(7, 2, 64).bfloat16())


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize(("kind", "norm"), [("plain", "weight"), ("gemma", "weight"), ("plain", "none")])
def test_it_is_its_parts(style, kind, norm):
    case = replace(PLAIN, style=style, kind=kind, norm=norm, gated=True, rotary_dim=32)
    inputs, states = build_inputs(case), {}
    heads = inputs.qkv.reshape(7, -1, 64)
    gated = heads[:, :12].reshape(7, 6, 2, 64)
    for name, rows, weight in (
        ("query", gated[:, :, 0], inputs.query_weight),
        ("key", heads[:, 12:14], inputs.key_weight),
    ):
        wide = rows.double()
        if weight is not None:
            given = RmsNormInputs(rows.reshape(-1, 64), None, weight, inputs.epsilon, kind)
            wide = rms_norm(given)["output"].value.reshape(rows.shape)
        states[name] = wide
    turned = rotary(RotaryInputs(states["query"].float(), states["key"].float(), inputs.positions,
                                 inputs.cos_sin_cache.float(), style))  # fmt: skip
    expected = fused_qk_norm_rope(inputs)
    for name in ("query", "key"):
        assert torch.allclose(expected[name].value, turned[name].value, rtol=1e-5, atol=1e-6)
    assert torch.equal(expected["gate"].value, gated[:, :, 1])
    if norm == "none":
        assert not bool(expected["key"].bound[..., 32:].any())


def test_who_rounds_in_stages_needs_the_room():
    inputs = build_inputs(replace(PLAIN, tokens=130))
    states = inputs.qkv[:, 6 * 64 : 8 * 64].reshape(130, 2, 64).float()
    normed = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + inputs.epsilon) * inputs.key_weight.float()
    first, second = normed.bfloat16().chunk(2, dim=-1)
    cosine, sine = inputs.cos_sin_cache[inputs.positions].unsqueeze(1).chunk(2, dim=-1)
    key = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).double()
    for rounding, holds in (("once", False), ("stages", True)):
        expected = fused_qk_norm_rope(replace(inputs, rounding=rounding))["key"]
        assert bool(((key - expected.value).abs() <= expected.bound).all()) is holds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "must have 576 columns"),
        ({"key_weight": torch.ones(3)}, "key_weight must be"),
        ({"positions": torch.full((7,), 64)}, "positions must lie in"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, "positions must be"),
        ({"cos_sin_cache": torch.zeros(64, 66)}, "rotary_dim must be even"),
        ({"kind": "other"}, "kind is one of"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fused_qk_norm_rope(replace(build_inputs(PLAIN), **changes))
