"""The layer in float64 beside the decoder layers of transformers, with the same weights."""

from __future__ import annotations

import pytest
import torch

from npudiff.properties.decoder_layer import DecoderLayerCase, LayerRequest
from npudiff.properties.decoder_layer.inputs import build_inputs
from npudiff.reference.decoder_layer import decoder_layer
from npudiff.reference.rope_scaling import RopeConfig

transformers = pytest.importorskip("transformers")

REQUESTS = (LayerRequest(0, 5), LayerRequest(3, 16))


def step_layer(inputs, window, limit, shared_limit):
    from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
    from transformers.models.step3p7.modeling_step3p7 import Step3p7DecoderLayer

    own, mixture = inputs.attention, inputs.experts
    layer_type = "full_attention" if window is None else "sliding_attention"
    config = Step3p7TextConfig(
        hidden_size=inputs.hidden.shape[1], num_hidden_layers=1, num_attention_heads=own.heads,
        num_key_value_heads=own.kv_heads, head_dim=own.head_dim, rms_norm_eps=inputs.epsilon,
        num_experts_per_tok=mixture.top_k, n_routed_experts=mixture.routed.up.experts,
        moe_intermediate_size=mixture.routed.down.values.shape[1],
        share_expert_dim=mixture.shared.down.values.shape[1], moe_router_scaling_factor=mixture.scaling,
        layer_types=[layer_type], mlp_layer_types=["sparse"], sliding_window=window,
        swiglu_limits=[limit or 0.0], swiglu_limits_shared=[shared_limit or 0.0], max_position_embeddings=64,
        query_pre_attn_scalar=own.head_dim,
    )  # fmt: skip
    config._attn_implementation = "eager"
    layer = Step3p7DecoderLayer(config, 0).double().eval()
    width, shared_width = config.moe_intermediate_size, config.share_expert_dim
    sizes = [own.heads * own.head_dim, own.kv_heads * own.head_dim, own.kv_heads * own.head_dim]
    query, key, value = own.qkv.T.split(sizes)
    shared_up = mixture.shared.up.values[0].T
    load(layer, {
        "self_attn.q_proj.weight": query, "self_attn.k_proj.weight": key, "self_attn.v_proj.weight": value,
        "self_attn.q_norm.weight": own.query_norm, "self_attn.k_norm.weight": own.key_norm,
        "self_attn.g_proj.weight": own.gate.T, "self_attn.o_proj.weight": own.output.T,
        "input_layernorm.weight": inputs.input_norm, "post_attention_layernorm.weight": inputs.post_norm,
        "mlp.gate.weight": mixture.router.T, "mlp.gate.e_score_correction_bias": mixture.bias,
        "mlp.experts.gate_up_proj": mixture.routed.up.values.transpose(1, 2),
        "mlp.experts.down_proj": mixture.routed.down.values.transpose(1, 2),
        "mlp.shared_experts.gate_proj.weight": shared_up[:shared_width],
        "mlp.shared_experts.up_proj.weight": shared_up[shared_width:],
        "mlp.shared_experts.down_proj.weight": mixture.shared.down.values[0].T,
    })  # fmt: skip
    assert width == mixture.routed.up.values.shape[2] // 2
    return layer


