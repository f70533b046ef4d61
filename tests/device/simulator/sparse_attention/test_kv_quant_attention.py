"""Attention over chosen keys of int8: the formula in float64 over keys that were dequantised number by number."""

import pytest
import torch

LAYOUTS = [("BSND", "BSND"), ("TND", "TND"), ("BSND", "PA_BSND"), ("TND", "PA_BSND")]
LENGTHS = [3, 1, 0, 2, 5], [20, 33, 7, 0, 3]
DTYPES = [torch.bfloat16, torch.float16]
SCALE = 0.05


def drawn(lengths, dtype, heads=4):
    """Return queries [rows, heads, 576], keys' bytes [rows, 1, 656], and keys [rows, 576] in float64."""
    generator = torch.Generator().manual_seed(2)
    queries, bytes_, keys = [], [], []
    for rows, count in zip(*lengths, strict=True):
        queries.append(torch.randn(rows, heads, 576, generator=generator).to(dtype))
        latent = torch.randint(-128, 128, (count, 512), generator=generator, dtype=torch.int8)
        rope = torch.randn(count, 64, generator=generator).to(dtype)
        scales = torch.rand(count, 4, generator=generator) / 50 + 0.001
        packed = [latent, rope.view(torch.int8), scales.view(torch.int8)]
        bytes_.append(torch.cat(packed, -1).unsqueeze(1))
        plain = torch.stack([latent[:, i] * scales[:, i // 128] for i in range(512)], -1).to(dtype)
        keys.append(torch.cat([plain, rope], -1).double())
    return queries, bytes_, keys


def chosen(lengths, mode, visible):
    """Return about half of the visible keys of each row, and -1 behind them."""
    generator = torch.Generator().manual_seed(4)
    indices = []
    for rows, count in zip(*lengths, strict=True):
        one = torch.full((rows, 20), -1, dtype=torch.int32)
        for row, seen in zip(one, visible(mode, rows, count), strict=True):
            kept = torch.randperm(seen, generator=generator)[: (seen + 1) // 2]
            row[: len(kept)] = kept
        indices.append(one.unsqueeze(1))
    return indices


def run(lab, layouts, queries, bytes_, indices, **options):
    lengths = [len(one) for one in queries], [len(one) for one in bytes_]
    table = lab.page_table(lengths[1])[0] if layouts[1] == "PA_BSND" else None
    key = lab.pack(bytes_, layouts[1], table)
    return torch.ops.npu.npu_kv_quant_sparse_flash_attention(
        lab.pack(queries, layouts[0]),
        key,
        key[..., :512].contiguous(),
        lab.pack(indices, layouts[0]),
        SCALE,
        2,
        2,
        **lab.where(*lengths, layouts, "kv"),
        attention_mode=2,
        **options,
    )


@pytest.mark.few(6)
@pytest.mark.parametrize("mode", [0, 3])
@pytest.mark.parametrize("layouts", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_dequantised_keys(lab, layouts, mode, dtype):
    queries, bytes_, keys = drawn(LENGTHS, dtype)
    indices = chosen(LENGTHS, mode, lab.visible)
    out = run(lab, layouts, queries, bytes_, indices, sparse_mode=mode)
    assert out.dtype == dtype
    for found, query, key, index in zip(lab.unpack(out, layouts[0], LENGTHS[0]), queries, keys, indices, strict=True):
        for row in range(len(query)):
            named = key[index[row, 0][index[row, 0] >= 0].long()]
            if not len(named):
                assert (found[row] == 0).all()
                continue
            weights = (query[row].double() @ named.T * SCALE).softmax(-1)
            expected, size = weights @ named[:, :512], weights @ named[:, :512].abs()
            slack = torch.finfo(dtype).eps * 1.02
            assert ((found[row].double() - expected).abs() <= slack * size + 1e-6).all()


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, 1.0), (torch.float16, 1 + 2.0**-10)])
def test_keys_round_halves_to_even_in_bfloat16_and_away_in_float16(lab, dtype, expected):
    bytes_ = torch.zeros(1, 1, 656, dtype=torch.int8)
    bytes_[..., :512] = 1
    bytes_[0, 0, 640:] = torch.full((4,), 1 + torch.finfo(dtype).eps / 2).view(torch.int8)
    query = torch.zeros(1, 1, 576, dtype=dtype)
    out = run(lab, ("TND", "TND"), [query], [bytes_], [torch.zeros(1, 1, 1).int()])
    assert (out == expected).all()


def test_tiles_of_keys(lab):
    lengths = [1], [700]
    queries, bytes_, keys = drawn(lengths, torch.bfloat16)
    out = run(lab, ("TND", "TND"), queries, bytes_, [torch.arange(700).int().view(1, 1, -1)])
    weights = (queries[0][0].double() @ keys[0].T * SCALE).softmax(-1)
    expected, size = weights @ keys[0][:, :512], weights @ keys[0][:, :512].abs()
    assert ((out[0].double() - expected).abs() <= torch.finfo(torch.bfloat16).eps * 1.02 * size + 1e-6).all()
