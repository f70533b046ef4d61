"""Sizes of models: what is read of a published configuration, and that cases are drawn within it."""

from __future__ import annotations

import json
import re

import pytest

import warm
from draws import drawn
from npudiff.errors import ExitCode, UsageError
from npudiff.model.constraints import Constraints
from npudiff.properties._shared.configuration import Indexer, Layer, LinearLayer, model_of
from npudiff.properties._shared.models import MODELS
from npudiff.run.discovery import load_component, load_components
from npudiff.run.model_sizes import left_out_by, sizes_of

COMMON = {"hidden_size": 4096, "num_attention_heads": 64, "rms_norm_eps": 1e-6}
EXPERTS = {"n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048}
MIMO = {
    "model_type": "mimo_v2_flash", "hidden_size": 4096, "num_attention_heads": 64, "num_key_value_heads": 4,
    "head_dim": 192, "v_head_dim": 128, "rope_theta": 5000000, "swa_rope_theta": 10000, "partial_rotary_factor": 0.334,
    "sliding_window": 128, "swa_num_attention_heads": 64, "swa_num_key_value_heads": 8, "swa_head_dim": 192,
    "swa_v_head_dim": 128, "hybrid_layer_pattern": [0, 1, 1], "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "n_shared_experts": None, "num_experts_per_tok": 8, "norm_topk_prob": True, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "routed_scaling_factor": None, "hidden_act": "silu", "layernorm_epsilon": 1e-05,
    "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False,
}  # fmt: skip
DEEPSEEK = {
    **COMMON, **EXPERTS, "model_type": "deepseek_v3", "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_shared_experts": 1, "n_group": 8, "topk_group": 4,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_theta": 10000,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
}  # fmt: skip
GEMMA = {
    "text_config": {
        "model_type": "gemma4_text", "hidden_size": 2816, "head_dim": 256, "global_head_dim": 512,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2, "sliding_window": 1024,
        "layer_types": ["sliding_attention", "full_attention"], "num_experts": 128, "top_k_experts": 8,
        "moe_intermediate_size": 704, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0}},
    },
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"], "num_local_experts": 32,
    "experts_per_token": 4, "intermediate_size": 2880, "hidden_act": "silu", "swiglu_limit": 7.0, "rms_norm_eps": 1e-05,
    "rope_theta": 150000, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
                                          "original_max_position_embeddings": 4096, "truncate": False},
}  # fmt: skip
QWEN = {
    "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "head_dim": 256, "num_attention_heads": 16,
    "num_key_value_heads": 2, "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "hidden_act": "silu", "rms_norm_eps": 1e-06,
    "rope_parameters": {"mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 10000000,
                        "partial_rotary_factor": 0.25},
}  # fmt: skip
LLAMA = {
    "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
CONFIGURATIONS = {
    "mimo": MIMO, "deepseek": DEEPSEEK, "gemma": GEMMA, "gpt-oss": GPT_OSS, "qwen": QWEN, "llama": LLAMA,
}  # fmt: skip


def test_layers_with_a_window_have_heads_and_sinks_of_their_own():
    model = model_of(MIMO)
    assert model.layers == (Layer("192/128", 4, 16), Layer("192/128", 8, 8, (128,), sinks=True))
    assert (model.epsilon, model.scaling, model.shared_width, model.router_bias) == (1e-5, 1.0, 0, True)
    assert [(rope.kind, rope.rotary, rope.head_dim, rope.base) for rope in model.ropes] == [
        ("base", 64, 192, 5e6),
        ("base", 64, 192, 1e4),
    ]
    assert model_of(GEMMA).layers == (Layer("512", 2, 8), Layer("256", 8, 2, (1024,)))
    assert model_of(GPT_OSS).layers == (Layer("64", 8, 8, sinks=True), Layer("64", 8, 8, (128,), sinks=True))
    assert model_of({**QWEN, "sliding_window": 4096, "use_sliding_window": False}).windowed == ()


def test_latent_attention_and_its_rope():
    model = model_of(DEEPSEEK)
    assert (model.latent, model.query_rank) == (True, 1536)
    assert model.layers == (Layer("512/64", 1, 64),)
    (rope,) = model.ropes
    assert (rope.kind, rope.rotary, rope.head_dim, rope.factor, rope.mscale) == ("deepseek_yarn", 64, 192, 40.0, 1.0)
    assert (model.router_groups, model.kept_groups, model.scaling, model.shared_width) == (8, 4, 2.5, 2048)


def test_linear_layers_and_indexers():
    sizes = {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256}
    qwen = model_of({**sizes, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
                     "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4})  # fmt: skip
    assert qwen.linear == LinearLayer(16, 32, 128, 128, 4)
    assert qwen.linear.channels == 8192
    kimi = model_of({**sizes, "linear_attn_config": {"num_heads": 96, "head_dim": 128, "short_conv_kernel_size": 4}})
    assert kimi.linear == LinearLayer(96, 96, 128, 128, 4, by_channel=True)
    deepseek = model_of({**sizes, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_n_heads": 64,
                         "index_head_dim": 128, "index_topk": 2048})  # fmt: skip
    assert deepseek.indexer == Indexer(64, 128, 2048)
    assert model_of(sizes).linear is model_of(sizes).indexer is None


def test_what_no_component_has_is_left_out_and_not_guessed():
    assert model_of(GEMMA).activation == "gelu_tanh"
    assert model_of({**QWEN, "hidden_act": "gelu"}).activation == ""
    assert model_of({**DEEPSEEK, "scoring_func": "sqrtsoftplus"}).scoring == "sqrtsoftplus"
    assert model_of({**DEEPSEEK, "scoring_func": "softplus"}).scoring == ""
    assert model_of({**DEEPSEEK, "swiglu_limit": 10.0}).activation == ""
    assert model_of(LLAMA).experts == 0
    assert (model_of(GPT_OSS).activation, model_of(GPT_OSS).limit) == ("swiglu_oai", 7.0)
    assert (model_of(QWEN).norm, model_of(QWEN).rope_sections, model_of(LLAMA).norm) == ("gemma", "11/11/10", "plain")


def test_layers_without_experts_have_a_width_of_their_own(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**DEEPSEEK, "intermediate_size": 18432}))
    component = load_component("swiglu")
    widths = {case.width for case in drawn(component, sizes_of(str(path), [component])[id(component)], 60)}
    assert {2048, 18432} <= widths
    assert model_of(GPT_OSS).dense_width == 0
    both = {"moe_intermediate_size": 768, "intermediate_size": 6144}
    assert model_of({**QWEN, **both}).dense_width == 6144
    assert model_of({**QWEN, **both, "mlp_only_layers": []}).dense_width == 0


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_cases_are_drawn_within_a_configuration(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGURATIONS[name]))
    components = load_components([])
    sizes = sizes_of(str(tmp_path), components)
    told = left_out_by(str(path), components)
    assert {one.name for one in components if id(one) not in sizes} == set(told)
    assert len(sizes) >= 6
    for one in components:
        if id(one) in sizes and one.name not in ("decoder_layer", "hybrid_pools"):
            cases = drawn(one, sizes[id(one)], 3)
            assert cases, one.name
            assert all(sizes[id(one)].reason_against(one.values(case)) is None for case in cases)


