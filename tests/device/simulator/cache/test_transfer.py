"""Copies of caches and states between device and host, as sgl-kernel-npu's library makes them; what is refused."""

import pytest
import torch

from npudiff.device.simulator import DeviceFault, OperatorRejected
from npudiff.device.simulator.cache.transfer import D2H, H2D

LAYERS, DEVICE_PAGES, HOST_PAGES, PAGE = 3, 6, 5, 4
FROM, TO = [4, 0, 5], [1, 3, 0]


def numbers(*shape, seed=0, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slots(pages):
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


def caches(**spoil):
    return {
        "device_k": numbers(LAYERS, DEVICE_PAGES, PAGE, 2, 8),
        "host_k": numbers(HOST_PAGES, LAYERS, PAGE, 2, 8, seed=1),
        "device_v": numbers(LAYERS, DEVICE_PAGES, PAGE, 2, 16, seed=2),
        "host_v": numbers(HOST_PAGES, LAYERS, PAGE, 2, 16, seed=3),
        "device_indices": slots(FROM),
        "host_indices": slots(TO),
        "page_size": PAGE,
        "direct": D2H,
        "flags": 2,
    } | spoil


def transfer(given):
    assert torch.ops.npu.transfer_kv_dim_exchange(**given) is None


@pytest.mark.parametrize("direct", [H2D, D2H])
@pytest.mark.parametrize("letters", ["k", "kv"])
def test_pages_of_all_layers_are_copied_and_nothing_else(direct, letters):
    empty = {} if "v" in letters else {"device_v": torch.empty(0), "host_v": torch.empty(0)}
    given, before = caches(direct=direct, **empty), caches(**empty)
    transfer(given)
    for letter in letters:
        device, host = before[f"device_{letter}"], before[f"host_{letter}"]
        for page, other in zip(FROM, TO, strict=True):
            for layer in range(LAYERS):
                if direct == D2H:
                    host[other, layer] = device[layer, page]
                else:
                    device[layer, page] = host[other, layer]
    assert all(torch.equal(given[name], before[name]) for name in ("device_k", "host_k", "device_v", "host_v"))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("device_k", torch.empty(0)),
        ("device_k", numbers(LAYERS, DEVICE_PAGES, PAGE, 16)),
        ("device_k", numbers(LAYERS + 1, DEVICE_PAGES, PAGE, 2, 8)),
        ("host_k", numbers(HOST_PAGES, LAYERS, PAGE + 1, 2, 8)),
        ("device_v", numbers(LAYERS, DEVICE_PAGES, PAGE, 16)),
        ("device_indices", slots(FROM)[1:]),
        ("device_indices", slots([6, 0, 5])),
        ("host_indices", slots([5, 3, 0])),
        ("direct", 3),
        ("flags", 1),
    ],
)
def test_what_is_refused(argument, value):
    with pytest.raises(OperatorRejected, match=f": {argument} was"):
        transfer(caches(**{argument: value}))


@pytest.mark.parametrize(
    "spoil",
    [
        {"device_k": numbers(LAYERS, DEVICE_PAGES, PAGE, 2, 16)[..., ::2]},
        {"device_k": numbers(LAYERS, DEVICE_PAGES, PAGE, 2, 16)},
        {"device_k": numbers(LAYERS, DEVICE_PAGES, PAGE, 2, 8, dtype=torch.float16)},
        {"device_indices": slots([-1, 0, 5])},
    ],
)
def test_what_is_not_checked_is_a_fault(spoil):
    with pytest.raises(DeviceFault):
        transfer(caches(**spoil))


def states(permuted=False):
    """Return two states of a device, and their places on the host."""
    first = numbers(LAYERS, 7, 4, 2, dtype=torch.float32)
    first = first.mT.contiguous().mT if permuted else first
    host = torch.zeros(9, LAYERS, 1, 4, 2)
    return [first, numbers(LAYERS, 8, 3)], [host, torch.zeros(9, LAYERS, 1, 3, dtype=torch.bfloat16)]


