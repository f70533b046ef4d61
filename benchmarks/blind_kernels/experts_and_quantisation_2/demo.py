"""Proves every wrong kernel: wrong by more than the bound on inputs by hand, and right there with TWIN=1.

``python demo.py`` proves all, and exits 1 if one is not. ``python demo.py twins`` also runs every twin (and, for
information, every wrong kernel) on a pool of inputs by hand of its component.
"""
import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

from npudiff.judge.compare import compare
from npudiff.model.component import fingerprint
from npudiff.model.implementation import Implementation
from npudiff.model.returned import outputs_of
from npudiff.run.discovery import load_component
from npudiff.reference.dynamic_quant import DynamicQuantInputs
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.format_cast import FormatCastInputs
from npudiff.reference.grouped_matmul import GroupedMatmulInputs
from npudiff.reference.int4_pack import Int4PackInputs
from npudiff.reference.moe_experts import Experts, Gate, MoeExpertsInputs
from npudiff.reference.moe_finalize import MoeFinalizeInputs
from npudiff.reference.moe_gating import MoeGatingInputs
from npudiff.reference.moe_routing import MoeRoutingInputs
from npudiff.reference.padded_tokens import PaddedTokensInputs
from npudiff.reference.quant_matmul import QuantMatmulInputs
from npudiff.reference.scale_pack import ScalePackInputs
from npudiff.reference.swiglu import Activation, SwigluInputs
from npudiff.reference.swiglu_quant import SwigluQuantInputs
from npudiff.reference.views import sliced
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs

torch.set_num_threads(1)
FOLDER = Path(__file__).parent
BF, HALF, F32 = torch.bfloat16, torch.float16, torch.float32
TARGET = SimpleNamespace(name="sim", device="cpu", cann="", synchronize=lambda: None)
R = torch.Generator().manual_seed(5)


def rn(*shape, dtype=F32, scale=1.0):
    return (torch.randn(*shape, generator=R) * scale).to(dtype)


def ri(low, high, shape, dtype=torch.int32):
    return torch.randint(low, high, shape, generator=R).to(dtype)


def chosen(tokens, top_k, experts):
    return torch.stack([torch.randperm(experts, generator=R)[:top_k] for _ in range(tokens)]).to(torch.int32) if tokens else torch.zeros(0, top_k, dtype=torch.int32)


# --- inputs of each component ---------------------------------------------------------------------------------------


def gating(tokens=7, experts=64, top_k=4, dtype=F32, bias=None, scale=1.0, **rest):
    return MoeGatingInputs(rn(tokens, experts, dtype=dtype, scale=scale), None if bias is None else bias.to(dtype), top_k, **rest)


def gating_pool():
    for dtype in (F32, BF, HALF):
        for scoring in ("softmax", "sigmoid"):
            for experts, groups, kept in ((64, 1, 1), (256, 8, 4), (60, 1, 1), (72, 6, 2), (8, 4, 3), (3, 1, 1)):
                for renormalise, scaling, with_bias, top_k in ((True, 2.5, True, 1), (False, 1.0, False, 2), (True, 1.0, True, 3)):
                    score = "sum of two" if top_k != 2 else "largest"
                    bias = rn(experts, scale=0.1) - (0.5 if top_k == 3 else 0.0) if with_bias else None
                    yield [gating(5, experts, top_k, dtype, bias, scoring=scoring, groups=groups, kept_groups=kept,
                                  group_score=score, renormalise=renormalise, scaling=scaling)]


def routing(tokens=9, top_k=3, experts=8, first=0, last=None, width=32, form="as they are", dtype=BF, ids=None, **rest):
    last = experts if last is None else last
    here = last - first
    states = rn(tokens, width, dtype=dtype)
    given = {}
    if form == "with scales":
        given["scale"] = rn(tokens).abs()
    if form == "smoothed":
        given["scale"] = rn(here, width).abs() + 0.1
    if form == "one scale":
        given.update(scale=torch.tensor([37.3]), offset=torch.tensor([3.0]))
    given.update(rest)
    return MoeRoutingInputs(states, chosen(tokens, top_k, experts) if ids is None else ids, experts, first, last, form, **given)


def with_padding(ids, rows, value):
    ids = ids.clone()
    ids[rows] = value
    return ids


