"""Shows for each wrong kernel inputs on which it is off by more than the reference's bound, and its twin is not."""
import importlib
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch

os.environ.pop("TWIN", None)
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import npudiff  # noqa: E402
from npudiff.reference.dynamic_quant import DynamicQuantInputs  # noqa: E402
from npudiff.reference.expert_weights import ExpertWeights  # noqa: E402
from npudiff.reference.format_cast import FormatCastInputs  # noqa: E402
from npudiff.reference.grouped_matmul import GroupedMatmulInputs  # noqa: E402
from npudiff.reference.int4_pack import Int4PackInputs  # noqa: E402
from npudiff.reference.moe_experts import Experts, Gate, MoeExpertsInputs  # noqa: E402
from npudiff.reference.moe_finalize import MoeFinalizeInputs  # noqa: E402
from npudiff.reference.moe_gating import MoeGatingInputs  # noqa: E402
from npudiff.reference.moe_routing import MoeRoutingInputs  # noqa: E402
from npudiff.reference.padded_tokens import PaddedTokensInputs  # noqa: E402
from npudiff.reference.quant_matmul import QuantMatmulInputs  # noqa: E402
from npudiff.reference.scale_pack import ScalePackInputs  # noqa: E402
from npudiff.reference.swiglu import Activation, SwigluInputs  # noqa: E402
from npudiff.reference.swiglu_quant import SwigluQuantInputs  # noqa: E402
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs  # noqa: E402

BF, HALF, F32 = torch.bfloat16, torch.float16, torch.float32
TARGET = SimpleNamespace(device="cpu")
G = torch.Generator()
DEMOS = {}


def demo(name):
    def put(function):
        assert name not in DEMOS, name
        DEMOS[name] = function
        return function

    return put


def n(*shape, dtype=BF, std=1.0):
    return (torch.randn(*shape, generator=G) * std).to(dtype)


def whole(low, high, *shape, dtype=torch.int8):
    return torch.randint(low, high + 1, shape, generator=G).to(dtype)


