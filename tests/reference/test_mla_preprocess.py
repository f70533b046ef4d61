from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from npudiff.device import ascend, targets
from npudiff.judge.compare import compare
from npudiff.properties.mla_preprocess import MlaPreprocessCase, build_inputs
from npudiff.reference import mla_preprocess as reference
from npudiff.reference.mla_preprocess import MlaPreprocessInputs, mla_preprocess

SMALL = MlaPreprocessCase(5, heads=3, nope_dim=32, rope_dim=16, latent_dim=64, hidden_size=80)


def deepseek_layer():
    """DeepSeek-V3's attention of transformers, small, in float64, with weights of its own."""
    module = importlib.import_module("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = module.DeepseekV3Config(
        hidden_size=80, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=64, kv_lora_rank=64,
        qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, rope_interleave=True, attention_bias=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = module.DeepseekV3Attention(config, 0).double()
        torch.nn.init.normal_(layer.q_a_layernorm.weight, 1.0, 0.3)
        torch.nn.init.normal_(layer.kv_a_layernorm.weight, 1.0, 0.3)
    return module, config, layer


def test_scores_equal_those_of_the_layer_of_transformers():
    """Absorbed queries against latents, and rotated queries against rope keys, give the layer's own scores."""
    module, config, layer = deepseek_layer()
    hidden = build_inputs(SMALL).hidden.double()
    positions = torch.tensor([[3, 0, 7, 1, 12]])
    cosine, sine = module.DeepseekV3RotaryEmbedding(config)(hidden[None], positions)
    dim = config.qk_rope_head_dim
    table = torch.cat([cosine[0, :, : dim // 2], sine[0, :, : dim // 2]], dim=1)
    up = layer.kv_b_proj.weight.reshape(3, 32 + 32, 64)[:, :32]
    inputs = MlaPreprocessInputs(
        hidden=hidden,
        q_a_weight=layer.q_a_proj.weight.T.contiguous(),
        q_a_norm=layer.q_a_layernorm.weight,
        q_b_weight=layer.q_b_proj.weight.T.contiguous(),
        k_up_weight=up,
        kv_a_weight=layer.kv_a_proj_with_mqa.weight.T.contiguous(),
        kv_a_norm=layer.kv_a_layernorm.weight,
        epsilon=layer.q_a_layernorm.variance_epsilon,
        positions=torch.arange(5),
        cos_sin_cache=table,
        latent_cache=torch.zeros(2, 16, 1, 64, dtype=torch.float64),
        rope_cache=torch.zeros(2, 16, 1, dim, dtype=torch.float64),
        slots=torch.arange(16, 21),
        page_size=16,
        layout="PA_BSND",
    )
    with torch.no_grad():
        ours = mla_preprocess(inputs)
        seen = {}

        def keep(module, query, key, value, mask, **kwargs):
            seen["scores"] = query @ key.transpose(2, 3)
            return torch.zeros(1, 5, 3, 32, dtype=torch.float64), None

        original = module.eager_attention_forward
        module.eager_attention_forward = keep
        try:
            layer(hidden[None], (cosine, sine), None)
        finally:
            module.eager_attention_forward = original
    latent, rope = ours["latent_cache"].value[1, :5, 0], ours["rope_cache"].value[1, :5, 0]
    scores = torch.einsum("qhl,kl->hqk", ours["query_nope"].value, latent)
    scores += torch.einsum("qhr,kr->hqk", ours["query_rope"].value, rope)
    # Its norms work in float32, whatever they are given: 8 roundings of the largest score.
    assert float((scores - seen["scores"][0]).abs().max()) <= 8 * 2**-24 * float(scores.abs().max())


def rounded_chain(inputs):
    """Every stage in float32, and rounded to the dtype of the hidden states, or only at the end."""
    native = ascend.native_mla_preprocess
    return {"rounded": native(inputs, targets.sim(None)), "float32": float32_chain(inputs)}


def float32_chain(inputs):
    wide = replace(inputs, **{name: value.float() for name, value in vars(inputs).items()
                              if isinstance(value, torch.Tensor) and value.is_floating_point()})  # fmt: skip
    outputs = ascend.native_mla_preprocess(wide, targets.sim(None))
    return {name: output.to(inputs.hidden.dtype) for name, output in outputs.items()}


@pytest.mark.parametrize("recipe", ["gaussian", "outlier", "tiny"])
@pytest.mark.parametrize("seed", range(6))
def test_both_correct_chains_stay_within_the_bound_and_come_near_it(recipe, seed):
    inputs = build_inputs(replace(SMALL, tokens=33, hidden_size=1024, query_rank=96, recipe=recipe, seed=seed))
    expected = mla_preprocess(inputs)
    for chain, outputs in rounded_chain(inputs).items():
        comparison = compare(expected, outputs)
        assert comparison.holds, (chain, comparison.worst_output.name)
        for output in comparison.outputs:
            assert output.worst > (0.12 if chain == "rounded" else 0.05), (chain, output.name)


def test_the_bound_of_absorbed_queries_is_a_small_part_of_their_size():
    inputs = build_inputs(replace(SMALL, hidden_size=1024, query_rank=1536, nope_dim=128, latent_dim=512, rope_dim=64))
    expected = mla_preprocess(inputs)
    for name in ("query_nope", "query_rope"):
        assert float(expected[name].bound.median() / expected[name].value.std()) < 0.09


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_a_weight": torch.ones(80, 63)}, r"q_a_weight must be \[80, 64\], got \[80, 63\]"),
        ({"q_b_weight": torch.ones(64, 1)}, r"q_b_weight must be \[64, 144\]"),
        ({"kv_a_weight": torch.ones(80, 79)}, r"kv_a_weight must be \[80, 80\]"),
        ({"slots": torch.zeros(4, dtype=torch.int64)}, r"slots must be \[5\]"),
        ({"slots": torch.full((5,), 9999)}, "each -1 or in 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mla_preprocess(replace(build_inputs(SMALL), **changes))


QUANTISED = replace(SMALL, hidden_size=1024, query_rank=96, quantised=True)


def test_int8_changes_no_value_and_adds_half_a_step_to_what_the_query_may_be_off():
    inputs = build_inputs(QUANTISED)
    plain = mla_preprocess(replace(inputs, steps=None))
    quantised = mla_preprocess(inputs)
    for name, output in quantised.items():
        assert torch.equal(output.value, plain[name].value)
        assert torch.equal(output.bound, plain[name].bound) is name.endswith("_cache")
    assert bool((quantised["query_nope"].bound > plain["query_nope"].bound).all())


def test_what_int8_holds_is_a_multiple_of_its_steps():
    inputs = build_inputs(QUANTISED)
    for weight, step in ((inputs.q_a_weight, inputs.steps.q_a), (inputs.kv_a_weight, inputs.steps.kv_a),
                         (inputs.q_b_weight, inputs.steps.q_b)):  # fmt: skip
        whole = weight.double() / step.double()
        assert torch.equal(whole, whole.round())
        assert float(whole.abs().max()) <= 127
        assert len(step.unique()) == 2
    whole = inputs.hidden.double() / inputs.steps.hidden
    assert torch.equal(whole, whole.round())
    assert float(whole.abs().max()) <= 120


def test_a_query_that_is_rounded_to_int8_stays_within_the_bound_and_comes_near_it():
    inputs = build_inputs(replace(QUANTISED, tokens=33))
    expected = mla_preprocess(inputs)
    down = inputs.hidden.double() @ inputs.q_a_weight.double()
    normed = down * torch.rsqrt(down.square().mean(-1, keepdim=True) + inputs.epsilon) * inputs.q_a_norm.double()
    whole = (normed / inputs.steps.query).half().float().round()
    heads = (whole.double() * inputs.steps.query) @ inputs.q_b_weight.double()
    nope = heads.view(33, 3, -1)[..., : inputs.nope_dim]
    query = torch.einsum("thd,hdl->thl", nope, inputs.k_up_weight.double())
    ratio = (query - expected["query_nope"].value).abs() / expected["query_nope"].bound
    assert 0.25 < float(ratio.max()) <= 1


def test_a_query_that_int8_cannot_hold_is_refused():
    inputs = build_inputs(QUANTISED)
    with pytest.raises(ValueError, match=r"the normalised query goes beyond 120 steps of 0\.001"):
        mla_preprocess(replace(inputs, steps=replace(inputs.steps, query=0.001)))


@pytest.mark.parametrize("tokens", [1, 33])
def test_rotated_queries_that_are_too_long_are_seen_in_their_rows(tokens):
    """Before the rotation and behind it there are roundings, and each has its part in the gain of a row."""
    case = replace(SMALL, tokens=tokens, hidden_size=1024, query_rank=1536, heads=4, rope_dim=64)
    inputs = build_inputs(case)
    expected = {"query_rope": mla_preprocess(inputs)["query_rope"]}
    for outputs in rounded_chain(inputs).values():
        (output,) = compare(expected, {"query_rope": outputs["query_rope"]}).outputs
        assert output.gain.shape == (tokens, 4)
        assert 0.01 < float(output.gain_ratio.max()) < 0.5
    longer = (expected["query_rope"].value * 1.022).bfloat16()
    (output,) = compare(expected, {"query_rope": longer}).outputs
    assert output.only_gain


def test_what_is_turned_back_is_the_transpose_of_the_rotation():
    generator = torch.Generator().manual_seed(0)
    states, rope = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    cosine, sine = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    turned = reference.rotated(
        states, torch.zeros_like(states), cosine, sine, reference.ROPE_STYLE, torch.bfloat16
    ).value
    back = reference._turned_back(rope, cosine, sine)
    torch.testing.assert_close((turned * rope).sum(-1), (states * back).sum(-1))
