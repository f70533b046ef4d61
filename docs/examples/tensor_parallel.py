"""A layer that is split over ranks, and gives what the whole one gives. It runs on cards and on virtual NPUs alike.

    npudiff virtual --ranks 2 -- python docs/examples/tensor_parallel.py

Nothing in this file knows of npudiff. On a machine with CANN and two cards, run it with ``torchrun``.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch_npu
from torch import Tensor
from torch.nn import functional

HIDDEN, INTERMEDIATE, TOKENS = 64, 256, 5


def layer(states: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return states [tokens, hidden] after a gated layer: ``up`` [2 x width, hidden], ``down`` [hidden, width]."""
    return functional.linear(torch_npu.npu_swiglu(functional.linear(states, up)), down)


def main() -> None:
    """Compute the part of this rank, add those of all ranks, and compare with the whole layer on the host."""
    torch.npu.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("hccl")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(7)  # the same on all ranks
    states = torch.randn(TOKENS, HIDDEN, generator=generator)
    up = torch.randn(2, INTERMEDIATE, HIDDEN, generator=generator) / HIDDEN**0.5
    down = torch.randn(HIDDEN, INTERMEDIATE, generator=generator) / INTERMEDIATE**0.5

    own = up.chunk(ranks, dim=1)[rank].flatten(0, 1), down.chunk(ranks, dim=1)[rank]
    split = layer(states.npu(), *(part.npu() for part in own))
    dist.all_reduce(split)

    gate, value = (functional.linear(states.double(), part.double()) for part in up)
    whole = functional.linear(functional.silu(gate) * value, down.double())
    difference = (split.cpu() - whole).abs().max().float().npu()
    dist.all_reduce(difference, dist.ReduceOp.MAX)
    if rank == 0:
        name = torch.npu.get_device_name(0)
        print(f"{ranks} ranks on {name}, largest difference from float64 {difference.item():.1e}")
        group = dist.group.WORLD._get_backend(torch.device("npu"))
        print(f"communicator {group.get_hccl_comm_name(rank)}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