def ints(*values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


def sliced(rows, gap):
    storage = torch.full((rows.shape[0], rows.shape[1] + gap), 4096.0, dtype=rows.dtype)
    view = storage[:, gap:]
    view.copy_(rows)
    return view


# swiglu
def sw(states, activation=Activation.SILU, routed=None, shared_limit=None, **more):
    return SwigluInputs(states, activation, routed, shared_limit, **more)


demo("b_swiglu_01_vector_tail")(lambda: [sw(n(2, 18))])
demo("b_swiglu_02_row_stride")(lambda: [sw(sliced(n(3, 16), 8))])
demo("b_swiglu_03_grid_65535")(lambda: [sw(n(65537, 2))])
demo("b_swiglu_04_exp_overflow")(lambda: [sw(torch.full((1, 4), 100.0, dtype=BF))])
demo("b_swiglu_05_decode_without_limit")(lambda: [sw(torch.full((1, 4), 9.0, dtype=BF), Activation.SWIGLUSTEP, 7.0)])
demo("b_swiglu_06_up_clamped_above")(
    lambda: [sw(torch.tensor([[3.0, -9.0]], dtype=BF), Activation.SWIGLU_OAI, 7.0)])
demo("b_swiglu_07_bias_zero_is_default")(lambda: [sw(n(2, 8), Activation.SWIGLU_OAI, 7.0, alpha=1.0, bias=0.0)])
demo("b_swiglu_08_shared_falls_back")(
    lambda: [sw(torch.full((2, 4), 9.0, dtype=BF), Activation.SWIGLUSTEP, 7.0, None, shared=True)])
demo("b_swiglu_09_limit_is_int")(lambda: [sw(torch.full((2, 4), 9.0, dtype=BF), Activation.SWIGLUSTEP, 7.5)])
demo("b_swiglu_10_float32_tiles_in_half")(lambda: [sw(n(3, 8, dtype=F32))])


@demo("b_swiglu_11_output_in_place")
def _():
    x = sw(n(2, 8))
    return [x, x]


# dynamic_quant
def dq(states, smooth=None, ends=None, bits=8):
    return DynamicQuantInputs(states, smooth, ends, bits)


def factors(experts, width):
    return (torch.arange(1, experts + 1).unsqueeze(1) * torch.ones(experts, width)).to(BF)


demo("b_dynamic_quant_01_max_without_abs")(lambda: [dq(torch.tensor([[-8.0, 1.0, 2.0, 0.5]], dtype=BF))])
demo("b_dynamic_quant_02_eps")(lambda: [dq(n(2, 8, std=1e-7))])
demo("b_dynamic_quant_03_truncated")(lambda: [dq(n(2, 32))])
demo("b_dynamic_quant_04_scale_in_model_dtype")(lambda: [dq(n(4, 32), n(1, 32))])
demo("b_dynamic_quant_05_int4_uses_eight")(lambda: [dq(n(2, 32), bits=4)])


@demo("b_dynamic_quant_06_tree_drops_odd")
def _():
    x = n(1, 3)
    x[0, 2] = 50
    return [dq(x)]


demo("b_dynamic_quant_07_row_at_the_end")(lambda: [dq(n(4, 16), factors(2, 16), ints(2, 4, dtype=torch.int32))])
demo("b_dynamic_quant_08_empty_expert_compacted")(
    lambda: [dq(n(4, 16), factors(3, 16), ints(2, 2, 4, dtype=torch.int32))])


@demo("b_dynamic_quant_09_last_tile_only")
def _():
    x = n(1, 4096 + 16)
    x[0, 0] = 100
    return [dq(x)]


demo("b_dynamic_quant_10_rows_in_pairs")(lambda: [dq(n(3, 16), factors(2, 16), ints(1, 3, dtype=torch.int32))])
demo("b_dynamic_quant_11_workspace_not_cleared")(lambda: [dq(n(2, 16, std=10.0)), dq(n(2, 16))])
demo("b_dynamic_quant_12_half_reciprocal_underflow")(lambda: [dq(n(2, 16, dtype=HALF, std=1e-3))])


# swiglu_quant
def sq(states, counts=None, smooth=None, activation=Activation.SILU, limit=None, gates="left", bias=None, groups=1, **more):
    sums = states.dtype == torch.int32
    scale = torch.rand(groups, states.shape[1], generator=G) * 1e-2 + 1e-3 if sums else None
    token = torch.rand(len(states), generator=G) * 1e-1 + 1e-2 if sums else None
    return SwigluQuantInputs(states, scale, token, bias, smooth, counts, activation, limit, gates=gates, **more)


def sums(*shape):
    return whole(-20000, 20000, *shape, dtype=torch.int32)


def rising(groups, width):
    return torch.arange(1.0, groups + 1).unsqueeze(1) * torch.ones(groups, width)


demo("b_swiglu_quant_01_ends_in_int16")(
    lambda: [sq(n(40002, 2), ints(20000, 20000, 2), rising(3, 1), rounding="once")])
demo("b_swiglu_quant_02_uniform_groups")(lambda: [sq(n(6, 16), ints(2, 1, 3), rising(3, 8), rounding="once")])
demo("b_swiglu_quant_03_even_gates_of_sums")(
    lambda: [sq(sums(3, 32), activation=Activation.SWIGLU_OAI, limit=7.0, gates="even", rounding="once")])
demo("b_swiglu_quant_04_bias_of_the_gates")(
    lambda: [sq(sums(3, 32), bias=whole(-20000, 20000, 32, dtype=torch.int32), rounding="once")])
demo("b_swiglu_quant_05_token_scale_afterwards")(lambda: [sq(sums(3, 32), rounding="once")])


@demo("b_swiglu_quant_06_max_of_whole_blocks")
def _():
    x = n(2, 192)
    x[:, 95] = 20
    x[:, 191] = 20
    return [sq(x, rounding="once")]


demo("b_swiglu_quant_07_no_limit_without_groups")(
    lambda: [replace(sq(sums(3, 32), activation=Activation.SWIGLUSTEP, limit=2.0, rounding="once"),
                     weight_scale=torch.full((1, 32), 1e-2), token_scale=torch.full((3,), 0.1))])
demo("b_swiglu_quant_08_rest_of_the_cores")(lambda: [sq(n(41, 16), rounding="once")])
demo("b_swiglu_quant_09_smooth_of_nonempty_groups")(
    lambda: [sq(n(4, 16), ints(2, 0, 2), rising(3, 8), rounding="once")])
demo("b_swiglu_quant_10_signed_max")(lambda: [sq(n(4, 16), None, torch.rand(1, 8, generator=G) + 0.5, rounding="once")])


# moe_gating
def gate(logits, top_k, bias=None, **more):
    return MoeGatingInputs(logits, bias, top_k, **more)


demo("b_gating_01_bias_in_weights_at_128_8")(
    lambda: [gate(n(2, 128, dtype=F32), 8, n(128, dtype=F32), scoring="sigmoid", renormalise=True)])
demo("b_gating_02_hidden_groups_are_zero")(
    lambda: [gate(n(2, 8, dtype=F32), 2, torch.full((8,), -3.0), scoring="sigmoid", groups=4, kept_groups=2)])
demo("b_gating_03_argmax_from_minus_one")(
    lambda: [gate(n(2, 8, dtype=F32), 2, torch.full((8,), -3.0), scoring="sigmoid")])
demo("b_gating_04_scaling_inside_renormalise")(lambda: [gate(n(2, 8, dtype=F32), 2, scaling=2.5)])
demo("b_gating_05_epsilon")(
    lambda: [gate(n(2, 8, dtype=F32) - 18, 2, scoring="sigmoid", renormalise=True)])
demo("b_gating_06_two_best_only_with_bias")(
    lambda: [gate(torch.tensor([[3.0, -5.0, 2.0, 1.9]]), 1, groups=2, kept_groups=1, scoring="sigmoid")])
demo("b_gating_07_exp_without_max")(lambda: [gate(n(2, 8, dtype=F32) + 100, 2)])
demo("b_gating_08_biased_in_model_dtype")(
    lambda: [gate(n(64, 256), 8, n(256, std=0.05) + 10, scoring="sigmoid")])
demo("b_gating_09_padding_in_the_sum")(lambda: [gate(n(2, 12, dtype=F32), 2)])
demo("b_gating_10_first_256_experts")(lambda: [gate(n(4, 512, dtype=F32), 10, renormalise=True)])
demo("b_gating_11_eight_in_registers")(lambda: [gate(n(4, 32, dtype=F32), 10, renormalise=True)])
demo("b_gating_12_ties_cleared_by_value")(lambda: [gate(torch.tensor([[3.0, 3.0, 1.0, 0.0]]), 2)])
demo("b_gating_13_groups_of_a_warp")(
    lambda: [gate(n(8, 128, dtype=F32), 4, groups=2, kept_groups=1, group_score="largest")])
demo("b_gating_14_one_token_sums_all_scores")(
    lambda: [gate(n(1, 8, dtype=F32), 2, renormalise=True)])


# moe_routing
def distinct(tokens, top_k, experts):
    return torch.rand(tokens, experts, generator=G).argsort(dim=1)[:, :top_k].to(torch.int32)


def route(states, experts, all_experts, first=0, last=None, form="as they are", scale=None, offset=None):
    return MoeRoutingInputs(states, experts, all_experts, first, all_experts if last is None else last, form, scale, offset)


demo("b_routing_01_by_choice")(lambda: [route(n(2, 4), ints(0, 1, 1, 0, dtype=torch.int32).view(2, 2), 2)])
demo("b_routing_02_counts_of_the_first_rank")(
    lambda: [route(n(2, 4), ints(0, 2, 2, 3, dtype=torch.int32).view(2, 2), 4, 2, 4)])
demo("b_routing_03_eight_bit_keys")(
    lambda: [route(n(2, 4), ints(5, 300, 256, 1, dtype=torch.int32).view(2, 2), 384)])


@demo("b_routing_04_number_in_sixteen_bits")
def _():
    tokens = 33000
    experts = torch.stack([torch.arange(tokens) % 2, 2 + torch.arange(tokens) % 2], dim=1).to(torch.int32)
    return [route(n(tokens, 1), experts, 4)]


demo("b_routing_05_scales_not_sorted")(
    lambda: [route(n(4, 4), distinct(4, 2, 4), 4, form="with scales", scale=torch.rand(4, generator=G))])
demo("b_routing_06_factors_by_global_expert")(
    lambda: [route(n(4, 16), distinct(4, 3, 4), 4, 1, 4, form="smoothed", scale=rising(3, 16))])
demo("b_routing_07_int8_wraps")(
    lambda: [route(n(2, 8, std=3.0), distinct(2, 1, 2), 2, form="one scale", scale=torch.tensor([100.0]),
                   offset=torch.tensor([0.0]))])
demo("b_routing_08_elsewhere_is_row_0")(
    lambda: [route(n(2, 4), ints(0, 2, 2, 3, dtype=torch.int32).view(2, 2), 4, 2, 4)])
demo("b_routing_09_counts_in_blocks_of_32")(lambda: [route(n(30, 4), distinct(30, 4, 60), 60)])
demo("b_routing_10_rows_of_the_tokens")(
    lambda: [route(n(8, 4), torch.full((8, 1), 5, dtype=torch.int32), 8, 4, 6)])
demo("b_routing_11_one_scale_half_up")(
    lambda: [route(n(4, 16), distinct(4, 1, 2), 2, form="one scale", scale=torch.tensor([1.0]),
                   offset=torch.tensor([0.375]))])


# moe_finalize
def fin(rows, places, weights=None, residual=None):
    places = places.to(torch.int32)
    weights = torch.rand(places.shape, generator=G).to(rows.dtype) if weights is None else weights
    return MoeFinalizeInputs(rows, places, weights, residual)


demo("b_finalize_01_minus_one_is_the_last_row")(lambda: [fin(n(3, 8), ints(0, -1, 1, 2).view(2, 2))])


@demo("b_finalize_02_zero_weight_for_row_0")
def _():
    rows = n(3, 8)
    rows[0] = torch.nan
    return [fin(rows, ints(1, -1, -1, 2).view(2, 2))]


demo("b_finalize_03_unrolled_top_k")(lambda: [fin(n(10, 8), torch.arange(10).view(2, 5))])
demo("b_finalize_04_one_copy_is_a_copy")(lambda: [fin(n(2, 8), ints(1, 0).view(2, 1), residual=n(2, 8))])
demo("b_finalize_05_nothing_here_returns")(
    lambda: [fin(n(2, 8), ints(1, 0, -1, -1).view(2, 2), residual=n(2, 8))])
demo("b_finalize_06_blocks_in_uint16")(lambda: [fin(n(1100, 1024), torch.arange(1100).view(550, 2))])
demo("b_finalize_07_residual_of_whole_tiles")(
    lambda: [fin(n(34, 8), torch.arange(34).view(17, 2), residual=n(17, 8))])
demo("b_finalize_08_sum_in_half")(
    lambda: [fin(torch.tensor([[40000.0], [40000.0], [-40000.0]], dtype=HALF), ints(0, 1, 2).view(1, 3),
                 torch.ones(1, 3, dtype=HALF))])
demo("b_finalize_09_renormalised_here")(lambda: [fin(n(3, 8), ints(0, -1, 1, 2).view(2, 2))])


# padded_tokens
def padded(rows, totals, offsets, chunks, weights=None, top_k=2, experts=4):
    return PaddedTokensInputs(
        n(rows, 4), distinct(rows, top_k, experts),
        (torch.rand(rows, top_k, generator=G) + 0.1).to(BF) if weights is None else weights,
        torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=BF)[:experts], totals, offsets, torch.zeros_like(totals))


