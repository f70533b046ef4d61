"""What ``npu_grouped_matmul`` refuses whatever the dtypes are, argument by argument."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected

X, WEIGHT = torch.zeros(5, 3), torch.zeros(4, 3, 2)
ENDS = torch.tensor([1, 2, 3, 5])


def call(**more):
    good = {"x": [X], "weight": [WEIGHT], "group_list": ENDS, "split_item": 2, "group_type": 0}
    return torch.ops.npu.npu_grouped_matmul(**good | more)


def call_list(**more):
    good = {"x": [X], "weight": list(WEIGHT), "group_list": [1, 2, 3, 5], "split_item": 3}
    return torch.ops.npu.npu_grouped_matmul.List(**good | more)


def test_the_calls_that_are_changed_below_are_accepted():
    assert call()[0].shape == call_list()[0].shape == (5, 2)


NONE = {"group_type": -1, "group_list": None, "split_item": 0}
INNER = {"group_type": 2, "x": [torch.zeros(3, 5).t()], "weight": [torch.zeros(3, 2)], "group_list": torch.tensor([3])}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": []}, "x was empty; allowed: at least one tensor"),
        ({"weight": []}, "weight was empty"),
        ({"split_item": 4}, "split_item was 4; allowed: 0 or 1 or 2 or 3"),
        ({"group_type": None}, "group_type was None; allowed: -1, 0 or 2: it has to be given"),
        ({"group_type": 1}, "group_type was 1; allowed: -1 or 0 or 2"),
        ({"split_item": 4}, r"Invalid value of split_item \[4\], which should only be one of 0/1/2/3."),
        ({"group_type": None}, "Requires manual passing group_type, current is None."),
        ({"group_type": 1}, r"The group type must be -1, 0 or 2, but now is \[1\]"),
        ({"x": []}, "Invalid inputs: neither x nor weight could be empty."),
        ({"split_item": 0}, "split_item was 0; allowed: 2 or 3, with group_type 0 and one tensor x"),
        ({"group_list": None}, "group_list was None; allowed: a tensor, with group_type 0"),
        ({"group_list": ENDS.int()}, "group_list was int32; allowed: int64"),
        ({"group_list": ENDS[:3]}, r"group_list was of shape \[3\]; allowed: \[4\], \[E\], for group_list_type 0"),
        ({"group_list": ENDS[None]}, r"group_list was of shape \[1, 4\]"),
        ({"group_list_type": 2}, r"group_list was of shape \[4\]; allowed: \[4, 2\], \[E, 2\], for group_list_type 2"),
        ({"group_list_type": 3}, "group_list_type was 3; allowed: 0 or 1 or 2"),
        ({"act_type": 3}, "act_type was 3; allowed: 0 or 1 or 2 or 4 or 5"),
        ({"x_dtype": 290}, "x_dtype was 290; allowed: None"),
        ({"per_token_scale_dtype": 290}, "per_token_scale_dtype was 290"),
        ({"x": [X[:, :2]]}, "weight of expert 0 was of 3 rows; allowed: 2, the last axis of x"),
        ({"x": [X[None]]}, r"x\[0\] was of rank 3, \[1, 5, 3\]; allowed: rank 2"),
        ({"weight": [WEIGHT[:, :, 0]]}, r"group_list was of shape \[4\]; allowed: \[1\]"),
        ({"x": [torch.zeros(2, 65536)], "weight": [torch.zeros(4, 65536, 1)]}, "x was of last axis 65536; allowed: at"),
        ({"weight": [torch.zeros(4, 3, 65536)]}, "weight was of last axis 65536"),
        ({"weight": [torch.zeros(1025, 3, 1)]}, "weight was 1025; allowed: 1 to 1024"),
        ({"weight": [torch.zeros(3, 1)] * 129}, "weight was 129; allowed: 1 to 128"),
        ({"weight": [*WEIGHT[:3], torch.zeros(3, 5)]}, "weight of expert 3 was of 5 columns; allowed: 2, as the first"),
        ({"weight": [*WEIGHT[:3], WEIGHT[3].half()]}, "weight was float16; allowed: float32"),
        ({"scale": [torch.zeros(4, 2)]}, "scale was of 1 tensors; allowed: None, with float32"),
        ({"per_token_scale": [torch.zeros(5)]}, "per_token_scale was of 1 tensors; allowed: None, with float32"),
        ({"bias": [torch.zeros(4, 2).half()]}, "bias was float16; allowed: float32"),
        ({"bias": [torch.zeros(4, 3)]}, r"bias was of shape \[4, 3\]; allowed: \[4, 2\], \[E, N\]"),
        ({"bias": [torch.zeros(2)] * 4}, "bias was of 4 tensors; allowed: 1, one for each weight"),
        ({"output_dtype": torch.float16}, "output_dtype was float16; allowed: float32"),
        (NONE | {"split_item": 3}, "split_item was 3; allowed: 0 or 1, with group_type -1"),
        (NONE | {"group_list": ENDS}, "group_list was a tensor; allowed: None, with group_type -1"),
        (NONE, "x was of 1 tensors; allowed: 4, one for each weight"),
        ({"x": [X] * 3, "group_list": None}, "x was of 3 tensors; allowed: 4, one for each weight"),
        (INNER | {"weight": list(WEIGHT)}, "weight was of 4 tensors; allowed: 1 tensor, where the inner axis is cut"),
        (INNER | {"x": [X, X]}, "x was of 2 tensors; allowed: 1 tensor, with group_type 2"),
        (INNER | {"x": [X]}, r"x\[0\] was of strides \(3, 1\); allowed: a transposed view"),
        (INNER | {"weight": [torch.zeros(4, 2)]}, r"weight\[0\] was of shape \[4, 2\]; allowed: \[3, 2\], \[K, N\]"),
        (INNER | {"group_list": None}, "group_list was None; allowed: a tensor, with group_type 2"),
        (INNER | {"group_list": torch.tensor([3]).int()}, "group_list was int32; allowed: int64"),
        (INNER | {"group_list_type": 2}, "group_list_type was 2; allowed: 0 or 1, with group_type 2"),
        (INNER | {"output_dtype": torch.float16}, "output_dtype was torch.float16; allowed: torch.float32, as x"),
    ],
)
def test_rejections(more, message):
    with pytest.raises(OperatorRejected, match=message):
        call(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"group_type": 2}, "group_type was 2; allowed: None, where group_list is a list"),
        ({"group_list_type": 1}, "group_list_type was 1; allowed: None"),
        ({"act_type": 1}, "act_type was 1; allowed: None"),
        (
            {"group_list": [1, 3, 2, 5]},
            r"group_list was \[1, 3, 2, 5\]; allowed: ends of groups, which do not decrease",
        ),
        ({"group_list": [-1, 3, 3, 5]}, r"group_list was \[-1, 3, 3, 5\]"),
        ({"group_list": [1, 2, 3, 6]}, r"group_list was \[1, 2, 3, 6\]; allowed: ends up to 5"),
        ({"group_list": [1, 2, 3]}, "group_list was of length 3; allowed: 4, one for each weight"),
        ({"group_list": None, "split_item": 0}, "x was of 1 tensors; allowed: 4, one for each weight"),
        (
            {"split_item": 1, "x": [X, X]},
            "x was of 2 tensors; allowed: 1 tensor, with group_list and split_item 0 or 1",
        ),
        ({"split_item": 1, "group_list": [1, 2]}, "weight was 4 weights; allowed: 2, as group_list"),
        ({"output_dtype": torch.float64}, "output_dtype was float64; allowed: float32"),
    ],
)
def test_rejections_of_the_list(more, message):
    with pytest.raises(OperatorRejected, match=message):
        call_list(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"activation_input": [X]}, "activation_input was of 1 tensors, which is not simulated"),
        ({"x": [X] * 4}, "group_list was given with 4 tensors x, which is not simulated"),
        (INNER | {"split_item": 0}, "split_item was 0, which is not simulated; simulated: 2 and 3"),
        (INNER | {"bias": [torch.zeros(1, 2)]}, "bias was given with group_type 2, which is not simulated"),
    ],
)
def test_not_simulated(more, message):
    with pytest.raises(NotSimulated, match=message):
        call(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": []}, "x was empty"),
        ({"split_item": 7}, "split_item was 7"),
        ({"group_type": None}, "group_type was None"),
    ],
)
def test_the_host_checks_meta_tensors_too(more, message):
    meta = {"x": [X.to("meta")], "weight": [WEIGHT.to("meta")], "group_list": ENDS.to("meta")}
    with pytest.raises(OperatorRejected, match=message):
        call(**meta | ({"weight": []} if not more.get("x", 1) else {}) | more)
