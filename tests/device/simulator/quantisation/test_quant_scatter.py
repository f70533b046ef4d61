"""``npu_quant_scatter`` against ``npu_quantize`` and a loop, which is what op-plugin's own test compares it with."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected

OPS = torch.ops.npu
QINT8 = 12


def drawn(dtype, scale_dtype, *, zero_points):
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-128, 128, (4, 3, 6, 32), generator=generator, dtype=torch.int8)
    updates = (torch.randn(2, 3, 2, 32, generator=generator) * 40).to(dtype)
    scales = (torch.rand(32, generator=generator) + 0.25).to(scale_dtype)
    points = torch.randint(-9, 9, (32,), generator=generator, dtype=torch.int32) if zero_points else None
    return x, updates, scales, points


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("batches", [None, [3, 1]])
def test_places_are_quantised_updates_and_all_else_stays(dtype, scale_dtype, zero_points, batches):
    x, updates, scales, points = drawn(dtype, scale_dtype, zero_points=zero_points)
    firsts = [4, 1]
    indices = torch.tensor(firsts if batches is None else list(zip(batches, firsts, strict=True)), dtype=torch.int32)
    expected = x.clone()
    quantised = OPS.npu_quantize(updates, scales, points, QINT8, 3)
    for row, (batch, first) in enumerate(zip(batches or [0, 1], firsts, strict=True)):
        expected[batch, :, first : first + 2] = quantised[row]
    before = x.clone()
    out = OPS.npu_quant_scatter(x, indices, updates, scales.view(1, 1, 1, 32), points, -2, -1)
    assert torch.equal(out, expected)
    assert torch.equal(x, before)
    assert OPS.npu_quant_scatter_(x, indices, updates, scales, points) is x
    assert torch.equal(x, expected)


def changed(**given):
    x, updates, scales, points = drawn(torch.float16, torch.float32, zero_points=True)
    call = {"input": x, "indices": torch.tensor([0, 1], dtype=torch.int32), "updates": updates, "quant_scales": scales}
    return call | {"quant_zero_points": points} | given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": torch.zeros(4, 3, 6, 32)}, "input was float32"),
        ({"input": torch.zeros(4, 32, dtype=torch.int8)}, "input was of rank 2"),
        ({"indices": torch.zeros(2, dtype=torch.int64)}, "indices was int64"),
        ({"indices": torch.zeros(2, 3, dtype=torch.int32)}, r"indices was of shape \[2, 3\]"),
        ({"updates": torch.zeros(2, 3, 2, 32)}, "updates was float32"),
        ({"updates": torch.zeros(3, 3, 2, 32).half()}, r"updates was of shape \[3, 3, 2, 32\]"),
        ({"axis": 0}, "axis was 0; allowed: 1 to 2"),
        ({"axis": -1}, "axis was 3; allowed: 1 to 2"),
        ({"quant_axis": 1}, "quant_axis was 1"),
        ({"reduce": "add"}, "reduce was 'add'"),
        ({"quant_scales": torch.ones(31)}, r"quant_scales was of shape \[31\]"),
        ({"quant_scales": torch.ones(32).half()}, "quant_scales was float16"),
        ({"quant_zero_points": torch.ones(32)}, "quant_zero_points was float32"),
        ({"quant_zero_points": torch.ones(8, dtype=torch.int32)}, r"quant_zero_points was of shape \[8\]"),
    ],
)
def test_rejections(given, message):
    with pytest.raises(OperatorRejected, match=f"npu_quant_scatter: {message}"):
        OPS.npu_quant_scatter(**changed(**given))


def test_the_last_axis_is_aligned():
    x, updates = torch.zeros(2, 4, 16, dtype=torch.int8), torch.zeros(1, 1, 16).half()
    with pytest.raises(OperatorRejected, match="updates was of 16 columns; allowed: a multiple of 32"):
        OPS.npu_quant_scatter(x, torch.zeros(1, dtype=torch.int32), updates, torch.ones(16))


@pytest.mark.parametrize("indices", [[5, 0], [-1, 0], [[4, 0], [0, 0]]])
def test_what_leads_outside_is_a_fault(indices):
    with pytest.raises(DeviceFault, match=r"indices\[0\] is batch"):
        OPS.npu_quant_scatter(**changed(indices=torch.tensor(indices, dtype=torch.int32)))
