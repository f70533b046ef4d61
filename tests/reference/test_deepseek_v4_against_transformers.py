"""Parts of DeepSeek-V4 that have a component, against transformers' layers of it, with weights by chance.

Keys of V4 are one head of which values are a copy, with the rotated elements in it; a query sees its window, and beside
it one key for every group of tokens that is full: all of them, or those that an indexer chose. Compression, hyper
connections and the choice of experts by a table of tokens are of no component.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare, error_ratio
from npudiff.reference.moe_gating import MoeGatingInputs, moe_gating
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.rope_cache import RopeCacheInputs, rope_cache
from npudiff.reference.rope_scaling import RopeConfig
from npudiff.reference.rotary import RotaryInputs, rotary
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention
from npudiff.reference.sparse_attention import SparseAttentionInputs, sparse_attention
from npudiff.reference.sparse_indexer import SparseIndexerInputs, sparse_indexer
from npudiff.reference.swiglu import Activation, SwigluInputs, swiglu
from paged_rows import paged

HEADS, DIM, ROPE = 4, 64, 16
TOKENS, CHOSEN, PAGE, WINDOW = 90, 6, 16, 11
RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}
KINDS = ("sliding_attention", *RATES)


def configured(kind="compressed_sparse_attention", **changed):
    named = {
        "hidden_size": 64, "moe_intermediate_size": 32, "num_attention_heads": HEADS, "head_dim": DIM,
        "q_lora_rank": 48, "o_groups": 2, "o_lora_rank": 16, "index_n_heads": 8, "index_head_dim": 32,
        "index_topk": CHOSEN, "num_hidden_layers": 1, "layer_types": [kind], "mlp_layer_types": ["moe"],
        "compress_rates": dict(RATES), "sliding_window": WINDOW, "partial_rotary_factor": ROPE / DIM,
        "attn_implementation": "eager",
    }  # fmt: skip
    return deepseek.DeepseekV4Config(**(named | changed))


def layer(kind, dtype):
    """One attention layer, of which every parameter is drawn."""
    made = deepseek.DeepseekV4Attention(configured(kind), 0).to(dtype).eval()
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.randn(parameter.shape, generator=numbers) / parameter.shape[-1] ** 0.5
            parameter.copy_(drawn if parameter.dim() > 1 else 1 + drawn)
    return made


def called(monkeypatch, kind, dtype, sinks=None):
    """Call a layer; returns it, and by name what its attention and its indexer were given and returned."""
    made, seen = layer(kind, dtype), {}
    made.sinks.data.fill_(-torch.inf) if sinks is None else made.sinks.data.copy_(sinks)
    attend = deepseek.eager_attention_forward

    def watched(module, query, key, value, mask, scaling, **rest):
        # A softmax takes the largest logit off all of them: a sink of minus infinity has no weight.
        output, weights = attend(module, query, key, value, mask, scaling, **rest)
        seen.update(query=query[0].transpose(0, 1), key=key[0, 0], value=value[0, 0], output=output[0], scaling=scaling)
        return output, weights

    monkeypatch.setattr(deepseek, "eager_attention_forward", watched)
    if kind == "compressed_sparse_attention":
        indexer = made.compressor.indexer
        indexer.register_forward_hook(lambda _, given, result: seen.update(chosen=result[0]))
        indexer.scorer.register_forward_hook(lambda _, given, result: seen.update(scored=given))
    hidden = torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(6)).to(dtype)
    places = torch.arange(TOKENS)[None]
    embedding = deepseek.DeepseekV4RotaryEmbedding(made.config)
    turns = {name: embedding(hidden, position_ids=places, layer_type=name) for name in ("main", "compress")}
    behind = places[0][:, None] - places[0]
    mask = torch.zeros(TOKENS, TOKENS, dtype=dtype).masked_fill((behind < 0) | (behind >= WINDOW), -torch.inf)
    with torch.no_grad():
        made(hidden, turns, places, mask[None, None])
    return made, seen


def test_the_same_groups_are_chosen(monkeypatch):
    """A query at position p sees the groups of four tokens that end at p or before."""
    made, seen = called(monkeypatch, "compressed_sparse_attention", torch.bfloat16)
    query, keys, hidden = seen["scored"]
    with torch.no_grad():
        weights = made.compressor.indexer.scorer.weights_proj(hidden)[0].float() * (8 * 32) ** -0.5
    pool, table = paged(keys[0], PAGE)
    first = 3  # no query before it sees a group
    visible = [(place + 1) // 4 for place in range(TOKENS)]
    ours = sparse_indexer(
        SparseIndexerInputs(query[0, first:], weights[first:], pool, table.expand(TOKENS - first, -1),
                            (1,) * (TOKENS - first), tuple(visible[first:]), CHOSEN)
    )["chosen"]  # fmt: skip
    assert seen["chosen"][:first].eq(-1).all()
    sure = 0
    for row, listed in enumerate(seen["chosen"][first:].tolist()):
        found = torch.zeros(ours.value.shape[1], dtype=torch.float64)
        found[[group for group in listed if group >= 0]] = 1
        assert sum(group >= 0 for group in listed) == min(CHOSEN, visible[first + row])
        assert bool(((found - ours.value[row]).abs() <= ours.bound[row]).all()), row
        sure += int((ours.bound[row] == 0).all())
    assert sure > 0.9 * len(ours.value)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_over_a_window_and_groups_is_attention_over_listed_keys(monkeypatch, kind):
    _, seen = called(monkeypatch, kind, torch.float64)
    assert torch.equal(seen["key"], seen["value"])
    rate, rows = RATES.get(kind), []
    for place in range(TOKENS):
        groups = range((place + 1) // rate) if rate else ()
        if "chosen" in seen:
            groups = [group for group in seen["chosen"][place].tolist() if group >= 0]
        rows.append([*range(max(0, place - WINDOW + 1), place + 1), *(TOKENS + group for group in groups)])
    width = max(map(len, rows))
    indices = torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int32).unsqueeze(1)
    latents, table = paged(seen["key"], PAGE)
    total = len(seen["key"])
    assert total == TOKENS + (TOKENS // rate if rate else 0)
    # A query is a request of its own, of which all keys are visible: what it sees is in the list.
    pool = PagedKV(latents, torch.zeros(*latents.shape[:3], 8, dtype=torch.float64), table.expand(TOKENS, -1))
    rope = torch.zeros(TOKENS, HEADS, 8, dtype=torch.float64)
    ours = sparse_attention(
        SparseAttentionInputs(seen["query"], rope, pool, indices, (1,) * TOKENS, (total,) * TOKENS, seen["scaling"])
    )["output"].value
    torch.testing.assert_close(ours, seen["output"], rtol=0, atol=1e-12)


def test_a_layer_with_a_window_alone_is_sliding_attention_with_sinks(monkeypatch):
    sinks = torch.tensor([-1.0, 0.5, 2.0, 0.0])
    _, seen = called(monkeypatch, "sliding_attention", torch.float64, sinks)
    pool, table = paged(seen["key"], PAGE)
    kv = PagedKV(pool, pool, table[None])
    given = SlidingAttentionInputs(seen["query"], kv, None, (TOKENS,), (TOKENS,), WINDOW, seen["scaling"],
                                   sinks.to(torch.bfloat16))  # fmt: skip
    torch.testing.assert_close(sliding_attention(given)["output"].value, seen["output"], rtol=0, atol=1e-12)


def test_the_end_of_a_head_is_turned_as_neighbours_and_back_again():
    stream = Stream(3, "numbers")
    states = stream.normal((7, HEADS, DIM), torch.float32).double()
    angles = stream.normal((7, ROPE // 2), torch.float32).double()
    table = torch.cat([angles.cos(), angles.sin()], dim=-1)
    places = torch.arange(7)
    given = RotaryInputs(states[..., -ROPE:], states[..., -ROPE:], places, table, "interleaved")
    back = RotaryInputs(states[..., -ROPE:], states[..., -ROPE:], places, table * torch.tensor([1.0, -1.0])
                        .repeat_interleave(ROPE // 2), "interleaved")  # fmt: skip
    for inputs, sine in ((given, angles.sin()), (back, -angles.sin())):
        # They turn in float32.
        theirs = deepseek.apply_rotary_pos_emb(states, angles.cos(), sine)
        assert torch.equal(theirs[..., :-ROPE], states[..., :-ROPE])
        torch.testing.assert_close(theirs[..., -ROPE:], rotary(inputs)["query"].value, rtol=0, atol=2e-6)


@pytest.mark.parametrize("place", [0, 4000, 2**20 - 256])
def test_both_tables_are_within_the_bound(place):
    """Layers with groups have YaRN, of which neither cosines nor the softmax's scale are made larger."""
    yarn = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65_536, "beta_fast": 32.0,
            "beta_slow": 1.0}  # fmt: skip
    config = configured(rope_parameters=yarn, max_position_embeddings=2**20, head_dim=512, partial_rotary_factor=0.125)
    embedding = deepseek.DeepseekV4RotaryEmbedding(config)
    rows = torch.arange(place, place + 256)
    ours = {
        "main": RopeConfig("base", 64, 64, 1e4),
        "compress": RopeConfig("deepseek_yarn", 64, 64, 1.6e5, factors=(16.0,), beta_fast=32.0, beta_slow=1.0,
                               max_positions=65_536, mscale=1.0, mscale_all_dim=1.0),
    }  # fmt: skip
    for name, rope in ours.items():
        theirs = embedding(torch.zeros(1, dtype=torch.float32), rows[None], layer_type=name)
        expected = rope_cache(RopeCacheInputs(rows, None, rope, None, (2**20,), 0, torch.float32))
        for part, found in zip(("cos", "sin"), theirs, strict=True):
            value, bound = (one[..., 0, 0, :32] for one in (expected[part].value, expected[part].bound))
            assert float(error_ratio(found[0], value, bound).max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_chosen_by_roots_of_softplus(dtype):
    config = SimpleNamespace(num_experts_per_tok=4, num_local_experts=16, hidden_size=16, scoring_func="sqrtsoftplus",
                             routed_scaling_factor=1.5)  # fmt: skip
    router = deepseek.DeepseekV4TopKRouter(config)
    stream = Stream(11, "logits")
    bias = (0.3 * stream.normal((16,), torch.float32)).to(dtype)
    rows = (2 * stream.normal((50, 16), torch.float32)).to(dtype)
    router.weight.data, router.e_score_correction_bias = torch.eye(16), torch.nn.Buffer(bias.float())
    with torch.no_grad():
        _, weights, index = router(rows.float())
    given = MoeGatingInputs(rows, bias, 4, "sqrtsoftplus", renormalise=True, scaling=1.5)
    expected = moe_gating(given)
    assert float(expected["weights"].bound.isinf().float().mean()) < 0.3
    found = torch.zeros(50, 16).scatter(1, index, weights).to(dtype)
    assert compare(expected, {"weights": found, "top_k": torch.full((50,), 4)}).worst <= 1


def test_experts_and_the_shared_one_cut_what_comes_before_the_gate():
    """The form that npu_clipped_swiglu has, without a slope and a bias of its own."""
    rows = 8 * Stream(12, "states").normal((40, 64), torch.float32)
    config = configured(swiglu_limit=5.0)
    expected = swiglu(SwigluInputs(rows, Activation.SWIGLU_OAI, 5.0, 5.0, alpha=1.0, bias=0.0))
    assert compare(expected, {"output": deepseek.DeepseekV4Experts(config)._apply_gate(rows)}).worst <= 1
    shared, both = deepseek.DeepseekV4MLP(config), torch.eye(64)
    shared.gate_proj.weight.data, shared.up_proj.weight.data = both[:32], both[32:]
    shared.down_proj = torch.nn.Identity()
    with torch.no_grad():
        assert compare(expected, {"output": shared(rows)}).worst <= 1
