"""Queries of int8: one scale per product, and latent attention with a scale per query and head; against float64."""

import math

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.fused_attention.arithmetic import Halves, LatentInt8, ProductScales
from npudiff.device.simulator.fused_attention.rounding import HalfInt8

OPS = torch.ops.npu
HALF, BFLOAT16 = 2.0**-11, 2.0**-9
SCALES = {"dequant_scale1": 2.0**-12, "quant_scale1": 127.0, "dequant_scale2": 2.0**-11}
PROMPT = {"dequant_scale1": "deq_scale1", "dequant_scale2": "deq_scale2"}


def int8(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-100, 101, shape, generator=generator, dtype=torch.int8)


def per_tensor(layout="BNSD", heads=4, kv_heads=2, queries=5, keys=40, dim=64, **more):
    """Arguments of the first version, by name, with queries [2, heads, ...]."""
    tensors = {
        "query": int8(2, heads, queries, dim, seed=1),
        "key": int8(2, kv_heads, keys, dim, seed=2),
        "value": int8(2, kv_heads, keys, dim, seed=3),
    }
    if layout in ("BSND", "BSH"):
        tensors = {name: one.transpose(1, 2).contiguous() for name, one in tensors.items()}
    if layout == "BSH":
        tensors = {name: one.flatten(2) for name, one in tensors.items()}
    scales = {name: torch.tensor([number]) for name, number in SCALES.items()}
    return tensors | scales | {
        "num_heads": heads, "num_key_value_heads": kv_heads, "input_layout": layout, "scale": 0.5,
    } | more  # fmt: skip


def call(given, operator="npu_fused_infer_attention_score"):
    given = dict(given)
    tensors = [given.pop(name) for name in ("query", "key", "value")]
    if operator == "npu_prompt_flash_attention":
        given = {PROMPT.get(name, name): one for name, one in given.items()} | {"scale_value": given["scale"]}
        del given["scale"]
    result = getattr(OPS, operator)(*tensors, **given)
    return result[0] if isinstance(result, tuple) else result


def by_head(tensor, layout, heads):
    if layout == "BSH":
        tensor, layout = tensor.unflatten(2, (heads, -1)), "BSND"
    return tensor.transpose(1, 2) if layout.endswith("BSND") else tensor


def exact(given, hidden=None):
    """Return attention in float64, what the roundings may change of it, and of what the output is made."""
    layout, heads, kv_heads = given["input_layout"].split("_")[0], given["num_heads"], given["num_key_value_heads"]
    query, key, value = (
        by_head(given[name], layout, heads if name == "query" else kv_heads).double()
        for name in ("query", "key", "value")
    )
    key, value = (one.repeat_interleave(heads // kv_heads, 1) for one in (key, value))
    first, middle, last = (float(given[name]) for name in SCALES)
    raw = query @ key.transpose(2, 3) * first
    scores = raw * given["scale"]
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1, keepdim=True)
    expected = weights * middle @ value * last / total
    # Scores are rounded twice; a probability that becomes int8 is off by half a unit, and by what its score is off.
    moved = (raw.abs() * given["scale"]).amax(-1, keepdim=True) * HALF * 3 + HALF
    unit = (0.5 + weights * middle * moved) * (weights > 0)
    return expected, unit @ value.abs() * last / total + expected.abs() * HALF * 8 + 1e-3


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "BNSD_BSND"])
@pytest.mark.parametrize("operator", ["npu_fused_infer_attention_score", "npu_prompt_flash_attention"])
def test_one_scale_per_product(layout, operator):
    given = per_tensor(layout.split("_")[0]) | {"input_layout": layout}
    found = by_head(call(given, operator), layout, 4)
    expected, slack = exact(given)
    assert found.dtype == torch.float16
    assert ((found.double() - expected).abs() <= slack).all()
    assert expected.abs().max() > 8 * slack.median()


def test_a_mask_hides(lab):
    given = per_tensor(sparse_mode=3, atten_mask=lab.template())
    hidden = torch.arange(40) > torch.arange(5).unsqueeze(1) + 35
    expected, slack = exact(given, hidden)
    assert ((call(given).double() - expected).abs() <= slack).all()
    assert not torch.equal(call(given), call(per_tensor()))


def test_several_tiles_of_keys():
    given = per_tensor(keys=1300)
    expected, slack = exact(given)
    assert ((call(given).double() - expected).abs() <= slack).all()


