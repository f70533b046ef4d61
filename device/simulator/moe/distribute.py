"""What ``npu_moe_distribute_dispatch`` and ``npu_moe_distribute_combine`` of both versions have in common.

Sources: op-plugin's host code (wrapper), its documentation and that of aclnn (DOC), and sgl-kernel-npu's copy of the
kernels of version 2, ``csrc/deepep/ops/op_kernel`` (SOURCE). What A2 and A3 refuse is not the same; the profile says
which of them it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from npudiff.device.communicators import host_group
from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.profiles import active_profile

A2_WORLDS = (*range(2, 9), 16, 32, 64, 128, 192, 256, 384)
_MOST_EXPERTS = 1024
_MOST_SLOTS = 2048
_MOST_SHARED = 4


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Who takes part: the arguments that both operators have."""

    group_ep: str
    """The name of the communicator."""
    ep_world_size: int
    """How many ranks it has."""
    ep_rank_id: int
    """Which of them this is."""
    moe_expert_num: int
    """Routed experts of all ranks, redundant ones included."""
    x_active_mask: Tensor | None
    """bool [bs], those that are true first, or [bs, k]: what takes part."""
    expand_scales: Tensor | None = None
    expert_scales: Tensor | None
    group_tp: str
    tp_world_size: int
    """0 or 1."""
    tp_rank_id: int
    expert_shard_type: int
    """0: ranks with shared experts come first."""
    shared_expert_num: int
    """Shared experts."""
    shared_expert_rank_num: int
    """Ranks that have shared experts alone, as many of each."""
    global_bs: int
    """The most tokens of any rank, times the number of ranks; 0 where all have as many."""
    comm_alg: str = ""
    """"", ``fullmesh`` (A2), ``fullmesh_v1`` or ``fullmesh_v2`` (A3)."""
    zero_expert_num: int = 0
    copy_expert_num: int = 0
    const_expert_num: int = 0
    elastic_info: Tensor | None = None
    performance_info: Tensor | None = None

    @property
    def is_shared(self) -> bool:
        """Whether this rank has a shared expert alone."""
        return self.ep_rank_id < self.shared_expert_rank_num

    @property
    def experts_of_a_rank(self) -> int:
        """Routed experts of each rank that has any."""
        return self.moe_expert_num // (self.ep_world_size - self.shared_expert_rank_num)

    @property
    def local_experts(self) -> int:
        """Experts of this rank."""
        return 1 if self.is_shared else self.experts_of_a_rank

    @property
    def ranks_of_a_shared_expert(self) -> int:
        """Ranks with the same shared expert: of these, a token goes to one."""
        return self.shared_expert_rank_num // max(1, self.shared_expert_num)

    def shared_ranks_of(self, rank: int) -> list[int]:
        """Return the ranks to which all tokens of a rank go, one for each shared expert."""
        each = self.ranks_of_a_shared_expert
        return [number * each + rank % each for number in range(self.shared_expert_num)] if each else []

    def capacity(self, rows: int, k: int) -> int:
        """Return for how many rows this rank has memory."""
        world = self.ep_world_size
        of_all = self.global_bs or rows * world
        if self.is_shared:
            return of_all // world * -(-world // self.ranks_of_a_shared_expert)
        return of_all * min(self.experts_of_a_rank, k)

    def active(self, rows: int, k: int) -> Tensor:
        """Return which copies take part, bool [bs, k]."""
        mask = self.x_active_mask
        if mask is None:
            return torch.ones(rows, k, dtype=torch.bool)
        return mask if mask.dim() == 2 else mask.unsqueeze(1).expand(rows, k)


