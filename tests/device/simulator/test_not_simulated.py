"""What hardware may do and the simulator does not: an error of its own kind, never a wrong number."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorMissing, OperatorRejected, install


def zeros(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("version", "more", "argument"),
    [
        (1, {"antiquant_scale": zeros(2)}, "antiquant_scale"),
        (1, {"key_antiquant_scale": zeros(2), "value_antiquant_scale": zeros(2)}, "key_antiquant_scale"),
        (1, {"key_antiquant_mode": 1}, "key_antiquant_mode"),
        (1, {"query_padding_size": zeros(1)}, "query_padding_size"),
        (1, {"kv_padding_size": zeros(1)}, "kv_padding_size"),
        (1, {"actual_shared_prefix_len": [3]}, "actual_shared_prefix_len"),
        (2, {"query": zeros(2, 3, 4, 64, dtype=torch.int8)}, "query"),
        (2, {"dequant_scale_key": zeros(2), "dequant_scale_value": zeros(2)}, "dequant_scale_key"),
        (2, {"quant_scale_p": zeros(1)}, "quant_scale_p"),
        (2, {"query_quant_mode": 3}, "query_quant_mode"),
    ],
)
def test_features(lab, version, more, argument):
    arguments = lab.pack(lab.ragged([2, 3], [8, 9]), "BSND", version=version, fill=0.0)
    with pytest.raises(NotSimulated, match=f": {argument} was .* not simulated; simulated: ") as caught:
        lab.call(arguments | more, version=version)
    assert caught.value.argument == argument
    assert not isinstance(caught.value, OperatorRejected)


@pytest.mark.parametrize(
    "more",
    [{"antiquant_mode": 0}, {"query_quant_mode": 0, "query_dtype": 15, "out_dtype": 15}],
    ids=["v1", "v2"],
)
def test_defaults_and_reserved_arguments_are_no_features(lab, more):
    version = 1 if "antiquant_mode" in more else 2
    arguments = lab.pack(lab.ragged([2], [8]), "TND", version=version)
    expected, _ = lab.call(arguments, version=version)
    assert torch.equal(lab.call(arguments | more, version=version)[0], expected)


@pytest.mark.parametrize(
    ("space", "name", "why"),
    [
        ("npu", "npu_nothing", "neither torch_npu nor the simulator has defined it"),
        ("atb", "npu_ring_nothing", "neither torch_npu nor the simulator has defined it"),
        ("_C_ascend", "mla_nothing", "it is vllm-ascend's own, and its library is not loaded"),
    ],
)
def test_an_operator_that_nobody_has_defined_is_named(space, name, why):
    install()
    there = getattr(torch.ops, space)
    assert not hasattr(there, name)
    assert getattr(there, name, None) is None
    with pytest.raises(OperatorMissing, match=rf"^{space}::{name} is not simulated: {why}$") as caught:
        getattr(there, name)(zeros(2))
    assert caught.value.operator == f"{space}::{name}"


def test_an_operator_that_somebody_defines_later_is_found():
    install()
    assert not hasattr(torch.ops._C_ascend, "defined_by_a_test")
    library = torch.library.Library("_C_ascend", "FRAGMENT")
    library.define("defined_by_a_test(Tensor x) -> Tensor")
    library.impl("defined_by_a_test", lambda x: x + 1, "CPU")
    assert torch.equal(torch.ops._C_ascend.defined_by_a_test(zeros(2)), zeros(2) + 1)
    assert torch.ops.npu.npu_swiglu is torch.ops.npu.npu_swiglu
    with pytest.raises(AttributeError, match="__origin__"):
        _ = torch.ops.npu.__origin__
