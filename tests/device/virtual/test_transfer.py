"""Copies between device and host on the virtual NPU: memory of the host is used where it is, and has to be pinned."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.virtual

PER_LAYER = "transfer_state_per_layer_direct_pf_lf"


def operator(name):
    return getattr(torch.ops.npu, name)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("indices", ["cpu", "npu"])
def test_pages_go_to_the_host_and_back(virtual_npu, values, indices):
    device = [numbers(3, 4, 2, 1, 8, seed=seed).npu() for seed in range(2)]
    host = [torch.zeros(5, 3, 2, 1, 8).pin_memory() for _ in range(2)]
    before = [one.cpu() for one in device]
    if not values:
        device[1], host[1] = torch.empty(0), torch.empty(0)
    slots = torch.tensor([6, 7, 0, 1]).to(indices), torch.tensor([2, 3, 8, 9]).to(indices)
    pairs = [one for pair in zip(device, host, strict=True) for one in pair]
    operator("transfer_kv_dim_exchange")(*pairs, *slots, 2, 2, 2)
    assert torch.equal(host[0][[1, 4]], before[0][:, [3, 0]].transpose(0, 1))
    for one in device[: 1 + values]:
        one.zero_()
    operator("transfer_kv_dim_exchange")(*pairs, *slots, 2, 1, 2)
    for one, other in list(zip(device, before, strict=True))[: 1 + values]:
        assert torch.equal(one.cpu()[:, [3, 0]], other[:, [3, 0]])
        assert not one.cpu()[:, [1, 2]].any()


def test_states_go_to_the_host_and_back(virtual_npu):
    device, host = numbers(3, 6, 2, 4).npu(), torch.zeros(5, 3, 1, 2, 4).pin_memory()
    before, slots = device.cpu(), (torch.tensor([5, 2]), torch.tensor([0, 4]))
    operator("transfer_state_all_layer_direct_lf_pf")([device], [host], *slots, 2)
    assert torch.equal(host[[0, 4], :, 0], before[:, [5, 2]].transpose(0, 1))
    device.zero_()
    for layer in range(3):
        operator(PER_LAYER)(host, device[layer], slots[1], slots[0], layer, 2)
    assert torch.equal(device.cpu()[:, [5, 2]], before[:, [5, 2]])
    assert not device.cpu()[:, [0, 1, 3, 4]].any()


def test_a_copy_waits_for_its_stream(virtual_npu):
    """What is behind an event that is not there yet is copied after it, as if the host had waited."""
    device, host = torch.zeros(1, 6, 2, 4).npu(), torch.zeros(5, 1, 1, 2, 4).pin_memory()
    with torch.npu.stream(torch.npu.Stream()):
        device += 1
        operator("transfer_state_all_layer_direct_lf_pf")([device], [host], torch.tensor([0]), torch.tensor([0]), 2)
    assert host[0].eq(1).all()


def test_memory_of_the_host_has_to_be_the_hosts_and_pinned(virtual_npu):
    device, host = torch.zeros(6, 2, 4).npu(), torch.zeros(5, 3, 1, 2, 4)
    slots = torch.tensor([0]), torch.tensor([0])
    with pytest.raises(RuntimeError, match="src must use pinned memory"):
        operator(PER_LAYER)(host, device, *slots, 0, 2)
    with pytest.raises(RuntimeError, match="src must be on CPU, got npu:0"):
        operator(PER_LAYER)(host.npu(), device, *slots, 0, 2)
    operator(PER_LAYER)(host.pin_memory(), device, *slots, 0, 2)
