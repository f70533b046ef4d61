"""What the indexers refuse, and the shapes of what they return."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected
from npudiff.device.simulator.errors import ErrorCode

OPS = torch.ops.npu
LENGTHS = torch.tensor([2, 2]).int()
PAGED = {
    "layout_key": "PA_BSND",
    "key": torch.ones(3, 16, 1, 128).half(),
    "actual_seq_lengths_key": LENGTHS,
    "block_table": torch.zeros(2, 1).int(),
}
PACKED = {
    "layout_query": "TND",
    "layout_key": "TND",
    "query": torch.ones(4, 4, 128).half(),
    "key": torch.ones(6, 1, 128).half(),
    "weights": torch.ones(4, 4).half(),
    "actual_seq_lengths_query": torch.tensor([2, 4]).int(),
    "actual_seq_lengths_key": torch.tensor([3, 6]).int(),
}
PLAIN = {"query": torch.ones(2, 2, 4, 128).half(), "key": torch.ones(2, 3, 1, 128).half()}
PLAIN |= {"weights": torch.ones(2, 2, 4).half()}


def call(**changes):
    arguments = PLAIN | {"sparse_count": 4} | changes
    tensors = [arguments.pop(name) for name in ("query", "key", "weights")]
    return OPS.npu_lightning_indexer(*tensors, **arguments)


def quant_call(**changes):
    arguments = {name: tensor.char() for name, tensor in PLAIN.items()} | {"sparse_count": 4}
    arguments |= {"weights": PLAIN["weights"], "query_dequant_scale": PLAIN["weights"]}
    arguments |= {"key_dequant_scale": torch.ones(2, 3, 1).half(), "query_quant_mode": 0, "key_quant_mode": 0}
    arguments |= changes
    names = (
        "query",
        "key",
        "weights",
        "query_dequant_scale",
        "key_dequant_scale",
        "query_quant_mode",
        "key_quant_mode",
    )
    return OPS.npu_quant_lightning_indexer(*[arguments.pop(name) for name in names], **arguments)


REJECTIONS = {
    "empty query": ("query", {"query": torch.ones(2, 0, 4, 128).half()}, "WRAPPER"),
    "empty key": ("key", {"key": torch.ones(2, 0, 1, 128).half()}, "WRAPPER"),
    "no count": ("sparse_count", {"sparse_count": 0}, "WRAPPER"),
    "layout of the query": ("layout_query", {"layout_query": "BNSD"}, "WRAPPER"),
    "layout of the key": ("layout_key", {"layout_key": "BNSD"}, "TILING"),
    "two layouts": ("layout_key", {"layout_key": "TND"}, "TILING"),
    "count beyond 8192": ("sparse_count", {"sparse_count": 9216}, "TILING"),
    "count between steps": ("sparse_count", {"sparse_count": 2049}, "TILING"),
    "mode": ("sparse_mode", {"sparse_mode": 4}, "TILING"),
    "pre_tokens": ("pre_tokens", {"pre_tokens": 5}, "TILING"),
    "next_tokens": ("next_tokens", {"next_tokens": 0}, "TILING"),
    "float32": ("query", {"query": torch.ones(2, 2, 4, 128)}, "PARAMETER"),
    "key of another dtype": ("key", {"key": torch.ones(2, 3, 1, 128).bfloat16()}, "PARAMETER"),
    "weights of another dtype": ("weights", {"weights": torch.ones(2, 2, 4).bfloat16()}, "PARAMETER"),
    "weights of another shape": ("weights", {"weights": torch.ones(2, 2, 5).half()}, "TILING"),
    "two key heads": ("key", {"key": torch.ones(2, 3, 2, 128).half()}, "TILING"),
    "another batch": ("key", {"key": torch.ones(3, 3, 1, 128).half()}, "TILING"),
    "dim": ("query", {"query": torch.ones(2, 2, 4, 64).half(), "key": torch.ones(2, 3, 1, 64).half()}, "TILING"),
    "dim of the key": ("key", {"key": torch.ones(2, 3, 1, 64).half()}, "TILING"),
    "heads": ("query", {"query": torch.ones(2, 2, 65, 128).half(), "weights": torch.ones(2, 2, 65).half()}, "TILING"),
    "lengths of int64": ("actual_seq_lengths_key", {"actual_seq_lengths_key": LENGTHS.long()}, "PARAMETER"),
    "too many lengths": ("actual_seq_lengths_query", {"actual_seq_lengths_query": torch.zeros(3).int()}, "TILING"),
    "a table without pages": ("block_table", {"block_table": torch.zeros(2, 1).int()}, "TILING"),
    "pages without a table": ("block_table", PAGED | {"block_table": None}, "TILING"),
    "a table of int64": ("block_table", PAGED | {"block_table": torch.zeros(2, 1).long()}, "PARAMETER"),
    "a table of other sequences": ("block_table", PAGED | {"block_table": torch.zeros(3, 1).int()}, "TILING"),
    "pages without lengths": ("actual_seq_lengths_key", PAGED | {"actual_seq_lengths_key": None}, "TILING"),
    "block size 24": ("key", PAGED | {"key": torch.ones(3, 24, 1, 128).half()}, "TILING"),
    "block size 1040": ("key", PAGED | {"key": torch.ones(3, 1040, 1, 128).half()}, "TILING"),
    "values with pages": ("return_value", PAGED | {"return_value": True}, "TILING"),
    "rank of the query": ("query", PACKED | {"query": PLAIN["query"]}, "WRAPPER"),
    "packed without query lengths": ("actual_seq_lengths_query", PACKED | {"actual_seq_lengths_query": None}, "TILING"),
    "packed without key lengths": ("actual_seq_lengths_key", PACKED | {"actual_seq_lengths_key": None}, "TILING"),
    "packed lengths of two kinds": (
        "actual_seq_lengths_key",
        PACKED | {"actual_seq_lengths_key": torch.tensor([6]).int()},
        "TILING",
    ),
}


@pytest.mark.parametrize("name", REJECTIONS)
def test_the_argument_is_named(name):
    argument, changes, code = REJECTIONS[name]
    with pytest.raises(OperatorRejected) as caught:
        call(**changes)
    assert (caught.value.operator, caught.value.argument) == ("npu_lightning_indexer", argument)
    assert caught.value.code is ErrorCode[code]


QUANT_REJECTIONS = {
    "query": {"query": PLAIN["query"]},
    "key": {"key": PLAIN["key"]},
    "weights": {"weights": PLAIN["weights"].bfloat16()},
    "query_dequant_scale": {"query_dequant_scale": PLAIN["weights"].float()},
    "key_dequant_scale": {"key_dequant_scale": torch.ones(2, 3).half()},
    "query_quant_mode": {"query_quant_mode": 1},
    "key_quant_mode": {"key_quant_mode": 1},
    "sparse_count": {"sparse_count": 3072},
    "sparse_mode": {"sparse_mode": 1},
}


@pytest.mark.parametrize("argument", QUANT_REJECTIONS)
def test_the_argument_of_the_quantised_one_is_named(argument):
    with pytest.raises(OperatorRejected) as caught:
        quant_call(**QUANT_REJECTIONS[argument])
    assert (caught.value.operator, caught.value.argument) == ("npu_quant_lightning_indexer", argument)


@pytest.mark.parametrize("argument", ["query_dtype", "key_dtype"])
def test_types_of_ascend_950_are_not_simulated(argument):
    with pytest.raises(NotSimulated, match=argument):
        quant_call(**{argument: 290})


def test_a_scale_of_a_query_has_the_shape_of_the_weights():
    with pytest.raises(OperatorRejected, match="query_dequant_scale was of shape"):
        quant_call(query_dequant_scale=torch.ones(2, 4, 2).half())


@pytest.mark.parametrize("argument", ["query", "key", "weights"])
def test_gaps_are_a_choice(lab, argument):
    strided = PLAIN[argument].repeat_interleave(2, 0)[::2]
    assert torch.equal(call(**{argument: strided})[0], call()[0])
    with lab.changed(non_contiguous="rejected"), pytest.raises(OperatorRejected, match=f"{argument} was not contig"):
        call(**{argument: strided})
    if argument == "key":
        with lab.changed(strided_keys="rejected"), pytest.raises(OperatorRejected, match="key was not contiguous"):
            call(**{argument: strided})


@pytest.mark.parametrize("count", [1, 2048, 3072, 8192])
def test_counts_that_there_are(count):
    assert call(sparse_count=count)[0].shape == (2, 2, 1, count)


@pytest.mark.parametrize("form", [{}, PAGED, PACKED])
@pytest.mark.parametrize("return_value", [False, True])
def test_shape_kernels_agree_with_eager(form, return_value):
    if return_value and form is PAGED:
        return_value = False
    options = form | {"return_value": return_value}
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    expected = {name: tensor.to("meta") for name, tensor in PLAIN.items()}
    found = call(**(expected | meta))
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in call(**options)]
    assert all(one.is_meta for one in found)


def test_the_shape_kernel_of_the_quantised_one():
    real = quant_call()
    meta = {name: PLAIN[name].char().to("meta") for name in ("query", "key")}
    meta |= {name: PLAIN["weights"].to("meta") for name in ("weights", "query_dequant_scale")}
    found = quant_call(**meta, key_dequant_scale=torch.ones(2, 3, 1).half().to("meta"))
    assert found.is_meta
    assert (found.shape, found.dtype) == (real.shape, real.dtype)