def to_host(device, host, device_slots, host_slots, flags=2):
    torch.ops.npu.transfer_state_all_layer_direct_lf_pf(
        device, host, torch.tensor(device_slots), torch.tensor(host_slots), flags
    )


def to_device(src, dst, host_slots, device_slots, layer, flags=2):
    torch.ops.npu.transfer_state_per_layer_direct_pf_lf(
        src, dst, torch.tensor(host_slots), torch.tensor(device_slots), layer, flags
    )


def test_slots_of_all_layers_go_to_the_host():
    device, host = states()
    to_host(device, host, [6, 1], [0, 8])
    for one, other in zip(device, host, strict=True):
        wanted = torch.zeros_like(other)
        wanted[[0, 8], :, 0] = one[:, [6, 1]].transpose(0, 1)
        assert torch.equal(other, wanted)


@pytest.mark.parametrize("permuted", [False, True])
def test_a_round_trip_layer_by_layer_gives_the_same_bytes(permuted):
    device, host = states(permuted)
    before = [one.clone() for one in device]
    to_host(device, host, [6, 1, 2], [3, 4, 8])
    if permuted:
        assert not torch.equal(host[0][3, 0, 0], before[0][0, 6]), "bytes are copied as they lie"
    for one, other in zip(device, host, strict=True):
        one[:, [6, 1, 2]] = 0
        for layer in range(LAYERS):
            to_device(other, one[layer], [3, 4, 8], [6, 1, 2], layer)
    assert all(torch.equal(one, other) for one, other in zip(device, before, strict=True))


def test_a_slot_of_the_host_may_be_copied_twice_and_no_slot_is_nothing():
    (device, _), (host, _) = states()
    host[:] = numbers(*host.shape, seed=5, dtype=torch.float32)
    before = device.clone()
    to_device(host, device[1], [3, 3], [0, 2], 1)
    before[1, [0, 2]] = host[3, 1, 0]
    to_device(host, device[1], [], [], 1)
    to_host([device], [host], [], [])
    assert torch.equal(device, before)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"flags": 1}, "flags was 1"),
        ({"host_slots": [0, 1]}, "indices was"),
        ({"host_slots": [9]}, "host index 9 exceeds component slot count 9"),
        ({"device_slots": [7]}, "device index 7 exceeds component slot count 7"),
        ({"device_slots": [-1]}, "must be non-negative"),
        ({"layer": LAYERS}, "layer_id was 3"),
        ({"src": torch.zeros(9, LAYERS, 1, 4, 2).half()}, "device state was"),
        ({"src": torch.zeros(9, LAYERS, 2, 4, 2)}, "host state was"),
        ({"src": torch.zeros(9, LAYERS, 4, 2)}, "host state was"),
        ({"src": torch.zeros(0, LAYERS, 1, 4, 2)}, "host state was empty"),
        ({"src": torch.zeros(9, LAYERS, 1, 2, 4).mT}, "host state was not contiguous"),
        ({"dst": torch.zeros(7, 4, 4)[..., ::2]}, "physically dense"),
        ({"dst": torch.zeros(7, 5, 2)[:, :4]}, "slots 10 apart"),
    ],
)
def test_what_is_refused_of_states(spoil, said):
    call = {"src": torch.zeros(9, LAYERS, 1, 4, 2), "dst": torch.zeros(7, 4, 2), "host_slots": [0]}
    call |= {"device_slots": [0], "layer": 0}
    to_device(**call)
    with pytest.raises(OperatorRejected, match=said):
        to_device(**call | spoil)


def test_what_is_refused_of_several_states():
    device, host = states()
    for one, other in (([], []), (device, host[:1])):
        with pytest.raises(OperatorRejected, match="device_states was"):
            to_host(one, other, [0], [0])
    with pytest.raises(OperatorRejected, match="device index 7 exceeds component slot count 7"):
        to_host(device, host, [7], [0])
    with pytest.raises(OperatorRejected, match="device state component 1 was of 2 layers"):
        to_host([device[0], device[1][:2]], host, [0], [0])
