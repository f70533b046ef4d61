"""What attention over chosen keys refuses, and the shapes of what it returns."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.errors import ErrorCode

OPS = torch.ops.npu
LENGTHS = torch.tensor([2, 2]).int()


def ones(*shape):
    return torch.ones(*shape).half()


PLAIN = {
    "query": ones(2, 2, 4, 512),
    "query_rope": ones(2, 2, 4, 64),
    "key": ones(2, 3, 1, 512),
    "value": ones(2, 3, 1, 512),
    "key_rope": ones(2, 3, 1, 64),
    "sparse_indices": torch.zeros(2, 2, 1, 5).int(),
    "scale_value": 0.1,
    "attention_mode": 2,
}
PAGED = {
    "layout_kv": "PA_BSND",
    "key": ones(3, 16, 1, 512),
    "value": ones(3, 16, 1, 512),
    "key_rope": ones(3, 16, 1, 64),
    "actual_seq_lengths_kv": LENGTHS,
    "block_table": torch.zeros(2, 1).int(),
}
PACKED = {
    "layout_query": "TND",
    "layout_kv": "TND",
    "query": ones(4, 4, 512),
    "query_rope": ones(4, 4, 64),
    "key": ones(6, 1, 512),
    "value": ones(6, 1, 512),
    "key_rope": ones(6, 1, 64),
    "sparse_indices": torch.zeros(4, 1, 5).int(),
    "actual_seq_lengths_query": torch.tensor([2, 4]).int(),
    "actual_seq_lengths_kv": torch.tensor([3, 6]).int(),
}
KV_QUANT = {
    "query": ones(2, 2, 4, 576),
    "key": torch.ones(2, 3, 1, 656).char(),
    "value": torch.ones(2, 3, 1, 512).char(),
    "sparse_indices": PLAIN["sparse_indices"],
    "scale_value": 0.1,
    "key_quant_mode": 2,
    "value_quant_mode": 2,
    "attention_mode": 2,
}


def with_heads(count):
    return {"query": ones(2, 2, count, 512), "query_rope": ones(2, 2, count, 64)}


def call(**changes):
    arguments = PLAIN | changes
    tensors = [arguments.pop(name) for name in ("query", "key", "value", "sparse_indices", "scale_value")]
    return OPS.npu_sparse_flash_attention(*tensors, **arguments)


def kv_quant_call(**changes):
    arguments = KV_QUANT | changes
    names = ("query", "key", "value", "sparse_indices", "scale_value", "key_quant_mode", "value_quant_mode")
    return OPS.npu_kv_quant_sparse_flash_attention(*[arguments.pop(name) for name in names], **arguments)


REJECTIONS = {
    "empty query": ("query", {"query": ones(2, 0, 4, 512)}, "WRAPPER"),
    "empty key": ("key", {"key": ones(2, 0, 1, 512)}, "WRAPPER"),
    "no value": ("value", {"value": None}, "WRAPPER"),
    "no indices": ("sparse_indices", {"sparse_indices": torch.zeros(2, 2, 1, 0).int()}, "WRAPPER"),
    "layout of the query": ("layout_query", {"layout_query": "BNSD"}, "WRAPPER"),
    "rank of the query": ("query", {"query": ones(4, 4, 512)}, "WRAPPER"),
    "attention_mode": ("attention_mode", {"attention_mode": 0}, "TILING"),
    "layout of the key": ("layout_kv", {"layout_kv": "BNSD"}, "TILING"),
    "two layouts": ("layout_kv", {"layout_kv": "TND"}, "TILING"),
    "mode": ("sparse_mode", {"sparse_mode": 4}, "TILING"),
    "pre_tokens": ("pre_tokens", {"pre_tokens": 5}, "TILING"),
    "float32": ("query", {"query": torch.ones(2, 2, 4, 512)}, "PARAMETER"),
    "key of another dtype": ("key", {"key": ones(2, 3, 1, 512).bfloat16()}, "PARAMETER"),
    "key_rope of another dtype": ("key_rope", {"key_rope": ones(2, 3, 1, 64).bfloat16()}, "PARAMETER"),
    "query_rope of another shape": ("query_rope", {"query_rope": ones(2, 2, 4, 32)}, "TILING"),
    "value of another shape": ("value", {"value": ones(2, 4, 1, 512)}, "TILING"),
    "no query_rope": ("query_rope", {"query_rope": None}, "TILING"),
    "no key_rope": ("key_rope", {"key_rope": None}, "TILING"),
    "dim": ("query", {"query": ones(2, 2, 4, 256)}, "TILING"),
    "dim of the key": ("key", {"key": ones(2, 3, 1, 256), "value": ones(2, 3, 1, 256)}, "TILING"),
    "two key heads": ("key", {"key": ones(2, 3, 2, 512)}, "TILING"),
    "65 heads": ("query", with_heads(65), "TILING"),
    "127 heads": ("query", with_heads(127), "TILING"),
    "indices of int64": ("sparse_indices", {"sparse_indices": torch.zeros(2, 2, 1, 5).long()}, "PARAMETER"),
    "indices of other rows": ("sparse_indices", {"sparse_indices": torch.zeros(2, 3, 1, 5).int()}, "TILING"),
    "blocks of 3": ("sparse_block_size", {"sparse_block_size": 3}, "TILING"),
    "blocks of 256": ("sparse_block_size", {"sparse_block_size": 256}, "TILING"),
    "blocks across pages": ("sparse_block_size", PAGED | {"sparse_block_size": 32}, "TILING"),
    "sums with pages": ("return_softmax_lse", PAGED | {"return_softmax_lse": True}, "TILING"),
    "pages without a table": ("block_table", PAGED | {"block_table": None}, "TILING"),
    "pages without lengths": ("actual_seq_lengths_kv", PAGED | {"actual_seq_lengths_kv": None}, "TILING"),
    "block size 24": ("key", PAGED | {"key": ones(3, 24, 1, 512)}, "TILING"),
    "packed without query lengths": ("actual_seq_lengths_query", PACKED | {"actual_seq_lengths_query": None}, "TILING"),
    "lengths of int64": ("actual_seq_lengths_kv", PACKED | {"actual_seq_lengths_kv": LENGTHS.long()}, "PARAMETER"),
}


@pytest.mark.parametrize("name", REJECTIONS)
def test_the_argument_is_named(name):
    argument, changes, code = REJECTIONS[name]
    with pytest.raises(OperatorRejected) as caught:
        call(**changes)
    assert (caught.value.operator, caught.value.argument) == ("npu_sparse_flash_attention", argument)
    assert caught.value.code is ErrorCode[code]


def test_the_default_mode_is_refused_in_the_words_of_cann():
    with pytest.raises(OperatorRejected, match="attentionMode only support 2"):
        call(attention_mode=0)


def test_sinks_are_not_simulated():
    with pytest.raises(NotSimulated, match="sinks"):
        call(sinks=torch.ones(4))


KV_QUANT_REJECTIONS = {
    "query": {"query": ones(2, 2, 4, 512)},
    "key": {"key": torch.ones(2, 3, 1, 576).char()},
    "value": {"value": torch.ones(2, 4, 1, 656).char()},
    "key_quant_mode": {"key_quant_mode": 0},
    "value_quant_mode": {"value_quant_mode": 1},
    "key_dequant_scale": {"key_dequant_scale": torch.ones(1)},
    "value_dequant_scale": {"value_dequant_scale": torch.ones(1)},
    "quant_scale_repo_mode": {"quant_scale_repo_mode": 0},
    "tile_size": {"tile_size": 64},
    "rope_head_dim": {"rope_head_dim": 32},
    "attention_mode": {"attention_mode": 0},
    "sparse_block_size": {"sparse_block_size": 32},
    "sparse_indices": {"sparse_indices": PLAIN["sparse_indices"][..., :0]},
}


@pytest.mark.parametrize("argument", KV_QUANT_REJECTIONS)
def test_the_argument_of_the_quantised_one_is_named(argument):
    with pytest.raises(OperatorRejected) as caught:
        kv_quant_call(**KV_QUANT_REJECTIONS[argument])
    assert (caught.value.operator, caught.value.argument) == ("npu_kv_quant_sparse_flash_attention", argument)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("query", {"query": torch.ones(2, 2, 4, 576)}),
        ("query", {"query": ones(2, 2, 48, 576)}),
        ("key", {"key": ones(2, 3, 1, 656)}),
        ("value", {"value": ones(2, 3, 1, 656)}),
    ],
)
def test_dtypes_and_heads_of_the_quantised_one(argument, changes):
    with pytest.raises(OperatorRejected) as caught:
        kv_quant_call(**changes)
    assert caught.value.argument == argument


@pytest.mark.parametrize("argument", ["key_dtype", "value_dtype"])
def test_types_of_ascend_950_are_not_simulated(argument):
    with pytest.raises(NotSimulated, match=argument):
        kv_quant_call(**{argument: 290})


@pytest.mark.parametrize("count", [1, 3, 64, 128])
def test_heads_are_a_choice(lab, count):
    assert call(**with_heads(count))[0].shape == (2, 2, count, 512)
    with lab.changed(sparse_attention_heads="documented"):
        if count == 3:
            with pytest.raises(OperatorRejected, match="query was 3"):
                call(**with_heads(count))
        else:
            call(**with_heads(count))


@pytest.mark.parametrize("argument", ["query", "key", "value", "query_rope", "key_rope", "sparse_indices"])
def test_gaps_are_a_choice(lab, argument):
    strided = PLAIN[argument].repeat_interleave(2, 0)[::2]
    assert torch.equal(call(**{argument: strided})[0], call()[0])
    with lab.changed(non_contiguous="rejected"), pytest.raises(OperatorRejected, match=f"{argument} was not contig"):
        call(**{argument: strided})
    with lab.changed(strided_keys="rejected"):
        if argument in ("key", "value", "key_rope"):
            with pytest.raises(OperatorRejected, match=f"{argument} was not contiguous"):
                call(**{argument: strided})
        else:
            call(**{argument: strided})


def described(outputs):
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    return [(one.shape, one.dtype) for one in outputs]


def on_meta(arguments):
    return {name: one.to("meta") if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}


@pytest.mark.parametrize("form", [{}, PAGED, PACKED])
@pytest.mark.parametrize("sums", [False, True])
def test_shape_kernels_agree_with_eager(form, sums):
    options = form | {"return_softmax_lse": sums and form is not PAGED}
    found = call(**on_meta(PLAIN | options))
    assert described(found) == described(call(**options))
    assert all(one.is_meta for one in found)


def test_the_shape_kernel_of_the_quantised_one():
    assert described(kv_quant_call(**on_meta(KV_QUANT))) == described(kv_quant_call())