demo("b_padded_01_prefix_of_all")(lambda: [padded(8, ints(2, 3), ints(0, 0), 2)])
demo("b_padded_02_offsets_ignored")(lambda: [padded(8, ints(5, 5), ints(0, 4), 2)])
demo("b_padded_03_unsigned_difference")(lambda: [padded(12, ints(3, 3, 3), ints(0, 4, 8), 3)])
demo("b_padded_04_padding_not_counted")(lambda: [padded(4, ints(2), ints(0), 1)])
demo("b_padded_05_mask_of_the_first_replay")(lambda: [padded(4, ints(2), ints(0), 1), padded(4, ints(3), ints(0), 1)])


@demo("b_padded_06_multiplied_by_the_mask")
def _():
    weights = torch.rand(4, 2, generator=G).to(BF)
    weights[3] = torch.nan
    return [padded(4, ints(3), ints(0), 1, weights)]


demo("b_padded_07_slice_of_the_last_rows")(lambda: [padded(4, ints(4), ints(0), 1)])
demo("b_padded_08_last_total_for_all")(lambda: [padded(8, ints(2, 4), ints(0, 0), 2)])

# int4_pack
TWOS, BINARY = "two's complement", "offset binary"
I32 = torch.int32
demo("b_int4_01_clamped_first")(lambda: [Int4PackInputs(whole(0, 15, 2, 8, dtype=I32) | 8, TWOS)])
demo("b_int4_02_zero_point_of_matrices")(lambda: [Int4PackInputs(whole(0, 15, 2, 2, 8, dtype=I32), BINARY)])
demo("b_int4_03_words_in_blocks")(lambda: [Int4PackInputs(whole(-8, 7, 2, 72, dtype=I32), TWOS)])
demo("b_int4_04_xor_for_minus")(lambda: [Int4PackInputs(torch.zeros(1, 8, dtype=I32), BINARY)])
demo("b_int4_05_second_matrix_onwards_by_stride")(
    lambda: [Int4PackInputs(whole(-8, 7, 3, 4, 8, dtype=I32)[:, 1:], TWOS)])


