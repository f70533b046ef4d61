"""Each kernel is off by more than the bound on an input by hand with its mistake; TWIN=1 has all right on all inputs.

``python demo.py [component ...]``; SEED in the environment gives other numbers.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import sys

import torch

from npudiff.device.ascend import causal_conv as ascend_conv
from npudiff.device.ascend import draft_acceptance as ascend_acceptance
from npudiff.device.ascend import draft_step as ascend_step
from npudiff.device.ascend import encoder_attention as ascend_encoder
from npudiff.device.ascend import fused_qk_norm_rope as ascend_fused
from npudiff.device.ascend import gated_delta as ascend_delta
from npudiff.device.ascend import latent_attention as ascend_latent
from npudiff.device.ascend import sampling as ascend_sampling
from npudiff.device.ascend import sparse_attention as ascend_sparse
from npudiff.device.ascend import sparse_indexer as ascend_indexer
from npudiff.judge.compare import compare
from npudiff.model.implementation import Implementation, Target
from npudiff.reference.causal_conv import CausalConvInputs, causal_conv
from npudiff.reference.draft_acceptance import DraftAcceptanceInputs, draft_acceptance
from npudiff.reference.draft_step import DraftStepInputs, draft_step
from npudiff.reference.encoder_attention import EncoderAttentionInputs, encoder_attention
from npudiff.reference.fused_qk_norm_rope import FusedQkNormRopeInputs, fused_qk_norm_rope
from npudiff.reference.gated_delta import GatedDeltaInputs, gated_delta
from npudiff.reference.latent_attention import LatentAttentionInputs, UpProjections, latent_attention
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sampling import SamplingInputs, sampling
from npudiff.reference.sparse_attention import SparseAttentionInputs, sparse_attention
from npudiff.reference.sparse_indexer import SparseIndexerInputs, sparse_indexer

TARGET = Target("sim", "cpu", "none", contextlib.nullcontext)
TWIN = bool(os.environ.get("TWIN"))
torch.set_num_threads(1)
sys.path.insert(0, str(pathlib.Path(__file__).parent))
G = torch.Generator().manual_seed(int(os.environ.get("SEED", "11")))
BF16, F16, F32, I32 = torch.bfloat16, torch.float16, torch.float32, torch.int32


def normal(*shape, dtype=F32, size=1.0):
    return (torch.randn(*shape, generator=G) * size).to(dtype)


def uniform(*shape):
    return torch.rand(*shape, generator=G)


def whole(low, high, *shape, dtype=torch.int64):
    return torch.randint(low, high, shape, generator=G).to(dtype)


def paged(totals, size, *dims, dtype=BF16, spare=1):
    """Pools ``[pages, size, 1, dim]`` whose unused tokens are NaN, and the table."""
    pages = [-(-total // size) for total in totals]
    table = whole(1, sum(pages) + 2, len(totals), max(pages, default=0) + spare, dtype=I32)
    order, at = torch.randperm(sum(pages), generator=G) + 1, 0
    pools = [normal(sum(pages) + 2, size, 1, dim, dtype=dtype) for dim in dims]
    used = torch.zeros(sum(pages) + 2, size, dtype=torch.bool)
    for request, (total, count) in enumerate(zip(totals, pages)):
        table[request, :count] = order[at : at + count]
        at += count
        token = torch.arange(total)
        used[table[request].long()[token // size], token % size] = True
    for pool in pools:
        pool[~used] = float("nan")
    return pools, table


def nz(pool):
    """``[pages, 1, dim / 16, size, 16]`` of ``[pages, size, 1, dim]``."""
    return pool.unflatten(3, (-1, 16)).permute(0, 2, 3, 1, 4).contiguous()


def latent(
    new, total, *, heads=4, size=16, rank=32, rope=16, up=None, padding=0, layout="PA_BSND", dtype=BF16, sharp=3.0
):
    """``up``: dims of keys and values of the expanded form."""
    tokens = sum(new) + padding
    (latents, ropes), table = paged(total, size, rank, rope, dtype=dtype)
    if layout == "PA_NZ":
        latents, ropes = nz(latents), nz(ropes)
    matrices = None
    if up:
        matrices = UpProjections(
            normal(heads, up[0], rank, dtype=dtype, size=rank**-0.5),
            normal(heads, rank, up[1], dtype=dtype, size=rank**-0.5),
        )
    width = up[0] if up else rank
    return LatentAttentionInputs(
        normal(tokens, heads, width, dtype=dtype),
        normal(tokens, heads, rope, dtype=dtype),
        PagedKV(latents, ropes, table, layout),
        tuple(new),
        tuple(total),
        sharp * (width + rope) ** -0.5,
        matrices,
    )


LATENT = {
    "two pages": lambda: latent([1, 1], [20, 9]),
    "six rows": lambda: latent([6, 1], [20, 9], up=(16, 24)),
    "across a page": lambda: latent([1, 9], [14, 24]),
    "11 heads": lambda: latent([2, 1], [12, 40], heads=11, up=(16, 24)),
    "uneven prefixes": lambda: latent([2, 3], [50, 190], up=(16, 24), padding=1),
    "long table": lambda: latent([1, 2], [7, 531], heads=18),
    "nz": lambda: latent([2, 1], [18, 5], layout="PA_NZ", padding=2),
    "nothing": lambda: latent([1, 0, 2], [0, 7, 1], dtype=F16),
    "more rows than tokens": lambda: latent([4, 1], [2, 3], up=(8, 8), heads=9),
    "no tokens": lambda: latent([0], [0], padding=1),
}


def delta(
    lengths,
    *,
    heads=4,
    keys=2,
    key_dim=16,
    value_dim=24,
    dtype=BF16,
    gates="head",
    raw=False,
    fresh=(),
    each=False,
    padding=0,
):
    """``each``: a slot for every token, and requests begin with a state that they write themselves."""
    count, spare = sum(lengths), 3
    tokens = count + padding
    query, key = (normal(tokens, keys, key_dim) for _ in range(2))
    query, key = (one if raw else one / one.norm(dim=2, keepdim=True) for one in (query, key))
    slots, initial, used, start = torch.full((tokens,), -1, dtype=I32), torch.zeros(len(lengths), dtype=I32), 0, 0
    order = torch.randperm(count + len(lengths) + spare, generator=G).tolist()
    for request, length in enumerate(lengths):
        own = []
        for token in range(start, start + length):
            if each or token == start + length - 1:
                own.append(order[used])
                slots[token], used = order[used], used + 1
        start += length
        initial[request] = -1 if request in fresh else own[length // 2] if each and own else order[-1 - request]
    gate = -uniform(tokens, heads) if gates in ("head", "both") else None
    channel = -uniform(tokens, heads, key_dim) if gates in ("channel", "both") else None
    beta = normal(tokens, heads) if raw else uniform(tokens, heads)
    return GatedDeltaInputs(
        query.to(BF16),
        key.to(BF16),
        normal(tokens, heads, value_dim, dtype=BF16),
        beta.to(BF16),
        normal(len(order), heads, value_dim, key_dim, dtype=dtype),
        tuple(lengths),
        initial,
        slots,
        key_dim**-0.5,
        gate,
        channel,
        raw,
    )


DELTA = {
    "gates": lambda: delta([3, 2]),
    "square": lambda: delta([2, 1], value_dim=16, gates="none"),
    "one fresh": lambda: delta([2, 3, 1], fresh=(1,), dtype=F32),
    "an empty one": lambda: delta([2, 0, 3, 1], raw=True),
    "channels": lambda: delta([4, 1], gates="channel", dtype=F32, padding=2),
    "odd heads": lambda: delta([1, 1, 0], heads=3, keys=1),
    "all fresh": lambda: delta([70, 1], fresh=(0, 1), gates="both", heads=2),
    "drafts": lambda: delta([4, 2], each=True, raw=True, gates="both", padding=1),
    "no tokens": lambda: delta([0, 0], padding=1),
}


def sparse(new, total, chosen, *, heads=3, rank=512, rope=64, size=16, dtype=BF16, int8=False, ahead=False, padding=0):
    """``ahead``: whether keys behind the position of a row are listed."""
    (latents, ropes), table = paged(total, size, rank, rope, dtype=dtype)
    scales = None
    if int8:
        latents, scales = (
            whole(-127, 128, *latents.shape, dtype=torch.int8),
            uniform(*latents.shape[:3], rank // 128) * 0.03,
        )
    tokens = sum(new) + padding
    indices, row = torch.full((tokens, 1, chosen), -1, dtype=I32), 0
    for rows, length in zip(new, total):
        for position in range(length - rows, length):
            keys = torch.randperm(length if ahead else position + 1, generator=G)[:chosen]
            indices[row, 0, : len(keys)] = keys.to(I32)
            row += 1
    return SparseAttentionInputs(
        normal(tokens, heads, rank, dtype=dtype),
        normal(tokens, heads, rope, dtype=dtype),
        PagedKV(latents, ropes, table),
        indices,
        tuple(new),
        tuple(total),
        3.0 * (rank + rope) ** -0.5,
        scales,
    )


SPARSE = {
    "three requests": lambda: sparse([1, 2, 1], [20, 30, 9], 6, padding=1),
    "odd lists": lambda: sparse([1, 1], [7, 40], 8),
    "first tokens": lambda: sparse([1, 2], [1, 2], 4, dtype=F16),
    "many heads": lambda: sparse([1], [300], 200, heads=128),
    "int8": lambda: sparse([2, 1], [20, 33], 5, int8=True, ahead=True),
    "whole lists": lambda: sparse([3, 0, 1], [20, 4, 17], 16, heads=2),
    "no rows": lambda: sparse([0], [3], 2, padding=2),
}


def indexer(
    new, total, count, *, heads=4, dim=32, size=16, dtype=BF16, int8=False, weights=None, positive=False, padding=0
):
    (keys,), table = paged(total, size, dim, dtype=dtype)
    tokens = sum(new) + padding
    query, scales = normal(tokens, heads, dim, dtype=dtype), (None, None)
    if int8:
        query, keys = (whole(-127, 128, *one.shape, dtype=torch.int8) for one in (query, keys))
        scales = (uniform(tokens, heads) * 0.01 + 0.001).to(F16), (uniform(*keys.shape[:3]) * 0.02 + 0.001).to(F16)
    own = normal(tokens, heads)
    own = (own.abs() if positive else own).to(weights or (F16 if int8 else dtype))
    return SparseIndexerInputs(query, own, keys, table, tuple(new), tuple(total), count, *scales)


INDEXER = {
    "negative weights": lambda: indexer([1, 2], [40, 30], 5, padding=1),
    "short prompt": lambda: indexer([4, 1], [6, 40], 8, positive=True),
    "across a block": lambda: indexer([6, 1], [132, 70], 40),
    "long int8": lambda: indexer([2, 1], [600, 20], 30, int8=True, size=32, positive=True),
    "float weights": lambda: indexer([1, 1], [33, 64], 7, weights=F32, dtype=F16),
    "no rows": lambda: indexer([0], [3], 2, padding=2),
}


def encoder(rows, keys=None, *, heads=4, kv_heads=2, dim=32, dtype=BF16, padding=0, sharp=3.0):
    keys = rows if keys is None else keys
    count = sum(keys) + padding
    return EncoderAttentionInputs(
        normal(sum(rows) + padding, heads, dim, dtype=dtype),
        normal(count, kv_heads, dim, dtype=dtype),
        normal(count, kv_heads, dim, dtype=dtype),
        tuple(rows),
        tuple(keys),
        sharp * dim**-0.5,
    )


ENCODER = {
    "two sequences": lambda: encoder([20, 70], padding=1),
    "few keys": lambda: encoder([40, 5, 16], dtype=F16),
    "rows without keys": lambda: encoder([3, 2, 4], [5, 0, 40]),
    "wide heads": lambda: encoder([150], dim=160),
    "keys without rows": lambda: encoder([0, 3, 0, 17], [6, 0, 0, 130], heads=3, kv_heads=3, padding=2),
    "nothing": lambda: encoder([0, 0], [0, 3]),
}


def fused(tokens, *, heads=4, kv_heads=2, dim=32, rotary=None, dtype=BF16, kind="plain", style="half", gated=False,
          bias=False, epsilon=1e-5, size=1.0, positions=None, norm=True, rounding="once"):  # fmt: skip
    rotary, rows = rotary or dim, 300
    angle = torch.arange(rows).unsqueeze(1) * 100.0 ** -(torch.arange(rotary // 2) / max(1, rotary // 2))
    table = torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
    weights = [normal(dim, dtype=dtype) if norm else None for _ in range(2)]
    biases = [normal(dim, dtype=dtype) if bias else None for _ in range(2)]
    qkv = normal(tokens, dim * (heads * (2 if gated else 1) + 2 * kv_heads), dtype=dtype, size=size)
    places = whole(0, rows, tokens) if positions is None else torch.tensor(positions)
    return FusedQkNormRopeInputs(
        qkv, *weights, *biases, table, places, heads, kv_heads, dim, epsilon, kind, style, gated, rounding
    )


FUSED = {
    "decode": lambda: fused(5, bias=True),
    "11 tokens": lambda: fused(11, style="interleaved", positions=range(20, 31)),
    "gates and partial": lambda: fused(4, gated=True, rotary=8, kind="gemma", positions=[9, 10, 11, 12]),
    "small keys": lambda: fused(4, size=1e-3, positions=[5, 6, 7, 8]),
    "without norm": lambda: fused(
        3, norm=False, dtype=F16, gated=True, heads=1, kv_heads=1, rotary=30, rounding="stages"
    ),
}


def sampled(requests=3, vocabulary=300, *, prompt=(), output=(), penalties=False, temperature=None, min_p=None, k=None,
            p=None, grammar=False, bad=(), draw=False, dtype=F32):  # fmt: skip
    """``prompt`` and ``output``: numbers of tokens of each request."""

    def tokens(counts):
        rows = torch.full((requests, max(counts)), vocabulary)
        for row, count in zip(rows, counts):
            row[:count] = whole(0, vocabulary, count)
        return rows

    def each(value):
        return (
            None
            if value is None
            else torch.full((requests,), float(value))
            if isinstance(value, (int, float))
            else torch.tensor(value)
        )

    mask = whole(-(2**31), 2**31, requests, -(-vocabulary // 32), dtype=I32) if grammar else None
    noise = -(1 - uniform(requests, vocabulary)).log() + 1e-6 if draw else None
    return SamplingInputs(
        normal(requests, vocabulary, size=3).to(dtype),
        mask,
        tokens(prompt) if prompt else None,
        tokens(output) if output else None,
        each(1.3 if penalties else None),
        each(0.4 if penalties else None),
        each(0.7 if penalties else None),
        each(temperature),
        each(min_p),
        None if k is None else torch.full((requests,), k, dtype=I32),
        each(p),
        "survivors",
        bad,
        noise,
    )


def with_bad_words():
    """The third request has as many outputs as the longest, and the second ends with the beginning of its word."""
    inputs = sampled(output=[5, 2, 5], prompt=[3, 3, 1])
    own = [row[row < 300].tolist() for row in inputs.output]
    return dataclasses.replace(
        inputs, bad_words=(((7,),), ((*own[1][-2:], 9), (1, 2, 3)), ((own[2][-1], 11), (*own[2], 3, 4)))
    )


SAMPLING = {
    "top 20": lambda: sampled(k=20),
    "penalties": lambda: sampled(prompt=[4, 2, 9], output=[6, 1, 3], penalties=True, temperature=[0.5, 1.0, 2.0]),
    "some greedy": lambda: sampled(8, temperature=[0.0, 2.0] * 4, draw=True),
    "bad words": with_bad_words,
    "all filters": lambda: sampled(4, 70, grammar=True, min_p=0.05, k=9, p=0.7, temperature=0.7, draw=True, dtype=BF16),
    "one token": lambda: sampled(2, 1, k=1, p=0.0),
}


def acceptance(lengths, vocabulary=40, *, probabilities=True, alike=0.7, greedy=(), missing=(), last=None, room=0):
    """``last``: probability of the last token of the vocabulary."""
    rows, requests = sum(lengths), len(lengths)
    target = (normal(rows, vocabulary) * 1.5).softmax(1)
    if last is not None:
        target = target / target[:, :-1].sum(1, keepdim=True) * (1 - last)
        target[:, -1] = last
    draft = alike * target + (1 - alike) * (normal(rows, vocabulary) * 1.5).softmax(1)
    tokens = torch.multinomial(draft, 1, generator=G).flatten().to(I32) if rows else torch.zeros(0, dtype=I32)
    tokens[list(missing)] = -1
    chosen = torch.zeros(requests, dtype=torch.bool)
    chosen[list(greedy)] = True
    noise = -(1 - uniform(requests, vocabulary)).log() + 1e-6
    return DraftAcceptanceInputs(
        tokens,
        target,
        draft if probabilities else None,
        whole(0, vocabulary, requests, dtype=I32),
        uniform(rows),
        noise,
        chosen,
        tuple(lengths),
        max(lengths) + room,
    )


ACCEPTANCE = {
    "long drafts": lambda: acceptance([6] * 16, alike=0.6, room=1),
    "ragged": lambda: acceptance([1, 3, 0, 4] * 8, alike=0.3),
    "no draft": lambda: acceptance([2, 1, 1], probabilities=False, missing=(0, 2, 3), last=0.9),
    "mixed": lambda: acceptance([2, 0, 3, 1], greedy=(0, 2), probabilities=False, missing=(1,)),
    "nothing": lambda: acceptance([0, 0], room=2),
}


def conv(
    lengths,
    mode="step",
    *,
    channels=24,
    width=4,
    history=None,
    accepted=None,
    lines=None,
    spare=1,
    dtype=BF16,
    bias=True,
    activation=True,
    padding=0,
):
    rows = width - 1 + spare
    if mode == "draft":
        rows = max(max(accepted) - 1 + width - 1, width - 2 + max(lengths)) + spare
    count = len(lengths) + 2
    places = torch.randperm(count, generator=G)[: len(lengths)].tolist() if lines is None else lines
    return CausalConvInputs(
        normal(sum(lengths) + padding, channels, dtype=dtype),
        normal(width, channels, dtype=dtype),
        normal(channels, dtype=dtype) if bias else None,
        normal(count, rows, channels, dtype=dtype),
        tuple(lengths),
        torch.tensor(places, dtype=I32),
        mode,
        None if history is None else torch.tensor(history),
        None if accepted is None else torch.tensor(accepted, dtype=I32),
        activation,
    )


CONV = {
    "bias": lambda: conv([1, 1, 2]),
    "short drafts": lambda: conv([2, 1], "draft", accepted=[1, 3], activation=False),
    "behind a padded one": lambda: conv(
        [3, 2, 0, 5], "prompt", lines=[4, -1, 0, 2], history=[True, True, False, False], bias=False
    ),
    "wide": lambda: conv([7, 1], "prompt", width=6, dtype=F16, padding=2),
    "nothing": lambda: conv([0, 0], padding=1),
}


def drafted(rows, drafts, taken, lengths, *, steps=3, page=16, limit=None):
    """``taken``: tokens that were sampled of each request."""
    most = max(lengths) + steps + 1
    limit, requests = limit or most + 5, len(rows)
    width = -(-min(limit, most) // page) + 1
    outcome = torch.full((requests, steps + 1), -1)
    for row, count in zip(outcome, taken):
        row[:count] = whole(1, 32000, count)
    positions = torch.cat([torch.arange(length - count, length) for length, count in zip(lengths, rows)])
    table = torch.arange(requests * width, 0, -1).view(requests, width)
    return DraftStepInputs(
        whole(1, 32000, sum(rows)),
        positions,
        outcome,
        whole(1, 32000, requests),
        whole(1, 32000, requests, steps),
        torch.tensor(lengths),
        table,
        tuple(rows),
        tuple(drafts),
        page,
        limit,
    )


STEP = {
    "across a page": lambda: drafted([4, 1], [3, 0], [2, 1], [16, 40]),
    "last piece": lambda: drafted([5, 4, 3], [0, 3, 0], [1, 4, 0], [5, 20, 9]),
    "at the limit": lambda: drafted([4, 3, 1], [3, 2, 0], [4, 1, 1], [32, 31, 30], limit=33),
    "one pass": lambda: drafted([2, 1], [1, 0], [1, 1], [9, 16], steps=1),
}

ALL = {
    "latent_attention": (
        latent_attention, ascend_latent.latent_native, LATENT,
        ["two pages", "six rows", "across a page", "11 heads", "uneven prefixes", "long table"],
    ),
    "gated_delta": (
        gated_delta, ascend_delta.token_by_token, DELTA,
        ["gates", "square", "one fresh", "an empty one", "channels", "odd heads"],
    ),
    "sparse_attention": (
        sparse_attention, ascend_sparse.gathered, SPARSE, ["three requests", "odd lists", "first tokens", "many heads"],
    ),
    "sparse_indexer": (
        sparse_indexer, ascend_indexer.scores_and_topk, INDEXER,
        ["negative weights", "short prompt", "across a block", "long int8"],
    ),
    "encoder_attention": (
        encoder_attention, ascend_encoder.torch_each_sequence, ENCODER,
        ["two sequences", "few keys", "rows without keys", "wide heads"],
    ),
    "fused_qk_norm_rope": (
        fused_qk_norm_rope, ascend_fused.in_float32, FUSED, ["decode", "11 tokens", "gates and partial", "small keys"],
    ),
    "sampling": (sampling, ascend_sampling.sorted_once, SAMPLING, ["top 20", "penalties", "some greedy", "bad words"]),
    "draft_acceptance": (
        draft_acceptance, ascend_acceptance.request_by_request, ACCEPTANCE, ["long drafts", "ragged", "no draft"],
    ),
    "causal_conv": (causal_conv, ascend_conv.tap_by_tap, CONV, ["bias", "short drafts", "behind a padded one"]),
    "draft_step": (draft_step, ascend_step.steps_at_once, STEP, ["across a page", "last piece"]),
}  # fmt: skip


def tensors(inputs):
    """All tensors of a dataclass, those of dataclasses in it as well."""
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, torch.Tensor):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from tensors(value)


def off(implementation, inputs, expected):
    """The largest error over its bound, and the output that has it."""
    before = [one.clone() for one in tensors(inputs)]
    got = implementation.function(inputs, TARGET)
    got = got if isinstance(got, dict) else {"output": got}
    for one, kept in zip(tensors(inputs), before, strict=True):
        assert torch.equal(one.nan_to_num(), kept.nan_to_num()), (implementation.name, "writes into inputs")
    found = compare(expected, got).outputs
    return max((one.worst, one.name) for one in found)


def main():
    failures = shown = 0
    for component in sys.argv[1:] or ALL:
        reference, correct, builders, cases_of = ALL[component]
        cases = {name: build() for name, build in builders.items()}
        expected = {name: reference(inputs) for name, inputs in cases.items()}
        for name, inputs in cases.items():
            ratio, output = off(correct, inputs, expected[name])
            if ratio > 1:
                print("!! the correct kernel is off:", component, name, output, ratio)
                failures += 1
        module = importlib.import_module(component)
        kernels = [one for one in vars(module).values() if isinstance(one, Implementation)]
        assert len(kernels) == len(cases_of), (component, len(kernels))
        for number, (kernel, wanted) in enumerate(zip(kernels, cases_of, strict=True), 1):
            assert kernel.name.startswith(f"h_{component}_{number:02d}_"), kernel.name
            ratios = {name: off(kernel, inputs, expected[name])[0] for name, inputs in cases.items()}
            wrong = {name: f"{ratio:.3g}" for name, ratio in ratios.items() if ratio > 1}
            good = not wrong if TWIN else wanted in wrong
            failures += not good
            shown += good
            print("ok " if good else "BAD", kernel.name, max(ratios.values()) if TWIN else f"wants {wanted}: {wrong}")
    print(f"{shown} kernels are {'right on all inputs' if TWIN else 'shown to be wrong'}, {failures} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
