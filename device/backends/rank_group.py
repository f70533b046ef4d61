"""A group of ranks as both backends' coordinators are: what their layers ask of one, over ``torch.distributed``.

The coordinators themselves make groups of several backends, streams and buffers of a device when an engine starts.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


class RankGroup:
    """Ranks of a group, and collectives among them.

    Parameters
    ----------
    group : ProcessGroup or None
        None for all ranks.
    name : str
        Under which a backend finds it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, name: str = "tp:0") -> None:
        self.device_group = self.cpu_group = dist.group.WORLD if group is None else group
        self.unique_name = name
        self.world_size, self.rank_in_group = dist.get_world_size(group), dist.get_rank(group)
        self.ca_comm = None

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(self.device_group)

    def all_reduce(self, rows: torch.Tensor) -> torch.Tensor:
        """Add up over ranks."""
        if self.world_size > 1:
            dist.all_reduce(rows, group=self.device_group)
        return rows

    def _all_reduce_in_place(self, rows: torch.Tensor) -> None:
        """Do so for an operator that knows the group by its name."""
        self.all_reduce(rows)

    def _all_reduce_out_place(self, rows: torch.Tensor) -> torch.Tensor:
        """Do so for an operator of vLLM, whose kernel is one of the CPU where vLLM does not know the device."""
        on_host = rows.device.type == "cpu" and dist.get_backend(self.device_group) == "hccl"
        total = rows.to(torch.device("npu", torch.accelerator.current_device_index())) if on_host else rows.clone()
        return self.all_reduce(total).to(rows.device)

    def all_gather_into_tensor(self, output: torch.Tensor, rows: torch.Tensor) -> None:
        """Gather rows of all ranks, one after the other."""
        dist.all_gather_into_tensor(output, rows, group=self.device_group)

    def all_gather(
        self, rows: torch.Tensor, dim: int = -1, output_tensor_list: list[torch.Tensor] | None = None
    ) -> torch.Tensor | None:
        """Gather along an axis, or into a list."""
        if output_tensor_list is not None:
            dist.all_gather(output_tensor_list, rows, group=self.device_group)
            return None
        if self.world_size == 1:
            return rows
        every = rows.new_empty(self.world_size, *rows.shape)
        dist.all_gather_into_tensor(every, rows.contiguous(), group=self.device_group)
        return torch.cat(tuple(every), dim=dim)

    def reduce_scatter_tensor(self, output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Add up over ranks, and have a part of the rows."""
        dist.reduce_scatter_tensor(output, rows, group=self.device_group)
        return output

    def reduce_scatter(self, rows: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Add up over ranks, and return a part along the first axis.

        Raises
        ------
        ValueError
            For another axis.
        """
        if dim != 0:
            raise ValueError(f"rows are scattered along axis 0, got {dim}")
        if self.world_size == 1:
            return rows
        own = rows.new_empty(len(rows) // self.world_size, *rows.shape[1:])
        return self.reduce_scatter_tensor(own, rows.contiguous())

    def all_to_all_single(self, output: torch.Tensor, rows: torch.Tensor) -> None:
        """Exchange equal parts."""
        dist.all_to_all_single(output, rows, group=self.device_group)