@pytest.mark.parametrize("words", [torch.uint64, torch.int64, torch.float32])
def test_dequant_scales_are_words_or_floats_of_19_bits(words):
    """0.001 keeps 10 bits of its fraction; the word has the float's bits."""
    scale = torch.tensor([0.001])
    kept = (scale.view(torch.int32) & ~0x1FFF).view(torch.float32)
    given = per_tensor(dequant_scale1=kept)
    word = scale if words == torch.float32 else scale.view(torch.int32).to(torch.int64).view(words)
    assert torch.equal(call(per_tensor(dequant_scale1=word)), call(given))


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("offset", [False, True])
def test_int8_outputs(channels, offset):
    plain = call(per_tensor()).double()
    scale = torch.full((1, 4, 1, 64) if channels else (1,), 40.0)
    more = {"quant_scale2": scale, "quant_offset2": torch.full_like(scale, 7.0)} if offset else {"quant_scale2": scale}
    found = call(per_tensor(**more))
    assert found.dtype == torch.int8
    wanted = (plain * 40 + (7 if offset else 0)).clamp(-128, 127)
    assert ((found.double() - wanted).abs() <= 0.6).all()


def test_the_steps_of_an_int8_output_by_hand():
    """2.5 goes to even; 100.05 is 100.0625 in float16, times 1.0 no more than that."""
    quantise = HalfInt8(torch.tensor([1.0]), None)
    assert quantise(torch.tensor([[[2.5, 3.5, -0.5, 200.0, -200.0]]])).tolist() == [[[2, 4, 0, 127, -128]]]
    assert HalfInt8(torch.tensor([0.5]), torch.tensor([0.25]))(torch.tensor([[[4.5]]])).tolist() == [[[2]]]


def test_the_steps_of_scores_and_probabilities_by_hand():
    """2049 is 2048 in float16; 0.5 * 127 is 63.5, which goes to 64, and 64.5 would go to 64."""
    arithmetic = Halves(ProductScales(scores=1.0, probabilities=127.0, values=1.0))
    one = torch.ones(1, 1, 1)
    assert arithmetic.scores(one * 2049, one, range(1), 1.0).item() == 2048
    assert arithmetic.scores(one * 3, one, range(1), 0.1).item() == (torch.tensor(0.1).half() * 3).item()
    assert arithmetic.weigh(one * 0.5, one).item() == 64
    assert arithmetic.weigh(one * (64.5 / 127), one).item() == 64
    assert arithmetic.weigh(one * 2, one).item() == 127
    assert arithmetic.add(one * 2048, one, one).item() == 2048
    assert Halves().divide(one, one * 3).item() == torch.tensor(1 / 3).half().item()


