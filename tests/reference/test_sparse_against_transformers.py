"""The choice of keys and attention over them against transformers' DeepSeek-V3.2 and GLM-5, with weights by chance."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sparse_attention import SparseAttentionInputs, sparse_attention
from npudiff.reference.sparse_indexer import SparseIndexerInputs, sparse_indexer
from paged_rows import paged

ATTENTION = {"DeepSeek-V3.2": deepseek.DeepseekV32Attention, "GLM-5": glm.GlmMoeDsaAttention}
CONFIG = {"DeepSeek-V3.2": deepseek.DeepseekV32Config, "GLM-5": glm.GlmMoeDsaConfig}
HEADS, RANK, ROPE, PLAIN, VALUE = 4, 32, 16, 24, 20
TOKENS, CHOSEN, PAGE = 90, 12, 16

every_model = pytest.mark.parametrize("model", ATTENTION)


class Products(TorchFunctionMode):
    """Keeps the operands of every ``torch.matmul``."""

    def __init__(self):
        self.operands = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.matmul:
            self.operands.append(arguments)
        return function(*arguments, **(keywords or {}))


def layer(model, dtype):
    """One attention layer, of which every parameter is drawn."""
    config = CONFIG[model](
        hidden_size=64, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=48, kv_lora_rank=RANK,
        qk_rope_head_dim=ROPE, qk_nope_head_dim=PLAIN, v_head_dim=VALUE, index_n_heads=8, index_head_dim=64,
        index_topk=CHOSEN, num_hidden_layers=2, attn_implementation="eager",
    )  # fmt: skip
    made = ATTENTION[model](config, 0).to(dtype).eval()
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            drawn = torch.randn(parameter.shape, generator=numbers) / parameter.shape[-1] ** 0.5
            parameter.copy_(drawn if parameter.dim() > 1 else 1 + drawn)
    return made


def called(model, dtype):
    """Call a layer; returns it, what it was given, what it returned, and what its indexer multiplied and returned."""
    made, chosen, products = layer(model, dtype), [], Products()
    hidden = torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(6)).to(dtype)
    angles = torch.arange(TOKENS)[:, None] * 0.3 ** torch.arange(ROPE // 2)
    turns = torch.cat([angles, angles], dim=-1)[None]
    causal = torch.full((TOKENS, TOKENS), -torch.inf, dtype=dtype).triu(1)[None, None]
    made.indexer.register_forward_hook(lambda _, given, result: chosen.append(result))
    own = made.indexer.forward

    def watched(*arguments, **keywords):
        with products:
            return own(*arguments, **keywords)

    made.indexer.forward = watched
    with torch.no_grad():
        result = made(hidden, (turns.cos().to(dtype), turns.sin().to(dtype)), causal)
    return made, hidden, turns, result[0][0], products.operands, chosen[0][0]


@every_model
def test_the_same_keys_are_chosen(model):
    made, *_, ((query, key), (weights, _)), theirs = called(model, torch.bfloat16)
    pool, table = paged(key[0, 0].t().to(torch.bfloat16), PAGE)
    assert torch.equal(pool.float()[table.long()].flatten(0, 2)[:TOKENS], key[0, 0].t())
    factors = weights[0, :, 0] * made.indexer.softmax_scale
    ours = sparse_indexer(
        SparseIndexerInputs(query[0].to(torch.bfloat16), factors, pool, table[None], (TOKENS,), (TOKENS,), CHOSEN)
    )["chosen"]
    sure = 0
    for row, listed in enumerate(theirs.tolist()):
        found = torch.zeros(TOKENS + 1, dtype=torch.float64)
        found[[position for position in listed if position <= row]] = 1
        assert bool(((found - ours.value[row]).abs() <= ours.bound[row]).all()), row
        sure += int((ours.bound[row] == 0).all())
    assert sure > 0.9 * TOKENS


@every_model
def test_attention_over_them_is_the_same(model):
    made, hidden, turns, theirs, _, chosen = called(model, torch.float64)
    with torch.no_grad():
        query = made.q_b_proj(made.q_a_layernorm(made.q_a_proj(hidden))).view(TOKENS, HEADS, PLAIN + ROPE)
        latents, rotated = made.kv_a_proj_with_mqa(hidden)[0].split([RANK, ROPE], dim=-1)
        latents = made.kv_a_layernorm(latents)
        up = made.kv_b_proj.weight.view(HEADS, PLAIN + VALUE, RANK)
        absorbed = torch.einsum("thd,hdr->thr", query[..., :PLAIN], up[:, :PLAIN])
        (keys, table), (ropes, _) = paged(latents, PAGE), paged(turned(rotated, turns[0]), PAGE)
        listed = [[key for key in row if key <= place] for place, row in enumerate(chosen.tolist())]
        indices = torch.tensor([row + [-1] * (CHOSEN - len(row)) for row in listed], dtype=torch.int32)[:, None]
        turned_query = turned(query[..., PLAIN:], turns[0][:, None])
        ours = sparse_attention(
            SparseAttentionInputs(
                absorbed, turned_query, PagedKV(keys, ropes, table[None]), indices, (TOKENS,), (TOKENS,), made.scaling
            )
        )["output"].value
        values = torch.einsum("thr,hvr->thv", ours, up[:, PLAIN:])
        ours = made.o_proj(values.flatten(1))
    # They take the softmax in float32. Where a row lacks one key, elements are off by up to 1.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def turned(rows, turns):
    """Neighbouring elements turned by an angle each, from the definition of a rotation."""
    angles = turns[..., : ROPE // 2]
    even, odd = rows[..., 0::2], rows[..., 1::2]
    both = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
    return torch.stack(both, dim=-1).flatten(-2)
