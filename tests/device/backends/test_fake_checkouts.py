"""Adapters on small packages that have the shapes of both backends, and are right: they hold, and bugs are found.

The packages are in ``tests/support/fake_backends``. Where torch_npu is there, all of it runs on the virtual NPU; what
needs no device of its own runs on the simulator besides.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import judge_backend
from judge_backend import Run
from npudiff.run.discovery import load_component

FAKES = Path(judge_backend.__file__).parent / "fake_backends"

SMALL = ("kv_length=1..300", "batch=1..4")

NOT_HERE = {
    "sglang": {"kv_rmsnorm_rope_cache", "latent_layer", "mla_preprocess"},
    "vllm_ascend": set(),
}
"""Modules of adapters whose functions no fake has."""

MISFITS = {
    "sglang": {
        "draft_tree.build_tree_efficient_native",
        "draft_tree.build_tree_efficient_native_mask",
        "draft_tree.verify_tree_greedy_native",
    },
    "vllm_ascend": {"mla_preprocess.mla_preprocess_only_decode"},
}
"""Adapters whose modules import, and whose functions no fake has."""

EXCLUSIVE, INCLUSIVE = "window_convention=exclusive", "window_convention=inclusive"
"""What a window's size is in prefill of sglang's fake, and in its other passes."""

GRAPHS = ("DecodeOnly_graph", "SpecDecoding_graph", "_forward_decode_graph", "_forward_decode_of_drafts_graph")

ON_NPU = {
    "sglang": [
        Run("sliding_attention", (*SMALL, EXCLUSIVE), only=("forward_extend",), examples=8),
        Run("sliding_attention", (*SMALL, INCLUSIVE), but=("forward_extend",), examples=8),
        Run("sliding_attention", (*SMALL, "window=none")),
        Run("cached_attention", SMALL, examples=10),
        Run("latent_attention", SMALL),
        Run("paged_cache"),
        Run("cache_gather"),
        Run("swa_mask"),
        Run("page_allocation"),
        Run("hybrid_pools", examples=1),
        Run("state_pools"),
        Run("chunked_attention", SMALL, examples=8),
        Run("rope_cache", examples=12),
        Run("padded_tokens"),
        Run("causal_conv"),
        Run("gated_delta"),
        Run("draft_step"),
        Run("sparse_attention", SMALL, examples=8),
        Run("sparse_indexer", SMALL, examples=8),
    ],
    "vllm_ascend": [
        Run("sliding_attention", SMALL, only=GRAPHS, examples=6),
        Run("latent_attention", SMALL, only=GRAPHS),
        Run("quantised_kv_attention", SMALL, only=GRAPHS),
    ],
}
"""What needs a device that is called npu, or its graphs."""

ELSEWHERE = {
    "sglang": [
        Run(component)
        for component in (
            "rms_norm", "swiglu", "rotary", "moe_gating", "moe_routing", "moe_finalize", "moe_experts", "dynamic_quant",
            "swiglu_quant", "quant_matmul", "weight_quant_matmul", "sampling", "draft_tree",
            "encoder_attention", "context_parallel", "vocabulary_parallel", "data_parallel_gather", "tensor_parallel",
        )
    ],
    "vllm_ascend": [
        Run("sliding_attention", SMALL, but=GRAPHS),
        Run("latent_attention", SMALL, but=GRAPHS),
        Run("quantised_kv_attention", SMALL, but=GRAPHS),
        Run("chunked_attention", SMALL, examples=8),
        *(Run(component) for component in (
            "rms_norm", "swiglu", "rotary", "moe_gating", "moe_routing", "moe_finalize", "moe_experts", "paged_cache",
            "cache_gather",
            "kv_rmsnorm_rope_cache", "quant_matmul", "weight_quant_matmul", "sampling", "draft_acceptance",
            "draft_step", "causal_conv", "gated_delta", "encoder_attention", "expert_parallel", "context_parallel",
            "vocabulary_parallel", "data_parallel_gather", "tensor_parallel",
        )),
        Run("rope_cache", examples=12),
        Run("sparse_attention", SMALL, examples=8),
        Run("sparse_indexer", SMALL, examples=8),
    ],
}  # fmt: skip
"""What follows the device of its inputs."""


def bug(component, only, name, *where):
    """A run of a fake with a bug."""
    return Run(component, where, only=(only,), examples=40, bug=name)


BUGS_ON_NPU = {
    "sglang": [
        bug("sliding_attention", "forward_extend", "window_off_by_one", *SMALL, EXCLUSIVE, "window=1..200"),
        bug("sliding_attention", "forward_decode", "window_off_by_one", *SMALL, INCLUSIVE, "window=1..200"),
        bug("sliding_attention", "forward_decode", "heads_side_by_side", *SMALL, INCLUSIVE),
        bug("sliding_attention", "forward_decode_graph", "no_sinks", *SMALL, INCLUSIVE, "sinks=True"),
        bug("sliding_attention", "forward_decode", "full_table_everywhere", *SMALL, INCLUSIVE, "hybrid=True"),
        bug("sliding_attention", "forward_decode_replayed", "stale_tables", *SMALL, INCLUSIVE),
        bug("sliding_attention", "target_verify", "drafts_not_counted", *SMALL, INCLUSIVE),
        bug("cached_attention", "forward_decode", "unmapped_write", *SMALL, "window=1..200"),
        bug("latent_attention", "forward_extend_mla", "prefix_behind", *SMALL),
        bug("latent_attention", "forward_decode_mla", "nz_read_as_nd", *SMALL, "layout=PA_NZ"),
        bug("paged_cache", "set_kv_buffer_mla", "nz_write_as_nd", "layout=PA_NZ"),
        bug("paged_cache", "set_kv_buffer", "swapped_write", "head_dims=64,128"),
        bug("swa_mask", "get_swa_mask", "mask_off_by_one"),
        bug("page_allocation", "alloc_extend", "page_lost"),
        bug("hybrid_pools", "SWATokenToKVPoolAllocator", "mapping_kept"),
        bug("hybrid_pools", "SWATokenToKVPoolAllocator_sorted", "page_too_many"),
        bug("causal_conv", "AscendGDNAttnBackend.forward_extend", "history_of_others", "history=none"),
        bug("causal_conv", "AscendGDNAttnBackend.target_verify", "window_at_start"),
        bug("causal_conv", "AscendGDNAttnBackend.forward_decode_graph", "slots_of_nobody"),
        bug("causal_conv", "AscendKDAAttnBackend.forward_extend", "history_of_others", "history=none"),
        bug("gated_delta", "AscendKDAAttnBackend.target_verify", "long_epsilon"),
        bug("state_pools", "HybridReqToTokenPool", "slots_not_cleared"),
        bug("state_pools", "HybridReqToTokenPool_prompts", "states_not_copied"),
        bug("state_pools", "HybridReqToTokenPool_drafts", "lines_not_rolled_back"),
        bug("chunked_attention", "AscendAttnBackend.forward_extend", "chunks_not_seen", *SMALL),
        bug("chunked_attention", "AscendAttnBackend.forward_decode", "chunks_not_seen", *SMALL),
        bug("chunked_attention", "LocalAttentionMetadataBuilder.build", "next_page", *SMALL),
        bug("chunked_attention", "LocalAttentionMetadataBuilder.update_for_replay", "next_page", *SMALL),
        bug("gated_delta", "AscendGDNAttnBackend.forward_extend", "states_not_kept"),
        bug("gated_delta", "AscendGDNAttnBackend.target_verify", "beta_as_it_is"),
        bug("gated_delta", "AscendGDNAttnBackend.target_verify_graph", "slots_of_nobody"),
        bug("sparse_attention", "forward_decode", "first_key_unseen", *SMALL),
        bug("sparse_indexer", "forward_npu_extend", "new_keys_unseen", *SMALL),
        bug("draft_step", "EagleDraftWorker.draft", "own_token_unseen"),
        bug("draft_step", "_draft_extend_for_decode", "row_behind"),
        bug("draft_step", "assign_extend_cache_locs_uniform_func", "one_behind"),
        bug("rope_cache", "get_rope", "grown_from_zero"),
        bug("rope_cache", "get_cos_sin_cache", "no_amplitude"),
    ],
    "vllm_ascend": [
        bug("sliding_attention", "DecodeOnly_graph", "lengths_of_capture", *SMALL),
        bug("latent_attention", "_forward_decode_graph", "lengths_of_capture", *SMALL),
        bug("quantised_kv_attention", "DecodeOnly_graph", "lengths_of_capture", *SMALL),
        bug("quantised_kv_attention", "SpecDecoding_graph", "written_behind", *SMALL, "new_tokens=written"),
    ],
}  # fmt: skip

BUGS_ELSEWHERE = {
    "sglang": [
        bug("vocabulary_parallel", "VocabParallelEmbedding", "added_behind_ids", "added=1..20"),
        bug("vocabulary_parallel", "_tp_lm_head_all_to_all", "not_transposed", "tokens=5..40"),
        bug("data_parallel_gather", "dp_gather_dp_scatter", "replicas_added_up", "ranks=4", "attention_ranks=2"),
        bug("tensor_parallel", "ParallelLinear", "heads_not_held_twice", "ranks=2,4", "projections=shared_kv"),
        bug("tensor_parallel", "ParallelLinear_fused", "bias_of_the_first_rank", "ranks=2,4", "biased=True"),
        bug("tensor_parallel", "ParallelLinear_attn_tp", "bias_of_every_rank", "ranks=2,4", "layer=row", "biased=True"),
        bug("tensor_parallel", "layernorm_sp", "padding_in_front", "tokens=3..9", "ranks=2,4", "layer=column"),
        bug("tensor_parallel", "AWQLinearMethod", "words_in_order"),
        bug("tensor_parallel", "GPTQLinearMethod", "zero_points_as_they_are"),
        bug("rms_norm", "RMSNorm.forward_npu", "no_epsilon"),
        bug("rms_norm", "GemmaRMSNorm.forward_npu", "residual_unsummed"),
        bug("rotary", "RotaryEmbedding.forward_npu", "turned_back"),
        bug("swiglu", "NPUSwigluStepAndMul", "unlimited"),
        bug("moe_gating", "fused_topk_npu_sigmoid", "bias_in_weights"),
        bug("moe_gating", "fused_topk_npu_groups", "unscaled"),
        bug("moe_routing", "NPUMoEInitRouting_v2", "counts_of_one_more"),
        bug("moe_finalize", "NPUFinalizeRouting", "weights_ignored"),
        bug("moe_experts", "AscendRunnerCore", "gates_right"),
        bug("moe_experts", "AscendRunnerCore_w8a8", "scales_of_others"),
        bug("moe_experts", "AscendRunnerCore_w4a8", "halves_of_bytes_swapped"),
        bug("quant_matmul", "NPUW8A8Int8LinearMethod", "no_whole_bias"),
        bug("weight_quant_matmul", "AWQAscendLinearKernel", "words_in_order"),
        bug("weight_quant_matmul", "GPTQLinearAscendKernel", "zero_points_as_they_are"),
        bug("sampling", "top_k_top_p_min_p_sampling_from_logits_ascend", "share_not_reached"),
        bug("draft_tree", "build_tree_kernel_efficient", "siblings_from_the_last", "topk=2..8"),
        bug("encoder_attention", "VisionAscendAttention.forward", "last_key_unseen"),
        bug("context_parallel", "ZigzagCPStrategy", "no_prefix", "prefix=True"),
        bug("context_parallel", "cp_lse_ag_out_rs_mla_npu", "ranks_weigh_alike"),
        bug("draft_tree", "verify_tree_greedy_func", "root_is_counted"),
        bug("draft_tree", "verify_tree_greedy_func_of_trees", "root_is_counted"),
    ],
    "vllm_ascend": [
        bug("vocabulary_parallel", "AscendVocabParallelEmbedding", "end_included", "ranks=2,4"),
        bug("vocabulary_parallel", "lmhead_all_to_all", "not_transposed", "tokens=5..40", "ranks=2,4"),
        bug("vocabulary_parallel", "greedy_sample_reduced", "own_columns", "ranks=2,4"),
        bug("data_parallel_gather", "maybe_all_gather_and_maybe_unpad", "padding_at_the_end", "groups=2..4"),
        bug("tensor_parallel", "AscendParallelLinear", "bias_of_every_rank", "ranks=2,4", "layer=row", "biased=True"),
        bug("tensor_parallel", "AscendParallelLinear_fused", "parts_of_one_matrix", "ranks=2,4", "projections=gate_up"),
        bug("tensor_parallel", "MLPRowParallelOp", "bias_of_every_rank", "ranks=2,4", "layer=row", "biased=True"),
        bug("tensor_parallel", "OProjRowParallelOp", "parts_of_others", "ranks=2,4", "recipe=gaussian"),
        bug("tensor_parallel", "AscendSharedExperts", "padding_in_front", "tokens=3..9", "ranks=2,4"),
        bug("tensor_parallel", "AscendSharedExperts_replicated", "padding_in_front", "tokens=3..9", "form=whole"),
        bug("tensor_parallel", "TPWeightSwitchMixin", "parts_turned", "ranks=2,4", "recipe=gaussian"),
        bug("sliding_attention", "ChunkedPrefill", "window_off_by_one", *SMALL, "window=1..200"),
        bug("sliding_attention", "PrefillNoCache", "no_window_in_prompts", *SMALL, "window=1..200"),
        bug("sliding_attention", "SpecDecoding", "no_sinks", *SMALL, "sinks=True"),
        bug("sliding_attention", "DecodeOnly", "values_turned", *SMALL),
        bug("latent_attention", "_forward_prefill", "first_chunk_only", "batch=1..4", "kv_length=1..900"),
        bug("latent_attention", "_forward_decode", "nz_read_as_nd", *SMALL, "layout=PA_NZ"),
        bug("chunked_attention", "ChunkedLocalAttention", "a_key_more", *SMALL),
        bug("chunked_attention", "ChunkedLocalAttention_of_ascend", "a_key_more", *SMALL),
        bug("quantised_kv_attention", "DecodeOnly", "offsets_kept", *SMALL, "offsets=whole,fractional"),
        bug("quantised_kv_attention", "PrefillCacheHit", "offsets_kept", *SMALL, "offsets=whole,fractional"),
        bug("quantised_kv_attention", "ChunkedPrefill", "written_behind", *SMALL, "new_tokens=written"),
        bug("paged_cache", "BaseDeviceAdaptor.reshape_and_cache", "neighbouring_slot"),
        bug("cache_gather", "kv_cache_load", "from_the_start", "starts=page"),
        bug("kv_rmsnorm_rope_cache", "exec_kv_decode", "keys_in_halves"),
        bug("rms_norm", "AscendRMSNorm.forward_oot", "residual_ignored"),
        bug("rms_norm", "AscendGemmaRMSNorm.forward_oot", "weight_as_it_is"),
        bug("swiglu", "swiglustep_forward", "ups_unlimited"),
        bug("swiglu", "_apply_clipped_swiglu", "usual_alpha"),
        bug("rotary", "rope_forward_oot", "always_halves"),
        bug("rope_cache", "get_cos_and_sin_mla", "sines_first"),
        bug("rotary", "AscendMRotaryEmbedding.forward_oot", "first_section_everywhere"),
        bug("moe_gating", "AscendFusedTopKRouter", "unscaled"),
        bug("moe_gating", "create_ascend_fused_moe_router", "no_bias"),
        bug("moe_gating", "AscendGroupedTopKRouter", "one_group_more"),
        bug("moe_experts", "AscendUnquantizedFusedMoEMethod", "elsewhere_counts"),
        bug("moe_experts", "AscendW8A8DynamicFusedMoEMethod_mc2", "first_expert_lost"),
        bug("moe_experts", "AscendW8A8DynamicFusedMoEMethod", "scales_of_others"),
        bug("moe_experts", "AscendW4A8DynamicFusedMoEMethod", "halves_of_bytes_swapped"),
        bug("expert_parallel", "TokenDispatcherWithMC2", "padding_counts", "padding=mask"),
        bug("expert_parallel", "TokenDispatcherWithAll2AllV", "rows_by_rank"),
        bug("expert_parallel", "TokenDispatcherWithAllGather", "elsewhere_counts"),
        bug("quant_matmul", "AscendW8A8LinearMethod", "no_whole_bias"),
        bug("weight_quant_matmul", "AscendW8A16LinearMethod", "offset_taken"),
        bug("sampling", "_apply_top_k_top_p_torch_npu", "one_of_each"),
        bug("sampling", "AscendSampler.apply_penalties", "prompt_unseen"),
        bug("draft_acceptance", "rejection_greedy_sample_pytorch", "bonus_last", "spare=1..3"),
        bug("draft_acceptance", "rejection_random_sample_pytorch", "drawn_again", "drafts=tokens", "uniforms=large"),
        bug("sparse_attention", "_execute_sparse_flash_attention_process", "rotation_ignored", *SMALL),
        bug("sparse_indexer", "indexer_select_post_process", "own_key_unseen", *SMALL),
        bug("draft_step", "prepare_next_token_ids_padded", "piece_repeats", "kind=piece"),
        bug("draft_step", "prepare_inputs_padded", "last_row_of_all", "triton=0"),
        bug("draft_step", "_propose", "next_slot", "steps=2..16"),
        bug("draft_step", "_propose_lengths", "rejected_are_seen"),
        bug("draft_step", "prepare_inputs", "next_slot", "steps=2..16"),
        bug("draft_step", "_prepare_input_ids", "drafts_turned"),
        bug("causal_conv", "_forward_core_prefill", "history_of_others", "history=none"),
        bug("causal_conv", "_forward_core_decode", "taps_turned"),
        bug("causal_conv", "_forward_core_drafts", "from_the_first", "accepted=all"),
        bug("causal_conv", "causal_conv1d_update_npu_of_drafts", "from_the_first", "accepted=all"),
        bug("causal_conv", "_forward_core_drafts_graph", "first_slot_everywhere", "batch=2..5"),
        bug("gated_delta", "_forward_core_decode_graph", "first_slot_everywhere", "batch=2..5"),
        bug("gated_delta", "_forward_core_prefill", "state_of_others", "fresh=True"),
        bug("gated_delta", "_forward_core_drafts", "first_state", "accepted=last"),
        bug("gated_delta", "chunk_gated_delta_rule_pytorch", "unscaled"),
        bug("gated_delta", "chunk_kda", "state_of_nobody", "fresh=False"),
        bug("gated_delta", "fused_recurrent_kda", "block_before"),
        bug("gated_delta", "fused_recurrent_kda_of_drafts", "rows_decay", "gates=channel", "decays=usual,strong"),
        bug("gated_delta", "fused_recurrent_kda_of_rows", "rows_decay", "gates=channel", "decays=usual,strong"),
        bug("encoder_attention", "AscendMMEncoderAttention.forward_oot", "usual_scale", "scale=0.5,4.0"),
        bug("context_parallel", "AscendAttentionDCPImpl._forward_decode_dcp", "ranks_weigh_alike", "ranks=2..4"),
        bug("context_parallel", "AscendAttentionDCPImpl._forward_decode_dcp_of_drafts", "last_draft_everywhere"),
        bug("context_parallel", "AscendAttentionDCPImpl.forward_impl", "drafts_unmasked", "query_length=2..8"),
        bug("context_parallel", "PCPManager", "first_key_lost", "stage=prefill"),
    ],
}  # fmt: skip


def run(command, text="", **more):
    """Run a program beside the fake of vllm; return its exit code and its output."""
    path = os.pathsep.join([str(FAKES / "vllm"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment.pop("NPUDIFF_SGL_KERNEL_NPU", None)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        input=text, env=environment, capture_output=True, text=True, check=False, timeout=600, **more,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def judge(backend, target, runs):
    """Have runs judged in one process."""
    text = judge_backend.said(runs, backend=f"{backend}={FAKES / backend}", target=target)
    code, out, error = run([judge_backend.__file__], text)
    assert code == 0, out + error
    return json.loads(out.splitlines()[-1])


def holds_and_bugs_are_found(backend, target, right, wrong):
    """Check that all adapters hold, and that each bug is found; return what was found, and names that judged a case."""
    found = judge(backend, target, [*right, *wrong])
    results = [item for one in found["judged"][: len(right)] for item in one.items()]
    assert {name: said["why"] for name, said in results if said["verdict"] not in ("holds", "not applicable")} == {}
    missed = [
        f"{one.bug} of {one.component}.{one.only[0]}"
        for one, said in zip(wrong, found["judged"][len(right) :], strict=True)
        if [result["verdict"] for result in said.values()] != ["wrong value"]
    ]
    assert missed == []
    return found, {name for name, said in results if said["cases"]}


@pytest.mark.virtual
@pytest.mark.parametrize("backend", sorted(NOT_HERE))
def test_every_adapter_judges_a_right_checkout_and_finds_its_bugs(backend):
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("no torch_npu: pip install 'npudiff[npu]'")
    both = [*ON_NPU[backend], *(replace(one, examples=1) for one in ELSEWHERE[backend])]
    both.sort(key=lambda one: load_component(one.component).ranks is None)  # ranks are forked, and come first
    found, judged = holds_and_bugs_are_found(backend, "virtual", both, BUGS_ON_NPU[backend])
    assert found["left_out"].keys() == NOT_HERE[backend]
    idle = {name: said["not_applicable"] for one in found["judged"] for name, said in one.items() if not said["cases"]}
    without_triton = {name for name, reasons in idle.items() if all("need triton" in reason for reason in reasons)}
    assert set(found["names"]) - judged - without_triton == MISFITS[backend]


@pytest.mark.slow
@pytest.mark.parametrize("backend", sorted(NOT_HERE))
def test_adapters_that_follow_the_device_of_their_inputs_do_so_on_the_simulator_too(backend):
    right, wrong = ELSEWHERE[backend], BUGS_ELSEWHERE[backend]
    _, judged = holds_and_bugs_are_found(backend, "sim", right, wrong)
    assert {name.partition(".")[0] for name in judged} == {one.component for one in right}


@pytest.fixture
def changed(tmp_path):
    """Copies sglang's fake and changes texts of files below ``srt``; returns its folder."""

    def change(texts):
        folder = shutil.copytree(FAKES / "sglang", tmp_path / "checkout")
        for name, (before, after) in texts.items():
            path = folder / "sglang" / "srt" / name
            text = path.read_text()
            assert before in text
            path.write_text(text.replace(before, after))
        return folder

    return change