def check_host(check: ArgumentChecks, domain: Domain, rows: Tensor, expert_ids: Tensor) -> None:
    """Refuse what the wrapper refuses.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    code = ErrorCode.WRAPPER
    world, apart, shared = domain.ep_world_size, domain.shared_expert_rank_num, domain.shared_expert_num
    check.rank("expert_ids", expert_ids, 2, code=code)
    check.rank("x" if "dispatch" in check.operator else "expand_x", rows, 2, code=code)
    check.between("ep_rank_id", domain.ep_rank_id, 0, world - 1, code)
    check.between("shared_expert_rank_num", apart, 0, world - 1, code)
    legal = (shared, apart) in ((1, 0), (0, 0)) or (shared > 0 and apart >= shared and apart % shared == 0)
    if not legal:
        allowed = "shared_expert_rank_num that is a multiple of it, or 0 with 0 or 1"
        raise check.rejected("shared_expert_num", f"{shared} of {apart} ranks", allowed, code)


def check_domain(check: ArgumentChecks, domain: Domain, rows: int, hidden: int, expert_ids: Tensor) -> None:
    """Refuse what neither of the SoCs of the profile takes; ``rows`` are the tokens of this rank.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        What is legal and not simulated.
    """
    _check_values(check, domain, rows, expert_ids)
    soc = active_profile().moe_distribute_soc
    k = expert_ids.shape[1]
    limits = {"A2": _limits_of_a2, "A3": _limits_of_a3}
    reasons = {name: next(iter(limits[name](domain, rows, hidden, k)), None)
               for name in limits if soc in (name, "either")}  # fmt: skip
    if None in reasons.values():
        return
    masks_copies = domain.x_active_mask is not None and domain.x_active_mask.dim() == 2
    only_on_a3 = domain.shared_expert_rank_num > 0 or masks_copies or domain.comm_alg.startswith("fullmesh_v")
    wanted = "A3" if only_on_a3 and "A3" in reasons else next(iter(reasons))
    reason = reasons[wanted]
    if reason is not None:
        raise check.rejected(reason.argument, reason.given, f"{reason.allowed}, on {wanted}")


class Limit(NamedTuple):
    """Something that a SoC does not take."""

    argument: str
    given: object
    allowed: str


def _limits_of_a2(domain: Domain, rows: int, hidden: int, k: int) -> Iterator[Limit]:
    """Documentation of both interfaces, column A2, ``fullmesh``."""
    mask = domain.x_active_mask
    if domain.ep_world_size not in A2_WORLDS:
        yield Limit("ep_world_size", domain.ep_world_size, f"one of {', '.join(map(str, A2_WORLDS))}")
    if hidden % 32 or not 0 < hidden <= 10240:
        yield Limit("x", f"of width {hidden}", "multiples of 32 up to 10240")
    if not 0 < rows <= 256:
        yield Limit("x", f"of {rows} rows", "1 to 256 rows")
    if domain.shared_expert_rank_num:
        yield Limit("shared_expert_rank_num", domain.shared_expert_rank_num, "0")
    if mask is not None and mask.dim() != 1:
        yield Limit("x_active_mask", f"of rank {mask.dim()}", "rank 1")
    if domain.comm_alg not in ("", "fullmesh"):
        yield Limit("comm_alg", repr(domain.comm_alg), "'' or 'fullmesh'")
    if not 0 < k <= 16:
        yield Limit("expert_ids", f"of {k} columns", "1 to 16 columns")


def _limits_of_a3(domain: Domain, rows: int, hidden: int, k: int) -> Iterator[Limit]:
    """The same, column A3, without ``hierarchy``."""
    second = domain.comm_alg == "fullmesh_v2"
    most_rows, most_k = (256, 12) if second else (512, 16)
    slots = domain.experts_of_a_rank * domain.ep_world_size
    if not 2 <= domain.ep_world_size <= 768:
        yield Limit("ep_world_size", domain.ep_world_size, "2 to 768")
    if not 1024 <= hidden <= 8192:
        yield Limit("x", f"of width {hidden}", "1024 to 8192")
    if not 0 < rows <= most_rows:
        yield Limit("x", f"of {rows} rows", f"1 to {most_rows} rows")
    if domain.shared_expert_num > _MOST_SHARED:
        yield Limit("shared_expert_num", domain.shared_expert_num, f"0 to {_MOST_SHARED}")
    if slots > _MOST_SLOTS:
        yield Limit("moe_expert_num", f"{slots} slots of {domain.ep_world_size} ranks", f"at most {_MOST_SLOTS}")
    if domain.comm_alg not in ("", "fullmesh_v1", "fullmesh_v2"):
        yield Limit("comm_alg", repr(domain.comm_alg), "'', 'fullmesh_v1' or 'fullmesh_v2'")
    if not 0 < k <= most_k:
        yield Limit("expert_ids", f"of {k} columns", f"1 to {most_k} columns")


def _check_values(check: ArgumentChecks, domain: Domain, rows: int, expert_ids: Tensor) -> None:
    ranks = domain.ep_world_size - domain.shared_expert_rank_num
    k = expert_ids.shape[1]
    for name in ("zero_expert_num", "copy_expert_num", "const_expert_num"):
        if getattr(domain, name):
            raise check.not_simulated(name, getattr(domain, name), "0")
    if domain.performance_info is not None:
        raise check.not_simulated("performance_info", "given", "None")
    if domain.comm_alg == "hierarchy":
        raise check.not_simulated("comm_alg", "hierarchy", "one step from rank to rank")
    if domain.elastic_info is not None:
        raise check.rejected("elastic_info", "given", "None")
    check.choice("tp_world_size", domain.tp_world_size, (0, 1))
    check.choice("expert_shard_type", domain.expert_shard_type, (0,))
    check.dtype("expert_ids", expert_ids, "int32")
    check.shape("expert_ids", expert_ids, (rows, k), meaning="[bs, k]")
    check.between("moe_expert_num", domain.moe_expert_num, 1, _MOST_EXPERTS)
    if domain.moe_expert_num % ranks:
        raise check.rejected("moe_expert_num", domain.moe_expert_num, f"a multiple of {ranks}, the ranks with experts")
    check.between("expert_ids", k, 1, domain.moe_expert_num)
    mask = domain.x_active_mask
    if mask is not None:
        check.dtype("x_active_mask", mask, "bool")
        check.shape("x_active_mask", mask, (rows,), (rows, k), meaning="[bs] or [bs, k]")
        if mask.dim() == 1 and bool((mask[1:] & ~mask[:-1]).any()):
            raise UndefinedBehaviour(f"{check.operator}: x_active_mask is not true first: {mask.tolist()}")


_EQUAL = ("ep_world_size", "moe_expert_num", "shared_expert_num", "shared_expert_rank_num", "global_bs")


def check_alike(check: ArgumentChecks, domain: Domain, rows: int, hidden: int, k: int, mode: int) -> None:
    """Require what has to be the same on all ranks, and that differing numbers of rows are told.

    Hardware does not look; ranks then wait for each other, or read what was not written.

    Raises
    ------
    UndefinedBehaviour
        On every rank.
    """
    mine = [*(getattr(domain, name) for name in _EQUAL), hidden, k, mode, domain.x_active_mask is not None, rows]
    everybody = gathered(domain, torch.tensor(mine, dtype=torch.int64))
    for place, name in enumerate((*_EQUAL, "width of rows", "k", "quantisation")):
        if bool((everybody[:, place] != everybody[0, place]).any()):
            found = f"{name} is not the same on all ranks: {everybody[:, place].tolist()}"
            raise UndefinedBehaviour(f"{check.operator}: {found}")
    counts = everybody[:, -1]
    most, world = int(counts.max()), domain.ep_world_size
    if bool((counts != most).any()) and (not domain.global_bs or bool(everybody[:, -2].any())):
        why = "x_active_mask is given" if domain.global_bs else "global_bs is 0"
        raise UndefinedBehaviour(f"{check.operator}: ranks have {counts.tolist()} rows, and {why}")
    if domain.global_bs and (domain.global_bs % world or domain.global_bs < most * world):
        found = f"global_bs is {domain.global_bs}"
        raise UndefinedBehaviour(f"{check.operator}: {found}, and {world} ranks have up to {most} rows each")


def check_ids(check: ArgumentChecks, domain: Domain, expert_ids: Tensor, active: Tensor) -> None:
    """Require that experts exist, and that those of a token are different, where copies take part.

    Raises
    ------
    DeviceFault
        An expert that does not exist: its rank is none.
    UndefinedBehaviour
        Two copies of a token for one expert; SOURCE writes those of token 0 to one place, and counts both.
    """
    check.indices("expert_ids", expert_ids.masked_fill(~active, 0), domain.moe_expert_num, "experts")
    unique = torch.where(active, expert_ids, -1 - torch.arange(expert_ids.shape[1], dtype=torch.int32))
    ordered = unique.sort(dim=1).values
    again = (ordered[:, 1:] == ordered[:, :-1]).any(dim=1).nonzero()
    if len(again):
        token = int(again[0])
        raise UndefinedBehaviour(f"{check.operator}: token {token} has an expert twice: {expert_ids[token].tolist()}")


def gathered(domain: Domain, mine: Tensor) -> Tensor:
    """Return a row of each rank, in their order."""
    group = host_group(domain.group_ep)
    rows = mine.new_empty(domain.ep_world_size * len(mine))
    dist.all_gather_into_tensor(rows, mine, group=group)
    return rows.view(domain.ep_world_size, -1)


def exchanged(domain: Domain, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """Send so many rows to each rank, in their order, and return those that come, in the order of ranks."""
    group = host_group(domain.group_ep)
    shape = (sum(received), *rows.shape[1:])
    found = rows.new_empty(shape)
    dist.all_to_all_single(found, rows.contiguous(), list(received), list(sent), group=group)
    return found
