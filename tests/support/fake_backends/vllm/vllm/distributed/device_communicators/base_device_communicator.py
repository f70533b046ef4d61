"""Collectives of a group of ranks."""

import torch
import torch.distributed as dist


class DeviceCommunicatorBase:
    """A group, with ``world_size`` and ``device_group``."""

    def all_gather(self, given, dim):
        """Tensors of all ranks, one after the other along an axis."""
        parts = [torch.empty_like(given) for _ in range(self.world_size)]
        dist.all_gather(parts, given.contiguous(), group=self.device_group)
        return torch.cat(parts, dim=dim)
