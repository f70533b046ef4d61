"""Inputs by hand of decoder layers."""

import math

import torch
from demo_cases import BF16, gen, randn

from npudiff.reference.decoder_layer import DecoderLayerInputs, GroupedQueryWeights, LatentWeights, LayerStep, Mixture
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.moe_experts import Experts

D = "c_decoder_layer_"
SIZE = 64


def _matrix(*shape, seed):
    return (torch.randn(*shape, generator=gen(seed)) / math.sqrt(shape[-2])).to(BF16)


def _experts(count, seed):
    return Experts(
        ExpertWeights(_matrix(count, SIZE, 64, seed=seed)), ExpertWeights(_matrix(count, 32, SIZE, seed=seed + 1))
    )


def layer(steps, *, window=None, latent=False, size=16):
    """``steps`` are lists of (request, new, total)."""
    made = tuple(LayerStep(*(tuple(column) for column in zip(*step, strict=True))) for step in steps)
    tokens = sum(step.tokens for step in made)
    lengths = {}
    for step in made:
        for request, total in zip(step.requests, step.kv_lengths, strict=True):
            lengths[request] = total
    width, requests = max(-(-total // size) for total in lengths.values()), 1 + max(lengths)
    pages = 1 + requests * width
    tables = [
        (torch.randperm(pages - 1, generator=gen(30 + index)) + 1).reshape(requests, width).to(torch.int32)
        for index in (0, 1)
    ]
    positions, owners = [], []
    for step in made:
        for request, new, total in zip(step.requests, step.query_lengths, step.kv_lengths, strict=True):
            positions += range(total - new, total)
            owners += [request] * new
    positions, owners = torch.tensor(positions), torch.tensor(owners)
    slots = [table[owners, positions // size].to(torch.int64) * size + positions % size for table in tables]
    heads, dim, rope = 4, 32, 16
    if latent:
        weights = LatentWeights(
            q_a=_matrix(SIZE, 48, seed=1), q_a_norm=randn(48, seed=2), q_b=_matrix(48, heads * (dim + rope), seed=3),
            kv_a=_matrix(SIZE, 64 + rope, seed=4), kv_a_norm=randn(64, seed=5), k_up=_matrix(heads, dim, 64, seed=6),
            v_up=_matrix(heads, 64, 32, seed=7), output=_matrix(heads * 32, SIZE, seed=8),
        )  # fmt: skip
        pools, scale = [(pages, size, 1, 64), (pages, size, 1, rope)], 1 / math.sqrt(dim + rope)
    else:
        weights = GroupedQueryWeights(
            qkv=_matrix(SIZE, (heads + 4) * dim, seed=1), query_norm=randn(dim, seed=2) * 0.1,
            key_norm=randn(dim, seed=3) * 0.1, gate=_matrix(SIZE, heads, seed=4), output=_matrix(heads * dim, SIZE, seed=5),
        )  # fmt: skip
        pools, scale = [(pages, size, 2, dim)] * 2, 1 / math.sqrt(dim)
    angle = torch.rand(128, rope // 2, generator=gen(9)) * 6.28
    mixture = Mixture(
        router=torch.randn(SIZE, 8, generator=gen(10)) / 8, bias=torch.rand(8, generator=gen(11)) * 2,
        routed=_experts(8, 12), shared=_experts(1, 14), top_k=2, groups=2, kept_groups=1, scaling=2.5,
    )  # fmt: skip
    return DecoderLayerInputs(
        hidden=randn(tokens, SIZE, seed=20), residual=randn(tokens, SIZE, seed=21), steps=made, positions=positions,
        cos_sin_cache=torch.cat([angle.cos(), angle.sin()], dim=1).to(BF16), attention=weights, experts=mixture,
        input_norm=randn(SIZE, seed=22) * 0.1 + latent, post_norm=randn(SIZE, seed=23) * 0.1 + latent, epsilon=1e-6,
        scale=scale, window=window, key_cache=randn(*pools[0], seed=24), value_cache=randn(*pools[1], seed=25),
        slots=slots[0], sliding_slots=slots[1], block_table=tables[0], sliding_block_table=tables[1],
    )  # fmt: skip


CASES = {
    "decoder_layer": {
        D + "01_decodes_first": [layer([[(0, 9, 9)], [(1, 5, 5), (0, 1, 10)]])],
        D + "02_weights_of_biased_scores": [layer([[(0, 6, 6)]], latent=True)],
        D + "03_history_of_the_last_row": [layer([[(0, 20, 20)], [(0, 8, 28)]], window=12)],
        "extra": [layer([[(0, 20, 20), (1, 3, 3)], [(1, 7, 10), (0, 1, 21)]], latent=True)],
    }
}
