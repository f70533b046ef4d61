"""Nothing leaks over 10,000 allocations: the allocator, the device below it and the process are where they were."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import pytest

pytestmark = pytest.mark.virtual

MIB = 1 << 20


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def one_round(number, torch):
    """Some dozen allocations: of many sizes, of results, of views that outlive their bases, and amid errors."""
    size = (1, 7, 100, 1000, 33333)[number % 5]
    x = torch.ones(size, device="npu")
    kept = [x + 1, x * x, x.reshape(1, -1).t(), x[::2], x.clone()[size // 2 :], x.to(torch.float16), x.cpu()]
    kept.append(torch.cat([x, x]))
    x.add_(1).mul_(2)
    with contextlib.suppress(RuntimeError):
        x + torch.ones(size + 1, device="npu")
    with contextlib.suppress(RuntimeError):
        torch.mm(x, x)
    out = torch.empty(0, device="npu")
    torch.add(x, 1, out=out)  # its storage grows
    x.sum().item()
    leaf = torch.ones(8, 16, device="npu", requires_grad=True)
    value = leaf @ torch.ones(16, 4, device="npu")
    (value.softmax(-1).sum() * 2).backward()
    attended = torch.nn.functional.scaled_dot_product_attention(leaf[None], leaf[None], leaf[None])
    kept += [leaf.grad, attended]
    tiles = torch.ops.npu.npu_format_cast(torch.ones(33, 65, dtype=torch.float16, device="npu"), 29)
    kept += [tiles, tiles + 1, torch.ops.npu.npu_format_cast(tiles, 2)]
    with contextlib.suppress(RuntimeError):
        torch.ops.npu.npu_swiglu(torch.ones(2, 3, device="npu"), -1)
    kept.append(torch.ops.npu.npu_swiglu(torch.ones(2, 4, device="npu"), -1))


@pytest.fixture
def tiles_allowed():
    import torch_npu

    torch_npu.npu.config.allow_internal_format = True
    yield
    torch_npu.npu.config.allow_internal_format = False


def test_nothing_leaks_over_ten_thousand_allocations(tiles_allowed):
    import torch

    from npudiff.device.virtual import faults

    statistics = torch.npu.memory_stats
    for number in range(40):  # what is made once: caches, kernels
        one_round(number, torch)
    gc.collect()
    allocated, (_, _, blocks), before = torch.npu.memory_allocated(), faults.memory(), resident()
    made = statistics()["allocation.all.allocated"]
    number = 0
    while statistics()["allocation.all.allocated"] - made < 10_000:
        one_round(number, torch)
        number += 1
        assert number < 2000
    gc.collect()
    torch.npu.synchronize()
    assert torch.npu.memory_allocated() == allocated
    assert faults.memory()[2] <= blocks
    assert resident() - before < 8 * MIB
    made = statistics()["allocation.all.allocated"] - made
    print(f"{number} rounds, {made} allocations, {(resident() - before) / MIB:.1f} MiB")


def test_the_cache_of_the_allocator_is_given_back():
    import torch

    from npudiff.device.virtual import faults

    gc.collect()
    torch.npu.empty_cache()
    used, blocks = faults.memory()[1:]
    held = [torch.ones(1000, 1000, device="npu") for _ in range(20)]
    assert faults.memory()[1] - used >= 20 * 4_000_000
    assert torch.npu.memory_allocated() >= 20 * 4_000_000
    del held
    gc.collect()
    torch.npu.empty_cache()
    assert faults.memory()[1:] == (used, blocks)


def test_a_leak_would_be_seen():
    """A tensor that is kept is in the allocator's figures."""
    import torch

    before = torch.npu.memory_allocated()
    kept = torch.ones(1000, device="npu") + 1
    assert torch.npu.memory_allocated() - before >= kept.numel() * 4


def test_errors_inside_an_operator_leave_nothing_behind():
    import torch

    x, y = torch.ones(1000, device="npu"), torch.ones(7, device="npu")
    gc.collect()
    before = torch.npu.memory_allocated()
    for _ in range(200):
        with contextlib.suppress(RuntimeError):
            x.add(y)
        with contextlib.suppress(RuntimeError):
            torch.sort(x, out=(torch.empty(0, device="npu"), torch.empty(0, device="npu")))
    gc.collect()
    assert torch.npu.memory_allocated() == before