# scale_pack
def pack(scale, offset=None, form="fixpipe", mode=0):
    return ScalePackInputs(scale, offset, form, mode)


demo("b_scale_01_offset_half_up")(lambda: [pack(torch.ones(2), torch.tensor([0.5, 2.5]))])
demo("b_scale_02_offset_wraps")(lambda: [pack(torch.ones(2), torch.tensor([300.0, -300.0]))])
demo("b_scale_03_carry_lost")(lambda: [pack(torch.tensor([1.99999]), mode=1)])
demo("b_scale_04_subnormals_flushed")(lambda: [pack(torch.tensor([1e-40]), form="bits")])
demo("b_scale_05_first_offset_for_all")(lambda: [pack(torch.ones(2, 3), torch.tensor([1.0, 2.0, 3.0]))])
demo("b_scale_06_sign_dropped")(lambda: [pack(torch.tensor([-0.5]))])
demo("b_scale_07_offset_added_to_the_marker")(lambda: [pack(torch.ones(1), torch.tensor([-3.0]))])

# format_cast
demo("b_format_01_c0_by_bytes")(lambda: [FormatCastInputs(n(16, 16, dtype=F32))])
demo("b_format_02_strip_buffer_reused")(lambda: [FormatCastInputs(n(16, 20))])
demo("b_format_03_whole_tiles_by_count")(lambda: [FormatCastInputs(n(8, 32))])
demo("b_format_04_one_row_or_column_stays")(lambda: [FormatCastInputs(n(1, 32))])
demo("b_format_05_restored_rows_of_whole_tiles")(lambda: [FormatCastInputs(n(20, 16))])