def check(checkout, *asked, folder):
    """Run the command line as a user does; return its exit code and its output."""
    options = ("--backend", f"sglang={checkout}", "--target", "sim", "--workers", 1, "--seed", 1)
    code, out, error = run(["-m", "npudiff", "check", *asked, *options], cwd=folder)
    assert "Traceback" not in error, error
    return code, out


@pytest.mark.slow
def test_a_bug_in_a_file_of_a_checkout_is_a_finding_of_the_command_line(changed, tmp_path):
    name = "hardware_backend/npu/moe/activation.py"
    checkout = changed({name: ("up.clamp(-self.clamp_limit, self.clamp_limit)", "up.clamp(max=self.clamp_limit)")})
    code, out = check(checkout, "swiglu", "--examples", 15, "--causes", 1, folder=tmp_path)
    assert code == 1, out
    assert "swiglu-NPUSwigluStepAndMul-equivalence" in out
    assert f"--backend sglang={checkout}" in out
    assert "swiglu-SiluAndMul" not in out


@pytest.mark.slow
def test_what_does_not_fit_a_checkout_says_so_and_is_counted(changed, tmp_path):
    checkout = changed({
        "hardware_backend/npu/moe/init_routing.py": ("num_experts, top_k)", "num_experts)"),
        "hardware_backend/npu/moe/finalize_routing.py": ("class NPUMoETokenUnpermute", "class NPUUnpermute"),
        "layers/activation.py": ("def forward_npu", "def forward_device"),
    })  # fmt: skip
    code, out = check(checkout, "moe_routing", "moe_finalize", "swiglu", "--examples", 3, folder=tmp_path)
    assert code == 5, out
    lines = " ".join(out.split())
    assert "not applicable here: moe_finalize: not applicable to sglang 0.0.fake: cannot import name" in lines
    table = {row[0]: row[1:] for line in out.splitlines() if len(row := line.split()) > 3}
    for name in ("NPUMoEInitRouting_v2", "NPUMoEInitRouting_v1", "SiluAndMul.forward_npu"):
        assert table[name][0] == "0"
        assert int(table[name][2]) > 0
    assert int(table["SiluAndMul.forward_native"][0]) > 0
    arguments = "NPUMoEInitRouting_v2._init_routing() takes 4 positional arguments but 5 were given"
    name = "'SiluAndMul' object has no attribute 'forward_npu'"
    for adapter, why in (("moe_routing.NPUMoEInitRouting_v2", arguments), ("swiglu.SiluAndMul.forward_npu", name)):
        assert f"no case of {adapter} could be judged: not applicable to this checkout: {why}" in lines
    assert " 0 findings" in lines