def routing_pool():
    for form in ("as they are", "with scales", "by largest", "smoothed", "one scale"):
        for first, last in ((0, 8), (2, 5), (7, 8)):
            for width in (32, 33, 5):
                for dtype in (BF, HALF):
                    yield [routing(first=first, last=last, width=width, form=form, dtype=dtype)]
                    ids = with_padding(chosen(9, 3, 8), [2, 8], -1)
                    yield [routing(first=first, last=last, width=width, form=form, dtype=dtype, ids=ids)]
                    ids = with_padding(chosen(9, 3, 8), [0, 1], 8)
                    yield [routing(first=first, last=last, width=width, form=form, dtype=dtype, ids=ids),
                           routing(first=first, last=last, width=width, form=form, dtype=dtype)]
    item = routing(form="smoothed", scale=torch.rand(1, 32, generator=R) + 0.1)
    yield [replace(item, states=sliced(item.states, 5))]
    yield [replace(item, states=torch.zeros_like(item.states))]
    yield [routing(form="one scale", scale=torch.tensor([5.0]), offset=torch.tensor([-20.0]))]


def finalize(tokens=6, top_k=4, width=32, dtype=BF, residual=True, spare=0, dropped=0.0, residual_scale=1.0):
    copies = tokens * top_k + spare
    places = torch.randperm(copies, generator=R)[: tokens * top_k].view(tokens, top_k).to(torch.int32)
    if dropped:
        places = places.masked_fill(torch.rand(tokens, top_k, generator=R) < dropped, -1)
    rows = rn(copies, width, dtype=dtype)
    named = torch.zeros(copies, dtype=torch.bool)
    named[places[places >= 0].long()] = True
    rows[~named] = torch.nan
    weights = torch.rand(tokens, top_k, generator=R).to(dtype)
    return MoeFinalizeInputs(rows, places, weights, rn(tokens, width, dtype=dtype, scale=residual_scale) if residual else None)


def finalize_pool():
    for dtype in (BF, HALF, F32):
        for top_k in (1, 2, 5, 8):
            for residual in (True, False):
                for dropped in (0.0, 0.3, 1.0):
                    yield [finalize(6, top_k, 33 if top_k == 2 else 64, dtype, residual, spare=3, dropped=dropped),
                           finalize(6, top_k, 33 if top_k == 2 else 64, dtype, residual, spare=0, dropped=dropped)]


def matrices(experts, inner, columns, bits=16, groups=1, dtype=BF, bias=None, offset=False, scale_dtype=F32):
    if bits == 16:
        values = rn(experts, inner, columns, dtype=dtype, scale=inner**-0.5)
        return ExpertWeights(values, 16, None, None, None if bias is None else rn(experts, columns, dtype=bias))
    high = 2 ** (bits - 1)
    values = ri(-high, high, (experts, inner, columns), torch.int8)
    scale = ((torch.rand(experts, groups, columns, generator=R) + 0.5) / high / inner**0.5).to(scale_dtype)
    given = rn(experts, groups, columns, dtype=scale_dtype, scale=3.0) if offset else None
    if bias is None:
        added = None
    elif bias == torch.int32:
        added = ri(-5000, 5000, (experts, columns))
    else:
        added = rn(experts, columns, dtype=bias)
    return ExpertWeights(values, bits, scale, given, added)


def experts_of(tokens=6, top_k=2, all_experts=6, here=None, hidden=64, width=32, bits=16, groups=1, dtype=BF, shared=False,
               gate=None, bias=None, down_groups=None):
    here = list(range(all_experts)) if here is None else here
    gate = Gate() if gate is None else gate
    down_groups = groups if down_groups is None else down_groups

    def made(count):
        return Experts(matrices(count, hidden, 2 * width, bits, groups, dtype, bias), matrices(count, width, hidden, bits, down_groups, dtype, bias), gate)

    return MoeExpertsInputs(rn(tokens, hidden, dtype=dtype), chosen(tokens, top_k, all_experts), torch.rand(tokens, top_k, generator=R).to(dtype),
                            torch.tensor(here), made(len(here)), made(1) if shared else None)


GATES = (Gate(), Gate(limit=0.5), Gate(Activation.SWIGLU_OAI, 1.0), Gate(Activation.SWIGLU_OAI), Gate(layout="interleaved"),
         Gate(Activation.SWIGLUSTEP, 0.7, layout="interleaved"))


