"""CANN profiles: which documented behaviours, choices and quirks the simulator shows.

A *choice* is a behaviour that no source settles, or on which sources disagree. Each is a field whose
comment names the sources, so that settling it is one changed line. Abbreviations: DOC is the torch_npu
documentation of ``npu_fused_infer_attention_score`` and ``..._v2``; ACLNN is CANN's
aclnnFusedInferAttentionScoreV4 page; SOURCE is CANN's operator source
(``attention/fused_infer_attention_score`` in ops-transformer).
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from npudiff.device.simulator.atb_attention.choices import AtbAttentionChoices
from npudiff.device.simulator.block_scaled.choices import BlockScaledChoices
from npudiff.device.simulator.fused_attention.choices import FusedAttentionChoices
from npudiff.device.simulator.grouped_matmul.choices import GroupedMatmulChoices
from npudiff.device.simulator.linear_attention.choices import LinearAttentionChoices
from npudiff.device.simulator.matmul.choices import MatmulChoices
from npudiff.device.simulator.mla.choices import MlaChoices
from npudiff.device.simulator.moe.choices import MoeChoices
from npudiff.device.simulator.norms.choices import NormChoices
from npudiff.device.simulator.quantisation.choices import QuantisationChoices
from npudiff.device.simulator.quirks import DECODE_MASK_ENDS_AT_512, TND_WITHOUT_MASK_AVERAGES, Quirk
from npudiff.device.simulator.sampling.choices import SamplingChoices
from npudiff.device.simulator.sparse_attention.choices import SparseAttentionChoices
from npudiff.device.simulator.speculative.choices import SpeculativeChoices

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class CannProfile(
    FusedAttentionChoices,
    AtbAttentionChoices,
    MlaChoices,
    QuantisationChoices,
    MoeChoices,
    GroupedMatmulChoices,
    NormChoices,
    MatmulChoices,
    BlockScaledChoices,
    SamplingChoices,
    SparseAttentionChoices,
    LinearAttentionChoices,
    SpeculativeChoices,
):
    """The behaviour of one CANN version, as far as it is known.

    Notes
    -----
    All other attributes are choices; the comment above each says what is disputed and by whom. Those of one family of
    operators are in the module ``choices`` of that family, for example
    :class:`device.simulator.fused_attention.choices.FusedAttentionChoices`.
    """

    name: str
    """The name under which the profile is chosen."""
    description: str
    """What the profile stands for."""
    version: str = "8.5.0"
    """The version that CANN says it has."""
    quirks: tuple[Quirk, ...] = ()
    """Reported deviations from the contract, applied in order."""

    # TND, sparse mode 4, a sequence with one query: is the band honoured? DOC drops pre_tokens and
    # next_tokens when "Q_S is 1", and TND has no Q_S axis. sglang's graph decode relies on the band (sglang
    # 0.5.23, ascend_backend.py:2881); sglang #24582 saw it dropped, but for BSND.
    tnd_band_at_query_length_one: Literal["honoured", "ignored"] = "honoured"

    # Does the LSE contain the sink? No source says; it is inferred, since LSE is the log of the denominator.
    lse_includes_sink: bool = True

    # LSE when it was not asked for. op-plugin's code and the wheel's META return shape [0], DOC says a [1]
    # that holds 0.
    lse_placeholder: Literal["empty", "one_zero"] = "empty"

    # Legal block sizes. SOURCE: multiples of 16 up to 1024 for head dim 64 and 128. DOC: multiples of 128
    # up to 512 for several queries, multiples of 16 up to 512 for one.
    block_size_rule: Literal["source", "docs"] = "source"

    # Cache [blocks, kv heads, block size, D] for BSH and BSND queries: ACLNN allows it, DOC does not.
    four_dimensional_cache: Literal["any_layout", "bnsd_and_tnd"] = "any_layout"

    # Cache [blocks, kv heads, D / C0, block size, C0], NZ order, for 16-bit attention without rope: ACLNN allows
    # it for every layout, DOC describes it for rope (D 512) and for int8 caches only.
    five_dimensional_cache: Literal["any_layout", "rejected"] = "any_layout"

    # Paged caches with TND on A2/A3: DOC denies it in the list of layouts and describes it elsewhere;
    # vllm-ascend (attention_v1.py) and sglang (ascend_backend.py:1757) both ship it.
    tnd_paging: Literal["accepted", "rejected"] = "accepted"

    # A row that the caller's mask hides entirely, without inner_precise's row-invalid correction. DOC only
    # warns of lost precision; SOURCE replaces hidden scores by one finite number, which makes a plain mean
    # of V (inferred).
    fully_hidden_row: Literal["mean_of_values", "zero"] = "mean_of_values"

    # Sparse mode 0 with a mask: SOURCE's golden hides what mask OR band hides, SOURCE's kernel for A2 has
    # elementwise code for the band in mode 4 only. "tiles_only" leaves out whole key tiles and rows outside
    # the band.
    mode_0_band: Literal["elementwise", "tiles_only"] = "elementwise"

    # TND, sparse mode 3: DOC wants fewer queries than keys in every sequence. Every prefill without prefix
    # has as many, in vllm-ascend as in sglang, so DOC cannot be meant strictly. Sequences without keys are
    # exempt.
    tnd_mode_3_queries: Literal["any", "at_most_keys", "fewer_than_keys"] = "at_most_keys"

    # float16 in TND, NTD and their pairs: DOC of the first version has no limit, that of the second names float16, and
    # the one in the wheel of torch_npu 2.13 says bfloat16 only; vllm-ascend upcasts for it (mla_v1.py).
    tnd_float16: Literal["rejected", "accepted"] = "accepted"

    # TND, (query and key, value) head dims without rope. DOC: 128, and 192 with value 128 or 192. ACLNN has
    # 64 too.
    tnd_head_dims: frozenset[tuple[int, int]] = frozenset({(64, 64), (128, 128), (192, 128), (192, 192)})

    # TND, sparse mode 4, query head dim unlike value head dim: SOURCE's checker allows modes 0, 2 and 3
    # only, DOC lists mode 4 for TND beside 192/128, and sglang ships it for MiMo-V2
    # (ascend_backend.py:459, 1760).
    tnd_unequal_head_dims_in_mode_4: Literal["accepted", "rejected"] = "accepted"

    # learnable_sink: DOC says bfloat16, ACLNN also float16. Names of torch dtypes.
    sink_dtypes: tuple[str, ...] = ("bfloat16",)

    # inner_precise 2 and 3 with one query: DOC allows 0 and 1 only, ACLNN lists 2 and 3 for some head dims.
    inner_precise_at_query_length_one: tuple[int, ...] = (0, 1)

    # Ranks of a mask for one query. DOC allows [B, S] beside [B, 1, S] and [B, 1, 1, S]; vllm-ascend #15503
    # saw [1, S] refused with 561002.
    decode_mask_ranks: tuple[int, ...] = (2, 3, 4)

    # Query heads per key head: DOC allows 64, ACLNN any number without quantisation. None is any number.
    max_group_size: int | None = 64

    # Non-contiguous query, key, value, mask or table: DOC forbids them; aclnn's generated entry makes copies.
    # The documentation of npu_gemma_rms_norm and npu_interleave_rope forbids them too.
    non_contiguous: Literal["accepted", "rejected"] = "accepted"

    # Rotary and norm operators. DOC is each operator's torch_npu documentation, ACLNN its aclnn page, SOURCE
    # its kernels for A2 and A3 (ops-transformer/posembedding, ops-nn/norm).

    # npu_rms_norm, 16 bit: is x * rstd rounded before gamma? SOURCE (rms_norm.h, rms_norm_merge_n.h) and its
    # golden keep float32 to the end; npu_add_rms_norm rounds, and older rms_norm kernels may (inferred).
    rms_norm_chain: Literal["float32", "rounded_before_gamma"] = "float32"

    # npu_rotary_mul, float16 in half order: SOURCE (rotate_half.h) multiplies and adds in float16, op-plugin's
    # test has a golden in float32.
    rotary_mul_float16: Literal["float16", "float32"] = "float16"

    # npu_rotary_mul: DOC wants batch and heads below 1000 (interleave: their product). That they are checked
    # is inferred; sglang keeps to it for heads (layers/rotary_embedding/utils.py).
    rotary_mul_sizes: Literal["documented", "any"] = "documented"

    # npu_rotary_mul, input [T, N, D]: DOC has r1 [T, 1, D], and [T, N, D] in half order; op-plugin's tests give
    # [1, 1, D] too, and are parked since the CANN of its CI has no three axes.
    rotary_mul_three_axes: Literal["broadcast", "documented", "rejected"] = "broadcast"

    # npu_apply_rotary_pos_emb, bfloat16: SOURCE rounds with CAST_ROUND, other kernels narrow to bfloat16 with
    # CAST_RINT.
    apply_rotary_bfloat16: Literal["half_away_from_zero", "half_to_even"] = "half_away_from_zero"

    # npu_interleave_rope: DOC has two dtypes, ACLNN float32 too. Names of torch dtypes.
    interleave_rope_dtypes: tuple[str, ...] = ("float16", "bfloat16")

    # npu_mrope: DOC allows int32 positions, ACLNN int64 only, and SOURCE reads 64 bits per position.
    mrope_int32_positions: Literal["accepted", "rejected"] = "accepted"

    # npu_mrope: sections that are not zero. ACLNN lists these, DOC only wants the right sum.
    mrope_sections: frozenset[tuple[int, ...]] = frozenset({(16, 24, 24), (24, 20, 20), (8, 12, 12), (16, 16, 16, 16)})

    # npu_kv_rmsnorm_rope_cache with one of k_rope_scale and c_kv_scale: DOC wants both, SOURCE quantises each
    # cache that has a scale (vllm-ascend gives c_kv_scale alone, on A5).
    kv_rmsnorm_scales: Literal["both", "each"] = "both"

    # The same with scales and cache_mode Norm: DOC restricts no mode, SOURCE has no quantising kernel for Norm.
    kv_rmsnorm_scales_in_norm_mode: Literal["rejected", "accepted"] = "rejected"

    # The same, paged: DOC wants at least ceil(S / block size) * B blocks. sglang gives every token as a batch
    # of its own (deepseek_v2_attention_mla_npu.py:104), more than its pool has pages, so nothing checks it.
    kv_rmsnorm_block_count: Literal["any", "documented"] = "any"

    # The same, two tokens for one slot: DOC calls it undefined. Padded tokens of sglang all go to slot 0, so it
    # does no harm elsewhere; "unpredictable" fills the slot with what nobody wrote.
    kv_rmsnorm_duplicate_index: Literal["unpredictable", "last_token"] = "unpredictable"

    # npu_kv_rmsnorm_rope_cache_v2_functional: op-plugin seems to update the caches that it was given and to
    # return clones made before (read in its host code at 517f2e7d); the schema promises the opposite.
    kv_rmsnorm_functional: Literal["updates_clones", "updates_inputs"] = "updates_clones"

    # Cache operators. DOC is each operator's torch_npu documentation, SOURCE its tiling and kernels for A2 and
    # A3 (ops-transformer/attention/scatter_pa_kv_cache and gather_pa_kv_cache; ascend-transformer-boost for
    # _npu_reshape_and_cache).

    # npu_scatter_pa_kv_cache, cache mode PA_NZ (the default), caches of another shape, as ND ones have: SOURCE
    # refuses them (CheckInputShapeNz of ScatterPaKvCacheMembaseTiling, in all versions read), and DOC says that
    # PA_NZ is for NZ only. vllm-ascend gives 5 axes, [blocks, kv heads, D / C0, block size, C0], which DOC does not
    # list and which are taken here. Unchecked, the bytes are addressed as NZ with the last but one axis as the block
    # size, which scrambles the cache silently.
    scatter_pa_nz_shapes: Literal["unchecked", "checked"] = "checked"

    # The same, dtypes: these are SOURCE's for A2 and A3; DOC has all of 1, 2 and 4 bytes. Names of torch dtypes.
    scatter_pa_dtypes: tuple[str, ...] = ("float16", "bfloat16", "int8")

    # The same, int8 keys with values of 16 bit: SOURCE takes them, DOC wants one dtype.
    scatter_pa_mixed_dtypes: Literal["int8_key", "rejected"] = "int8_key"

    # _npu_reshape_and_cache with one cache in FRACTAL_NZ, or _siso with its only one: op-plugin takes the ND
    # operation, which writes rows across the tiles. That ATB does not refuse the format is inferred.
    reshape_and_cache_lone_nz: Literal["written_as_nd", "rejected"] = "written_as_nd"

    # npu_gather_pa_kv_cache, NZ, seq_offset: DOC counts tokens for both modes, SOURCE's NZ kernel adds the number
    # to the column of the block table (gather_pa_kv_cache_nz.h), its ND kernel divides.
    gather_pa_nz_offset: Literal["tokens", "blocks"] = "tokens"

    # The same, a block outside the cache or the table: SOURCE reads there, op-plugin's golden (for 950) has zeros.
    gather_pa_missing_block: Literal["fault", "zeros"] = "fault"

    # npu_format_cast_ with a tensor: torch_npu (FormatCastKernelNpu.cpp) copies the values of the tensor and keeps
    # the format, DOC says that the format is taken over.
    format_cast_from_tensor: Literal["copies_values", "takes_format"] = "copies_values"

    # npu_format_cast from a base format to FRACTAL_NZ and back: from CANN 9.1 on torch_npu asks aclnn for it
    # (FormatCastKernelNpu.cpp), which takes customize_dtype and looks at no option of the program.
    format_cast_path: Literal["aclop", "aclnn"] = "aclop"

    # torch.npu.config.allow_internal_format, which is an option of the program: torch_npu's default is off, and
    # a cast to FRACTAL_NZ then gives ND. sglang and vllm-ascend turn it on.
    internal_format: Literal["allowed", "replaced_by_base_format"] = "allowed"


_CANN_8_5 = CannProfile(
    name="8.5",
    version="8.5.0",
    description="CANN 8.5, with which sglang's hybrid sliding-window support was written (sglang #24582)",
)

# Nothing in the sources sets CANN 9.0 apart from 8.5 for this operator; it has a name so that a finding can
# say which was meant.
_CANN_9_0 = replace(
    _CANN_8_5, name="9.0", version="9.0.0", description="CANN 9.0; no behaviour known to differ from 8.5"
)

_CANN_9_1 = replace(
    _CANN_9_0,
    name="9.1",
    version="9.1.0",
    description="CANN 9.1; fused attention refuses keys and values with gaps",
    strided_keys="rejected",
    format_cast_path="aclnn",
)

_PESSIMISTIC = CannProfile(
    name="pessimistic",
    description="every behaviour that no source settles takes the value that hurts a caller who relies on it",
    quirks=(DECODE_MASK_ENDS_AT_512, TND_WITHOUT_MASK_AVERAGES),
    tnd_band_at_query_length_one="ignored",
    band_at_query_length_one="ignored",
    absorbed_lse="rejected_in_v1",
    antiquant_sums="float32",
    antiquant_nz_sizes="documented",
    attention_update_positive_infinity="as_given",
    tnd_float16="rejected",
    lse_includes_sink=False,
    block_size_rule="docs",
    four_dimensional_cache="bnsd_and_tnd",
    five_dimensional_cache="rejected",
    mode_0_band="tiles_only",
    tnd_head_dims=frozenset({(128, 128), (192, 128), (192, 192)}),
    tnd_unequal_head_dims_in_mode_4="rejected",
    decode_mask_ranks=(3, 4),
    non_contiguous="rejected",
    scatter_pa_mixed_dtypes="rejected",
    gather_pa_nz_offset="blocks",
    rms_norm_chain="rounded_before_gamma",
    add_rms_norm_quant_chain="float32",
    rms_norm_quant_scale="multiplies",
    rotary_mul_three_axes="rejected",
    mrope_int32_positions="rejected",
    kv_rmsnorm_block_count="documented",
    kv_rmsnorm_functional="updates_inputs",
    mla_negative_slot="fault",
    mla_prolog_placeholders="one_zero",
    mla_prolog_query_norm="unscaled",
    mla_prolog_weight_format="fractal_nz",
    moe_gating_renorm="rejected",
    moe_gating_softmax_order="logits",
    moe_init_routing_drop_pad_counts="kept",
    moe_init_routing_inactive="unwritten",
    moe_finalize_dropped_row="first_row",
    gmm_empty_k_group="unwritten",
    gmm_a8w4_channel_products="float16",
    gmm_a8w4_x="overwritten",
    gmm_swiglu_weight_format="fractal_nz",
    gmm_finalize_order="shared_last",
    gmm_swiglu_a4w4_scales="bits",
    quant_matmul_last_axis="always",
    quant_matmul_int4_scales="float32",
    dynamic_quant_zero_row="nan",
    dynamic_quant_ties="half_away_from_zero",
    dynamic_quant_empty_groups="undefined",
    dequant_swiglu_quant_row_scale="needed",
    dequant_swiglu_quant_step=64,
    quantize_ties="half_away_from_zero",
    quantize_scales="as_input",
    quant_matmul_int32="scaled",
    weight_quant_eager_nz="rejected",
    transpose_batchmatmul_int8="cut",
    top_p_complement="dtype_of_p",
    top_k_out_of_range="undefined",
    indexer_ties="higher_position_first",
    sparse_attention_unpacked="undefined",
    sparse_attention_hidden_row="as_empty",
    sparse_attention_heads="documented",
    linear_shared_states="unpredictable",
    chunk_decay="quotient",
    causal_conv1d_silu="of_rounded",
)

PROFILES: Mapping[str, CannProfile] = MappingProxyType(
    {profile.name: profile for profile in (_CANN_8_5, _CANN_9_0, _CANN_9_1, _PESSIMISTIC)}
)

DEFAULT_PROFILE = "8.5"

_default = PROFILES[DEFAULT_PROFILE]
_active: ContextVar[CannProfile] = ContextVar("cann_profile")


def active_profile() -> CannProfile:
    """Return the profile that the operators follow now: the innermost ``use_profile``, else the default."""
    return _active.get(_default)


def use_by_default(name: str) -> None:
    """Let the operators follow a profile in this process wherever no ``use_profile`` says otherwise."""
    global _default  # noqa: PLW0603 - of the process, as the CANN that a machine has
    _default = PROFILES[name]


@contextmanager
def use_profile(profile: str | CannProfile) -> Iterator[CannProfile]:
    """Let the operators follow a profile inside a ``with`` block, in this thread or task only.

    Parameters
    ----------
    profile : str or CannProfile
        A name in ``PROFILES``, or a profile made with ``dataclasses.replace``.

    Raises
    ------
    ValueError
        The name is not known.
    """
    if isinstance(profile, str):
        if profile not in PROFILES:
            known = ", ".join(sorted(PROFILES))
            raise ValueError(f"unknown CANN profile {profile!r}; known: {known}")
        profile = PROFILES[profile]
    token = _active.set(profile)
    try:
        yield profile
    finally:
        _active.reset(token)
