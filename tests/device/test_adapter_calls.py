"""Adapters: the operators that they call, and with which arguments; the sources are named in device/ascend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.device import ascend, targets
from npudiff.properties.sliding_attention import component
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.reference.swa_mask import SwaMaskInputs, swa_mask

V1, V2 = "npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2"
NO_LIMIT = 2**31 - 1
ATTENTION = [item for item in map(vars(ascend).get, ascend.__all__) if item.component == "sliding_attention"]
FUSED = [item for item in ATTENTION if item.name not in ("torch_native", "split_kv")]
WINDOWLESS = ("fia_v1_extend_tnd",)


def by_name(item):
    return item.name


def laid_out(item, drawn):
    """The same case with pages as the implementation wants them."""
    return replace(drawn, layout="PA_NZ" if item.name.endswith("_nz") else "PA_BSND")


def case(*lengths, window=4, page_size=16, **changes):
    requests = tuple(Request(query, kv) for query, kv in lengths)
    return SlidingAttentionCase(requests, window, page_size, **{"kv_heads": 2, "group": 3, "spare_pages": 1, **changes})


EXTEND = case((5, 9), (1, 20), (3, 3), padded_rows=2)
DECODE = case((1, 9), (1, 40), (1, 1), padded_rows=2)
VERIFY = case((3, 9), (3, 40), (3, 3), padded_rows=2)


class Recorder(TorchDispatchMode):
    """Keeps every call of an ``npu`` operator: its name, and all its arguments, defaults included."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "npu":
            arguments = {
                item.name: item.default_value for item in function._schema.arguments if item.has_default_value()
            }
            arguments |= dict(zip((item.name for item in function._schema.arguments), args, strict=False)) | kwargs
            self.calls.append((function, arguments))
        return function(*args, **kwargs)


def calls(item, drawn, cann=None):
    inputs, target = component.inputs(laid_out(item, drawn)), targets.sim(cann)
    with target.activate(), Recorder() as recorder:
        item(inputs, target)
    return inputs, recorder.calls


def one_call(item, drawn, operator, overload="default"):
    inputs, made = calls(item, drawn)
    (function, arguments) = made[-1]
    assert len(made) == (1 if overload == "default" else 2)
    assert (function._opname, function._overloadname) == (operator, overload)
    return inputs, arguments


def assert_arguments(arguments, **expected):
    assert {name: arguments[name] for name in expected} == expected


def assert_cache(inputs, arguments, pool=None):
    pool = pool or inputs.kv
    pages, size, heads, dim = pool.key.shape
    assert arguments["key"].shape == (pages, size, heads * dim)
    assert torch.equal(arguments["key"], pool.key.flatten(2))
    assert arguments["value"].shape == (pages, size, heads * pool.value.shape[3])
    assert torch.equal(arguments["value"], pool.value.flatten(2))
    assert arguments["block_size"] == size
    assert arguments["block_table"].dtype == torch.int32


def assert_causal(mask, shape, dtype=torch.bool):
    assert mask.shape == shape
    assert mask.dtype == dtype
    rows, columns = torch.arange(2048)[:, None], torch.arange(2048)[None, :]
    assert torch.equal(mask.reshape(2048, 2048).bool(), columns > rows)


def assert_decode_mask(inputs, mask, kv_lengths):
    columns = inputs.kv.block_table.shape[1] * inputs.kv.page_size
    lengths = torch.tensor(kv_lengths, dtype=torch.int32)
    right = swa_mask(SwaMaskInputs(lengths, columns, inputs.window))["mask"].value
    assert mask.shape == (len(kv_lengths), 1, columns)
    assert torch.equal(mask, right)


@pytest.mark.parametrize(
    ("item", "drawn", "cumulative"),
    [(ascend.fia_extend_tnd, EXTEND, [5, 6, 9]), (ascend.fia_verify_tnd, VERIFY, [3, 6, 9])],
    ids=["extend", "verify"],
)
@pytest.mark.parametrize(
    ("window", "mode", "before", "after"), [(4, 4, 3, 0), (1, 4, 0, 0), (None, 3, NO_LIMIT, NO_LIMIT)]
)
def test_ragged_rows_go_in_one_call_with_a_band(item, drawn, cumulative, window, mode, before, after):
    inputs, arguments = one_call(item, replace(drawn, window=window, sinks=True), V2)
    assert_arguments(
        arguments,
        input_layout="TND",
        actual_seq_qlen=cumulative,
        actual_seq_kvlen=[request.kv for request in drawn.requests],
        sparse_mode=mode,
        pre_tokens=before,
        next_tokens=after,
        num_query_heads=6,
        num_key_value_heads=2,
        softmax_scale=1 / 8,
        return_softmax_lse=True,
    )
    assert torch.equal(arguments["query"], inputs.query[:9])
    assert torch.equal(arguments["learnable_sink"], inputs.sinks)
    assert torch.equal(arguments["block_table"], inputs.kv.block_table)
    assert_causal(arguments["atten_mask"], (2048, 2048))
    assert_cache(inputs, arguments)