def experts_pool():
    for dtype in (BF, HALF):
        for bits, groups, bias in ((16, 1, None), (16, 1, dtype), (8, 1, None), (8, 1, F32), (8, 1, torch.int32), (4, 1, None), (4, 4, None)):
            for number, gate in enumerate(GATES):
                here = (None, [1, 4], [0, 2, 5])[number % 3]
                yield [experts_of(here=here, bits=bits, groups=groups, dtype=dtype, gate=gate, shared=number % 2 == 0, bias=bias)]
    item = experts_of(bits=8, shared=True)
    states = item.states.clone()
    states[2] = 0
    yield [replace(item, states=states)]
    yield [replace(item, topk_ids=item.topk_ids + 6)]


def grouped(counts=(5, 0, 9, 3), spare=2, inner=64, columns=32, form="float", kind="counts", dtype=BF, groups=1, bias=None, offset=False,
            output=None, token_scale=True):
    experts, rows = len(counts), sum(counts) + spare
    bits = {"float": 16, "w8a8": 8, "w4a8": 4, "w8a16": 8, "w4a16": 4}[form]
    quantised = form in ("w8a8", "w4a8")
    states = ri(-127, 128, (rows, inner), torch.int8) if quantised else rn(rows, inner, dtype=dtype)
    weights = matrices(experts, inner, columns, bits, groups, dtype, bias, offset, F32 if quantised else dtype)
    if output == torch.int32:
        weights = replace(weights, scale=None)
    scale = torch.rand(rows, generator=R) * 0.1 if quantised and token_scale and output != torch.int32 else None
    listed = torch.tensor(counts)
    if kind == "ends":
        listed = listed.cumsum(0)
    if kind == "pairs":
        named = [(index, count) for index, count in enumerate(counts) if count]
        listed = torch.tensor(named + [(0, 0)] * (experts - len(named)))
    return GroupedMatmulInputs(states, weights, listed, kind, scale, dtype if output is None else output)


def inner_split(counts=(5, 0, 9, 3), rows=7, columns=16, kind="counts", dtype=BF, spare=0):
    length = sum(counts) + spare
    listed = torch.tensor(counts)
    if kind == "ends":
        listed = listed.cumsum(0)
    return GroupedMatmulInputs(rn(rows, length, dtype=dtype), ExpertWeights(rn(1, length, columns, dtype=dtype)), listed, kind, None, dtype, True)


def grouped_pool():
    for dtype in (BF, HALF):
        for kind in ("counts", "ends", "pairs"):
            for counts in ((5, 0, 9, 3), (0, 0, 0), (17,), (0, 33, 16, 0)):
                other = tuple(reversed(counts))
                for form, groups, bias, offset, output in (
                    ("float", 1, dtype, False, None), ("float", 1, None, False, None), ("w8a8", 1, None, False, None), ("w8a8", 1, torch.int32, False, None),
                    ("w8a8", 1, BF, False, None), ("w8a8", 1, F32, False, None), ("w8a8", 1, None, False, torch.int32),
                    ("w4a8", 1, None, False, None), ("w4a8", 2, None, False, None), ("w8a16", 1, dtype, True, None), ("w8a16", 2, None, True, None),
                    ("w4a16", 2, None, True, None), ("w4a16", 1, None, False, None)):
                    first, second = (grouped(each, form=form, kind=kind, dtype=dtype, groups=groups, bias=bias, offset=offset, output=output) for each in (counts, other))
                    yield [first, second]
        for kind in ("counts", "ends"):
            yield [inner_split(kind=kind, dtype=dtype), inner_split((0, 2, 15, 0), kind=kind, dtype=dtype)]
    yield [grouped(form="float", dtype=F32)]


def quant(tokens=9, width=70, dtype=BF, bits=8, smooth=False, ends=None, scale=1.0):
    experts = None if ends is None else len(ends)
    factors = (torch.rand(experts or 1, width, generator=R) + 0.2).to(dtype) if smooth or ends else None
    return DynamicQuantInputs(rn(tokens, width, dtype=dtype, scale=scale), factors, None if ends is None else torch.tensor(ends, dtype=torch.int32), bits)


