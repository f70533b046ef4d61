"""Shape kernels, fake tensors, and tensors that want gradients."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

NPU, ATB = torch.ops.npu, torch.ops.atb
WRITERS = ("reshape", "siso", "scatter_pa", "scatter_nd_", "gather")
NAMES = (
    *WRITERS,
    "scatter_pa_functional",
    "scatter_nd",
    "gather_functional",
    "cast",
    "cast_like",
    "cast_",
    "cast_from",
)


def half(*shape):
    return torch.ones(shape, dtype=torch.float16)


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def calls():
    """Return a good call of every operator: function, tensors, other arguments."""
    key, value, k, v = half(2, 1, 16), half(2, 1, 32), half(3, 4, 1, 16), half(3, 4, 1, 32)
    table, lengths, norm = int32(0, 1).view(2, 1), int32(1, 1), {"cache_mode": "Norm"}
    return {
        "reshape": (ATB._npu_reshape_and_cache, (key, value, k, v, int32(0, 1)), {}),
        "siso": (ATB._npu_reshape_and_cache_siso, (key, k, int32(0, 1)), {}),
        "scatter_pa": (NPU.npu_scatter_pa_kv_cache, (key, value, k, v, int32(0, 1)), norm),
        "scatter_pa_functional": (NPU.npu_scatter_pa_kv_cache_functional, (key, value, k, v, int32(0, 1)), norm),
        "scatter_nd": (NPU.npu_scatter_nd_update, (half(4, 5), int32(0, 1).view(2, 1), half(2, 5)), {}),
        "scatter_nd_": (NPU.npu_scatter_nd_update_, (half(4, 5), int32(0, 1).view(2, 1), half(2, 5)), {}),
        "gather": (NPU.npu_gather_pa_kv_cache, (k, v, table, lengths, key, value), {}),
        "gather_functional": (NPU.npu_gather_pa_kv_cache_functional, (k, v, table, lengths, key, value), {}),
        "cast": (lambda x: NPU.npu_format_cast(x, 29), (half(4, 5).t(),), {}),
        "cast_like": (NPU.npu_format_cast, (half(4, 5), half(4)), {}),
        "cast_": (lambda x: NPU.npu_format_cast_(x, 29), (half(4, 5),), {}),
        "cast_from": (NPU.npu_format_cast_, (half(4, 5), half(4, 5)), {}),
    }


def described(result):
    tensors = () if result is None else result if isinstance(result, (tuple, list)) else (result,)
    return [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]


@pytest.mark.parametrize("kind", ["fake", "meta"])
@pytest.mark.parametrize("name", NAMES)
def test_shape_kernels_agree_with_eager(name, kind):
    function, tensors, options = calls()[name]
    if kind == "meta":
        inferred = described(function(*(t.to("meta") for t in tensors), **options))
    else:
        with FakeTensorMode() as mode:
            inferred = described(function(*map(mode.from_tensor, tensors), **options))
    assert inferred == described(function(*tensors, **options))


@pytest.mark.parametrize("name", [*WRITERS, "scatter_pa_functional", "scatter_nd", "gather_functional"])
def test_what_is_written_is_what_the_schema_says(name):
    """The arguments with (a!) against the memory; all tensors hold numbers of their own."""
    function, tensors, options = calls()[name]
    for number, tensor in enumerate(tensors):
        if tensor.dtype == torch.float16:
            tensor.fill_(number + 2)
    before = [tensor.clone() for tensor in tensors]
    function(*tensors, **options)
    written = {i for i, tensor in enumerate(tensors) if not torch.equal(tensor, before[i])}
    arguments = function.default._schema.arguments
    assert written == {
        i for i, argument in enumerate(arguments) if argument.alias_info and argument.alias_info.is_write
    }


@pytest.mark.parametrize("name", NAMES)
def test_inference_mode(name):
    with torch.inference_mode():
        function, tensors, options = calls()[name]
        function(*tensors, **options)
