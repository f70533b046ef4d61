"""Names of groups of ranks, as operators take them, and the groups that their simulators communicate in."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist

_NPU = "npu"


def name_of(group: dist.ProcessGroup | None = None) -> str:
    """Return the name that operators take as ``group``, ``group_ep``, ``group_tp`` or ``hcom``.

    Parameters
    ----------
    group : ProcessGroup or None
        None for the group of all ranks. On a device its communicator is made if there is none yet, so that all its
        ranks have to ask.
    """
    chosen = dist.group.WORLD if group is None else group
    if chosen is None:
        raise RuntimeError("torch.distributed is not initialised in this process: there is no group of ranks")
    if dist.get_backend(chosen) != "hccl":
        return str(dist.distributed_c10d._world.pg_names[chosen])  # a group of Python's own has no other
    backend: Any = chosen._get_backend(torch.device(_NPU))
    return str(backend.get_hccl_comm_name(dist.get_rank(chosen)))


_host_groups: dict[str, dist.ProcessGroup] = {}
"""Groups beside those of a device, which communicate in the memory of the host, by the device's names."""


def host_group(name: str) -> dist.ProcessGroup:
    """Return a group of the ranks that a name stands for, whose tensors are on the CPU.

    All its ranks have to ask for it at the same point, as all call the operator that needs it.

    Raises
    ------
    RuntimeError
        If there is no such group in this process.
    """
    if name not in _host_groups:
        found = next((one for one in _groups() if name_of(one) == name), None)
        if found is None:
            raise RuntimeError(f"HCCL: no communicator is called {name!r} in this process")
        if dist.get_backend(found) != "hccl":
            return found
        ranks = dist.get_process_group_ranks(found)
        made = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        _host_groups[name] = cast("dist.ProcessGroup", made)
    return _host_groups[name]


def _groups() -> list[dist.ProcessGroup]:
    """The groups of this process."""
    return list(dist.distributed_c10d._world.pg_map)