# quant_matmul
def qmm(tokens, inner, columns, output=BF, token=False, bias=None, offset=None, scale=None, bits=8, **more):
    low, high = (-128, 127) if bits == 8 else (-8, 7)
    made = dict(
        x=whole(low, high, tokens, inner), weight=whole(low, high, inner, columns),
        scale=torch.rand(columns, generator=G) * 1e-3 + 1e-4 if scale is None else scale,
        token_scale=torch.rand(tokens, generator=G) + 0.1 if token else None,
        offset=offset, bias=bias, output_dtype=output, bits=bits)
    return QuantMatmulInputs(**{**made, **more})


demo("b_qmm_01_sums_in_float32")(
    lambda: [qmm(1, 2049, 1, torch.int32, x=torch.full((1, 2049), 127, dtype=torch.int8),
                 weight=torch.full((2049, 1), 127, dtype=torch.int8))])
demo("b_qmm_02_square_token_scale")(lambda: [qmm(4, 16, 4, token=True)])
demo("b_qmm_03_symmetric_saturation")(
    lambda: [qmm(1, 16, 1, torch.int8, x=torch.full((1, 16), 127, dtype=torch.int8),
                 weight=torch.full((16, 1), -127, dtype=torch.int8), scale=torch.tensor([0.01]))])
