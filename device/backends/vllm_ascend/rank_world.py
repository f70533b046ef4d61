"""vllm-ascend among several ranks: its groups, where its layers look for them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from types import ModuleType
from unittest import mock

from vllm.distributed import parallel_state

from npudiff.device.backends.rank_group import RankGroup
from npudiff.device.backends.vllm_ascend.world import patched


@contextlib.contextmanager
def groups_of(module: ModuleType, groups: Mapping[str, RankGroup], **values: object) -> Iterator[None]:
    """Let a module find groups by the functions that return them, and by their names, and other values.

    Parameters
    ----------
    module : module
        Of vllm-ascend.
    groups : mapping
        Name of a function of the module, such as ``get_tp_group``, to what it returns.
    values
        What else the module finds.
    """
    found = {name: mock.Mock(return_value=group) for name, group in groups.items()}
    names = {group.unique_name: weakref.ref(group) for group in groups.values()}
    with mock.patch.dict(parallel_state._groups, names), patched(module, {**found, **values}):
        yield
