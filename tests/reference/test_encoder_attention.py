"""The reference of encoder attention, against torch's attention, a vision tower of transformers, and its own bounds."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from by_night import by_night
from npudiff.draw.data import Stream
from npudiff.model.constraints import Constraints
from npudiff.properties.encoder_attention import RECIPES, EncoderAttentionCase, Packed, build_inputs
from npudiff.reference import attended_requests, attention_tile
from npudiff.reference.encoder_attention import EncoderAttentionInputs, encoder_attention, spans

DRAWN = settings(
    max_examples=by_night(60), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
SMALL = Constraints.of({"query_length": range(70), "kv_length": range(70), "batch": range(1, 6), "poison": ("nan",)})
PLAIN = EncoderAttentionCase(
    (Packed(17, 17), Packed(0, 0), Packed(5, 5)), head_dim=72, kv_heads=2, group=2, padded_rows=2, seed=3
)
CROSS = replace(PLAIN, sequences=(Packed(3, 40), Packed(4, 0), Packed(0, 6), Packed(5, 2)))


def by_torch(inputs):
    """Outputs of ``scaled_dot_product_attention`` in float64, sequence by sequence; 0 without keys."""
    outputs = torch.zeros(inputs.query.shape, dtype=torch.float64)
    for own, seen in zip(spans(inputs.query_lengths), spans(inputs.kv_lengths), strict=True):
        if seen.stop > seen.start:
            parts = (inputs.query[own], inputs.key[seen], inputs.value[seen])
            query, key, value = (part.double().transpose(0, 1) for part in parts)
            key, value = (part.repeat_interleave(len(query) // len(part), 0) for part in (key, value))
            result = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=inputs.scale)
            outputs[own] = result.transpose(0, 1)
    return outputs


def check_against_torch(case):
    inputs = build_inputs(case)
    expected, rows = encoder_attention(inputs), sum(inputs.query_lengths)
    theirs = by_torch(inputs)
    assert float((theirs - expected["output"].value)[:rows].abs().max() if rows else 0) < 1e-9
    for one in expected.values():
        assert bool(one.bound[rows:].isposinf().all())
        assert bool(one.bound[:rows].isfinite().all())


@DRAWN
@given(EncoderAttentionCase.strategy(SMALL))
def test_torch_agrees(case):
    check_against_torch(case)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", [PLAIN, CROSS, replace(PLAIN, sequences=(Packed(130, 513),), rows="sliced")])
def test_torch_agrees_with_each_recipe(case, recipe):
    check_against_torch(replace(case, recipe=recipe))


@pytest.mark.parametrize("tile", [2**22, 64])
def test_tiles_of_keys_change_nothing(monkeypatch, tile):
    monkeypatch.setattr(attention_tile, "SCORE_TILE", tile)
    check_against_torch(CROSS)


def test_log_sum_exp_is_that_of_scaled_scores():
    inputs = build_inputs(replace(PLAIN, group=1))
    expected = encoder_attention(inputs)["lse"].value
    for own in spans(inputs.query_lengths):
        scores = torch.einsum("qhd,khd->qhk", inputs.query[own].double(), inputs.key[own].double()) * inputs.scale
        torch.testing.assert_close(expected[own], scores.logsumexp(-1), rtol=1e-12, atol=1e-12)


def test_rows_without_keys_are_zero():
    expected = encoder_attention(build_inputs(CROSS))
    assert not expected["output"].value[3:7].any()
    assert not expected["output"].bound[3:7].any()
    assert bool(expected["lse"].value[3:7].isneginf().all())
    assert not expected["lse"].bound[3:7].any()


def test_it_is_the_attention_of_a_vision_tower_in_transformers():
    """Windows of Qwen2.5-VL, without a rotation and without a projection behind."""
    modeling = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    configuration = pytest.importorskip("transformers.models.qwen2_5_vl.configuration_qwen2_5_vl")
    torch.manual_seed(4)
    heads, dim, lengths = 3, 80, (64, 16, 28)
    config = configuration.Qwen2_5_VLVisionConfig(hidden_size=heads * dim, num_heads=heads)
    config._attn_implementation = "sdpa"
    attention = modeling.Qwen2_5_VLVisionAttention(config).double().eval()
    attention.proj = torch.nn.Identity()
    hidden = torch.randn(sum(lengths), heads * dim, dtype=torch.float64)
    ends = torch.tensor([0, *itertools.accumulate(lengths)])
    still = torch.ones(len(hidden), dim), torch.zeros(len(hidden), dim)
    with torch.no_grad():
        right = attention(hidden, ends, position_embeddings=still)
        query, key, value = attention.qkv(hidden).reshape(len(hidden), 3, heads, dim).unbind(1)
    rotated = (one.float().double() for one in (query, key))  # the rotation goes through float32
    given_ = EncoderAttentionInputs(*rotated, value, lengths, lengths, dim**-0.5)
    torch.testing.assert_close(encoder_attention(given_)["output"].value.flatten(1), right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", ["gaussian", "needle", "outlier"])
def test_the_bound_is_used(recipe, dtype):
    """Weights that are rounded before the product with the values, as fused operators have them, come near it."""
    name = str(dtype).removeprefix("torch.")
    case = EncoderAttentionCase((Packed(65, 65), Packed(2, 2), Packed(5, 5)), 72, 4, dtype=name, recipe=recipe, seed=5)
    inputs = build_inputs(case)
    expected = encoder_attention(inputs)["output"]
    ratio = 0.0
    for own in spans(inputs.query_lengths):
        query, key, value = (part[own].float().transpose(0, 1) for part in (inputs.query, inputs.key, inputs.value))
        scores = query @ key.transpose(1, 2) * inputs.scale
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        output = (weights.to(dtype).float() @ value / weights.sum(-1, keepdim=True)).to(dtype).transpose(0, 1)
        ratio = max(ratio, float(((output.double() - expected.value[own]).abs() / expected.bound[own]).max()))
    assert 0.4 < ratio <= 1


@pytest.mark.parametrize("tile", [2**22, 64])
def test_the_direction_of_the_scale_is_the_derivative(monkeypatch, tile):
    monkeypatch.setattr(attention_tile, "SCORE_TILE", tile)
    inputs, step = build_inputs(CROSS), 1e-5
    up, down = (
        encoder_attention(replace(inputs, scale=inputs.scale * (1 + by)))["output"].value for by in (step, -step)
    )
    direction = encoder_attention(inputs)["output"].directions[attended_requests.SCALE]
    torch.testing.assert_close(direction, (up - down) / (2 * step), rtol=1e-4, atol=1e-5)
    assert direction.abs().max() > 0.01


MEASURE = """
    import torch
    from npudiff.reference.encoder_attention import EncoderAttentionInputs, encoder_attention
    torch.set_num_threads(1)
    query, key = torch.randn({rows}, {heads}, 80).bfloat16(), torch.randn({keys}, {heads}, 80).bfloat16()
    encoder_attention(EncoderAttentionInputs(query, key, key, ({rows},), ({keys},), 0.1))
    with open("/proc/self/status") as status:  # what getrusage says begins with the size of the process that forked
        print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20)
    """


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "keys", "heads"), [(1024, 2**14, 1), (128, 2**14, 16), (2**14, 8, 16)])
def test_memory_stays_below_two_gibibytes(rows, keys, heads):
    script = textwrap.dedent(MEASURE).format(rows=rows, keys=keys, heads=heads)
    root = Path(attended_requests.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 2, f"{float(run.stdout):.2f} GiB"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_lengths": (17, -1, 5)}, "query lengths"),
        ({"kv_lengths": (17, 0, 8)}, "KV lengths"),
        ({"query_lengths": (17, 0, 8)}, "query lengths"),
        ({"query_lengths": (22,)}, "1 query lengths, 3 KV lengths"),
        ({"value": torch.zeros(24, 2, 64)}, "key and value the same"),
        ({"key": torch.zeros(24, 3, 72), "value": torch.zeros(24, 3, 72)}, "does not fit"),
        ({"key": torch.zeros(24, 2, 64), "value": torch.zeros(24, 2, 64)}, "does not fit"),
        ({"query": torch.zeros(1, 24, 4, 72)}, "have three axes"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        encoder_attention(replace(build_inputs(PLAIN), **changes))


@pytest.mark.parametrize("case", [PLAIN, CROSS])
def test_sequences_do_not_see_each_other(case):
    """Other keys in one sequence move nothing of the others, not by a bit."""
    inputs = build_inputs(case)
    own, seen = spans(inputs.query_lengths)[0], spans(inputs.kv_lengths)[0]
    key = inputs.key.clone()
    key[seen] = Stream(1, "other").normal(key[seen].shape, key.dtype)
    before, after = (encoder_attention(one)["output"].value for one in (inputs, replace(inputs, key=key)))
    assert torch.equal(before[own.stop :], after[own.stop :])
    assert not torch.equal(before[own], after[own])