demo("b_qmm_04_limited_before_offset")(
    lambda: [qmm(2, 16, 4, torch.int8, scale=torch.full((4,), 0.01), offset=torch.full((4,), 100.0))])
demo("b_qmm_05_bias_before_token_scale")(lambda: [qmm(2, 16, 4, token=True, bias=n(4))])
demo("b_qmm_06_transposed_weight")(lambda: [qmm(2, 16, 16, weight=whole(-128, 127, 16, 16).t())])
demo("b_qmm_07_scale_cut_with_token_scale")(lambda: [qmm(8, 16, 32, HALF, token=True)])
demo("b_qmm_08_bias_of_each_split")(
    lambda: [qmm(1, 2064, 4, bias=whole(-10**6, 10**6, 4, dtype=torch.int32) + 2 * 10**6)])
demo("b_qmm_09_int4_of_odd_inner_blocks")(lambda: [qmm(2, 72, 8, bits=4)])
demo("b_qmm_10_half_before_token_scale")(
    lambda: [qmm(8, 64, 32, HALF, token=True, scale=torch.ones(32), token_scale=torch.full((8,), 1e-3))])
demo("b_qmm_11_scalar_offset_dropped")(
    lambda: [qmm(2, 16, 4, torch.int8, offset=torch.tensor([5.0]))])


