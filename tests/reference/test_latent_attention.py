"""Latent attention against other people's code: scaled_dot_product_attention, transformers, and float16 chains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from npudiff.properties.latent_attention.case import LatentAttentionCase
from npudiff.properties.latent_attention.inputs import build_inputs
from npudiff.properties.sliding_attention.case import Request
from npudiff.reference import attention_tile, cache_reader
from npudiff.reference.latent_attention import LatentAttentionInputs, UpProjections, latent_attention
from npudiff.reference.paged_kv import PagedKV

REQUESTS = (Request(3, 20), Request(1, 33), Request(5, 5), Request(0, 7))
CASE = LatentAttentionCase(REQUESTS, heads=3, rank=48, rope_dim=16, nope_dim=24, value_dim=40, padded_rows=2)
FORMS = ("absorbed", "expanded")


def request_by_request(inputs):
    """Queries, keys and values of each request in float64, and the rows that they are."""
    start = 0
    for request, (rows, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        if rows:
            latent, rope = (part.double() for part in inputs.pool.read(request, 0, total))
            own = slice(start, start + rows)
            query = torch.cat([inputs.query[own], inputs.query_rope[own]], dim=-1).double()
            key, value = latent, latent
            if inputs.up is not None:
                key = torch.einsum("tr,hnr->thn", latent[:, 0], inputs.up.key.double())
                value = torch.einsum("tr,hrv->thv", latent[:, 0], inputs.up.value.double())
            key = torch.cat([key, rope.expand(-1, key.shape[1], -1)], dim=-1)
            yield own, query, key, value
        start += rows


@pytest.mark.parametrize("layout", ["PA_BSND", "PA_NZ"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recipe", ["gaussian", "needle", "outlier"])
def test_it_is_scaled_dot_product_attention_and_its_log_sum_exp(form, layout, recipe):
    inputs = build_inputs(replace(CASE, form=form, layout=layout, recipe=recipe))
    expected = latent_attention(inputs)
    for rows, query, key, value in request_by_request(inputs):
        seen = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
        heads = [part.transpose(0, 1)[None] for part in (query, key, value)]
        right = functional.scaled_dot_product_attention(*heads, attn_mask=seen, scale=inputs.scale, enable_gqa=True)
        scores = heads[0] @ heads[1].transpose(-1, -2) * inputs.scale
        lse = scores.masked_fill(~seen, -torch.inf).logsumexp(dim=-1)[0]
        torch.testing.assert_close(expected["output"].value[rows], right[0].transpose(0, 1), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(expected["lse"].value[rows], lse.T, rtol=1e-11, atol=1e-11)
    real = sum(inputs.query_lengths)
    assert not expected["output"].value[real:].any()
    assert expected["lse"].bound[real:].isposinf().all()


@pytest.mark.parametrize("scaling", [None, 0.25])
def test_it_is_the_attention_of_deepseek_in_transformers(scaling):
    """Expanded as their module has it, with a softmax in float32; and absorbed, with outputs that are brought up."""
    modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    configuration = pytest.importorskip("transformers.models.deepseek_v3.configuration_deepseek_v3")
    torch.manual_seed(4)
    config = configuration.DeepseekV3Config(
        hidden_size=64, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=32, kv_lora_rank=48,
        qk_nope_head_dim=24, qk_rope_head_dim=16, v_head_dim=40, attention_bias=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    attention = modeling.DeepseekV3Attention(config, 0).double().eval()
    attention.scaling = scaling or attention.scaling
    attention.o_proj = torch.nn.Identity()
    tokens, new = 21, 4
    hidden = torch.randn(1, tokens, 64, dtype=torch.float64)
    angles = torch.rand(1, tokens, 8, dtype=torch.float64).repeat(1, 1, 2) * 6
    turned = []

    def keep(query, key, *arguments, **options):
        turned.append(original(query, key, *arguments, **options))
        return turned[0]

    name = "apply_rotary_pos_emb_interleave" if config.rope_interleave else "apply_rotary_pos_emb"
    original = getattr(modeling, name)
    mask = torch.full((tokens, tokens), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling, name, keep)
        right = attention(hidden, attention_mask=mask, position_embeddings=(angles.cos(), angles.sin()))[0][0]
        compressed = attention.kv_a_proj_with_mqa(hidden)[0, :, :48]
        latents = attention.kv_a_layernorm(compressed)
        heads = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(hidden)))[0].view(tokens, 3, 40)
    (query_rope, key_rope), nope = turned[0], heads[-new:, :, :24]
    both = attention.kv_b_proj.weight.detach().view(3, 64, 48)
    up = UpProjections(both[:, :24], both[:, 24:].transpose(1, 2))
    pages = torch.tensor([[3, 1, 2]], dtype=torch.int32)
    pool = PagedKV(*(paged(part, pages) for part in (latents, key_rope[0, 0])), pages)
    rope = query_rope[0].transpose(0, 1)[-new:]
    given = LatentAttentionInputs(nope, rope, pool, (new,), (tokens,), attention.scaling, up)
    value = latent_attention(given)["output"].value
    torch.testing.assert_close(value.flatten(1), right[-new:], rtol=0, atol=1e-7)
    absorbed = replace(given, query=torch.einsum("thn,hnr->thr", nope, up.key), up=None)
    brought = torch.einsum("thr,hrv->thv", latent_attention(absorbed)["output"].value, up.value)
    torch.testing.assert_close(brought.flatten(1), right[-new:], rtol=0, atol=1e-7)


def paged(rows, table):
    """Rows in pages of 8 that are named by a table, and 77 elsewhere."""
    pool = torch.full((5, 8, 1, rows.shape[1]), 77.0, dtype=rows.dtype)
    for token, row in enumerate(rows):
        pool[int(table[0, token // 8]), token % 8, 0] = row
    return pool


@pytest.mark.parametrize("form", FORMS)
def test_tiles_do_not_change_the_result(form, monkeypatch):
    inputs = build_inputs(replace(CASE, form=form, requests=(Request(3, 70), Request(2, 9))))
    whole = latent_attention(inputs)
    monkeypatch.setattr(attention_tile, "SCORE_TILE", 9 * 7)
    monkeypatch.setattr(cache_reader, "CACHE_TILE", 3000)
    tiled = latent_attention(inputs)
    for name, one in whole.items():
        torch.testing.assert_close(tiled[name].value, one.value, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(tiled[name].bound, one.bound, rtol=1e-5, atol=1e-12)


def rounded_chain(inputs):
    """Keys and values as a device has them, rounded to the dtype, then attention in float64."""
    dtype = inputs.query.dtype
    for rows, query, exact, value in request_by_request(inputs):
        nope = inputs.query.shape[2]
        key = torch.cat([exact[..., :nope].to(dtype).double(), exact[..., nope:]], dim=-1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * inputs.scale
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(key) - len(query))
        scores = scores.masked_fill(hidden, -torch.inf)
        weights = torch.softmax(scores, dim=-1)
        yield rows, torch.einsum("hqk,khv->qhv", weights, value.to(dtype).double()), scores.logsumexp(dim=-1).T


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("recipe", ["gaussian", "needle", "outlier"])
def test_the_rounding_of_keys_and_values_alone_is_within_the_bound_and_not_far_below(dtype, recipe):
    """The log-sum-exp is off by nothing but these roundings, which the bound has as its largest term."""
    worst = {"output": 0.0, "lse": 0.0}
    for seed in range(4):
        case = replace(CASE, requests=(Request(5, 60), Request(3, 9)), form="expanded", recipe=recipe, dtype=dtype,
                       seed=seed)  # fmt: skip
        inputs = build_inputs(case)
        expected = latent_attention(inputs)
        for rows, output, lse in rounded_chain(inputs):
            for name, actual in (("output", output), ("lse", lse)):
                error = (actual - expected[name].value[rows]).abs() / expected[name].bound[rows]
                worst[name] = max(worst[name], float(error.max()))
    assert 0.1 < worst["lse"] < 1
    assert 0.1 < worst["output"] < 1


def test_a_request_without_tokens_has_zeros_and_a_sum_over_nothing():
    inputs = build_inputs(replace(CASE, requests=(Request(2, 0), Request(1, 3)), padded_rows=0))
    expected = latent_attention(inputs)
    assert not expected["output"].value[:2].any()
    assert not expected["output"].bound[:2].any()
    assert expected["lse"].value[:2].isneginf().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_rope": torch.zeros(4, 3, 8)}, "query_rope must be"),
        ({"query": torch.zeros(4, 3, 47)}, "an absorbed query has 48 elements"),
        ({"up": UpProjections(torch.zeros(3, 24, 48), torch.zeros(3, 48, 40))}, "up-projections must be"),
        ({"query_lengths": (1,)}, "1 query lengths, 2 KV lengths"),
        ({"query_lengths": (4, 4)}, "add up to 8, the query has 4 rows"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, words):
    inputs = build_inputs(replace(CASE, requests=(Request(3, 5), Request(1, 4)), padded_rows=0))
    with pytest.raises(ValueError, match=words):
        latent_attention(replace(inputs, **changes))
