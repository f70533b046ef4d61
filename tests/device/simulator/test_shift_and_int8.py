"""pse_shift, which is added to the scores, and outputs of int8, against float64."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from npudiff.device.simulator import OperatorRejected

LAYOUTS = ["BSH", "BSND", "BNSD", "BNSD_BSND"]
OUT = {1: ("quant_scale2", "quant_offset2"), 2: ("quant_scale_out", "quant_offset_out")}


def causal(queries, keys):
    return torch.arange(keys) <= torch.arange(queries)[:, None] + keys - queries


def parts_of(lab, output, layout, sequences):
    if layout == "BSH":
        output, layout = output.unflatten(-1, (sequences.heads, -1)), "BSND"
    return lab.unpack(output, layout, [q.shape[1] for q in sequences.queries])


@pytest.mark.few(36)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("front", ["one", "batch", "larger"])
@pytest.mark.parametrize(("block_size", "rank"), [(0, 3), (128, 3), (128, 5)])
@pytest.mark.parametrize("queries", [[5, 140], [1, 1]])
@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
def test_a_shift_is_added_to_the_scaled_scores(lab, *, layout, queries, block_size, rank, front, dtype):
    version = 1 if dtype == torch.float16 else 2
    keys = [37, 600]
    sequences = lab.ragged(queries, keys, dtype=dtype)
    arguments = lab.pack(sequences, layout, version=version, block_size=block_size, rank=rank, fill=9.0)
    capacity = arguments["block_table"].shape[1] * block_size if block_size else 600
    extra = 5 if front == "larger" else 0
    shape = (1 if front == "one" else 2, 4, max(queries) + extra, capacity + extra)
    shift = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    arguments |= {"pse_shift": shift, "sparse_mode": 3, "atten_mask": lab.template()}
    if queries == [1, 1]:
        del arguments["atten_mask"]
    output, lse = lab.call(arguments, version=version)
    lses = lab.unpack_lse(lse, layout, queries)
    for index, part in enumerate(parts_of(lab, output, layout, sequences)):
        query, key, value = (side[index] for side in (sequences.queries, sequences.keys, sequences.values))
        added = shift[index % len(shift), :, : queries[index], : keys[index]].double()
        bias = added.masked_fill(~causal(queries[index], keys[index]), -math.inf)
        wide = [tensor.double() for tensor in (query, key, value)]
        expected = scaled_dot_product_attention(
            *(tensor[None] for tensor in wide), attn_mask=bias[None], scale=sequences.scale, enable_gqa=True
        )[0]
        scores = wide[0] @ wide[1].repeat_interleave(2, 0).transpose(1, 2) * sequences.scale + bias
        magnitude = scores.softmax(-1) @ wide[2].repeat_interleave(2, 0).abs()
        unit = torch.finfo(dtype).eps / 2
        bound = unit * expected.abs() + (1.05 * unit + 1e-5) * magnitude + 1e-6
        assert ((part.double() - expected).abs() <= bound).all()
        torch.testing.assert_close(lses[index].double(), scores.logsumexp(-1), rtol=1e-5, atol=3e-5)


def exact_parts(lab, sequences, queries, keys):
    for index in range(len(queries)):
        sequence = sequences.queries[index], sequences.keys[index], sequences.values[index]
        yield lab.exact(*sequence, causal(queries[index], keys[index]), scale=sequences.scale)[0]


@pytest.mark.few(21)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_int8_outputs(lab, *, layout, dtype, offset, channels, version):
    """At most one unit from the formula: probabilities are rounded before it, and float16 lies between."""
    queries, keys = [5, 20], [37, 600]
    sequences = lab.ragged(queries, keys, dtype=dtype)
    generator = torch.Generator().manual_seed(4)
    width = 4 * 64 if channels else 1
    scale = torch.rand(width, generator=generator) * 60 + 20
    arguments = lab.pack(sequences, layout, version=version, fill=9.0)
    arguments |= {"sparse_mode": 3, "atten_mask": lab.template(), OUT[version][0]: scale}
    added = torch.randint(-20, 20, (width,), generator=generator).float() if offset else torch.zeros(width)
    arguments |= {OUT[version][1]: added} if offset else {}
    output, _ = lab.call(arguments, version=version, lse=False)
    assert output.dtype == torch.int8
    shape = (4, 1, 64) if channels else (1,)
    exact = zip(parts_of(lab, output, layout, sequences), exact_parts(lab, sequences, queries, keys), strict=True)
    for part, expected in exact:
        wanted = (expected * scale.view(shape).double() + added.view(shape).double()).clamp(-128, 127)
        assert ((part.double() - wanted).abs() <= 0.5 + 0.02 * wanted.abs().clamp(min=20)).all()
        assert (part.double() - wanted).abs().mean() < 0.35


@pytest.mark.parametrize(
    ("value", "scale", "offset", "expected"),
    [
        (1.0, 2.5, None, 3),  # halves go away from zero
        (1.0, -2.5, None, -3),
        (1.0, 2.4995117, None, 3),  # float16 makes 2.5 of it, and that makes 3
        (1.0, 300.0, None, 127),
        (1.0, -300.0, None, -128),
        (1.0, 100.0, 20.0, 120),
        (1.0, 100.0, 90.0, 127),
        (0.0, 5.0, -7.0, -7),
    ],
)
def test_an_int8_by_hand(lab, value, scale, offset, expected):
    arguments = lab.pack(lab.ragged([3], [4], dtype=torch.float16), "BNSD")
    arguments["value"] = torch.full_like(arguments["value"], value)
    arguments |= {"quant_scale_out": torch.tensor([scale])}
    arguments |= {} if offset is None else {"quant_offset_out": torch.tensor([offset])}
    output, _ = lab.call(arguments)
    assert (output == expected).all()


def test_rows_without_keys_are_the_offset(lab):
    arguments = lab.pack(lab.ragged([1, 1], [40, 9]), "BNSD", fill=0.0)
    arguments |= {"quant_scale_out": torch.tensor([9.0]), "quant_offset_out": torch.tensor([-3.0])}
    output, _ = lab.call(arguments | {"actual_seq_kvlen": [40, 0]})
    assert (output[1] == -3).all()
    assert not (output[0] == -3).all()


def zeros(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


REFUSED = [
    ("plain", {"pse_shift": zeros(1, 4, 3, 9).half()}, "pse_shift", "torch.float16"),
    ("plain", {"pse_shift": zeros(1, 2, 3, 9)}, "pse_shift", "of shape [1, 2, 3, 9]"),
    ("plain", {"pse_shift": zeros(3, 4, 3, 9)}, "pse_shift", "of shape [3, 4, 3, 9]"),
    ("plain", {"pse_shift": zeros(1, 4, 2, 9)}, "pse_shift", "of shape [1, 4, 2, 9]"),
    ("plain", {"pse_shift": zeros(1, 4, 3, 8)}, "pse_shift", "of shape [1, 4, 3, 8]"),
    ("plain", {"pse_shift": zeros(4, 3, 9)}, "pse_shift", "of shape [4, 3, 9]"),
    ("TND", {"pse_shift": zeros(1, 4, 3, 17)}, "pse_shift", "given with layout TND"),
    ("192/128", {"pse_shift": zeros(1, 4, 2, 8)}, "pse_shift", "given with head dim 192 and value 128"),
    ("paged", {"pse_shift": zeros(1, 4, 3, 255)}, "pse_shift", "of shape [1, 4, 3, 255]"),
    ("half", {"quant_scale_out": ones(1, dtype=torch.bfloat16)}, "quant_scale_out", "torch.bfloat16"),
    ("plain", {"quant_scale_out": ones(1, dtype=torch.float16)}, "quant_scale_out", "torch.float16"),
    ("plain", {"quant_scale_out": ones(4)}, "quant_scale_out", "of shape [4]"),
    ("plain", {"quant_scale_out": ones(4, 64)}, "return_softmax_lse", "True with numbers per channel"),
    ("TND", {"quant_scale_out": ones(1)}, "quant_scale_out", "given with layout TND"),
    ("192/128", {"quant_scale_out": ones(1)}, "quant_scale_out", "given with head dim 192"),
    ("plain", {"quant_offset_out": ones(1)}, "quant_scale_out", "None"),
    ("plain", {"quant_scale_out": ones(1), "quant_offset_out": ones(2)}, "quant_offset_out", "torch.float32 [2]"),
    ("80", {"quant_scale_out": ones(1)}, "value", "of head dim 80"),
    (
        "plain",
        {"quant_scale_out": ones(1), "sparse_mode": 4, "pre_tokens": -1, "next_tokens": 3},
        "pre_tokens",
        "-1 with next_tokens 3 and an int8 output",
    ),
    (
        "plain",
        {"quant_scale_out": ones(1), "quant_offset_out": ones(1), "sparse_mode": 3, "actual_seq_kvlen": [2, 9]},
        "quant_offset_out",
        "given",
    ),
    (
        "plain",
        {"quant_scale_out": ones(1), "quant_offset_out": ones(1), "sparse_mode": 4, "actual_seq_kvlen": [2, 9]}
        | {"next_tokens": 0},
        "quant_offset_out",
        "given",
    ),
]


@pytest.fixture
def calls(lab):
    pair, mask = lab.ragged([3, 3], [8, 9]), {"atten_mask": lab.template()}
    return {
        "plain": lab.pack(pair, "BSND", fill=0.0) | mask | {"sparse_mode": 3},
        "half": lab.pack(lab.ragged([3], [8], dtype=torch.float16), "BSND"),
        "TND": lab.pack(pair, "TND"),
        "paged": lab.pack(pair, "BSND", block_size=128, fill=0.0),
        "192/128": lab.pack(lab.ragged([2], [8], dim=192, value_dim=128), "BSND"),
        "80": lab.pack(lab.ragged([2], [8], dim=80), "BSND"),
    }


@pytest.mark.few(7)
@pytest.mark.parametrize(
    ("name", "spoil", "argument", "given"), REFUSED, ids=[f"{n}-{a}-{g}" for n, _, a, g in REFUSED]
)
def test_refused(lab, calls, *, name, spoil, argument, given):
    lab.call(calls[name])
    with pytest.raises(OperatorRejected) as caught:
        lab.call(calls[name] | spoil)
    assert str(caught.value).startswith(f"npu_fused_infer_attention_score_v2: {argument} was {given}")


@pytest.mark.parametrize("mode", [1, 2])
def test_modes_that_leave_no_row_out_have_an_offset(lab, mode):
    arguments = lab.pack(lab.ragged([3, 3], [2, 9]), "BSND", fill=0.0)
    mask = lab.template() if mode == 2 else zeros(1, 3, 9, dtype=torch.int8)
    arguments |= {"quant_scale_out": ones(1), "quant_offset_out": ones(1), "sparse_mode": mode, "atten_mask": mask}
    lab.call(arguments)
