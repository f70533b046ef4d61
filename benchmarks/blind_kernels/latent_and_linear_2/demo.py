"""Each kernel is off by more than the bound on its input by hand; with TWIN=1 right on all of them, and on more.

Names of components behind the command leave the others out; SEED in the environment says which numbers are drawn.
"""

import contextlib
import importlib
import os
import pathlib
import sys
import time

import torch

from npudiff.judge.compare import compare
from npudiff.model.implementation import Implementation, Target
from npudiff.reference.causal_conv import CausalConvInputs, causal_conv
from npudiff.reference.chunked_attention import ChunkedAttentionInputs, chunked_attention
from npudiff.reference.draft_tree import DraftTreeInputs, draft_tree
from npudiff.reference.fused_qk_norm_rope import FusedQkNormRopeInputs, fused_qk_norm_rope
from npudiff.reference.gated_delta import GatedDeltaInputs, gated_delta
from npudiff.reference.latent_attention import LatentAttentionInputs, UpProjections, latent_attention
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.quantised_kv_attention import Antiquant, QuantisedKvAttentionInputs, quantised_kv_attention
from npudiff.reference.sampling import SamplingInputs, sampling
from npudiff.reference.sparse_attention import SparseAttentionInputs, sparse_attention
from npudiff.reference.sparse_indexer import SparseIndexerInputs, sparse_indexer
from npudiff.reference.views import sliced

TARGET = Target("sim", "cpu", "none", contextlib.nullcontext)
TWIN = bool(os.environ.get("TWIN"))
torch.set_num_threads(1)
sys.path.insert(0, str(pathlib.Path(__file__).parent))
G = torch.Generator().manual_seed(int(os.environ.get("SEED", "7")))
BF, F16, F32, I32 = torch.bfloat16, torch.float16, torch.float32, torch.int32


def n(*shape, dtype=F32, size=1.0):
    return (torch.randn(*shape, generator=G) * size).to(dtype)


def u(*shape):
    return torch.rand(*shape, generator=G)


def integers(*shape):
    return torch.randint(-127, 128, shape, generator=G).to(torch.int8)