def quant_pool():
    for dtype in (BF, HALF):
        for bits in (8, 4):
            for tokens in (1, 7, 8, 9, 21):
                for width in (1, 8, 70, 512):
                    yield [quant(tokens, width, dtype, bits)]
                    yield [quant(tokens, width, dtype, bits, smooth=True)]
                    yield [quant(tokens, width, dtype, bits, ends=[0, 0, tokens // 2, tokens // 2, tokens, tokens])]
                    yield [quant(tokens, width, dtype, bits, scale=1e-6)]
    item = quant()
    states = item.states.clone()
    states[3] = 0
    yield [replace(item, states=states)]
    yield [replace(item, states=sliced(item.states, 6))]


def qmm(tokens=5, inner=64, columns=24, output=BF, scale=None, token=False, offset=None, bias=None, bits=8, transposed=False, one=False):
    high = 2 ** (bits - 1)
    weight = ri(-high, high, (columns, inner), torch.int8).t() if transposed else ri(-high, high, (inner, columns), torch.int8)
    size = 1 if one else columns
    scale = (torch.rand(size, generator=R) + 0.5) * (0.01 if bits == 8 else 0.5) / inner**0.5 if scale is None else scale
    if bias == torch.int32:
        added = ri(-20000, 20000, (columns,))
    else:
        added = None if bias is None else rn(columns, dtype=bias)
    return QuantMatmulInputs(ri(-high, high, (tokens, inner), torch.int8), weight, scale, torch.rand(tokens, generator=R) if token else None,
                             offset, added, output, bits)


def qmm_pool():
    for bits in (8, 4):
        for transposed in (False, True):
            for one in (False, True):
                for inner in (33, 64, 1100):
                    for output, token, bias in ((BF, True, None), (BF, False, torch.int32), (HALF, False, HALF), (HALF, True, F32), (torch.int8, False, torch.int32),
                                                (torch.int8, True, None), (torch.int32, False, torch.int32), (BF, True, BF)):
                        for scale_dtype in (F32, BF):
                            offset = rn(24, scale=20.0).round() if output == torch.int8 and not one else None
                            item = qmm(5, inner, 24, output, None, token, offset, bias, bits, transposed, one)
                            yield [replace(item, scale=item.scale.to(scale_dtype))]


def wqmm(tokens=5, inner=128, columns=24, dtype=BF, per="columns", offset=False, bias=False, size=0, bits=8, transposed=False):
    high = 2 ** (bits - 1)
    weight = ri(-high, high, (columns, inner), torch.int8).t() if transposed else ri(-high, high, (inner, columns), torch.int8)
    shape = (-(-inner // size), columns) if size else ((1,) if per == "tensor" else (columns,))
    scale = ((torch.rand(shape, generator=R) + 0.5) / high).to(dtype)
    given = rn(*shape, scale=4.0).to(dtype) if offset else None
    added = rn(columns, dtype=HALF if dtype == HALF else F32) if bias else None
    return WeightQuantMatmulInputs(rn(tokens, inner, dtype=dtype), weight, scale, given, added, size, bits)


def wqmm_pool():
    for dtype in (BF, HALF):
        for bits in (8, 4):
            for transposed in (False, True):
                for offset in (False, True):
                    for per, size, inner in (("tensor", 0, 65), ("columns", 0, 128), ("", 32, 128), ("", 64, 150), ("", 32, 33)):
                        yield [wqmm(dtype=dtype, inner=inner, per=per, offset=offset, bias=offset != transposed, size=size, bits=bits, transposed=transposed)]


def glu(tokens=5, width=32, dtype=BF, activation=Activation.SILU, routed=None, shared_limit=None, scale=1.0, **rest):
    return SwigluInputs(rn(tokens, 2 * width, dtype=dtype, scale=scale), activation, routed, shared_limit, **rest)


def glu_pool():
    for dtype in (BF, HALF, F32):
        for activation in Activation:
            for width in (1, 20, 64):
                for rounding in ("stages", "once"):
                    for routed, own, shared in ((None, None, False), (2.0, None, False), (2.0, None, True), (None, 7.0, True), (1.3, 0.7, True)):
                        for layout in ("halves", "interleaved"):
                            for scale in (1.0, 30.0):
                                item = glu(4, width, dtype, activation, routed, own, scale, shared=shared, layout=layout, rounding=rounding)
                                yield [replace(item, states=sliced(item.states, 3)) if width == 20 else item]


def gluq(tokens=9, width=64, sums=True, counts=None, smooth=False, bias=False, dtype=BF, activation=Activation.SILU, limit=None, scale=1.0, **rest):
    groups = 1 if counts is None else len(counts)
    if sums:
        states = ri(-30000, 30000, (tokens, 2 * width))
        column = (torch.rand(groups, 2 * width, generator=R) + 0.5) * 1e-3 * scale
        row = torch.rand(tokens, generator=R) * 0.2 + 0.05
    else:
        states, column, row = rn(tokens, 2 * width, dtype=dtype, scale=scale), None, None
    return SwigluQuantInputs(states, column, row, ri(-5000, 5000, (2 * width,)) if bias else None,
                             torch.rand(groups, width, generator=R) + 0.2 if smooth else None,
                             None if counts is None else torch.tensor(counts), activation, limit, dtype=dtype, **rest)


def gluq_pool():
    for dtype in (BF, HALF):
        for sums in (True, False):
            for activation, limit in ((Activation.SILU, None), (Activation.SWIGLU_OAI, 7.0), (Activation.SWIGLU_OAI, 1.5), (Activation.SWIGLUSTEP, 1.0)):
                for gates in ("left", "right", "even"):
                    for counts in (None, (9,), (0, 3, 0, 4), (0, 0)):
                        for rounding in ("stages", "once"):
                            yield [gluq(9, 20 if gates == "left" else 600, sums, counts, gates != "right", sums and counts is None, dtype, activation, limit,
                                        rounding=rounding, gates=gates)]


def pack_pool():
    for encoding in ("two's complement", "offset binary"):
        low, high = (-8, 8) if encoding == "two's complement" else (0, 16)
        for shape in ((3, 16), (2, 3, 8), (1, 8)):
            yield [Int4PackInputs(ri(low, high, shape), encoding)]
            yield [Int4PackInputs(ri(-(2**31), 2**31 - 1, shape), encoding)]
        yield [Int4PackInputs(ri(low, high, (16, 24)).t(), encoding)]
        yield [Int4PackInputs(sliced(ri(low, high, (5, 8)), 8), encoding)]


def scale_pool():
    for scale in (rn(7), rn(3, 1, 5), rn(4, 6).t(), torch.tensor([0.0, -0.0, 1e-40, 3e38, -1e-3])):
        yield [ScalePackInputs(scale, None, "bits")]
        for mode in (0, 1):
            for offset in (None, rn(1, scale=300.0), rn(*scale.shape, scale=200.0)):
                yield [ScalePackInputs(scale, offset, "fixpipe", mode)]


def cast_pool():
    for dtype in (BF, HALF, F32, torch.int8, torch.int32):
        for shape in ((16, 32), (17, 33), (2, 3, 20), (2, 2, 40, 50), (1, 1), (3, 64, 64)):
            for view in ("whole", "rows", "columns", "transposed"):
                first, second = (rn(*shape, scale=50.0).to(dtype) for _ in range(2))
                yield [FormatCastInputs(first, view), FormatCastInputs(second, view)]
                larger = rn(*shape[:-2], -(-shape[-2] // 16) * 16, -(-shape[-1] // 16) * 16, scale=50.0).to(dtype)
                yield [FormatCastInputs(larger, view), FormatCastInputs(second, view)]


def padded(totals=(5,), offsets=(0,), chunk=8, top_k=2, experts=4, width=16, dtype=BF, nan=True):
    rows = chunk * len(totals)
    states, weights = rn(rows, width, dtype=dtype), torch.rand(rows, top_k, generator=R).to(dtype)
    counts = (torch.tensor(totals) - torch.tensor(offsets)).clamp(0, chunk)
    gone = (torch.arange(chunk) >= counts.unsqueeze(1)).flatten()
    states[gone] = torch.nan if nan else 4096.0
    if nan:
        weights[gone] = torch.nan
    factors = 2.0 ** ri(-2, 3, (experts,)).to(dtype)
    return PaddedTokensInputs(states, chosen(rows, top_k, experts), weights, factors, torch.tensor(totals), torch.tensor(offsets), torch.tensor(totals) + 1)


def padded_pool():
    for dtype in (BF, HALF, F32):
        for totals, offsets in (((5,), (0,)), ((8,), (0,)), ((0,), (0,)), ((10, 10, 10), (0, 8, 16)), ((3, 8, 0, 5), (0, 0, 0, 0)), ((20, 20), (8, 16)), ((8, 3, 9), (0, 8, 8))):
            for nan in (True, False):
                longer = tuple(total + 2 for total in totals)
                yield [padded(longer, offsets, dtype=dtype, nan=nan), padded(totals, offsets, dtype=dtype, nan=nan)]


POOLS = {"moe_gating": gating_pool, "moe_routing": routing_pool, "moe_finalize": finalize_pool, "moe_experts": experts_pool, "grouped_matmul": grouped_pool,
         "dynamic_quant": quant_pool, "quant_matmul": qmm_pool, "weight_quant_matmul": wqmm_pool, "swiglu": glu_pool, "swiglu_quant": gluq_pool,
         "int4_pack": pack_pool, "scale_pack": scale_pool, "format_cast": cast_pool, "padded_tokens": padded_pool}


# --- one sequence of calls for each kernel, the last of which is judged ---------------------------------------------


def near_ties():
    logits = torch.full((1, 256), 2.0)
    logits[0, 3], logits[0, 12] = 12.0, 13.0  # sigmoids of 0.9999939 and 0.9999977
    return MoeGatingInputs(logits, None, 1, "sigmoid")


def nothing_here():
    item = experts_of(here=[0, 1, 2], shared=True)
    return replace(item, topk_ids=chosen(6, 2, 3) + 3)


def zero_between():
    item = experts_of(bits=8)
    states = item.states.clone()
    states[2] = 0
    return replace(item, states=states)


def small_scores():
    bias = torch.full((16,), -2.0) + rn(16, scale=0.1)
    return gating(4, 16, 2, F32, bias, scoring="sigmoid", groups=4, kept_groups=2)


def overflow_of_int8():
    states = torch.tensor([[100.0] * 32, [-1.0] * 32]).to(BF)
    return MoeRoutingInputs(states, torch.tensor([[0], [1]], dtype=torch.int32), 2, 0, 2, "one scale", torch.tensor([1.5]), torch.tensor([0.0]))


def tail_is_largest():
    item = quant(3, 16400)
    states = item.states.clone()
    states[:, -1] = 60.0
    return replace(item, states=states)


def large_sums():
    item = qmm(3, 2048, 8, torch.int32)
    return replace(item, x=torch.full((3, 2048), 127, dtype=torch.int8), weight=torch.full((2048, 8), 127, dtype=torch.int8) - ri(0, 9, (2048, 8), torch.int8))


def saturated():
    offset = torch.full((24,), -60.0)
    item = qmm(5, 64, 24, torch.int8, offset=offset)
    return replace(item, scale=item.scale * 200)


def symmetric_at_first():
    item = wqmm(offset=True)
    offset = item.offset.clone()
    offset[0] = 0
    return replace(item, offset=offset)


def large_gates():
    return glu(3, 16, F32, scale=60.0)


def beyond_float16():
    return gluq(4, 64, True, scale=200.0, smooth=True)


def carrying():
    scale = torch.tensor([0x3FFFF801, 0x3FFFFFFF, 0x40000000]).to(torch.int32).view(F32)
    return ScalePackInputs(scale, None, "fixpipe", 1)


def int_bias_of_parts():
    return qmm(5, 1200, 24, BF, bias=torch.int32, token=True)


DEMOS = {
    "d_moe_gating_01_bias_on_logits": lambda: [gating(bias=rn(64), scoring="sigmoid")],
    "d_moe_gating_02_ranks_in_bfloat16": lambda: [gating(40, 64, 8, F32, scoring="sigmoid")],
    "d_moe_gating_03_scaling_cancels": lambda: [gating(renormalise=True, scaling=2.5)],
    "d_moe_gating_04_padded_lanes_in_softmax": lambda: [gating(experts=60)],
    "d_moe_gating_05_other_groups_at_zero": lambda: [small_scores()],
    "d_moe_gating_06_one_expert_is_not_renormalised": lambda: [gating(top_k=1, renormalise=True)],
    "d_moe_gating_07_number_in_the_mantissa": lambda: [near_ties()],
    "d_moe_routing_01_descending_sort": lambda: [routing()],
    "d_moe_routing_02_whole_blocks_of_a_row": lambda: [routing(width=40)],
    "d_moe_routing_03_factors_of_global_experts": lambda: [routing(first=2, last=6, form="smoothed")],
    "d_moe_routing_04_minus_one_sorts_first": lambda: [routing(ids=with_padding(chosen(9, 3, 8), [7, 8], -1))],
    "d_moe_routing_05_places_are_kept": lambda: [routing(first=0, last=8), routing(first=2, last=5)],
    "d_moe_routing_06_one_scale_wraps": lambda: [overflow_of_int8()],
    "d_moe_finalize_01_casts_truncate": lambda: [finalize(residual=False)],
    "d_moe_finalize_02_adds_to_the_residual": lambda: [finalize(6, 8, residual_scale=20.0)],
    "d_moe_finalize_03_ends_at_the_first_that_is_left_out": lambda: [finalize(6, 4, dropped=0.3)],
    "d_moe_finalize_04_top_1_is_copied": lambda: [finalize(6, 1)],
    "d_moe_finalize_05_offset_of_16_bits": lambda: [finalize(80, 2, 7168)],
    "d_moe_finalize_06_adds_to_the_last_result": lambda: [finalize(), finalize()],
    "d_moe_experts_01_weights_on_the_input": lambda: [experts_of()],
    "d_moe_experts_02_experts_here_without_gaps": lambda: [experts_of(here=[0, 2, 5])],
    "d_moe_experts_03_offset_of_halves_by_first_group": lambda: [experts_of(bits=4, groups=4, hidden=128, width=64)],
    "d_moe_experts_04_nothing_here_is_zeros": lambda: [nothing_here()],
    "d_moe_experts_05_zero_rows_between": lambda: [zero_between()],
    "d_grouped_matmul_01_whole_tiles_of_rows": lambda: [grouped((5, 9, 3))],
    "d_grouped_matmul_02_matrices_of_groups_that_are_not_empty": lambda: [grouped()],
    "d_grouped_matmul_03_bias_before_the_scale_of_rows": lambda: [grouped(form="w8a8", bias=F32)],
    "d_grouped_matmul_04_empty_part_of_the_inner_axis": lambda: [inner_split()],
    "d_grouped_matmul_05_scales_of_a_tile": lambda: [grouped(form="w4a16", groups=2)],
    "d_grouped_matmul_06_groups_of_the_captured_call": lambda: [grouped((5, 0, 9, 3)), grouped((2, 8, 1, 6))],
    "d_dynamic_quant_01_scale_in_the_dtype_of_states": lambda: [quant()],
    "d_dynamic_quant_02_reciprocal_in_float16": lambda: [quant(16, 512)],
    "d_dynamic_quant_03_one_expert_further_for_each_row": lambda: [quant(9, 70, ends=[2, 2, 2, 9])],
    "d_dynamic_quant_04_last_tile_begins_earlier": lambda: [quant(13, 64)],
    "d_dynamic_quant_05_255_repeats": lambda: [tail_is_largest()],
    "d_dynamic_quant_06_least_scale": lambda: [quant(scale=1e-6)],
    "d_quant_matmul_01_sums_in_float16": lambda: [qmm(output=HALF, inner=512, token=True)],
    "d_quant_matmul_02_every_scale_is_cut": lambda: [qmm(output=HALF, token=True)],
    "d_quant_matmul_03_bias_of_every_part": lambda: [int_bias_of_parts()],
    "d_quant_matmul_04_int32_through_float32": lambda: [large_sums()],
    "d_quant_matmul_05_offset_after_the_limit": lambda: [saturated()],
    "d_weight_quant_matmul_01_accumulator_of_16_bits": lambda: [wqmm(5, 2048)],
    "d_weight_quant_matmul_02_whole_groups": lambda: [wqmm(inner=150, size=64)],
    "d_weight_quant_matmul_03_first_offset_says_symmetric": lambda: [symmetric_at_first()],
    "d_weight_quant_matmul_04_groups_of_a_transposed_weight": lambda: [wqmm(size=32, transposed=True)],
    "d_swiglu_01_gated_in_the_dtype_of_states": lambda: [glu(8, 64, rounding="once")],
    "d_swiglu_02_ups_at_a_whole_block": lambda: [glu(width=20)],
    "d_swiglu_03_limit_of_the_routed_for_the_shared": lambda: [glu(routed=0.5, shared=True)],
    "d_swiglu_04_exponential_of_the_gate": lambda: [large_gates()],
    "d_swiglu_quant_01_counts_are_taken_for_ends": lambda: [gluq(counts=(2, 3, 4))],
    "d_swiglu_quant_02_one_pass": lambda: [gluq(width=768)],
    "d_swiglu_quant_03_defaults_of_the_operator": lambda: [gluq(activation=Activation.SWIGLU_OAI, limit=2.0)],
    "d_swiglu_quant_04_float16_between": lambda: [beyond_float16()],
    "d_int4_pack_01_subtracts_from_the_word": lambda: [Int4PackInputs(ri(0, 16, (3, 16)), "offset binary")],
    "d_int4_pack_02_views_as_they_lie": lambda: [Int4PackInputs(ri(-8, 8, (16, 24)).t(), "two's complement")],
    "d_int4_pack_03_limits_what_is_larger": lambda: [Int4PackInputs(ri(0, 16, (3, 16)), "two's complement")],
    "d_scale_pack_01_offset_of_eight_bits": lambda: [ScalePackInputs(rn(4), torch.tensor([-200.0, 3.0, 140.0, 255.0]), "fixpipe")],
    "d_scale_pack_02_no_carry_into_the_exponent": lambda: [carrying()],
    "d_scale_pack_03_rounds_in_both_modes": lambda: [ScalePackInputs(rn(9), None, "fixpipe")],
    "d_format_cast_01_columns_first_in_a_tile": lambda: [FormatCastInputs(rn(32, 32))],
    "d_format_cast_02_matrices_as_one": lambda: [FormatCastInputs(rn(2, 16, 48, dtype=BF))],
    "d_format_cast_03_padding_of_the_last_cast": lambda: [FormatCastInputs(rn(32, 32)), FormatCastInputs(rn(20, 25))],
    "d_padded_tokens_01_negative_counts_as_indices": lambda: [padded((8, 3), (0, 8), nan=False)],
    "d_padded_tokens_02_dispatch_by_a_product": lambda: [padded()],
    "d_padded_tokens_03_weights_of_longer_batches": lambda: [padded((7,), (0,), nan=False), padded((4,), (0,), nan=False)],
}


# --- judging --------------------------------------------------------------------------------------------------------


def kernels(component, twin):
    """The implementations of a file, with the mistakes or without."""
    os.environ["TWIN"] = "1" if twin else "0"
    spec = importlib.util.spec_from_file_location(f"{component}_{twin}", FOLDER / f"{component}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {item.name: item for item in vars(module).values() if isinstance(item, Implementation)}


def judged(component, kernel, calls):
    """The largest error over the bound in the last of some calls, and what is wrong in words."""
    function = kernel.fresh().function
    for number, inputs in enumerate(calls):
        before = fingerprint(inputs)
        try:
            result = function(inputs, TARGET)
        except Exception as error:  # noqa: BLE001
            return float("inf"), f"{type(error).__name__}: {error}"
        if fingerprint(inputs) != before:
            return float("inf"), "writes into its inputs"
        outputs = outputs_of(result, component.outputs)
        if number == len(calls) - 1:
            comparison = compare(component.reference(inputs), outputs)
            return comparison.worst, "; ".join(f"{one.name} {one.problem if hasattr(one, 'problem') else ''}" for one in comparison.outputs)
    raise ValueError("no calls")


def main():
    manifest = json.loads((FOLDER / "manifest.json").read_text()) if (FOLDER / "manifest.json").exists() else []
    failed = []
    for name in POOLS:
        component = load_component(name)
        wrong, twins = kernels(name, False), kernels(name, True)
        assert list(wrong) == list(twins)
        for kernel in wrong:
            R.manual_seed(11)
            calls = DEMOS[kernel]()
            bad, _ = judged(component, wrong[kernel], calls)
            good, why = judged(component, twins[kernel], calls)
            proved = bad > 1 and good <= 1 and "Error" not in _
            print(f"{'proved' if proved else 'NOT PROVED'}  {kernel}: wrong {bad:.3g}, twin {good:.3g} {'' if proved else _ + ' | ' + why}")
            if not proved:
                failed.append(kernel)
    listed = {item["name"] for item in manifest}
    if listed != set(DEMOS):
        print("manifest differs:", listed ^ set(DEMOS))
    print(f"{len(DEMOS) - len(failed)} of {len(DEMOS)} proved")
    return 1 if failed else 0


def twins():
    """Every twin on the pool of its component; how often each wrong kernel is wrong there, for information."""
    failed = 0
    only = sys.argv[2:]
    for name, pool in POOLS.items():
        if only and name not in only:
            continue
        component = load_component(name)
        wrong, right = kernels(name, False), kernels(name, True)
        R.manual_seed(23)
        cases = list(pool())
        for kernel in right:
            bad = 0
            for number, calls in enumerate(cases):
                ratio, why = judged(component, right[kernel], calls)
                if not ratio <= 1:
                    failed += 1
                    print("TWIN WRONG", kernel, number, ratio, why)
                ratio, _ = judged(component, wrong[kernel], calls)
                bad += not ratio <= 1
            print(f"{kernel}: wrong in {bad} of {len(cases)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(twins() if sys.argv[1:2] == ["twins"] else main())