def test_kinds_of_layers_are_not_mixed():
    component = load_component("sliding_attention")
    constraints = Constraints.of(component.profiles["mimo-v2-flash"])
    seen = {(case.kv_heads, case.group, case.window, case.sinks) for case in drawn(component, constraints, 80)}
    assert {(heads, group) for heads, group, _, _ in seen} == {(4, 16), (8, 8)}
    assert {window for heads, _, window, _ in seen if heads == 4} == {None}
    assert {window for heads, _, window, _ in seen if heads == 8} == {128, 129}
    assert {(heads, sinks) for heads, _, _, sinks in seen} == {(4, False), (8, True)}


def test_step_has_the_rope_and_the_limit_that_it_has():
    rope = load_component("rope_cache")
    kinds = {(case.config.kind, case.config.high_freq_factor) for case in
             drawn(rope, Constraints.of(rope.profiles["step-3.5-flash"]), 60)}  # fmt: skip
    assert ("llama3", 32.0) in kinds
    assert {kind for kind, _ in kinds} == {"llama3", "base"}
    swiglu = load_component("swiglu")
    limits = set(swiglu.profiles["step-3.5-flash"]["limit"])
    assert limits == {7.0, None, 16.0}


@pytest.mark.parametrize("name", MODELS)
def test_models_by_name_have_something_for_most_components(name):
    assert len(sizes_of(name, load_components([]))) >= 15


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "it has no hidden_size"), ("[]", "no configuration of a model"), ("{", "Expecting"),
     ('{"hidden_size": "4"}', "it has no hidden_size"),
     (json.dumps({**LLAMA, **EXPERTS, "routed_scaling_factor": "x"}), "could not convert")],
)  # fmt: skip
def test_what_is_no_configuration_is_refused(text, said, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        sizes_of(str(path), load_components([]))
    with pytest.raises(UsageError, match="did you mean 'mimo-v2-flash'"):
        sizes_of("mimo-v2-flas", load_components([]))
    with pytest.raises(UsageError, match="missing"):
        sizes_of(str(tmp_path / "nowhere.json"), load_components([]))


@pytest.mark.slow
def test_a_run_says_what_a_model_has_nothing_for_and_keeps_its_time(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MIMO))
    done = warm.run("check", "--model", "config.json", "--budget", "8s", "--json", "said.json", cwd=tmp_path)
    assert done.returncode == ExitCode.CLEAN, done.stdout
    assert "sizes of rms_norm: hidden_size {" in done.stdout
    assert ": the model has none of it" in done.stdout
    assert re.search(r"^not run: .*page_allocation.*: it takes no sizes of models$", done.stdout, re.MULTILINE)
    assert re.search(r"implementations?\)$", done.stdout, re.MULTILINE)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["run"]["seconds"] < 14
    missing = [one for one in said["implementations"] if one["verdict"] == "not judged"]
    assert bool(missing) is ("not reached in this time: " in done.stdout)
    done = warm.run("check", "latent_attention", "--model", "config.json", cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert "latent_attention: config.json: the model has none of it" in done.stderr
