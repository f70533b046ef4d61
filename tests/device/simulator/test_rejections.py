"""What the operator refuses: each by the argument's name in the caller's version, and with a code."""

from functools import cache

import pytest
import torch

from npudiff.device.simulator import OperatorRejected, UndefinedBehaviour


@cache  # masks and caches are large, and there are many
def zeros(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


@pytest.fixture
def calls(lab):
    """Legal calls to spoil: (version, arguments) by name."""
    causal = {"sparse_mode": 3, "atten_mask": lab.template()}
    pair = lab.ragged([2, 3], [8, 9])
    single = lab.ragged([1, 1], [8, 9])
    return {
        "plain": (2, lab.pack(pair, "BSND", fill=0.0)),
        "plain v1": (1, lab.pack(pair, "BSND", version=1, fill=0.0)),
        "BSH": (1, lab.pack(pair, "BSH", version=1, fill=0.0)),
        "paged": (2, lab.pack(pair, "BSND", block_size=128, fill=0.0) | causal),
        "TND": (2, lab.pack(pair, "TND") | causal),
        "TND v1": (1, lab.pack(pair, "TND", version=1) | causal),
        "TND paged": (2, lab.pack(pair, "TND", block_size=128) | causal),
        "decode": (2, lab.pack(single, "BSND", block_size=128, fill=0.0)),
        "decode plain": (1, lab.pack(single, "BSND", version=1, fill=0.0)),
        "192/128": (2, lab.pack(lab.ragged([2], [8], dim=192, value_dim=128), "BSND")),
        "192/128 single": (2, lab.pack(lab.ragged([1], [8], dim=192, value_dim=128), "BSND")),
        "sink": (2, lab.pack(pair, "TND") | causal | {"learnable_sink": zeros(4)}),
    }


WRAPPER, PARAMETER, TILING = "ERR01003", "161002", "561002"
MASK = zeros(2048, 2048, dtype=torch.int8)
INT8 = {"query": zeros(2, 3, 4, 64, dtype=torch.int8)}

# (call to spoil, how, argument named, what is said of it, code)
REFUSED = [
    # The wrapper: layout, ranks, head count.
    ("plain", {"num_query_heads": 0}, "num_query_heads", "0", WRAPPER),
    ("plain v1", {"num_heads": -2}, "num_heads", "-2", WRAPPER),
    ("plain", {"num_key_value_heads": -1}, "num_key_value_heads", "-1", WRAPPER),
    ("plain", {"input_layout": "SBH"}, "input_layout", "'SBH'", WRAPPER),
    ("plain", {"input_layout": "bsnd"}, "input_layout", "'bsnd'", WRAPPER),
    ("plain", {"query": zeros(2, 3, 256)}, "query", "of rank 3", WRAPPER),
    ("TND", {"query": zeros(2, 3, 4, 64)}, "query", "of rank 4", WRAPPER),
    ("plain", {"value": zeros(2, 9, 128)}, "value", "of rank 3", WRAPPER),
    ("paged", {"value": zeros(6, 128)}, "value", "of rank 2", WRAPPER),
    # Heads and sizes.
    ("plain", {"key": zeros(2, 9, 128)}, "key", "of rank 3", PARAMETER),
    ("plain", {"num_key_value_heads": 3}, "num_key_value_heads", "3", TILING),
    ("plain", {"num_query_heads": 2}, "query", "[2, 3, 4, 64] with 4 heads", TILING),
    ("plain", {"num_query_heads": 512}, "num_query_heads", "512", TILING),
    ("plain", {"num_key_value_heads": 4}, "key", "[2, 9, 2, 64] with 2 heads", TILING),
    ("plain", {"value": zeros(2, 9, 4, 64)}, "value", "[2, 9, 4, 64] with 4 heads", TILING),
    ("BSH", {"query": zeros(2, 3, 250)}, "query", "of hidden size 250", TILING),
    ("BSH", {"num_key_value_heads": 1}, "key", "of head dim 128", TILING),
    ("plain", {"key": zeros(2, 9, 2, 128)}, "key", "of head dim 128", TILING),
    ("plain", {"key": zeros(3, 9, 2, 64), "value": zeros(3, 9, 2, 64)}, "key", "of batch 3", TILING),
    ("plain", {"value": zeros(2, 8, 2, 64)}, "value", "of shape [2, 8, 2, 64]", TILING),
    ("TND", {"value": zeros(16, 2, 64)}, "value", "of shape [16, 2, 64]", TILING),
    ("plain", {"query": zeros(2, 3, 4, 72), "key": zeros(2, 9, 2, 72)}, "query", "of head dim 72", TILING),
    ("plain", {"value": zeros(2, 9, 2, 72)}, "value", "of head dim 72", TILING),
    ("plain", {"query": zeros(2, 3, 4, 528), "key": zeros(2, 9, 2, 528)}, "query", "of head dim 528", TILING),
    (
        "plain",
        {"num_query_heads": 256, "num_key_value_heads": 8, "query": zeros(2, 3, 256, 256)}
        | {"key": zeros(2, 9, 8, 256), "value": zeros(2, 9, 8, 256)},
        "query",
        "of 65536 elements per token",
        TILING,
    ),
    (
        "decode plain",
        {
            "key": zeros(1, 1, 2, 64).expand(2, 262145, 2, 64),
            "value": zeros(1, 1, 2, 64).expand(2, 262145, 2, 64),
        },
        "key",
        "of 262145 tokens",
        TILING,
    ),
    (
        "decode plain",
        {name: zeros(65537, 1, heads, 16) for name, heads in (("query", 4), ("key", 2), ("value", 2))}
        | {"actual_seq_lengths_kv": [1]},
        "query",
        "of batch 65537",
        TILING,
    ),
    # Dtypes.
    ("sink", {"query": zeros(5, 4, 64, dtype=torch.int8)}, "learnable_sink", "given with an int8", TILING),
    ("plain", {"query": zeros(2, 3, 4, 64, dtype=torch.float32)}, "query", "torch.float32", PARAMETER),
    ("plain", {"key": zeros(2, 9, 2, 64, dtype=torch.float16)}, "key", "torch.float16", PARAMETER),
    ("plain", {"value": zeros(2, 9, 2, 64, dtype=torch.float16)}, "value", "torch.float16", PARAMETER),
    ("paged", INT8, "query", "int8 with block_table", PARAMETER),
    (
        "decode plain",
        {"query": zeros(2, 1, 4, 64, dtype=torch.int8)},
        "query",
        "int8 with one query",
        PARAMETER,
    ),
    ("plain v1", INT8, "dequant_scale1", "None", TILING),
    # Sparse modes, bands, masks.
    *[("plain", {"sparse_mode": mode}, "sparse_mode", f"{mode}", TILING) for mode in (-1, 5, 6, 7, 8, 10)],
    *[("plain", {"sparse_mode": mode}, "atten_mask", f"None with sparse_mode {mode}", TILING) for mode in (1, 2, 3, 4)],
    ("TND", {"sparse_mode": 3, "atten_mask": None}, "atten_mask", "None with sparse_mode 3", TILING),
    *[("TND", {"sparse_mode": mode}, "sparse_mode", f"{mode} in TND", TILING) for mode in (1, 2)],
    ("TND", {"sparse_mode": 0}, "atten_mask", "given with sparse_mode 0 in TND", TILING),
    (
        "paged",
        {"sparse_mode": 4, "pre_tokens": 3, "next_tokens": -4},
        "pre_tokens",
        "3 with next_tokens -4",
        TILING,
    ),
    (
        "plain",
        {"atten_mask": MASK, "pre_tokens": -1, "next_tokens": 0},
        "pre_tokens",
        "-1 with next_tokens 0",
        TILING,
    ),
    (
        "TND",
        {"sparse_mode": 4, "pre_tokens": -3, "next_tokens": 5},
        "pre_tokens",
        "-3 for sequence 0",
        TILING,
    ),
    (
        "TND",
        {"sparse_mode": 4, "pre_tokens": 20, "next_tokens": -9},
        "next_tokens",
        "-9 for sequence 0",
        TILING,
    ),
    (
        "192/128",
        {"sparse_mode": 1, "atten_mask": MASK},
        "sparse_mode",
        "1 with head dim 192 and value 128",
        TILING,
    ),
    (
        "192/128",
        {"sparse_mode": 4, "atten_mask": MASK},
        "sparse_mode",
        "4 with head dim 192 and value 128",
        TILING,
    ),
    ("192/128", {"atten_mask": zeros(2, 8, dtype=torch.bool)}, "atten_mask", "of shape [2, 8]", TILING),
    *[
        (
            "paged",
            {"atten_mask": zeros(*shape, dtype=torch.bool), "sparse_mode": mode},
            "atten_mask",
            "of shape",
            TILING,
        )
        for shape in (
            (2047, 2048),
            (2048, 4096),
            (2, 2048, 2048),
            (1, 2, 2048, 2048),
            (1, 1, 1, 2048, 2048),
            (2048,),
        )
        for mode in (2, 3, 4)
    ],
    *[
        (
            "plain",
            {"atten_mask": zeros(*shape, dtype=torch.bool)},
            "atten_mask",
            f"of shape {list(shape)}",
            TILING,
        )
        for shape in (
            (2, 9),
            (3, 8),
            (3, 3, 9),
            (2, 4, 3, 9),
            (3, 1, 3, 9),
            (2, 1, 2, 9),
            (2, 1, 3, 8),
            (27,),
        )
    ],
    ("plain", {"atten_mask": zeros(3, 9)}, "atten_mask", "torch.bfloat16", PARAMETER),
    ("plain", {"atten_mask": zeros(3, 9, dtype=torch.int32)}, "atten_mask", "torch.int32", PARAMETER),
    # A mask for pages must be as wide as the table: 2 blocks of 128.
    ("paged", {"sparse_mode": 0, "atten_mask": MASK[:3, :255]}, "atten_mask", "of shape [3, 255]", TILING),
    # Unlike head dims do not take the branch for one query, so the mode counts.
    ("192/128 single", {"sparse_mode": 3}, "atten_mask", "None with sparse_mode 3", TILING),
    # One query: sglang #25455 and its relatives.
    ("decode", {"atten_mask": MASK}, "atten_mask", "of shape [2048, 2048] for one query", TILING),
    ("decode", {"atten_mask": MASK[None]}, "atten_mask", "of shape [1, 2048, 2048] for one query", TILING),
    (
        "decode",
        {"atten_mask": MASK, "sparse_mode": 4},
        "atten_mask",
        "of shape [2048, 2048] for one query",
        TILING,
    ),
    (
        "decode",
        {"atten_mask": MASK[:2, None, :255]},
        "atten_mask",
        "of shape [2, 1, 255] for one query",
        TILING,
    ),
    (
        "decode",
        {"atten_mask": MASK[:3, None, :256]},
        "atten_mask",
        "of shape [3, 1, 256] for one query",
        TILING,
    ),
    ("decode plain", {"atten_mask": MASK[:2, :8]}, "atten_mask", "of shape [2, 8] for one query", TILING),
    ("decode", {"atten_mask": zeros(2, 1, 256)}, "atten_mask", "torch.bfloat16", PARAMETER),
    # inner_precise.
    ("plain", {"inner_precise": 4}, "inner_precise", "4", TILING),
    ("plain", {"inner_precise": -1}, "inner_precise", "-1", TILING),
    ("TND", {"inner_precise": 1}, "inner_precise", "1", TILING),
    # Lengths.
    ("plain", {"actual_seq_qlen": [4, 1]}, "actual_seq_qlen", "[4, 1]", TILING),
    ("plain v1", {"actual_seq_lengths": [-1, 1]}, "actual_seq_lengths", "[-1, 1]", TILING),
    ("plain", {"actual_seq_qlen": []}, "actual_seq_qlen", "0 entries", TILING),
    ("plain", {"actual_seq_kvlen": [10, 1]}, "actual_seq_kvlen", "[10, 1]", TILING),
    ("plain v1", {"actual_seq_lengths_kv": [1, -1]}, "actual_seq_lengths_kv", "[1, -1]", TILING),
    ("TND", {"actual_seq_qlen": None}, "actual_seq_qlen", "None", TILING),
    ("TND v1", {"actual_seq_lengths_kv": None}, "actual_seq_lengths_kv", "None", TILING),
    ("TND", {"actual_seq_qlen": [2, 3]}, "actual_seq_qlen", "[2, 3]", TILING),
    ("TND", {"actual_seq_qlen": [2, 6]}, "actual_seq_qlen", "[2, 6]", TILING),
    ("TND", {"actual_seq_qlen": [6, 5]}, "actual_seq_qlen", "[6, 5]", TILING),
    ("TND", {"actual_seq_qlen": [-1, 5]}, "actual_seq_qlen", "[-1, 5]", TILING),
    ("TND", {"actual_seq_kvlen": [9, 8]}, "actual_seq_kvlen", "[9, 8]", TILING),
    ("TND", {"actual_seq_kvlen": [8, 18]}, "actual_seq_kvlen", "[8, 18]", TILING),
    ("TND", {"actual_seq_kvlen": [17]}, "actual_seq_kvlen", "1 entries", TILING),
    ("TND", {"actual_seq_qlen": []}, "actual_seq_qlen", "0 entries", TILING),
    ("TND v1", {"actual_seq_lengths": [0] * 4096 + [5]}, "actual_seq_lengths", "4097 entries", TILING),
    ("TND paged", {"actual_seq_kvlen": [8]}, "actual_seq_kvlen", "1 entries", TILING),
    ("TND", {"actual_seq_kvlen": [1, 9]}, "actual_seq_qlen", "sequence 0 with 2 queries and 1 keys", TILING),
    # Pages.
    ("paged", {"actual_seq_kvlen": None}, "actual_seq_kvlen", "None", TILING),
    ("paged", {"actual_seq_kvlen": []}, "actual_seq_kvlen", "0 entries", TILING),
    ("paged", {"actual_seq_kvlen": [8, -1]}, "actual_seq_kvlen", "[8, -1]", TILING),
    ("paged", {"actual_seq_kvlen": [8, 257]}, "block_table", "2 blocks of 128 wide", TILING),
    ("TND paged", {"actual_seq_kvlen": [257, 8]}, "block_table", "2 blocks of 128 wide", TILING),
    ("paged", {"block_table": zeros(2, 2, dtype=torch.int64)}, "block_table", "torch.int64", PARAMETER),
    ("paged", {"block_table": zeros(4, dtype=torch.int32)}, "block_table", "of rank 1", PARAMETER),
    ("paged", {"block_table": zeros(3, 2, dtype=torch.int32)}, "block_table", "of 3 rows", TILING),
    ("TND paged", {"block_table": zeros(1, 2, dtype=torch.int32)}, "block_table", "of 1 rows", TILING),
    ("paged", {"block_size": 0}, "block_size", "0", TILING),
    ("paged", {"block_size": 64}, "block_size", "64", TILING),
    (
        "paged",
        {"block_size": 24, "key": zeros(6, 24, 128), "value": zeros(6, 24, 128)},
        "block_size",
        "24",
        TILING,
    ),
    ("paged", {"key": zeros(6, 2, 128, 64)}, "key", "of rank 4", TILING),
    ("paged", {"value": zeros(6, 64, 128)}, "block_size", "128", TILING),
    ("paged", {"value": zeros(5, 128, 128)}, "value", "a cache of 5 blocks", TILING),
    ("paged", {"key": zeros(6, 128, 127)}, "key", "a cache of 127 elements per token", TILING),
    (
        "paged",
        {"key": torch.empty(6, 128, 65536, dtype=torch.bfloat16)},
        "key",
        "a cache of 65536 elements per token",
        TILING,
    ),
    (
        "paged",
        {"key": zeros(6, 1, 128, 64), "value": zeros(6, 1, 128, 64)},
        "key",
        "a cache of 1 heads",
        TILING,
    ),
    (
        "decode",
        {name: zeros(1, 128, 128).expand(2**17, 128, 128) for name in ("key", "value")},
        "key",
        "a cache of 2147483648 elements",
        TILING,
    ),
    # Sinks.
    ("paged", {"learnable_sink": zeros(4)}, "learnable_sink", "given with layout BSND", TILING),
    ("decode", {"learnable_sink": zeros(4)}, "learnable_sink", "given with layout BSND", TILING),
    ("sink", {"learnable_sink": zeros(2)}, "learnable_sink", "of shape [2]", TILING),
    ("sink", {"learnable_sink": zeros(1, 4)}, "learnable_sink", "of shape [1, 4]", TILING),
    ("sink", {"learnable_sink": zeros(4, dtype=torch.float32)}, "learnable_sink", "torch.float32", PARAMETER),
    (
        "sink",
        {"query": zeros(5, 4, 192), "key": zeros(17, 2, 192), "value": zeros(17, 2, 192)},
        "learnable_sink",
        "given with value head dim 192",
        TILING,
    ),
    # TND forms.
    (
        "TND",
        {"query": zeros(5, 4, 80), "key": zeros(17, 2, 80), "value": zeros(17, 2, 80)},
        "query",
        "of head dim 80 with value 80 in TND",
        TILING,
    ),
    # Features that are missing here, where hardware refuses them too.
    ("plain", {"query_rope": zeros(2, 3, 4, 64)}, "key_rope", "None", TILING),
    ("plain v1", {"key_rope": zeros(2, 9, 2, 64)}, "query_rope", "None", TILING),
    ("TND", {"input_layout": "NSD"}, "input_layout", "'NSD' without query_rope", TILING),
    ("plain", {"input_layout": "BSND_NBSD"}, "input_layout", "'BSND_NBSD' without query_rope", TILING),
    ("TND", {"input_layout": "TND_NTD"}, "input_layout", "'TND_NTD' without query_rope", TILING),
    (
        "plain",
        {"query_rope": zeros(2, 3, 4, 64), "key_rope": zeros(2, 9, 2, 64)},
        "query",
        "of head dim 64",
        TILING,
    ),
    ("plain", {"sparse_mode": 9, "atten_mask": zeros(2, 3, 3).bool()}, "sparse_mode", "9", TILING),
    (
        "plain",
        {"query_rope": zeros(2, 3, 4, 32), "key_rope": zeros(2, 9, 2, 32)},
        "query_rope",
        "of head dim 32",
        TILING,
    ),
    ("plain v1", {"key_shared_prefix": zeros(1, 3, 2, 64)}, "value_shared_prefix", "None", TILING),
    ("plain v1", {"quant_offset2": zeros(1)}, "quant_scale2", "None", TILING),
    ("plain", {"quant_offset_out": zeros(1)}, "quant_scale_out", "None", TILING),
    ("plain v1", {"dequant_scale1": zeros(1)}, "dequant_scale1", "given", TILING),
    ("TND", {"pse_shift": zeros(1)}, "pse_shift", "given", TILING),
    ("TND v1", {"kv_padding_size": zeros(1)}, "kv_padding_size", "given", TILING),
    ("sink", {"quant_scale_out": zeros(1)}, "quant_scale_out", "given", TILING),
    (
        "plain",
        {"input_layout": "BNSD_BSND", "query": zeros(2, 4, 1, 64)},
        "input_layout",
        "'BNSD_BSND'",
        TILING,
    ),
    (
        "plain",
        {"input_layout": "BSND_NBSD", "query": zeros(2, 17, 4, 64)},
        "input_layout",
        "'BSND_NBSD'",
        TILING,
    ),
]


@pytest.mark.few(52)
@pytest.mark.parametrize(
    ("name", "spoil", "argument", "given", "code"),
    REFUSED,
    ids=[f"{name}-{argument}-{given}" for name, _, argument, given, _ in REFUSED],
)
def test_refused(lab, calls, *, name, spoil, argument, given, code):
    version, arguments = calls[name]
    lab.call(arguments, version=version)
    with pytest.raises(OperatorRejected) as caught:
        lab.call(arguments | spoil, version=version)
    message = str(caught.value)
    operator = "npu_fused_infer_attention_score" + ("_v2" if version == 2 else "")
    assert message.startswith(f"{operator}: {argument} was {given}")
    assert "; allowed: " in message
    assert caught.value.argument == argument
    assert message.endswith(f"{code}]")


@pytest.mark.parametrize("feature", ["query_padding_size", "kv_padding_size", "key_shared_prefix"])
def test_features_that_pages_exclude(lab, feature):
    arguments = lab.pack(lab.ragged([2], [8]), "BSND", version=1, block_size=128)
    more = {feature: zeros(1)} | ({"value_shared_prefix": zeros(1)} if "prefix" in feature else {})
    with pytest.raises(OperatorRejected, match=f"{feature} was given; allowed: None with block_table"):
        lab.call(arguments | more, version=1)


def test_one_query_ignores_what_does_not_concern_it(lab, calls):
    """sglang's eager decode: mode 4, a window in pre_tokens, a bool mask [B, 1, S2]."""
    _, arguments = calls["decode"]
    arguments["atten_mask"] = torch.zeros(2, 1, 256, dtype=torch.bool)
    expected, _ = lab.call(arguments)
    sglang = {"sparse_mode": 4, "pre_tokens": 127, "next_tokens": 0, "actual_seq_qlen": [1, 1]}
    assert torch.equal(lab.call(arguments | sglang)[0], expected)
    odd = {"sparse_mode": 7, "pre_tokens": -5, "next_tokens": -5, "actual_seq_qlen": [9, -9, 3]}
    assert torch.equal(lab.call(arguments | odd)[0], expected)


def test_left_padding_has_no_meaning_for_one_query(lab, calls):
    _, arguments = calls["decode plain"]
    expected, _ = lab.call(arguments, version=1)
    assert torch.equal(lab.call(arguments | {"query_padding_size": zeros(1)}, version=1)[0], expected)


def test_an_error_is_a_runtime_error():
    assert issubclass(OperatorRejected, RuntimeError)


@pytest.mark.few(6)
@pytest.mark.parametrize("mode", [2, 3, 4])
@pytest.mark.parametrize(
    "content",
    [
        torch.ones(2048, 2048).tril(),
        torch.zeros(2048, 2048),
        torch.ones(2048, 2048),
        torch.ones(2048, 2048).triu(0),
    ],
    ids=["inverted", "zeros", "ones", "with diagonal"],
)
def test_a_compressed_mask_with_another_content_is_no_rejection_but_undefined(lab, calls, mode, content):
    _, arguments = calls["paged"]
    for mask in (content.bool(), content.to(torch.uint8)[None, None]):
        with pytest.raises(UndefinedBehaviour, match=f"atten_mask of sparse_mode {mode}"):
            lab.call(arguments | {"sparse_mode": mode, "atten_mask": mask})
