"""Caches in NZ order, [blocks, kv heads, dim / C0, block size, C0]: addresses, equality, and what is refused."""

import struct

import pytest
import torch

from npudiff.device.simulator import OperatorRejected

LAYOUTS = ["BSH", "BSND", "BNSD", "TND"]


def address(block, head, token, element, *, heads, dim, block_size):
    """Return where an element of 16 bits lies, in bytes, as operators' documents draw the cache."""
    tile, inside = divmod(element, 16)
    return 2 * ((((block * heads + head) * (dim // 16) + tile) * block_size + token) * 16 + inside)


def by_hand(sequences, table, blocks, block_size):
    """Write [kv heads, tokens, dim] sequences into bytes, one element after the other; 0xFF (NaN) is elsewhere."""
    heads, _, dim = sequences[0].shape
    memory = bytearray(b"\xff" * (blocks * heads * dim * block_size * 2))
    for row, sequence in zip(table.tolist(), sequences, strict=True):
        patterns = sequence.view(torch.int16).tolist()
        for head in range(heads):
            for position, token in enumerate(patterns[head]):
                block = row[position // block_size]
                for element, pattern in enumerate(token):
                    at = address(
                        block, head, position % block_size, element, heads=heads, dim=dim, block_size=block_size
                    )
                    struct.pack_into("<h", memory, at, pattern)
    values = torch.frombuffer(memory, dtype=sequences[0].dtype)
    return values.view(blocks, heads, dim // 16, block_size, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (48, 80), (16, 512)])
def test_bytes_that_were_written_by_hand_are_found(lab, dim, value_dim, dtype):
    sequences = lab.ragged([2, 1], [19, 33], dim=dim, value_dim=value_dim, dtype=dtype)
    # Head dims other than 64 and 128 want blocks of 128 for several queries.
    block_size = 16 if dim == 64 else 128
    arguments = lab.pack(sequences, "BSND", block_size=block_size)
    table, blocks = arguments["block_table"], len(arguments["key"])
    expected, expected_lse = lab.call(arguments)
    arguments["key"] = by_hand(sequences.keys, table, blocks, block_size)
    arguments["value"] = by_hand(sequences.values, table, blocks, block_size)
    # Two elements of head 1 by hand arithmetic, in the block of the last token of sequence 1.
    block, token = int(table[1, 32 // block_size]), 32 % block_size
    for element, tile, inside in ((0, 0, 0), (dim - 1, dim // 16 - 1, 15)):
        assert arguments["key"][block, 1, tile, token, inside] == sequences.keys[1][1, 32, element]
    output, lse = lab.call(arguments)
    lengths = [2, 1]
    for one, other in zip(lab.unpack(output, "BSND", lengths), lab.unpack(expected, "BSND", lengths), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    for one, other in zip(
        lab.unpack_lse(lse, "BSND", lengths), lab.unpack_lse(expected_lse, "BSND", lengths), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.few(16)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dims", [(128, 128), (192, 128), (64, 64)])
@pytest.mark.parametrize("queries", [[3, 2], [1, 1]])
def test_the_order_of_a_cache_changes_no_bit(lab, layout, version, dims, queries):
    sequences = lab.ragged(queries, [600, 129], heads=4, kv_heads=2, dim=dims[0], value_dim=dims[1])
    outputs = []
    for rank in (3, 4, 5):
        arguments = lab.pack(sequences, layout, version=version, block_size=128, rank=rank, fill=3.0)
        outputs.append(lab.call(arguments, version=version))
    for other in outputs[:2]:
        assert torch.equal(outputs[2][0], other[0])
        assert torch.equal(outputs[2][1], other[1])


@pytest.mark.parametrize("block_size", [64, 1024])
def test_sparse_modes_read_the_same_tiles(lab, block_size):
    sequences = lab.ragged([3, 2], [1300, 90], dim=128)
    for mode in (3, 4):
        more = {"sparse_mode": mode, "pre_tokens": 20, "next_tokens": 0, "atten_mask": lab.template()}
        calls = [lab.pack(sequences, "TND", block_size=block_size, rank=rank) | more for rank in (3, 5)]
        plain, nz = (lab.call(arguments)[0] for arguments in calls)
        assert torch.equal(plain, nz)


def zeros(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


# A legal call has query [., 4, 64], two key heads, blocks of 128: key and value [6, 2, 4, 128, 16].
REFUSED = [
    ({"key": zeros(6, 2, 8, 128, 8)}, "key", "[6, 2, 8, 128, 8], a cache with tiles of 8 elements"),
    ({"value": zeros(6, 2, 2, 128, 32)}, "value", "[6, 2, 2, 128, 32], a cache with tiles of 32 elements"),
    ({"key": zeros(6, 1, 4, 128, 16)}, "key", "a cache of 1 heads"),
    ({"value": zeros(6, 4, 4, 128, 16)}, "value", "a cache of 4 heads"),
    ({"key": zeros(6, 2, 4, 64, 16)}, "block_size", "128"),
    ({"value": zeros(6, 2, 4, 256, 16)}, "block_size", "128"),
    ({"block_size": 64}, "block_size", "64"),
    ({"key": zeros(6, 2, 5, 128, 16)}, "key", "of head dim 80"),
    ({"key": zeros(6, 2, 0, 128, 16)}, "key", "of head dim 0"),
    ({"value": zeros(6, 2, 33, 128, 16)}, "value", "of head dim 528"),
    ({"value": zeros(6, 2, 0, 128, 16)}, "value", "of head dim 0"),
    ({"key": zeros(6, 2, 128, 64)}, "key", "of rank 4"),
    ({"key": zeros(6, 128, 128)}, "key", "of rank 3"),
    ({"value": zeros(6, 2, 128, 64)}, "key", "of rank 5"),
    ({"value": zeros(5, 2, 4, 128, 16)}, "value", "a cache of 5 blocks"),
    ({"key": zeros(6, 2, 4, 128, 16, dtype=torch.float16)}, "key", "torch.float16"),
    # A head dim that does not fill tiles: no number of tiles of 16 has it.
    ({"query": zeros(2, 3, 4, 72)}, "key", "of head dim 64"),
]


@pytest.mark.parametrize(("spoil", "argument", "given"), REFUSED, ids=[f"{a}-{g}" for _, a, g in REFUSED])
def test_refused(lab, spoil, argument, given):
    arguments = lab.pack(lab.ragged([2, 3], [8, 9]), "BSND", block_size=128, rank=5, fill=0.0)
    arguments |= {name: zeros(6, 2, 4, 128, 16) for name in ("key", "value")}
    lab.call(arguments)
    with pytest.raises(OperatorRejected) as caught:
        lab.call(arguments | spoil)
    assert caught.value.argument == argument
    message = str(caught.value)
    assert message.startswith(f"npu_fused_infer_attention_score_v2: {argument} was {given}")
    assert "; allowed: " in message


def test_only_the_blocks_of_the_tiles_that_are_seen_are_read(lab):
    """Blocks of 64, tiles of 512 keys: the band shows keys 1078 to 1100, the third tile."""
    sequences = lab.ragged([1], [1100], dim=128)
    arguments = lab.pack(sequences, "TND", block_size=64, rank=5)
    more = {"sparse_mode": 4, "pre_tokens": 20, "next_tokens": 0, "atten_mask": lab.template()}
    clean, _ = lab.call(arguments | more)
    seen = arguments["block_table"][0, 16:18].tolist()
    for name in ("key", "value"):
        hidden = torch.full_like(arguments[name], torch.nan)
        hidden[seen] = arguments[name][seen]
        arguments[name] = hidden
    arguments["block_table"][0, :16] = 10_000
    output, _ = lab.call(arguments | more)
    assert output.isfinite().all()
    assert torch.equal(output, clean)
