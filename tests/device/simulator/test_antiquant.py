"""Keys and values of integers under a 16-bit query, against the formula (integer + offset) * scale in float64."""

import dataclasses
import math

import pytest
import torch

from npudiff.device import simulator
from npudiff.device.simulator import OperatorRejected, use_profile

HEADS, KV_HEADS, DIM = 4, 2, 64
NAMES = {
    1: {
        "scale": ("key_antiquant_scale", "value_antiquant_scale"),
        "offset": ("key_antiquant_offset", "value_antiquant_offset"),
        "mode": ("key_antiquant_mode", "value_antiquant_mode"),
    },
    2: {
        "scale": ("dequant_scale_key", "dequant_scale_value"),
        "offset": ("dequant_offset_key", "dequant_offset_value"),
        "mode": ("key_quant_mode", "value_quant_mode"),
    },
}
CHANNEL_FORMS = ["[N, 1, D]", "[N, D]", "[H]", "[1, N, 1, D]", "[1, N, D]", "[1, H]"]


def random(*shape, seed, low=0.5, high=1.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def integers(lab, query_lengths, key_lengths, *, dtype, heads=HEADS, kv_heads=KV_HEADS, dim=DIM, bits=8):
    """Return queries in a dtype, and keys and values of int8 that hold numbers of some bits."""
    sequences = lab.ragged(query_lengths, key_lengths, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    top = 2 ** (bits - 1)
    for side in (sequences.keys, sequences.values):
        side[:] = [torch.randint(-top, top, part.shape, generator=generator).to(torch.int8) for part in side]
    return sequences


@dataclasses.dataclass
class Numbers:
    """Scales, or offsets: what a call gets, and per sequence what multiplies [kv heads, tokens, dim]."""

    given: torch.Tensor
    by_sequence: list


def numbers(mode, arguments, key_lengths, dtype, *, seed, kv_heads=KV_HEADS, dim=DIM, low=0.005, high=0.02):
    """Draw the numbers of a mode."""
    batch, table = len(key_lengths), arguments.get("block_table")
    limit = max(key_lengths) if table is None else table.shape[1] * arguments["block_size"]
    if mode == "one":
        given = random(1, seed=seed, low=low, high=high).to(dtype)
        return Numbers(given, [given.view(1, 1, 1)] * batch)
    if mode == 0:
        given = random(kv_heads, 1, dim, seed=seed, low=low, high=high).to(dtype)
        return Numbers(given, [given] * batch)
    if mode == 2:
        given = random(kv_heads, seed=seed, low=low, high=high).to(dtype)
        return Numbers(given, [given.view(-1, 1, 1)] * batch)
    if mode == 1:
        given = random(batch, limit, seed=seed, low=low, high=high)
        return Numbers(given, [row[:length].view(1, -1, 1) for row, length in zip(given, key_lengths, strict=True)])
    if mode == 3:
        given = random(batch, kv_heads, limit, seed=seed, low=low, high=high)
        return Numbers(given, [row[:, :length, None] for row, length in zip(given, key_lengths, strict=True)])
    blocks, size = int(table.max()) + 2, arguments["block_size"]
    given = random(blocks, kv_heads, size, seed=seed, low=low, high=high)
    given = given[:, 0].contiguous() if mode == 4 else given
    by_sequence = []
    for row, length in zip(table.tolist(), key_lengths, strict=True):
        lined = torch.stack(
            [given[row[t // size]][..., t % size] * torch.ones(1 if mode == 4 else kv_heads) for t in range(length)], 1
        )
        by_sequence.append(lined.unsqueeze(-1))
    return Numbers(given, by_sequence)


def restored(parts, scales, offsets, dtype):
    """Return (integer + offset) * scale, rounded to a dtype where it is computed in one."""
    result = []
    for index, part in enumerate(parts):
        number = part.double()
        if offsets is not None:
            number = (number + offsets.by_sequence[index].to(dtype).double()).to(dtype).double()
        result.append((number * scales.by_sequence[index].to(dtype).double()).to(dtype))
    return result


def check(lab, sequences, arguments, layout, sides, *, version, causal=False, dtype=None):
    """Compare with float64 attention over what the formula restores; a side is scales and offsets, of key or value."""
    lengths = [q.shape[1] for q in sequences.queries]
    output, lse = lab.call(arguments, version=version)
    assert output.dtype == sequences.queries[0].dtype
    if layout == "BSH":
        output, layout = output.unflatten(-1, (sequences.heads, -1)), "BSND"
    dtype = dtype or output.dtype
    keys, values = (
        restored(parts, *side, dtype) for parts, side in zip((sequences.keys, sequences.values), sides, strict=True)
    )
    parts, lses = lab.unpack(output, layout, lengths), lab.unpack_lse(lse, layout, lengths)
    for index, part in enumerate(parts):
        query = sequences.queries[index]
        queries, count = query.shape[1], keys[index].shape[1]
        seen = torch.ones(queries, count, dtype=torch.bool).tril(count - queries if causal else count)
        expected, bound, expected_lse = lab.exact(query, keys[index], values[index], seen, scale=sequences.scale)
        ratio = ((part.double() - expected).abs() / bound).max()
        assert ratio <= 1, f"error over bound {ratio:.3g}"
        torch.testing.assert_close(lses[index].double(), expected_lse, rtol=1e-5, atol=3e-5)
    return output


def with_sides(arguments, version, sides, modes):
    names = NAMES[version]
    for (scale, offset), mode, place in zip(sides, modes, (0, 1), strict=True):
        arguments[names["scale"][place]] = scale.given
        arguments[names["mode"][place]] = 0 if mode == "one" else mode
        if offset is not None:
            arguments[names["offset"][place]] = offset.given
    return arguments


def sides_of(modes, arguments, key_lengths, dtype, *, offsets, **sizes):
    sides = []
    for place, mode in enumerate(modes):
        scale = numbers(mode, arguments, key_lengths, dtype, seed=place, **sizes)
        offset = numbers(mode, arguments, key_lengths, dtype, seed=5 + place, low=-9.0, high=9.0, **sizes)
        sides.append((scale, offset if offsets else None))
    return sides


@pytest.mark.few(20)
@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize(("offsets", "version"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["one", 0, 1, 2, 3])
def test_one_query(lab, *, mode, dtype, offsets, layout, version):
    key_lengths = [300, 1, 513]
    sequences = integers(lab, [1, 1, 1], key_lengths, dtype=dtype)
    arguments = lab.pack(sequences, layout, version=version, fill=77)
    sides = sides_of((mode, mode), arguments, key_lengths, dtype, offsets=offsets)
    check(lab, sequences, with_sides(arguments, version, sides, (mode, mode)), layout, sides, version=version)


@pytest.mark.few(14)
@pytest.mark.parametrize(("offsets", "version"), [(False, 1), (True, 2)])
@pytest.mark.parametrize(("layout", "rank", "block_size"), [("BSH", 3, 32), ("BSND", 3, 128), ("BNSD", 4, 512)])
@pytest.mark.parametrize("mode", ["one", 0, 1, 2, 3, 4, 5])
def test_one_query_over_pages(lab, *, mode, layout, rank, block_size, offsets, version):
    key_lengths = [300, 1, 90]
    dtype = torch.bfloat16 if offsets else torch.float16
    sequences = integers(lab, [1, 1, 1], key_lengths, dtype=dtype)
    arguments = lab.pack(sequences, layout, version=version, block_size=block_size, rank=rank, fill=77)
    sides = sides_of((mode, mode), arguments, key_lengths, dtype, offsets=offsets)
    check(lab, sequences, with_sides(arguments, version, sides, (mode, mode)), layout, sides, version=version)


@pytest.mark.parametrize("block_size", [0, 128])
@pytest.mark.parametrize("offsets", [False, True])
def test_keys_per_channel_and_values_per_token(lab, block_size, offsets):
    sequences = integers(lab, [1, 1], [300, 17], dtype=torch.float16)
    arguments = lab.pack(sequences, "BNSD", block_size=block_size, fill=77)
    sides = sides_of((0, 1), arguments, [300, 17], torch.float16, offsets=offsets)
    check(lab, sequences, with_sides(arguments, 2, sides, (0, 1)), "BNSD", sides, version=2)


@pytest.mark.few(6)
@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD", "BNSD_BSND"])
@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("mode", [0, 1])
def test_several_queries(lab, mode, offsets, layout):
    sequences = integers(lab, [16, 3], [300, 17], dtype=torch.bfloat16)
    arguments = lab.pack(sequences, layout, fill=77) | {"sparse_mode": 3, "atten_mask": lab.template()}
    sides = sides_of((mode, mode), arguments, [300, 17], torch.bfloat16, offsets=offsets)
    check(lab, sequences, with_sides(arguments, 2, sides, (mode, mode)), layout, sides, version=2, causal=True)


@pytest.mark.parametrize("form", CHANNEL_FORMS)
@pytest.mark.parametrize("queries", [1, 3])
def test_forms_of_a_channels_numbers(lab, form, queries):
    sequences = integers(lab, [queries], [40], dtype=torch.bfloat16)
    arguments = lab.pack(sequences, "BSND", fill=77)
    sides = sides_of((0, 0), arguments, [40], torch.bfloat16, offsets=True)
    expected, _ = lab.call(with_sides(dict(arguments), 2, sides, (0, 0)))
    shape = [{"N": KV_HEADS, "D": DIM, "H": KV_HEADS * DIM, "1": 1}[axis] for axis in form.strip("[]").split(", ")]
    reshaped = [tuple(Numbers(part.given.view(shape), part.by_sequence) for part in side) for side in sides]
    output, _ = lab.call(with_sides(dict(arguments), 2, reshaped, (0, 0)))
    assert torch.equal(output, expected)


@pytest.mark.parametrize("leading", [False, True])
@pytest.mark.parametrize("queries", [1, 3])
def test_forms_of_a_tokens_numbers(lab, leading, queries):
    """[B, S] and [1, B, S]; what lies behind the keys is not read."""
    sequences = integers(lab, [queries], [40], dtype=torch.bfloat16)
    arguments = lab.pack(sequences, "BSND", fill=77)
    sides = sides_of((1, 1), arguments, [40], torch.bfloat16, offsets=False)
    expected, _ = lab.call(with_sides(dict(arguments), 2, sides, (1, 1)))
    wide = []
    for scale, _ in sides:
        given = torch.cat([scale.given, torch.full((1, 30), math.nan)], 1)
        wide.append((Numbers(given[None] if leading else given, []), None))
    assert torch.equal(lab.call(with_sides(dict(arguments), 2, wide, (1, 1)))[0], expected)


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize(("mode", "queries"), [("one", 1), (0, 1), (1, 1), ("one", 5), (0, 5)])
def test_combined_numbers_of_version_1(lab, mode, queries, offsets):
    """antiquant_scale [2, ...] of key and value; for several queries its mode has no effect."""
    sequences = integers(lab, [queries, 1], [300, 17], dtype=torch.float16)
    arguments = lab.pack(sequences, "BNSD", version=1, fill=77)
    sides = sides_of((mode, mode), arguments, [300, 17], torch.float16, offsets=offsets)
    stacked = [torch.stack([side[place].given for side in sides]) for place in range(1 + offsets)]
    stacked = [one.view(2) if mode == "one" else one for one in stacked]
    more = dict(zip(("antiquant_scale", "antiquant_offset"), stacked, strict=False))
    more["antiquant_mode"] = 0 if mode == "one" else mode
    if queries > 1:
        more["antiquant_mode"] = 1
    check(lab, sequences, arguments | more, "BNSD", sides, version=1)


def test_separate_numbers_win_over_combined_ones(lab):
    sequences = integers(lab, [1], [40], dtype=torch.float16)
    arguments = lab.pack(sequences, "BNSD", version=1, fill=77)
    sides = sides_of((0, 0), arguments, [40], torch.float16, offsets=False)
    arguments = with_sides(arguments, 1, sides, (0, 0)) | {"antiquant_scale": torch.full((2,), 9.0).half()}
    check(lab, sequences, arguments, "BNSD", sides, version=1)


@pytest.mark.few(6)
@pytest.mark.parametrize(("queries", "version"), [(1, 1), (4, 2), (1, 2)])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
def test_nz_pages(lab, layout, queries, mode, version):
    """vllm-ascend's decode over int8: five axes, C0 32, scales per channel [kv heads, 1, D], inner_precise 1."""
    key_lengths = [300, 20]
    sequences = integers(lab, [queries, queries], key_lengths, dtype=torch.bfloat16, heads=10, kv_heads=1, dim=128)
    arguments = lab.pack(sequences, layout, version=version, block_size=128, rank=5, fill=77)
    assert list(arguments["key"].shape[1:]) == [1, 4, 128, 32]
    sides = sides_of((mode, mode), arguments, key_lengths, torch.bfloat16, offsets=False, kv_heads=1, dim=128)
    forms = {"BSH": (128,), "BSND": (1, 128), "BNSD": (1, 1, 128)}
    if mode == 0:
        sides = [(Numbers(scale.given.view(forms[layout]), scale.by_sequence), None) for scale, _ in sides]
    arguments = with_sides(arguments, version, sides, (mode, mode)) | {"inner_precise": 1}
    if queries > 1:
        arguments |= {"sparse_mode": 3, "atten_mask": lab.template(), "inner_precise": 0}
    check(lab, sequences, arguments, layout, sides, version=version, causal=queries > 1)


def test_where_an_element_of_a_nz_page_lies(lab):
    """Element 70 of token 5 of head 1: tile 2, at 6; by hand."""
    cache = torch.zeros(3, 2, 4, 128, 32, dtype=torch.int8)
    cache[2, 1, 2, 5, 6] = 100
    query = torch.zeros(1, 2, 1, 128).bfloat16()
    arguments = {"query": query, "key": torch.zeros_like(cache), "value": cache, "input_layout": "BNSD"}
    arguments |= {"num_query_heads": 2, "num_key_value_heads": 2, "block_size": 128, "actual_seq_kvlen": [8]}
    arguments |= {"block_table": torch.tensor([[2]], dtype=torch.int32)}
    arguments |= {name: torch.full((2, 1, 128), 0.5).bfloat16() for name in NAMES[2]["scale"]}
    output, _ = lab.call(arguments)
    assert output.count_nonzero() == 1
    assert output[0, 1, 0, 70] == 100 * 0.5 / 8


def packed(part):
    """Put eight int4 into one int32, the first in the lowest bits, by arithmetic."""
    total = torch.zeros((*part.shape[:-1], part.shape[-1] // 8), dtype=torch.int64)
    for place in range(8):
        total += (part[..., place::8].long() % 16) * 16**place
    return (total - (total >= 2**31) * 2**32).to(torch.int32)


@pytest.mark.few(8)
@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize(("offsets", "version"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("modes", [(0, 0), (1, 1), (3, 3), (0, 1)])
def test_int4(lab, modes, offsets, layout, version):
    dtype = torch.bfloat16
    sequences = integers(lab, [1, 1], [300, 17], dtype=dtype, bits=4)
    arguments = lab.pack(sequences, layout, version=version, fill=3)
    for name in ("key", "value"):
        arguments[name] = packed(arguments[name])
    sides = sides_of(modes, arguments, [300, 17], dtype, offsets=offsets)
    check(lab, sequences, with_sides(arguments, version, sides, modes), layout, sides, version=version)


@pytest.mark.parametrize("mode", [0, 1])
def test_sums_without_rounding_are_a_choice(lab, mode):
    sequences = integers(lab, [1], [300], dtype=torch.bfloat16)
    arguments = lab.pack(sequences, "BNSD", fill=77)
    sides = sides_of((mode, mode), arguments, [300], torch.bfloat16, offsets=True)
    arguments = with_sides(arguments, 2, sides, (mode, mode))
    rounded, _ = lab.call(arguments)
    profile = dataclasses.replace(simulator.PROFILES["8.5"], antiquant_sums="float32")
    with use_profile(profile):
        output = check(lab, sequences, arguments, "BNSD", sides, version=2, dtype=torch.float32)
    assert not torch.equal(output, rounded)


def test_sizes_of_nz_pages_are_a_choice(lab):
    for heads, kv_heads, block_size, message in (
        (10, 1, 128, None),
        (10, 1, 64, "block_size was 64 with a rank 5 cache of int8; allowed: 128 or 512"),
        (8, 1, 128, "num_query_heads was 8 over 1 with a rank 5 cache of int8; allowed: 10 over 1 or 64 over 8"),
    ):
        sequences = integers(lab, [1], [40], dtype=torch.bfloat16, heads=heads, kv_heads=kv_heads, dim=128)
        arguments = lab.pack(sequences, "BNSD", block_size=block_size, rank=5, fill=77)
        arguments |= {name: torch.ones(kv_heads, 1, 128).bfloat16() for name in NAMES[2]["scale"]}
        lab.call(arguments)
        with use_profile("pessimistic"):
            if message is None:
                lab.call(arguments)
                continue
            with pytest.raises(OperatorRejected, match=message):
                lab.call(arguments)


def zeros(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


def scales(value, version=2):
    return dict.fromkeys(NAMES[version]["scale"], value)


def modes(key, value, version=2):
    return dict(zip(NAMES[version]["mode"], (key, value), strict=True))


def offsets(value, version=2):
    return dict.fromkeys(NAMES[version]["offset"], value)


INT32 = {name: zeros(2, 40, 2, 8, dtype=torch.int32) for name in ("key", "value")}
FP32 = torch.float32
PAGES_OF_16 = {"block_size": 16, "actual_seq_kvlen": [9, 9]} | {
    name: zeros(5, 16, 128, dtype=torch.int8) for name in ("key", "value")
}
# (call to spoil, how, argument named, what is said of it)
REFUSED = [
    ("one", scales(None), "dequant_scale_key", "None"),
    ("one", {"dequant_scale_value": None}, "dequant_scale_value", "None"),
    ("v1", scales(None, 1), "key_antiquant_scale", "None"),
    ("one", {"dequant_offset_key": zeros(2, 64)}, "dequant_offset_value", "None"),
    ("one", {"dequant_offset_value": zeros(2, 64)}, "dequant_offset_key", "None"),
    ("one", offsets(zeros(1)), "dequant_offset_key", "of shape [1]"),
    ("one", offsets(zeros(2, 64).half()), "dequant_offset_key", "torch.float16"),
    ("one", scales(zeros(2, 64, dtype=FP32)), "dequant_scale_key", "torch.float32"),
    ("one", scales(zeros(2, 32)), "dequant_scale_key", "of shape [2, 32]"),
    ("one", scales(zeros(4, 64)), "dequant_scale_key", "of shape [4, 64]"),
    ("one", scales(zeros(2)), "dequant_scale_key", "of shape [2]"),
    ("one", scales(zeros(3, 40, dtype=FP32)) | modes(1, 1), "dequant_scale_key", "of shape [3, 40]"),
    ("one", scales(zeros(2, 39, dtype=FP32)) | modes(1, 1), "dequant_scale_key", "of shape [2, 39]"),
    ("one", scales(zeros(2, 40)) | modes(1, 1), "dequant_scale_key", "torch.bfloat16"),
    ("one", scales(zeros(4)) | modes(2, 2), "dequant_scale_key", "of shape [4]"),
    ("one", scales(zeros(2, 4, 40, dtype=FP32)) | modes(3, 3), "dequant_scale_key", "of shape [2, 4, 40]"),
    ("one", modes(6, 6), "key_quant_mode", "6"),
    ("one", modes(-1, -1), "key_quant_mode", "-1"),
    ("one", modes(4, 4), "key_quant_mode", "4 without block_table"),
    ("one", modes(2, 0), "value_quant_mode", "0; "),
    ("one", modes(1, 0), "value_quant_mode", "0; "),
    ("one", modes(0, 1), "query", "torch.bfloat16 with key_quant_mode 0"),
    ("v1", modes(6, 6, 1), "key_antiquant_mode", "6"),
    ("one", INT32 | modes(2, 2), "key_quant_mode", "2"),
    ("one", INT32 | scales(zeros(1)), "dequant_scale_key", "of shape [1]"),
    ("one", {"value": zeros(2, 40, 2, 64)}, "value", "torch.bfloat16"),
    ("one", {"key": zeros(2, 40, 2, 64)}, "value", "torch.int8"),
    ("one", {"query_rope": zeros(2, 1, 4, 64), "key_rope": zeros(2, 40, 2, 64)}, "key", "torch.int8 with query_rope"),
    ("one", {"learnable_sink": zeros(4)}, "dequant_scale_key", "given"),
    ("several", {"query": zeros(2, 3, 4, 64).half()}, "query", "torch.float16"),
    ("several", {"query": zeros(2, 17, 4, 64)}, "query", "of 17 queries"),
    ("several", modes(2, 2), "key_quant_mode", "2"),
    ("several", modes(0, 1), "value_quant_mode", "1; "),
    ("several", INT32, "key", "torch.int32 with several queries"),
    ("combined", {"antiquant_mode": 2}, "antiquant_mode", "2"),
    ("combined", {"antiquant_scale": zeros(3).half()}, "antiquant_scale", "of shape"),
    ("combined", {"antiquant_scale": zeros(2)}, "antiquant_scale", "torch.bfloat16"),
    ("combined", {"antiquant_offset": zeros(2, 2, 64).half()}, "antiquant_offset", "of shape"),
    ("combined several", {"query": zeros(2, 4, 3, 64)}, "query", "torch.bfloat16"),
    ("paged", {"block_size": 64}, "block_size", "64"),
    ("paged", PAGES_OF_16, "block_size", "16"),
    ("paged", scales(zeros(5, 128, dtype=FP32)) | modes(4, 4), "dequant_scale_key", "of shape [5, 128]"),
    ("paged", scales(zeros(5, 2, 64, dtype=FP32)) | modes(5, 5), "dequant_scale_key", "of shape [5, 2, 64]"),
    ("paged", scales(zeros(2, 255, dtype=FP32)) | modes(1, 1), "dequant_scale_key", "of shape [2, 255]"),
    ("paged", {name: zeros(5, 2, 128, 64, dtype=torch.int8) for name in ("key", "value")}, "key", "a rank 4 cache"),
    ("paged", {name: zeros(5, 128, 16, dtype=torch.int32) for name in ("key", "value")}, "key", "torch.int32 with"),
    ("paged", {"query": zeros(2, 3, 4, 64)}, "key", "a rank 3 cache of int8 with several queries"),
    ("NZ", {"query": zeros(2, 10, 1, 128).half()}, "query", "torch.float16 with a rank 5 cache"),
    ("NZ", offsets(zeros(1, 1, 128)), "dequant_offset_key", "given with a rank 5 cache"),
    ("NZ", modes(2, 2) | scales(zeros(1)), "value_quant_mode", "2 with a rank 5 cache"),
    ("NZ", scales(zeros(1, 128)), "dequant_scale_key", "of shape [1, 128]"),
    ("NZ", {"input_layout": "BNSD_BSND", "query": zeros(2, 10, 2, 128)}, "input_layout", "'BNSD_BSND' with a rank 5"),
]


@pytest.fixture
def calls(lab):
    one = lab.pack(integers(lab, [1, 1], [40, 9], dtype=torch.bfloat16), "BSND", fill=0)
    several = lab.pack(integers(lab, [3, 2], [40, 9], dtype=torch.bfloat16), "BSND", fill=0)
    first = lab.pack(integers(lab, [1, 1], [40, 9], dtype=torch.bfloat16), "BSND", version=1, fill=0)
    half = {
        count: lab.pack(integers(lab, [count, 1], [40, 9], dtype=torch.float16), "BNSD", version=1, fill=0)
        for count in (1, 3)
    }
    paged = lab.pack(integers(lab, [1, 1], [40, 9], dtype=torch.bfloat16), "BSND", block_size=128, fill=0)
    nz = integers(lab, [1, 1], [40, 9], dtype=torch.bfloat16, heads=10, kv_heads=1, dim=128)
    return {
        "one": (2, one | scales(zeros(2, 64))),
        "v1": (1, first | scales(zeros(2, 64), 1)),
        "several": (2, several | scales(zeros(2, 64))),
        "combined": (1, half[1] | {"antiquant_scale": zeros(2).half()}),
        "combined several": (1, half[3] | {"antiquant_scale": zeros(2).half()}),
        "paged": (2, paged | scales(zeros(2, 64))),
        "NZ": (2, lab.pack(nz, "BNSD", block_size=128, rank=5, fill=0) | scales(zeros(1, 1, 128))),
    }


@pytest.mark.few(17)
@pytest.mark.parametrize(
    ("name", "spoil", "argument", "given"), REFUSED, ids=[f"{n}-{a}-{g}" for n, _, a, g in REFUSED]
)
def test_refused(lab, calls, *, name, spoil, argument, given):
    version, arguments = calls[name]
    lab.assert_refused(arguments, spoil, argument, given, version=version)


@pytest.mark.parametrize("layout", ["TND", "NTD", "NTD_TND", "BSND_BNSD"])
def test_layouts_that_have_no_integers(lab, layout):
    sequences = integers(lab, [3, 2], [40, 9], dtype=torch.bfloat16)
    with pytest.raises(OperatorRejected, match=f"key was torch.int8 in {layout}; allowed: BSH, BSND, BNSD"):
        lab.call(lab.pack(sequences, layout, fill=0) | scales(zeros(2, 64)))


@pytest.mark.parametrize(("dtype", "dim"), [(torch.int8, 48), (torch.int32, 32)])
def test_head_dims(lab, dtype, dim):
    sequences = integers(lab, [1], [9], dtype=torch.bfloat16, dim=dim, bits=4)
    arguments = lab.pack(sequences, "BSND", fill=0) | scales(zeros(2, dim))
    if dtype == torch.int32:
        arguments |= {name: packed(arguments[name]) for name in ("key", "value")}
    with pytest.raises(OperatorRejected, match=f"query was of head dim {dim}; allowed: a multiple of"):
        lab.call(arguments)


def test_tiles_of_another_width(lab):
    arguments = lab.pack(integers(lab, [1], [9], dtype=torch.bfloat16), "BNSD", block_size=128, rank=5, fill=0)
    narrow = {name: zeros(4, 2, 4, 128, 16, dtype=torch.int8) for name in ("key", "value")}
    message = r"key was \[4, 2, 4, 128, 16\], a cache with tiles of 16 elements; allowed: .* dim / 32, block size, 32\]"
    with pytest.raises(OperatorRejected, match=message):
        lab.call(arguments | narrow | scales(zeros(2, 1, 64)))