# weight_quant_matmul
def wq(tokens, inner, columns, dtype=BF, size=0, offset=False, bias=False, bits=8, scale=None, **more):
    low, high = (-128, 127) if bits == 8 else (-8, 7)
    shape = (-(-inner // size), columns) if size else (columns,)
    made = dict(
        x=n(tokens, inner, dtype=dtype), weight=whole(low, high, inner, columns),
        scale=(torch.rand(shape, generator=G) * 1e-2 + 1e-3).to(dtype) if scale is None else scale,
        offset=n(*shape, dtype=dtype, std=4.0) if offset else None,
        bias=n(columns, dtype=F32 if dtype == BF else HALF, std=10.0) if bias else None, group_size=size, bits=bits)
    return WeightQuantMatmulInputs(**{**made, **more})


demo("b_wqmm_01_one_group_per_tile")(lambda: [wq(2, 128, 8, size=32)])
demo("b_wqmm_02_int4_without_offset_is_gptq")(lambda: [wq(2, 64, 8, size=32, bits=4)])
demo("b_wqmm_03_partial_group_clamped")(lambda: [wq(2, 80, 8, size=32)])
demo("b_wqmm_04_gemv_without_bias")(lambda: [wq(1, 32, 8, bias=True)])
demo("b_wqmm_05_dequantised_in_half")(
    lambda: [wq(2, 32, 8, scale=torch.full((8,), 1e-8, dtype=BF))])
demo("b_wqmm_06_transposed_groups")(lambda: [wq(2, 64, 8, size=32, weight=whole(-128, 127, 8, 64).t())])
demo("b_wqmm_07_columns_behind_128")(lambda: [wq(2, 32, 192)])
demo("b_wqmm_08_offset_of_the_first_group")(lambda: [wq(2, 64, 8, size=32, offset=True)])


# grouped_matmul
def gmm(rows, groups, kind="counts", experts=None, inner=16, columns=8, form="float", bias=None, groups_of_inner=1,
        offset=False, splits=False):
    experts = len(groups) if experts is None else experts
    if splits:
        return GroupedMatmulInputs(n(rows, inner), ExpertWeights(n(1, inner, columns)), groups, kind, None, BF, True)
    if form == "float":
        return GroupedMatmulInputs(n(rows, inner), ExpertWeights(n(experts, inner, columns), bias=bias), groups, kind, None, BF)
    bits = 8 if "8a8" in form or form == "w8a16" else 4
    low, high = (-128, 127) if bits == 8 else (-8, 7)
    floats = form.endswith("16")
    scale = torch.rand(experts, groups_of_inner, columns, generator=G) * 1e-2 + 1e-3
    scale = scale.to(BF) if floats else scale
    shift = n(*scale.shape, std=4.0) if offset else None
    weights = ExpertWeights(whole(low, high, experts, inner, columns), bits, scale, shift, bias)
    states = n(rows, inner) if floats else whole(-128, 127, rows, inner)
    token = None if floats else torch.rand(rows, generator=G) + 0.1
    return GroupedMatmulInputs(states, weights, groups, kind, token, BF)


demo("b_gmm_01_whole_tiles_largest_first")(lambda: [gmm(7, ints(3, 4))])
demo("b_gmm_02_uniform_by_first_and_last")(lambda: [gmm(8, ints(2, 1, 3, 2))])
demo("b_gmm_03_pairs_without_numbers")(
    lambda: [gmm(4, torch.tensor([[0, 1], [2, 3], [1, 0]]), "pairs")])
demo("b_gmm_04_bias_of_launched_groups")(lambda: [gmm(4, ints(2, 0, 2), bias=n(3, 8))])
demo("b_gmm_05_token_scales_from_the_first")(lambda: [gmm(4, ints(2, 2), form="w8a8")])
demo("b_gmm_06_first_128_groups")(lambda: [gmm(130, torch.ones(130, dtype=torch.int64))])
demo("b_gmm_07_partial_sums_in_output_dtype")(lambda: [gmm(16, ints(16), inner=8192, columns=64)])
demo("b_gmm_08_groups_of_256")(lambda: [gmm(4, ints(2, 2), inner=64, form="w4a8", groups_of_inner=2)])
demo("b_gmm_09_empty_inner_group_keeps")(lambda: [gmm(4, ints(8, 0, 8), splits=True)])
demo("b_gmm_10_tiling_kept")(
    lambda: [(a := gmm(4, ints(3, 1))), replace(a, group_list=ints(1, 3))])
demo("b_gmm_11_last_row_of_odd_groups")(lambda: [gmm(3, ints(3), form="w8a16", offset=True)])


# moe_experts
def experts(count, hidden, width, form="float", gate=Gate(), bias=False):
    def matrix(inner, columns):
        if form == "float":
            return ExpertWeights(n(count, inner, columns, std=0.5), bias=n(count, columns) if bias else None)
        scale = torch.rand(count, 1, columns, generator=G) * 1e-3 + 5e-3
        return ExpertWeights(whole(-127, 127, count, inner, columns), 8, scale)

    return Experts(matrix(hidden, 2 * width), matrix(width, hidden), gate)


def moe(tokens, ids, here, hidden=16, width=16, form="float", shared=None, gate=Gate(), bias=False, std=1.0):
    ids = ids.to(torch.int32).view(tokens, -1)
    return MoeExpertsInputs(
        n(tokens, hidden, std=std), ids, (torch.rand(ids.shape, generator=G) + 0.2).to(BF), here,
        experts(len(here), hidden, width, form, gate, bias),
        None if shared is None else experts(1, hidden, width, form, shared))


demo("b_experts_01_shared_only_with_copies")(lambda: [moe(2, ints(0, 1, 2, 3), ints(0, 1), shared=Gate())])
demo("b_experts_02_here_is_a_range")(lambda: [moe(2, ints(1, 4, 4, 2), ints(1, 4))])
demo("b_experts_03_weights_on_input")(lambda: [moe(3, ints(0, 1, 0), ints(0, 1))])
demo("b_experts_04_gate_of_routed_for_shared")(
    lambda: [moe(2, ints(0, 1, 1, 0), ints(0, 1), gate=Gate(Activation.SWIGLUSTEP, 0.5), shared=Gate(Activation.SWIGLUSTEP, 7.0))])
demo("b_experts_05_weights_in_a_matrix")(lambda: [moe(2, ints(0, 0, 1, 0), ints(0, 1))])


@demo("b_experts_06_one_scale_per_expert")
def _():
    x = moe(2, ints(0, 0), ints(0), form="w8a8")
    x.states[0] *= 100
    return [x]


demo("b_experts_07_capacity")(lambda: [moe(12, torch.zeros(12, dtype=torch.int64), torch.arange(4))])
demo("b_experts_08_down_bias_unweighted")(lambda: [moe(2, ints(0, 1, 1, 0), ints(0, 1), bias=True)])
demo("b_experts_09_interleaved_when_quantised")(
    lambda: [moe(2, ints(0, 1, 1, 0), ints(0, 1), form="w8a8", gate=Gate(layout="interleaved"))])
demo("b_experts_10_nobody_here_returns")(lambda: [moe(2, ints(2, 3, 2, 3), ints(0, 1), shared=Gate())])


COMPONENTS = ("swiglu", "dynamic_quant", "swiglu_quant", "moe_gating", "moe_routing", "moe_finalize", "padded_tokens", "int4_pack",
              "scale_pack", "format_cast", "quant_matmul", "weight_quant_matmul", "grouped_matmul", "moe_experts")


def worst(actual, expected):
    """Largest error over its bound, of all outputs; infinity where a shape, a dtype or a number is wrong."""
    actual = {"output": actual} if isinstance(actual, torch.Tensor) else actual
    most = 0.0
    for name, output in actual.items():
        if name not in expected:
            name = next(iter(expected)) if len(actual) == 1 else name
        want = expected[name]
        if output.shape != want.value.shape or output.dtype != want.dtype:
            return torch.inf
        said = want.bound.isfinite()
        if want.value.dtype in (torch.int64, torch.int32):
            error = (output.to(torch.int64) - want.value.to(torch.int64)).abs().double()
        else:
            got, value = output.double(), want.value.double()
            same = (got == value) | (got.isnan() & value.isnan())
            error = torch.where(same, 0.0, (got - value).abs()).nan_to_num(nan=torch.inf)
        ratio = torch.where(error == 0, 0.0, error / want.bound)[said]
        if ratio.numel():
            most = max(most, float(ratio.max()))
    return most


def ratio(implementation, name):
    G.manual_seed(7)
    calls = DEMOS[name]()
    reference = importlib.import_module(f"npudiff.reference.{implementation.component}")
    expected = getattr(reference, implementation.component)(calls[-1])
    function = implementation.factory() if implementation.factory else implementation.function
    for inputs in calls:
        actual = function(inputs, TARGET)
    return worst(actual, expected)


def main():
    proved, failed, missing = 0, [], []
    for component in COMPONENTS:
        module = importlib.import_module(component)
        for implementation in vars(module).values():
            if not isinstance(implementation, npudiff.Implementation):
                continue
            name = implementation.name
            if name not in DEMOS:
                missing.append(name)
                continue
            module.WRONG = False
            twin = ratio(implementation, name)
            module.WRONG = True
            wrong = ratio(implementation, name)
            good = twin <= 1.0 < wrong
            proved += good
            if not good:
                failed.append(name)
            print(f"{'proved' if good else 'FAILED'}  {name:50} twin {twin:10.3g}  wrong {wrong:10.3g}")
    print(f"{proved} proved, failed: {failed}, without demonstration: {missing}")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