def tables(total, size, spare=1):
    """A block table with pages in no order, and how many there are; page 0 is a dummy."""
    pages = [-(-one // size) for one in total]
    table = torch.zeros(len(total), max(pages) + spare, dtype=I32)
    for row, own in zip(table, torch.split(torch.randperm(sum(pages), generator=G) + 1, pages)):
        row[: len(own)] = own.to(I32)
    return table, sum(pages) + 1


def in_strips(cache, width):
    """Pages in NZ."""
    return cache.unflatten(3, (-1, width)).permute(0, 2, 3, 1, 4).contiguous()


def latent(new, total, heads=4, form="absorbed", size=16, rank=64, rope=16, nope=32, width=24, nz=False, dtype=BF, scale=2.0, pad=0, cut=False):
    table, pages = tables(total, size)
    key, value = n(pages, size, 1, rank, dtype=dtype), n(pages, size, 1, rope, dtype=dtype)
    key[0], value[0] = float("nan"), float("nan")
    if nz:
        key, value = in_strips(key, 16), in_strips(value, 16)
    up = UpProjections(n(heads, nope, rank, dtype=dtype, size=rank**-0.5), n(heads, rank, width, dtype=dtype, size=rank**-0.5)) if form != "absorbed" else None
    rows, dim = sum(new) + pad, rank if up is None else nope
    query, query_rope = n(rows, heads, dim, dtype=dtype), n(rows, heads, rope, dtype=dtype)
    if cut:
        query, query_rope = sliced(query, 8), sliced(query_rope, 24)
    return LatentAttentionInputs(query, query_rope, PagedKV(key, value, table, "PA_NZ" if nz else "PA_BSND"), tuple(new), tuple(total), scale * (dim + rope) ** -0.5, up)


LATENT = {
    1: lambda: latent([1, 1], [20, 33]),
    2: lambda: latent([3, 5], [3, 5], form="expanded"),
    3: lambda: latent([1, 1], [20, 33], heads=5),
    4: lambda: latent([3, 2], [25, 36]),
    5: lambda: latent([1, 1], [300, 258]),
    6: lambda: latent([3, 4], [3, 40], form="expanded"),
}
MORE_LATENT = [
    lambda: latent([1, 0, 1, 2], [0, 7, 30, 50], heads=3, pad=2, nz=True), lambda: latent([17, 2], [290, 140], heads=2, form="expanded", nz=True, dtype=F16, cut=True),
    lambda: latent([2, 3], [400, 257], size=48, rank=512, rope=64, pad=1, cut=True),
]  # fmt: skip


def delta(lengths, heads=4, key_heads=2, key_dim=16, width=16, store=BF, gates="head", each=False, raw=False, fresh=(), fast=0.2, chunked=False, pad=0, cut=False):
    rows = sum(lengths) + pad
    query, key, value = n(rows, key_heads, key_dim), n(rows, key_heads, key_dim), n(rows, heads, width, dtype=BF)
    if not raw:
        query, key = (one / one.norm(dim=-1, keepdim=True) for one in (query, key))
    query, key = query.to(BF), key.to(BF)
    if cut:
        query, key, value = (sliced(one, 8) for one in (query, key, value))
    slots, following, start = torch.full((rows,), -1, dtype=I32), len(lengths), 0
    for length in lengths:
        for token in range(start if each else max(start, start + length - 1), start + length):
            slots[token], following = following, following + 1
        start += length
    initial = torch.arange(len(lengths), dtype=I32)
    initial[list(fresh)] = -1
    gate = -u(rows, heads) * fast if gates in ("head", "both") else None
    channel = -u(rows, heads, key_dim) * fast if gates in ("channel", "both") else None
    return GatedDeltaInputs(query, key, value, u(rows, heads).to(BF), n(following + 1, heads, width, key_dim, dtype=store), tuple(lengths), initial, slots, key_dim**-0.5, gate, channel, raw, chunked)


DELTA = {
    1: lambda: delta([3, 1]),
    2: lambda: delta([2, 2]),
    3: lambda: delta([3, 2], gates="channel", fast=1.0),
    4: lambda: delta([3, 0, 2]),
    5: lambda: delta([3, 2], width=80, fresh=[1]),
    6: lambda: delta([96 - 5], gates="channel", chunked=True),
    7: lambda: delta([27], gates="channel", chunked=True, fast=0.5),
}
MORE_DELTA = [
    lambda: delta([0, 5, 1], gates="both", each=True, raw=True, pad=2, store=F32, cut=True), lambda: delta([12, 0], heads=3, key_heads=3, raw=True, gates="none", width=100, fresh=[0], key_dim=40),
    lambda: delta([64, 0, 65, 17, 1, 150], gates="channel", chunked=True, raw=True, fresh=[2], pad=3), lambda: delta([130], gates="channel", chunked=True, fast=8.0, store=F32),
]  # fmt: skip


def sparse(new, total, chosen=8, heads=3, size=16, int8=False, lists=None, pad=0, dtype=BF):
    rank, rope, rows = 512, 64, sum(new) + pad
    table, pages = tables(total, size)
    key = integers(pages, size, 1, rank) if int8 else n(pages, size, 1, rank, dtype=dtype)
    value = n(pages, size, 1, rope, dtype=dtype)
    value[0] = float("nan")
    indices, row = torch.full((rows, 1, chosen), -1, dtype=I32), 0
    for count, length in zip(new, total):
        for position in range(length - count, length):
            own = torch.tensor(lists[row]) if lists else torch.randperm(position + 1, generator=G)[:chosen]
            indices[row, 0, : len(own)] = own.to(I32)
            row += 1
    scales = u(pages, size, 1, 4) * 0.02 + 0.002 if int8 else None
    return SparseAttentionInputs(n(rows, heads, rank, dtype=dtype), n(rows, heads, rope, dtype=dtype), PagedKV(key, value, table), indices, tuple(new), tuple(total), 2 * 576**-0.5, scales)


SPARSE = {
    1: lambda: sparse([3, 1], [40, 9]),
    2: lambda: sparse([1, 1], [40, 9], int8=True),
    3: lambda: sparse([2], [20], 6, lists=[[3, 19, 7, 18], [19, 2, 1]]),
    4: lambda: sparse([11], [11], 8),
    5: lambda: sparse([2, 0, 3], [30, 40, 50]),
}
MORE_SPARSE = [
    lambda: sparse([0, 2, 0, 0, 12, 1], [5, 30, 0, 70, 60, 600], 530, pad=2, size=48, dtype=F16), lambda: sparse([0, 0, 3], [9, 20, 20], 6, int8=True, lists=[[], [3, 19, 18], [19, 1, 0]], heads=9),
]  # fmt: skip


def indexer(new, total, count=8, heads=4, size=16, int8=False, weights=None, pad=0, dtype=BF):
    rows = sum(new) + pad
    table, pages = tables(total, size)
    query, key = (integers(rows, heads, 128), integers(pages, size, 1, 128)) if int8 else (n(rows, heads, 128, dtype=dtype), n(pages, size, 1, 128, dtype=dtype))
    own = n(rows, heads).to(weights or (F16 if int8 else dtype))
    scales = ((u(rows, heads) * 0.01 + 0.001).half(), (u(pages, size, 1) * 0.02 + 0.0005).half()) if int8 else (None, None)
    return SparseIndexerInputs(query, own, key, table, tuple(new), tuple(total), count, *scales)


INDEXER = {
    1: lambda: indexer([1, 2], [40, 33]),
    2: lambda: indexer([1, 2], [60, 33], heads=48),
    3: lambda: indexer([2, 1], [160, 150], int8=True),
    4: lambda: indexer([1, 2], [150, 33], 110),
}
MORE_INDEXER = [lambda: indexer([0, 5, 2], [9, 33, 300], 150, 64, 48, weights=F32, pad=2, dtype=F16), lambda: indexer([2, 4, 0], [1000, 5, 0], 20, 64, int8=True)]


def quantised(new, total, form="channel", values=None, heads=4, kv_heads=2, size=32, dim=64, offsets=True, nz=False, pad=0, dtype=BF):
    table, pages = tables(total, size)
    key, value = integers(pages, size, kv_heads, dim), integers(pages, size, kv_heads, dim)
    if nz:
        key, value = in_strips(key, 32), in_strips(value, 32)
    pool = PagedKV(key, value, table, "PA_NZ" if nz else "PA_BSND")

    def side(kind):
        shape = Antiquant(kind, key).shape(pool, dim)
        own = F32 if kind.startswith("token") else dtype
        return Antiquant(kind, (u(*shape) * 0.02 + 0.004).to(own), n(*shape, dtype=own, size=20.0) if offsets else None)

    return QuantisedKvAttentionInputs(n(sum(new) + pad, heads, dim, dtype=dtype), pool, side(form), side(values or form), tuple(new), tuple(total), dim**-0.5)


QUANTISED = {
    1: lambda: quantised([1, 1], [20, 33]),
    2: lambda: quantised([1, 1], [20, 33], "token and head", offsets=False),
    3: lambda: quantised([3, 2], [20, 33], offsets=False),
    4: lambda: quantised([1, 1, 1], [20, 33, 50], "channel", "token", offsets=False),
}
MORE_QUANTISED = [
    lambda: quantised([1, 0, 4, 1], [0, 9, 33, 64], "token", heads=3, kv_heads=3, nz=True, pad=2), lambda: quantised([2, 1], [70, 5], "tensor", heads=6, dtype=F16),
    lambda: quantised([2, 3], [70, 5], "head", kv_heads=1), lambda: quantised([3, 2], [20, 33], "token and head", nz=True), lambda: quantised([3, 2, 0], [20, 33, 1], "channel", "token", nz=True),
]  # fmt: skip


def chunked(new, total, chunk=32, heads=4, kv_heads=2, size=16, dim=32, pad=0, dtype=BF):
    table, pages = tables(total, size)
    key, value = n(pages, size, kv_heads, dim, dtype=dtype), n(pages, size, kv_heads, dim, dtype=dtype)
    return ChunkedAttentionInputs(n(sum(new) + pad, heads, dim, dtype=dtype), PagedKV(key, value, table), tuple(new), tuple(total), chunk, 2 * dim**-0.5)


CHUNKED = {1: lambda: chunked([1, 1], [50, 70]), 2: lambda: chunked([8, 1], [38, 9]), 3: lambda: chunked([1, 1], [64, 70])}
MORE_CHUNKED = [lambda: chunked([0, 1, 40, 1], [0, 32, 100, 1], pad=2, dtype=F16), lambda: chunked([1, 20], [300, 70], chunk=7, kv_heads=4), lambda: chunked([3], [300], chunk=1000)]


def logits(requests=3, vocabulary=200, history=8, penalties=False, prompt=True, **asked):
    made = {name: torch.full((requests,), float(value)) for name, value in asked.items() if name in ("temperature", "min_p", "top_p")}
    if asked.get("top_k"):
        made["top_k"] = torch.full((requests,), asked["top_k"], dtype=I32)
    if penalties:
        made.update({name: torch.full((requests,), value) for name, value in (("repetition", 1.3), ("frequency", 0.3), ("presence", 0.6))})
    lists = [torch.randint(0, vocabulary, (requests, history), generator=G) for _ in range(2)]
    lists[0][1:, history // 2 :], lists[1][0, history // 2 :] = vocabulary, vocabulary
    words = ()
    if asked.get("words"):
        past = [[one for one in row.tolist() if one < vocabulary] for row in lists[1]]
        words = tuple(((5,), (*one[-2:], 9), (one[-2], 8)) if place % 2 == 0 else () for place, one in enumerate(past))
    if asked.get("mask"):
        made["bitmask"] = torch.randint(-(2**31), 2**31, (requests, -(-vocabulary // 32)), generator=G).to(I32)
    if asked.get("draws"):
        made["exponential"] = -(1 - u(requests, vocabulary)).clamp(min=1e-6).log() + 1e-6
    return SamplingInputs(n(requests, vocabulary, size=2.0).to(asked.get("dtype", F32)), prompt=lists[0], output=lists[1], mass=asked.get("mass", "survivors"), bad_words=words, **made)


SAMPLING = {1: lambda: logits(penalties=True), 2: lambda: logits(temperature=1.6, min_p=0.1), 3: lambda: logits(words=True)}
MORE_SAMPLING = [
    lambda: logits(penalties=True, temperature=0.7, min_p=0.02, top_k=20, top_p=0.9, words=True, mask=True, draws=True), lambda: logits(temperature=0.0, min_p=0.3, draws=True, dtype=BF),
    lambda: logits(temperature=0.7, min_p=0.02, top_k=20, top_p=0.9, mass="top-k"), lambda: logits(temperature=0.7, penalties=True, top_k=20, top_p=0.9, mass="all", mask=True, vocabulary=333, dtype=F16),
]  # fmt: skip


def tree(requests, topk, depth, count, shuffled=False, mode="full", match="random", full=False):
    """Trees of beam search: parents are the best of a step, and nodes some candidates with all that stands above them."""
    candidates = topk + (depth - 1) * topk**2
    lists, selected = [], []
    for _ in range(requests):
        parents, last = [-1], list(range(topk))
        for step in range(1, depth):
            parents += last
            first = topk + (step - 1) * topk**2
            last = (torch.randperm(topk**2, generator=G)[:topk] + first).tolist()
        above = lambda one: parents[one // topk] if one >= topk else None  # noqa: E731
        own = list(range(topk)) if full else []
        while len(own) < count - 1:
            one, way = int(torch.randint(0, candidates, (1,), generator=G)), []
            while one is not None and one not in own:
                way, one = [one, *way], above(one)
            if len(own) + len(way) < count:
                own += way
        lists.append(parents if depth > 1 else [])
        selected.append(own if shuffled else sorted(own))
    tokens = torch.arange(requests * count).view(requests, count) + 100
    inputs = DraftTreeInputs(torch.tensor(lists, dtype=torch.int64).view(requests, -1), torch.tensor(selected), torch.randint(0, 40, (requests,), generator=G), tokens, torch.zeros_like(tokens), topk, depth, count, mode)
    links, target = draft_tree(inputs)["next_token"].value, inputs.target_predict
    following = draft_tree(inputs)["next_sibling"].value
    for request in range(requests):
        for node in range(count):
            child = int(links[request, node])
            while match == "last" and child >= 0 and following[request, child] >= 0:
                child = int(following[request, child])
            target[request, node] = tokens[request, child] if child >= 0 else 7
    return inputs


TREES = {1: lambda: tree(3, 2, 3, 6), 2: lambda: tree(2, 3, 3, 12, shuffled=True), 3: lambda: tree(2, 3, 2, 6, match="last", full=True)}
MORE_TREES = [lambda: tree(2, 1, 4, 4, mode="qlen_only"), lambda: tree(3, 4, 1, 4, match="last"), lambda: tree(2, 4, 4, 30, shuffled=True, match="last")]


def conv(lengths, mode="step", channels=32, width=4, lines=None, accepted=None, history=None, dtype=BF, bias=True, act=True, pad=0, cut=False):
    rows, batch = sum(lengths) + pad, len(lengths)
    most = width - 1 + (max(lengths) + 8 if mode == "draft" else 1)
    x = n(rows, channels, dtype=dtype)
    return CausalConvInputs(sliced(x, 16) if cut else x, n(width, channels, dtype=dtype), n(channels, dtype=dtype) if bias else None, n(batch + 2, most, channels, dtype=dtype), tuple(lengths),
        torch.tensor(lines or list(range(batch, 0, -1)), dtype=I32), mode, None if history is None else torch.tensor(history), None if accepted is None else torch.tensor(accepted, dtype=I32), act)  # fmt: skip


CONV = {1: lambda: conv([1, 2]), 2: lambda: conv([1, 1, 1], lines=[2, -1, 1]), 3: lambda: conv([2, 5], "prompt", history=[False, True])}
MORE_CONV = [
    lambda: conv([3, 0, 2], "draft", accepted=[2, 1, 3], pad=2, cut=True), lambda: conv([1, 0, 9, 2], "prompt", width=6, history=[False, False, False, True], dtype=F16, act=False, lines=[3, 1, 0, 5]),
    lambda: conv([2, 1], "draft", accepted=[1, 1], lines=[-1, 3], bias=False),
]  # fmt: skip


def fused(tokens=3, heads=4, kv_heads=2, dim=32, rotary=32, gated=False, style="half", kind="plain", bias=False, norm=True, rounding="once", cut=False, dtype=BF):
    columns = (heads * (2 if gated else 1) + 2 * kv_heads) * dim
    angle = torch.arange(50).unsqueeze(1) * torch.rand(rotary // 2, generator=G)
    qkv = n(tokens, columns, dtype=dtype, size=3.0)
    weights = [n(dim, dtype=dtype) if there else None for there in (norm, norm, bias, bias)]
    return FusedQkNormRopeInputs(sliced(qkv, 16) if cut else qkv, *weights, torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype),
        torch.randint(0, 50, (tokens,), generator=G), heads, kv_heads, dim, 1e-6, kind, style, gated, rounding)  # fmt: skip


FUSED = {1: lambda: fused(gated=True), 2: lambda: fused(rotary=16, style="interleaved")}
MORE_FUSED = [lambda: fused(5, 1, 1, 48, 16, True, cut=True, kind="gemma", bias=True), lambda: fused(norm=False, rotary=20, style="interleaved", dtype=F16, cut=True), lambda: fused(rounding="stages", style="interleaved")]

ALL = {
    "latent_attention": (latent_attention, LATENT, MORE_LATENT), "gated_delta": (gated_delta, DELTA, MORE_DELTA), "sparse_attention": (sparse_attention, SPARSE, MORE_SPARSE),
    "sparse_indexer": (sparse_indexer, INDEXER, MORE_INDEXER), "quantised_kv_attention": (quantised_kv_attention, QUANTISED, MORE_QUANTISED), "chunked_attention": (chunked_attention, CHUNKED, MORE_CHUNKED),
    "sampling": (sampling, SAMPLING, MORE_SAMPLING), "draft_tree": (draft_tree, TREES, MORE_TREES), "causal_conv": (causal_conv, CONV, MORE_CONV), "fused_qk_norm_rope": (fused_qk_norm_rope, FUSED, MORE_FUSED),
}  # fmt: skip


def taken(component, kernel, case):
    """Whether a kernel says that it takes a case: those of decays per channel in chunks, and the others."""
    if component == "gated_delta":
        return ("_06_" in kernel.name or "_07_" in kernel.name) == case.chunked
    return component != "sampling" or "_02_" not in kernel.name or case.mass != "all"


def stored(inputs):
    """The tensors of inputs, which a kernel must not write into."""
    return {name: value.clone() for name, value in vars(inputs).items() if isinstance(value, torch.Tensor)}


def main():
    bad = 0
    for component, (reference, special, more) in ALL.items():
        if sys.argv[1:] and component not in sys.argv[1:]:
            continue
        began = time.time()
        kernels = [one for one in vars(importlib.import_module(component)).values() if isinstance(one, Implementation) and one.name.startswith("i_")]
        assert len(kernels) == len(special), (component, len(kernels))
        cases = [(name, case, reference(case)) for name, case in [*((number, make()) for number, make in special.items()), *((f"more {place}", make()) for place, make in enumerate(more))]]
        for number, kernel in enumerate(kernels, 1):
            assert kernel.name.startswith(f"i_{component}_{number:02d}_"), kernel.name
            shown = {}
            for name, case, expected in cases:
                if not taken(component, kernel, case):
                    continue
                before = stored(case)
                worst = compare(expected, kernel.function(case.to("cpu"), TARGET)).worst
                if worst > 1:
                    shown[name] = round(worst, 1)
                if not all(torch.equal(one.nan_to_num(), getattr(case, what).nan_to_num()) for what, one in before.items()):
                    print("!! inputs were written", kernel.name, name)
                    bad += 1
            right = not shown if TWIN else number in shown
            bad += not right
            print("ok " if right else "BAD", kernel.name, shown)
        print(component, f"{time.time() - began:.1f} s")
    print("as wanted" if not bad else f"{bad} FAILED")
    return bad


if __name__ == "__main__":
    sys.exit(bool(main()))
