"""sglang among several ranks: its groups and sizes, where its layers look for them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from unittest import mock

import torch.distributed as dist
from sglang.srt import runtime_context
from sglang.srt.distributed import parallel_state

from npudiff.device.backends.rank_group import RankGroup
from npudiff.device.backends.sglang.world import configured


@contextlib.contextmanager
def all_ranks(attention: dist.ProcessGroup | None = None, attention_ranks: int = 0) -> Iterator[RankGroup]:
    """Let sglang be one of the ranks of a case, for a moment.

    Parameters
    ----------
    attention : ProcessGroup or None
        The ranks of the own data-parallel group; None where there is one alone, of all ranks.
    attention_ranks : int
        How many those are; 0 for all.
    """
    configured()
    rank, size = dist.get_rank(), dist.get_world_size()
    width = attention_ranks or size
    group = RankGroup()
    own = RankGroup(attention, "attn_tp:0") if attention is not None else group
    if width == 1:
        own = _of_one()
    sizes = {
        "tp_size": size, "tp_rank": rank, "attn_tp_size": width, "attn_tp_rank": rank % width,
        "attn_dp_size": size // width, "attn_dp_rank": rank // width, "moe_tp_size": size, "moe_tp_rank": rank,
    }  # fmt: skip
    by_name = {group.unique_name: weakref.ref(group)}
    with (
        mock.patch.dict(parallel_state._groups, by_name),
        runtime_context.get_parallel().override(**sizes, tp_group=group, attn_tp_group=own),
    ):
        yield group


def _of_one() -> RankGroup:
    """A group of one rank, which no communicator is made for."""
    group = object.__new__(RankGroup)
    group.device_group = group.cpu_group = None
    group.unique_name, group.world_size, group.rank_in_group, group.ca_comm = "attn_tp:0", 1, 0, None
    return group
