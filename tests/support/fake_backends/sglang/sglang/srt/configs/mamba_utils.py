"""Sizes of the states of linear attention."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


@dataclass
class Mamba2StateDType:
    conv: torch.dtype
    temporal: torch.dtype


class Mamba2StateShape:
    @staticmethod
    def create(*, tp_world_size, intermediate_size, n_groups, num_heads, head_dim, state_size, conv_kernel):
        channels = intermediate_size + 2 * n_groups * state_size
        return SimpleNamespace(conv=[(channels, conv_kernel - 1)], temporal=(num_heads, head_dim, state_size))


@dataclass
class Mamba2CacheParams:
    shape: Any
    dtype: Mamba2StateDType
    layers: list[int]