def deepseek_layer(inputs):
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

    own, mixture = inputs.attention, inputs.experts
    rope_dim, value_dim = inputs.cos_sin_cache.shape[1], own.v_up.shape[2]
    config = DeepseekV3Config(
        hidden_size=inputs.hidden.shape[1], num_hidden_layers=1, num_attention_heads=own.heads,
        num_key_value_heads=own.heads, q_lora_rank=len(own.q_a_norm), kv_lora_rank=own.latent_dim,
        qk_nope_head_dim=own.nope_dim, qk_rope_head_dim=rope_dim, v_head_dim=value_dim, rms_norm_eps=inputs.epsilon,
        first_k_dense_replace=0, n_routed_experts=mixture.routed.up.experts, n_shared_experts=1,
        num_experts_per_tok=mixture.top_k, moe_intermediate_size=mixture.routed.down.values.shape[1],
        n_group=mixture.groups, topk_group=mixture.kept_groups, routed_scaling_factor=mixture.scaling,
        norm_topk_prob=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0,
                         "beta_slow": 1.0},
    )  # fmt: skip
    config._attn_implementation = "eager"
    layer = DeepseekV3DecoderLayer(config, 0).double().eval()
    assert layer.self_attn.scaling == pytest.approx(inputs.scale, rel=1e-12)
    up = torch.cat([own.k_up.double(), own.v_up.double().transpose(1, 2)], dim=1).flatten(0, 1)
    shared_up = mixture.shared.up.values[0].T
    width = len(shared_up) // 2
    load(layer, {
        "self_attn.q_a_proj.weight": own.q_a.T, "self_attn.q_a_layernorm.weight": own.q_a_norm,
        "self_attn.q_b_proj.weight": own.q_b.T, "self_attn.kv_a_proj_with_mqa.weight": own.kv_a.T,
        "self_attn.kv_a_layernorm.weight": own.kv_a_norm, "self_attn.kv_b_proj.weight": up,
        "self_attn.o_proj.weight": own.output.T,
        "input_layernorm.weight": inputs.input_norm, "post_attention_layernorm.weight": inputs.post_norm,
        "mlp.gate.weight": mixture.router.T, "mlp.gate.e_score_correction_bias": mixture.bias,
        "mlp.experts.gate_up_proj": mixture.routed.up.values.transpose(1, 2),
        "mlp.experts.down_proj": mixture.routed.down.values.transpose(1, 2),
        "mlp.shared_experts.gate_proj.weight": shared_up[:width],
        "mlp.shared_experts.up_proj.weight": shared_up[width:],
        "mlp.shared_experts.down_proj.weight": mixture.shared.down.values[0].T,
    })  # fmt: skip
    return layer


def load(layer, weights):
    state = layer.state_dict()
    assert set(state) == set(weights)
    for name, weight in weights.items():
        assert state[name].shape == weight.shape, name
    layer.load_state_dict({name: weight.double() for name, weight in weights.items()})


def request_alone(inputs, layer, request):
    """All tokens of a request in one pass: what transformers makes of them, and which rows they are here."""
    rows = []
    start = 0
    for step in inputs.steps:
        for other, new in zip(step.requests, step.query_lengths, strict=True):
            rows += range(start, start + new) if other == request else []
            start += new
    states = (inputs.hidden.double() + inputs.residual.double())[rows][None]
    cosine, sine = inputs.cos_sin_cache[: len(rows)].double().chunk(2, dim=-1)
    both = tuple(torch.cat([part, part], dim=-1)[None] for part in (cosine, sine))
    distance = torch.arange(len(rows)).unsqueeze(1) - torch.arange(len(rows))
    hidden = (distance < 0) | (distance >= (inputs.window or 2**31))
    mask = torch.zeros(distance.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)[None, None]
    with torch.no_grad():
        result = layer(states, attention_mask=mask, position_embeddings=both)
    return (result[0] if isinstance(result, tuple) else result).reshape(len(rows), -1), rows


def agrees(case, make):
    inputs = build_inputs(case)
    layer = make(inputs)
    expected = decoder_layer(inputs)
    total = expected["residual"].value + expected["hidden"].value
    for request in range(len(case.requests)):
        other, rows = request_alone(inputs, layer, request)
        # their norms and routers compute in float32
        assert (total[rows] - other).abs().max() < 2e-6 * total.abs().max()


@pytest.mark.parametrize("rotary", ["whole", "half"])
@pytest.mark.parametrize(
    ("window", "limit", "shared_limit"), [(None, None, None), (4, 1.5, None), (1, 0.5, 7.0), (17, None, 0.5)]
)
def test_step_3_5(rotary, window, limit, shared_limit):
    case = DecoderLayerCase(REQUESTS, decode_steps=2, window=window, limit=limit, shared_limit=shared_limit,
                            kv_heads=2, group=2, top_k=3, experts=8, rotary=rotary, seed=3)  # fmt: skip
    agrees(case, lambda inputs: step_layer(inputs, window, limit, shared_limit))


@pytest.mark.parametrize("groups", [1, 2])
def test_deepseek(groups):
    case = DecoderLayerCase(
        REQUESTS, kind="deepseek", decode_steps=2, group=2, top_k=3, experts=8, groups=groups, seed=4
    )
    agrees(case, deepseek_layer)


def test_the_rope_of_cases_is_that_of_the_model():
    from npudiff.properties.decoder_layer.inputs import rope_of

    assert rope_of(DecoderLayerCase(REQUESTS, rotary="half")) == RopeConfig("base", 32, 64)
