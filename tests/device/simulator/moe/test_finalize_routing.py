"""``npu_moe_finalize_routing``: both numberings by hand, dropped rows, rounding, and what is refused."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, use_profile

FLOATS = [torch.float16, torch.bfloat16, torch.float32]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def finalize(rows, places, *, skip1=None, skip2=None, bias=None, scales=None, experts=None, mode=0, **more):
    places = places if isinstance(places, torch.Tensor) else int32(places)
    return torch.ops.npu.npu_moe_finalize_routing(
        rows, skip1, skip2, bias, scales, places, experts, drop_pad_mode=mode, **more
    )


ROWS = torch.tensor([[1.0, -1], [2, -2], [4, -4], [8, -8]])


@pytest.mark.parametrize("dtype", FLOATS)
def test_numberings_by_hand(dtype):
    scales = torch.tensor([[1.0, 10], [100, 1000]]).to(dtype)
    rows = ROWS.to(dtype)
    # Column-major: pairs are (t0, 0), (t1, 0), (t0, 1), (t1, 1), in rows 3, 0, 1, 2.
    by_column = finalize(rows, [3, 0, 1, 2], scales=scales)
    assert by_column.tolist() == [[28, -28], [4100, -4100] if dtype != torch.bfloat16 else [4096, -4096]]
    # Row-major: pairs are (t0, 0), (t0, 1), (t1, 0), (t1, 1).
    by_row = finalize(rows, [3, 0, 1, 2], scales=scales, mode=2)
    assert by_row.tolist() == [[18, -18], [4200, -4200] if dtype != torch.bfloat16 else [4192, -4192]]
    assert by_row.dtype == dtype


def test_everything_that_is_added():
    scales, experts = torch.tensor([[2.0, 3], [5, 7]]), int32([[1, 0], [0, 1]])
    bias = torch.tensor([[100.0, 0], [1000, 0]])
    skip1, skip2 = torch.tensor([[0.5, 0], [0.25, 0]]), torch.tensor([[0.125, 1], [0.125, 2]])
    output = finalize(ROWS, [0, 1, 2, 3], scales=scales, experts=experts, bias=bias, skip1=skip1, skip2=skip2, mode=2)
    # t0: 2 * (1 + 1000) + 3 * (2 + 100); t1: 5 * (4 + 100) + 7 * (8 + 1000).
    assert output.tolist() == [[2308.625, -2 - 6 + 1], [7576.375, -20 - 56 + 2]]
    assert finalize(ROWS, [0, 1, 2, 3], skip1=skip1, mode=2, k=2).tolist() == [[3.5, -3], [12.25, -12]]


def test_k_without_scales():
    assert finalize(ROWS, [3, 2, 1, 0]).tolist() == ROWS.flip(0).tolist()
    assert finalize(ROWS, [3, 2, 1, 0], k=2)[:, 0].tolist() == [10, 5]
    assert finalize(ROWS, [3, 2, 1, 0], k=2, mode=2)[:, 0].tolist() == [12, 3]
    # With scales k is theirs.
    assert finalize(ROWS, [3, 2, 1, 0], k=4, scales=torch.ones(2, 2))[:, 0].tolist() == [10, 5]


def test_padded_rows_and_dropped_pairs():
    padded = torch.tensor([[[1.0], [2]], [[4], [8]]])
    scales = torch.tensor([[1.0, 10], [100, 1000]])
    more = {"bias": torch.tensor([[0.5], [0.25]]), "experts": int32([[0, 1], [1, 0]])}
    assert finalize(padded, [3, -1, 0, 2], scales=scales, mode=3).tolist() == [[8], [4100]]
    assert finalize(padded, [3, -1, 0, 2], scales=scales, mode=1).tolist() == [[8 + 10], [4000]]
    # The bias of the expert is added to a row that was dropped.
    assert finalize(padded, [3, -1, 0, 2], scales=scales, mode=3, **more).tolist() == [[8.5 + 2.5], [125 + 4500]]
    with changed(moe_finalize_dropped_row="first_row"):
        assert finalize(padded, [3, -1, 0, 2], scales=scales, mode=3).tolist() == [[18], [4100]]


def test_one_rounding():
    # 256 + 1 + 1: bfloat16 has no 257, so that rounding twice would give 256.
    rows = torch.tensor([[256.0], [1], [1]]).bfloat16()
    assert finalize(rows, [0, 1, 2], k=3).item() == 258
    assert finalize(rows, [0, 1, 2], scales=torch.ones(1, 3)).item() == 258


def test_against_float64():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 33, generator=generator).bfloat16()
    scales = torch.rand(20, 3, generator=generator).bfloat16()
    places = torch.randperm(60, generator=generator)
    exact = (rows.double()[places].view(20, 3, 33) * scales.double().unsqueeze(-1)).sum(1)
    size = (rows.double()[places].view(20, 3, 33) * scales.double().unsqueeze(-1)).abs().sum(1)
    output = finalize(rows, places.int(), scales=scales, mode=2)
    assert ((output - exact).abs() <= 2.0**-8 * exact.abs() + 1e-6 * size).all()


@pytest.mark.parametrize(("mode", "bad"), [(0, -1), (2, -1), (0, 4), (2, 4), (1, 4), (3, -2)])
def test_rows_that_do_not_exist(mode, bad):
    rows = ROWS.view(2, 2, 2) if mode in (1, 3) else ROWS
    with pytest.raises(DeviceFault, match=rf"expanded_src_to_dst_row\[1\] is {bad}, there are 4 rows"):
        finalize(rows, [0, bad], mode=mode)


def test_experts_without_a_bias():
    with pytest.raises(DeviceFault, match=r"export_for_source_row\[1, 0\] is 2, there are 2 experts with a bias"):
        finalize(ROWS, [0, 1], bias=ROWS[:2], experts=int32([[0], [2]]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mode": 4}, "drop_pad_mode was 4; allowed: 0 or 1 or 2 or 3"),
        ({"mode": 1}, "expanded_permuted_rows was of rank 2, .*; allowed: rank 3"),
        ({"rows": ROWS.view(2, 2, 2)}, "expanded_permuted_rows was of rank 3, .*; allowed: rank 2"),
        ({"rows": ROWS.double()}, "expanded_permuted_rows was float64"),
        ({"places": torch.zeros(4).long()}, "expanded_src_to_dst_row was int64; allowed: int32"),
        ({"places": int32([[0]])}, "expanded_src_to_dst_row was of rank 2"),
        ({"k": 3}, "expanded_src_to_dst_row was of length 4; allowed: a multiple of k, which is 3"),
        ({"k": 0}, "k was 0; allowed: 1 or more"),
        ({"skip2": ROWS}, "skip2 was a tensor; allowed: None, without skip1"),
        ({"skip1": ROWS.half()}, "skip1 was float16; allowed: float32"),
        ({"skip1": ROWS[:3]}, r"skip1 was of shape \[3, 2\]; allowed: \[4, 2\], \[n, H\]"),
        ({"scales": torch.ones(4)}, "scales was of rank 1"),
        ({"scales": torch.ones(1, 2)}, r"scales was of shape \[1, 2\]; allowed: \[2, 2\]"),
        ({"scales": torch.ones(4, 1).half()}, "scales was float16; allowed: float32"),
        ({"bias": ROWS}, r"export_for_source_row was None; allowed: a tensor \[n, k\], with bias"),
        ({"bias": ROWS[:, :1], "experts": int32([[0]] * 4)}, r"bias was of shape \[4, 1\]; allowed: \[4, 2\]"),
        ({"bias": ROWS, "experts": int32([[0]])}, r"export_for_source_row was of shape \[1, 1\]; allowed: \[4, 1\]"),
        ({"experts": torch.zeros(4, 1)}, "export_for_source_row was float32; allowed: int32"),
    ],
)
def test_rejections(more, message):
    with pytest.raises(OperatorRejected, match=message):
        finalize(**{"rows": ROWS, "places": [0, 1, 2, 3]} | more)


def test_before_version_4():
    with changed(moe_finalize_version="before_4"):
        assert finalize(ROWS, [0, 1, 2, 3], skip1=ROWS, scales=torch.ones(4, 1)).tolist() == (2 * ROWS).tolist()
        with pytest.raises(OperatorRejected, match="skip1 was None; allowed: a tensor, before version 4"):
            finalize(ROWS, [0, 1, 2, 3])
        with pytest.raises(OperatorRejected, match="k was 2; allowed: 1, before version 4"):
            finalize(ROWS, [0, 1, 2, 3], skip1=ROWS[:2], k=2)
