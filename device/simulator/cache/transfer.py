"""Copies of caches and states between device and host, which sgl-kernel-npu's library submits page by page.

Source: its host code (``csrc/transfer_kv_dim_exchange``, ``csrc/transfer_state_dim_exchange``) and tests. On the device
layers come first, on the host pages or slots; both are addressed by ``aclrtMemcpy2dAsync``, so that a page is a run of
bytes. What is written is not declared by the schemas.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, OperatorRejected

_KV = ArgumentChecks("transfer_kv_dim_exchange", default=ErrorCode.WRAPPER)
_TO_DEVICE = ArgumentChecks("transfer_state_per_layer_direct_pf_lf", default=ErrorCode.WRAPPER)
_TO_HOST = ArgumentChecks("transfer_state_all_layer_direct_lf_pf", default=ErrorCode.WRAPPER)

H2D, D2H = 1, 2
_FAST_2D = 2


def transfer_kv(
    device_k: Tensor,
    host_k: Tensor,
    device_v: Tensor,
    host_v: Tensor,
    device_indices: Tensor,
    host_indices: Tensor,
    page_size: int,
    direct: int,
    flags: int,
) -> None:
    """Copy pages of keys, and of values where there are any, of all layers.

    Parameters
    ----------
    device_k, device_v : Tensor
        [layers, device pages, page_size, heads, head dim]; the second may be empty.
    host_k, host_v : Tensor
        [host pages, layers, page_size, heads, head dim].
    device_indices, host_indices : Tensor
        int64, page_size slots of each page; the first of them says which page it is.
    page_size : int
        Tokens of a page.
    direct : int
        1: to the device, 2: to the host.
    flags : int
        With bit 1.

    Raises
    ------
    OperatorRejected
        A size or number is not one of the above.
    DeviceFault
        A page is outside of its tensor on the left, or bytes of a page do not lie in one run: they are copied as if.
    """
    _check_caches(device_k, host_k, "k", page_size)
    if device_indices.numel() != host_indices.numel() or device_indices.numel() % (page_size or 1):
        given = f"{device_indices.numel()} and {host_indices.numel()} of them"
        raise _KV.rejected("device_indices", given, f"as many as host_indices, pages of {page_size}")
    _KV.choice("direct", direct, (H2D, D2H))
    _check_flags(_KV, flags)
    pairs = [("k", device_k, host_k)]
    if device_v.numel() and host_v.numel():
        _check_caches(device_v, host_v, "v", page_size)
        pairs.append(("v", device_v, host_v))
    for on_device, on_host in zip(_pages(device_indices, page_size), _pages(host_indices, page_size), strict=True):
        for letter, device, host in pairs:
            _check_page(f"device_{letter}", on_device, device.shape[1])
            _check_page(f"host_{letter}", on_host, host.shape[0])
            if direct == D2H:
                host[on_host].copy_(device[:, on_device])
            else:
                device[:, on_device].copy_(host[on_host])


def state_to_device(
    src: Tensor, dst: Tensor, src_indices: Tensor, dst_indices: Tensor, layer_id: int, flags: int
) -> None:
    """Copy slots of one layer's state from the host.

    Parameters
    ----------
    src : Tensor
        [host slots, layers, 1, ...], contiguous, in pinned memory of the host.
    dst : Tensor
        [device slots, ...], of the same dtype; a slot is dense, in any order of its axes, whose strides are as they
        are: bytes are copied.
    src_indices, dst_indices : Tensor
        As many slots of each.
    layer_id : int
        Which layer of src.
    flags : int
        With bit 1.

    Raises
    ------
    OperatorRejected
        Dtype, shape, memory or index is not one of the above.
    """
    _check_pairs(_TO_DEVICE, src_indices, dst_indices, flags)
    if not src_indices.numel():
        return
    _check_state(_TO_DEVICE, dst.unsqueeze(0), src, "state", layers=None)
    _TO_DEVICE.between("layer_id", layer_id, 0, src.shape[1] - 1)
    on_host, on_device = _slots(_TO_DEVICE, [(dst.unsqueeze(0), src)], dst_indices, src_indices)
    for host, device in zip(on_host, on_device, strict=True):
        _bytes_of(dst[device]).copy_(src[host, layer_id].reshape(-1))


def states_to_host(
    device_states: Sequence[Tensor],
    host_states: Sequence[Tensor],
    device_indices: Tensor,
    host_indices: Tensor,
    flags: int,
) -> None:
    """Copy slots of all layers of some states to the host; the arguments are those of :func:`state_to_device`.

    ``device_states`` are [layers, device slots, ...], and have as many layers as ``host_states``.

    Raises
    ------
    OperatorRejected
        As :func:`state_to_device` does.
    """
    if not device_states or len(device_states) != len(host_states):
        given = f"{len(device_states)} with {len(host_states)} host_states"
        raise _TO_HOST.rejected("device_states", given, "as many, and one at least")
    _check_pairs(_TO_HOST, device_indices, host_indices, flags)
    if not device_indices.numel():
        return
    pairs = list(zip(device_states, host_states, strict=True))
    for number, (device, host) in enumerate(pairs):
        _check_state(_TO_HOST, device, host, f"state component {number}", layers=len(device_states[0]))
    on_host, on_device = _slots(_TO_HOST, pairs, device_indices, host_indices)
    for device, host in pairs:
        for source, target in zip(on_device, on_host, strict=True):
            for layer in range(len(device_states[0])):
                host[target, layer].view(-1).copy_(_bytes_of(device[layer, source]))


def nothing() -> None:
    """Return nothing."""


def _check_caches(device: Tensor, host: Tensor, letter: str, page_size: int) -> None:
    for name, tensor in ((f"device_{letter}", device), (f"host_{letter}", host)):
        _KV.not_empty(name, tensor)
        _KV.rank(name, tensor, 5)
        if tensor.shape[2] != page_size:
            raise _KV.rejected(name, f"of {tensor.shape[2]} tokens per page", f"page_size {page_size}")
        if not tensor[0, 0].is_contiguous():
            raise DeviceFault(f"{_KV.operator}: a page of {name} has gaps, strides {tensor.stride()}")
    if device.shape[0] != host.shape[1]:
        raise _KV.rejected(f"device_{letter}", f"of {device.shape[0]} layers", f"the {host.shape[1]} of host_{letter}")
    if device.shape[3:] != host.shape[3:] or device.dtype != host.dtype:
        found = f"{list(device.shape)} of {dtype_name(device)} and {list(host.shape)} of {dtype_name(host)}"
        raise DeviceFault(f"{_KV.operator}: pages of device_{letter} and host_{letter} differ, {found}")


def _pages(indices: Tensor, page_size: int) -> list[int]:
    numbers: list[int] = (indices.flatten()[::page_size] // page_size).tolist()
    return numbers


def _check_page(name: str, page: int, count: int) -> None:
    if page >= count:
        raise _KV.rejected("device_indices" if name[0] == "d" else "host_indices", f"of page {page}", f"{count} pages")
    if page < 0:
        raise DeviceFault(f"{_KV.operator}: page {page} of {name}, which has {count}")


def _check_flags(check: ArgumentChecks, flags: int) -> None:
    if not flags & _FAST_2D:
        raise check.rejected("flags", flags, f"{_FAST_2D}")


def _check_pairs(check: ArgumentChecks, one: Tensor, other: Tensor, flags: int) -> None:
    if one.numel() != other.numel():
        raise check.rejected("indices", f"{one.numel()} and {other.numel()} of them", "as many on device and host")
    _check_flags(check, flags)


def _check_state(check: ArgumentChecks, device: Tensor, host: Tensor, name: str, layers: int | None) -> None:
    """Refuse a state that is not [layers, device slots, ...] beside [host slots, layers, 1, ...]."""
    for where, tensor in (("device", device), ("host", host)):
        check.not_empty(f"{where} {name}", tensor)
    if device.dtype != host.dtype:
        raise check.rejected(f"device {name}", dtype_name(device), f"{dtype_name(host)}, as on the host")
    if layers is not None and layers > len(device):
        raise check.rejected(f"device {name}", f"of {len(device)} layers", f"the {layers} of the first one")
    wanted = (-1, host.shape[1] if layers is None else len(device), 1, *device.shape[2:])
    check.shape(f"host {name}", host, wanted, meaning="[host slots, layers, 1, ...]")
    if not host.is_contiguous():
        raise check.rejected(f"host {name}", f"not contiguous, strides {host.stride()}", "a contiguous tensor")
    elements = _dense(check, f"device {name}", device)
    if device.stride(1) != elements:
        raise check.rejected(f"device {name}", f"of slots {device.stride(1)} apart", f"contiguous slots of {elements}")


def _dense(check: ArgumentChecks, name: str, device: Tensor) -> int:
    """Return how many elements a slot has, whose bytes are one run, in any order of axes."""
    elements = 1
    axes = sorted(
        (device.stride(axis), device.shape[axis]) for axis in range(2, device.dim()) if device.shape[axis] > 1
    )
    for stride, size in axes:
        if stride != elements:
            words = f"slot payload must be physically dense; got payload stride {stride} while expecting {elements}"
            raise check.rejected(name, f"of strides {device.stride()}", "a slot without gaps", words=words)
        elements *= size
    return elements


def _slots(
    check: ArgumentChecks, pairs: Sequence[tuple[Tensor, Tensor]], of_device: Tensor, of_host: Tensor
) -> tuple[list[int], list[int]]:
    """Return slots on the host and on the device, which all states have."""
    limits = min(device.shape[1] for device, _ in pairs), min(len(host) for _, host in pairs)
    slots = [one.flatten().tolist() for one in (of_device, of_host)]
    for name, numbers, count in zip(("device index", "host index"), slots, limits, strict=True):
        for number in numbers:
            if not 0 <= number < count:
                raise _outside(check, name, number, count)
    return slots[1], slots[0]


def _outside(check: ArgumentChecks, name: str, number: int, count: int) -> OperatorRejected:
    words = f"{name} {number} exceeds component slot count {count}" if number >= 0 else "must be non-negative"
    return check.rejected(name, number, f"0 to {count - 1}", words=words)


def _bytes_of(slot: Tensor) -> Tensor:
    """View a dense slot as its elements lie in memory."""
    return slot.as_strided((slot.numel(),), (1,))