REFUSED = [
    ({"dequant_scale1": None}, "dequant_scale1 was None; allowed: given, for an int8 query"),
    ({"quant_scale1": torch.ones(1).half()}, "quant_scale1 was torch.float16; allowed: float32"),
    ({"dequant_scale2": torch.ones(1).half()}, "dequant_scale2 was torch.float16; allowed: float32 or uint64"),
    ({"dequant_scale2": torch.ones(2)}, r"dequant_scale2 was of shape \[2\]; allowed: 1 element"),
    ({"key": int8(2, 2, 40, 64).half()}, "key was torch.float16; allowed: torch.int8"),
    ({"value": int8(2, 2, 40, 64).half()}, "value was torch.float16; allowed: torch.int8"),
    ({"query": int8(2, 4, 1, 64)}, "query was int8 with one query"),
    ({name: int8(2, n, s, 48) for name, n, s in (("query", 4, 5), ("key", 2, 40), ("value", 2, 40))}, "head dim 48"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_per_tensor_scales_do_not_go_with(change, message):
    given = {name: one for name, one in (per_tensor() | change).items() if one is not None}
    with pytest.raises(OperatorRejected, match=message):
        call(given)


# Latent attention.
LATENT, ROPE, BLOCK = 512, 64, 128


def latent(layout="BSND", *, queries=1, heads=4, lengths=(40, 700), **more):
    """Arguments of the second version, and what they stand for: queries and keys [batch] of float64."""
    batch, width = len(lengths), 6
    generator = torch.Generator().manual_seed(4)
    query = int8(batch, queries, heads, LATENT, seed=1)
    query_rope = torch.randn(batch, queries, heads, ROPE, generator=generator).mul(40).bfloat16()
    scale = torch.rand(batch, queries, heads, generator=generator) * 1e-3 + 1e-3
    table = torch.randperm(batch * width, generator=generator).view(batch, width).int()
    cache = int8(batch * width, BLOCK, LATENT, seed=2)
    rope = torch.randn(batch * width, BLOCK, ROPE, generator=generator).mul(40).bfloat16()
    nz = [one.unflatten(2, (-1, 32 // one.itemsize)).transpose(1, 2).unsqueeze(1).contiguous() for one in (cache, rope)]
    given = {"query": query, "query_rope": query_rope, "dequant_scale_query": scale}
    if layout.startswith("BNSD"):
        given = {name: one.transpose(1, 2).contiguous() for name, one in given.items()}
    if layout.startswith("TND"):
        given = {name: one.flatten(0, 1) for name, one in given.items()}
    if layout.startswith("BSH"):
        given = {name: one.flatten(2) if one.dim() == 4 else one for name, one in given.items()}
    given |= {
        "key": nz[0], "value": nz[0], "key_rope": nz[1], "block_table": table, "block_size": BLOCK,
        "dequant_scale_key": torch.tensor([0.02]), "dequant_scale_value": torch.tensor([0.03]),
        "query_quant_mode": 3, "num_query_heads": heads, "num_key_value_heads": 1, "input_layout": layout,
        "softmax_scale": 0.04, "actual_seq_kvlen": list(lengths),
    }  # fmt: skip
    if layout.startswith("TND"):
        given["actual_seq_qlen"] = [queries * (i + 1) for i in range(batch)]
    plain = [
        (
            (query[i].double(), query_rope[i].double(), scale[i].double()),
            (cache[table[i].long()].flatten(0, 1)[:n].double(), rope[table[i].long()].flatten(0, 1)[:n].double()),
        )
        for i, n in enumerate(lengths)
    ]
    return given | more, plain


def attend(sequence, *, causal=False):
    """Return attention [queries, heads, 512] in float64 and what the roundings may change of it."""
    (query, query_rope, scale), (key, rope) = sequence
    sums = torch.einsum("qhd,kd->qhk", query, key) + torch.einsum("qhd,kd->qhk", query_rope, rope)
    scores = sums * scale.unsqueeze(-1) * 0.02 * 0.04
    if causal:
        row = torch.arange(len(query)).view(-1, 1, 1)
        scores = scores.masked_fill(torch.arange(len(key)) > row + len(key) - len(query), -math.inf)
    weights = scores.softmax(-1)
    expected = weights @ key * 0.03
    # A probability is off by half a 127th of the largest of its tile, which is at most the largest of all.
    unit = weights.amax(-1, keepdim=True) * (weights > 0) / 127 * 0.51 + weights * HALF * 2
    return expected, unit @ key.abs() * 0.03 + expected.abs() * BFLOAT16 * 1.3 + (weights @ key.abs()) * 0.03 * HALF * 6


@pytest.mark.few(6)
@pytest.mark.parametrize("layout", ["BSND", "BNSD", "BSH", "BSND_NBSD", "BNSD_NBSD", "BSH_NBSD", "TND", "TND_NTD"])
@pytest.mark.parametrize("queries", [1, 3])
def test_latent_attention(lab, layout, queries):
    causal = {"sparse_mode": 3, "atten_mask": lab.template()} if queries > 1 else {}
    given, plain = latent(layout, queries=queries, **causal)
    output, _ = lab.call(given, lse=False)
    assert output.dtype == torch.bfloat16
    if layout == "BSH":
        layout, output = "BSND", output.unflatten(2, (4, -1))
    for found, sequence in zip(lab.unpack(output, layout, [queries] * 2), plain, strict=True):
        expected, slack = attend(sequence, causal=queries > 1)
        assert ((found.transpose(0, 1).double() - expected).abs() <= slack).all()
        assert expected.abs().max() > 4 * slack.median()


def test_latent_log_sum_exp(lab):
    given, plain = latent()
    _, lse = lab.call(given, lse=True)
    for found, sequence in zip(lse, plain, strict=True):
        (query, query_rope, scale), (key, rope) = sequence
        sums = torch.einsum("qhd,kd->qhk", query, key) + torch.einsum("qhd,kd->qhk", query_rope, rope)
        expected = (sums * scale.unsqueeze(-1) * 0.02 * 0.04).logsumexp(-1)
        assert (found[..., 0].transpose(0, 1).double() - expected).abs().max() < 1e-3


def test_the_steps_of_latent_attention_by_hand():
    """A probability of 1 / 4 beside 1 / 2 is 63.5 of 127, which goes to 64; sums are in units of 1024."""
    arithmetic = LatentInt8(torch.ones(1, 1, 1, 1), value_scale=2.0, rope_dim=1)
    one = torch.ones(1, 1, 1)
    values = torch.tensor([[[100.0], [-100.0]]])
    found = arithmetic.weigh(torch.tensor([[[0.5, 0.25]]]), values)
    wanted = (torch.tensor((127 - 64) * 100 / 1024).half() * torch.tensor(0.5).half()).item()
    assert found.item() == wanted
    assert arithmetic.divide(one, one * 2).item() == pytest.approx(1024 / 2 * 2 / 127)
    queries, keys = torch.tensor([[[127.0, 2.0]]]), torch.tensor([[[127.0, 0.5]]])
    assert arithmetic.scores(queries, keys, range(1), 0.5).item() == (127 * 127 + 1) / 2


LATENT_REFUSED = [
    ({"query_quant_mode": 0}, "query_quant_mode was 0; allowed: 3"),
    ({"dequant_scale_query": None}, "dequant_scale_query was None; allowed: float32"),
    ({"dequant_scale_key": torch.ones(1).half()}, "dequant_scale_key was torch.float16; allowed: float32"),
    ({"dequant_scale_value": torch.ones(2)}, r"dequant_scale_value was of shape \[2\]; allowed: \[1\]"),
    (
        {"dequant_scale_query": torch.ones(2, 4, 4)},
        r"dequant_scale_query was of shape \[2, 4, 4\]; allowed: \[2, 1, 4\]",
    ),
    ({"quant_scale_out": torch.ones(1)}, "quant_scale_out was given"),
    ({"dequant_offset_key": torch.ones(1)}, "dequant_offset_key was given; allowed: None with query_rope"),
    (
        {"sparse_mode": 3, "atten_mask": torch.zeros(2048, 2048, dtype=torch.int8)},
        "sparse_mode was 3 with an int8 query",
    ),
    ({"block_size": 64}, "block_size was 64"),
]


@pytest.mark.parametrize(("change", "message"), LATENT_REFUSED)
def test_what_latent_int8_does_not_go_with(lab, change, message):
    given, _ = latent()
    with pytest.raises(OperatorRejected, match=message):
        lab.call({name: one for name, one in (given | change).items() if one is not None}, lse=False)


def test_latent_int8_is_of_the_second_version_and_of_pages(lab):
    given, _ = latent()
    rows = {name: torch.zeros(2, 9, 1, LATENT, dtype=torch.int8) for name in ("key", "value")}
    plain = {name: one for name, one in given.items() if name not in ("block_table", "block_size")}
    plain |= rows | {"key_rope": torch.zeros(2, 9, 1, ROPE).bfloat16(), "actual_seq_kvlen": [9, 9]}
    with pytest.raises(OperatorRejected, match="key was int8 of rank 4; allowed: pages in NZ order, of rank 5"):
        lab.call(plain, lse=False)
    query = torch.zeros(2, 1, 4, LATENT, dtype=torch.int8)
    with pytest.raises(OperatorRejected, match="query was int8 with query_rope; allowed: a 16-bit query"):
        OPS.npu_fused_infer_attention_score(
            query, rows["key"], rows["value"], query_rope=torch.zeros(2, 1, 4, ROPE).bfloat16(),
            key_rope=plain["key_rope"], num_heads=4, num_key_value_heads=1, input_layout="BSND",
        )  # fmt: skip
    with pytest.raises(NotSimulated, match="query was int8 without query_rope"):
        OPS.npu_fused_infer_attention_score_v2(
            int8(2, 4, 5, 64), int8(2, 4, 9, 64), int8(2, 4, 9, 64), num_query_heads=4, input_layout="BNSD"
        )


def test_shapes_without_data():
    given, _ = latent("BSND_NBSD")
    tensors = [given.pop(name) for name in ("query", "key", "value")]
    eager = OPS.npu_fused_infer_attention_score_v2(*tensors, **given)
    moved = {name: one.to("meta") if isinstance(one, torch.Tensor) else one for name, one in given.items()}
    inferred = OPS.npu_fused_infer_attention_score_v2(*(one.to("meta") for one in tensors), **moved)
    assert [(one.shape, one.dtype) for one in eager] == [(one.shape, one.dtype) for one in inferred]