@pytest.mark.parametrize(("window", "mode", "before"), [(4, 4, 3), (None, 3, NO_LIMIT)])
def test_graph_decode_passes_an_int8_mask_and_no_limit_ahead(window, mode, before):
    inputs, arguments = one_call(ascend.fia_decode_tnd, replace(DECODE, window=window), V2)
    assert_arguments(
        arguments,
        input_layout="TND",
        actual_seq_qlen=[1, 2, 3],
        actual_seq_kvlen=[9, 40, 1],
        sparse_mode=mode,
        pre_tokens=before,
        next_tokens=NO_LIMIT,
        learnable_sink=None,
    )
    assert arguments["query"].shape == (3, 6, 64)
    assert_causal(arguments["atten_mask"], (2048, 2048), torch.int8)
    assert_cache(inputs, arguments)


def test_extend_without_ragged_rows_is_one_call_per_request():
    inputs, made = calls(ascend.fia_extend_bsnd, EXTEND)
    start = 0
    assert [function._opname for function, _ in made] == [V2] * 3
    for index, (request, (_, arguments)) in enumerate(zip(EXTEND.requests, made, strict=True)):
        assert_arguments(
            arguments,
            input_layout="BSND",
            actual_seq_qlen=[request.query],
            actual_seq_kvlen=[request.kv],
            sparse_mode=4,
            pre_tokens=3,
            next_tokens=0,
            learnable_sink=None,
            return_softmax_lse=True,
        )
        assert torch.equal(arguments["query"], inputs.query[None, start : start + request.query])
        assert torch.equal(arguments["block_table"], inputs.kv.block_table[index : index + 1])
        assert_cache(inputs, arguments)
        if request.query == 1:
            assert_decode_mask(inputs, arguments["atten_mask"], [request.kv])
        else:
            assert_causal(arguments["atten_mask"], (1, 2048, 2048))
        start += request.query


def test_extend_without_ragged_rows_and_without_a_window_is_causal():
    _, made = calls(ascend.fia_extend_bsnd, replace(EXTEND, window=None))
    assert [arguments["sparse_mode"] for _, arguments in made] == [3, 0, 3]
    assert [arguments["atten_mask"] is None for _, arguments in made] == [False, True, False]


def test_eager_decode_passes_the_window_as_a_mask():
    inputs, arguments = one_call(ascend.fia_decode_mask, DECODE, V2)
    assert_arguments(
        arguments,
        input_layout="BSND",
        actual_seq_qlen=[1, 1, 1],
        actual_seq_kvlen=[9, 40, 1],
        sparse_mode=4,
        pre_tokens=3,
        next_tokens=0,
        num_query_heads=6,
        num_key_value_heads=2,
        learnable_sink=None,
    )
    assert torch.equal(arguments["query"], inputs.query[:3].unsqueeze(1))
    assert_decode_mask(inputs, arguments["atten_mask"], [9, 40, 1])
    assert_cache(inputs, arguments)


@pytest.mark.parametrize("item", [ascend.fia_decode_mask, ascend.fia_v1_decode_bsh], ids=by_name)
def test_decode_without_a_window_has_no_mask(item):
    _, made = calls(item, replace(DECODE, window=None))
    assert_arguments(made[-1][1], atten_mask=None, sparse_mode=0)


def test_the_first_operator_gets_its_own_argument_names():
    inputs, arguments = one_call(ascend.fia_v1_extend_tnd, replace(EXTEND, window=None), V1)
    assert_arguments(
        arguments,
        input_layout="TND",
        actual_seq_lengths=[5, 6, 9],
        actual_seq_lengths_kv=[9, 20, 3],
        sparse_mode=3,
        num_heads=6,
        num_key_value_heads=2,
        scale=1 / 8,
        softmax_lse_flag=True,
        pre_tokens=NO_LIMIT,
        next_tokens=NO_LIMIT,
    )
    assert_causal(arguments["atten_mask"], (2048, 2048))
    assert_cache(inputs, arguments)


def test_graph_decode_of_the_first_operator_writes_into_outputs_with_a_workspace():
    inputs, arguments = one_call(ascend.fia_v1_decode_bsh, DECODE, V1, "out")
    assert_arguments(
        arguments, input_layout="BSH", actual_seq_lengths_kv=[9, 40, 1], sparse_mode=0, num_heads=6,
        num_key_value_heads=2, softmax_lse_flag=True, scale=1 / 8,
    )  # fmt: skip
    assert torch.equal(arguments["query"], inputs.query[:3].reshape(3, 1, 6 * 64))
    output, lse = arguments["out"]
    assert output.shape == (3, 1, 6 * 64)
    assert lse.shape == (3, 6, 1, 1)
    assert isinstance(arguments["workspace"], torch.Tensor)
    assert_decode_mask(inputs, arguments["atten_mask"], [9, 40, 1])
    assert_cache(inputs, arguments)


def test_the_fallback_calls_no_npu_operator():
    _, made = calls(ascend.torch_native, EXTEND)
    assert made == []


LAYERS = [(item, window) for item in FUSED for window in (4, None) if window is None or item.name not in WINDOWLESS]


@pytest.mark.parametrize(("item", "window"), LAYERS)
def test_the_pool_of_the_layer_is_read(item, window):
    inputs, made = calls(item, replace(DECODE, window=window, hybrid=True))
    for _, arguments in made:
        pool = inputs.full if window is None else inputs.sliding
        if pool.layout == "PA_NZ":
            assert arguments["key"] is pool.key
            assert arguments["value"] is pool.value
        else:
            assert_cache(inputs, arguments, pool)
