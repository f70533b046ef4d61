"""A program of several ranks: each checks what torch.distributed gives over HCCL against integer arithmetic by hand.

``npudiff virtual --ranks 3 -- python rank_program.py`` runs all checks, or those that are named.
"""

from __future__ import annotations

import os
import sys
import warnings

import pytest
import torch
import torch.distributed as dist

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
EVERYBODY = range(WORLD)
DEVICE = torch.device("npu", int(os.environ["LOCAL_RANK"]))
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
MOVED = (*FLOATS, *INTEGERS, torch.float64, torch.uint8, torch.bool)
NO_PRODUCTS = (torch.int16, torch.bfloat16)
SIZE = 37


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.device == DEVICE, found.device
    found = found.cpu()
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    assert torch.equal(found, expected), f"rank {RANK}: {found.tolist()} is not {expected.tolist()}"


def row(rank: int, dtype: torch.dtype = torch.int64, size: int = SIZE) -> torch.Tensor:
    return ((torch.arange(size) * 3 + rank * 5) % 7 - 2 * (dtype not in (torch.uint8, torch.bool))).to(dtype)


REDUCTIONS = {
    dist.ReduceOp.SUM: lambda rows: rows.sum(0),
    dist.ReduceOp.PRODUCT: lambda rows: rows.prod(0),
    dist.ReduceOp.MAX: lambda rows: rows.amax(0),
    dist.ReduceOp.MIN: lambda rows: rows.amin(0),
}


def reductions() -> None:
    for dtype in (*FLOATS, *INTEGERS):
        for reduction, by_hand in REDUCTIONS.items():
            if reduction == dist.ReduceOp.PRODUCT and dtype in NO_PRODUCTS:
                continue
            expected = by_hand(torch.stack([row(rank) for rank in EVERYBODY])).to(dtype)
            everywhere = row(RANK, dtype).to(DEVICE)
            dist.all_reduce(everywhere, reduction)
            same(everywhere, expected)
            at_one = row(RANK, dtype).to(DEVICE)
            dist.reduce(at_one, WORLD - 1, reduction)
            if RANK == WORLD - 1:
                same(at_one, expected)
            parts = torch.cat([row(RANK + 2 * peer, dtype) for peer in EVERYBODY]).to(DEVICE)
            share = torch.empty(SIZE, dtype=dtype, device=DEVICE)
            dist.reduce_scatter_tensor(share, parts, reduction)
            same(share, by_hand(torch.stack([row(rank + 2 * RANK) for rank in EVERYBODY])).to(dtype))


def refusals() -> None:
    """In torch_npu's words, or with HCCL's code."""
    ones = torch.ones(3, device=DEVICE)
    for act, said in (
        (lambda: dist.all_reduce(ones, dist.ReduceOp.BAND), "Cannot use ReduceOp.BAND with HCCL"),
        (lambda: dist.all_reduce(torch.ones(3, 3, device=DEVICE).t()[:2]), "Tensors must be contiguous"),
        (lambda: dist.all_reduce(torch.ones(3, dtype=torch.float64, device=DEVICE)), "Unsupported data type"),
        (lambda: dist.all_reduce(ones.bfloat16(), dist.ReduceOp.PRODUCT), "code is 5"),
        (lambda: dist.all_reduce(torch.ones(3)), "No backend type associated with device type cpu"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=said):
            act()


def averages_and_truths() -> None:
    averaged = torch.full((3,), 3.0 * RANK, device=DEVICE)
    dist.all_reduce(averaged, dist.ReduceOp.AVG)
    same(averaged, torch.full((3,), 3.0 * sum(EVERYBODY) / WORLD))
    truths = torch.tensor([False, RANK == 0, True], device=DEVICE)
    dist.all_reduce(truths)
    same(truths, torch.tensor([False, True, True]))


def moves() -> None:
    for dtype in MOVED:
        own = row(RANK, dtype).to(DEVICE)
        whole = torch.empty(SIZE * WORLD, dtype=dtype, device=DEVICE)
        dist.all_gather_into_tensor(whole, own)
        same(whole, torch.cat([row(rank, dtype) for rank in EVERYBODY]))
        parts = [torch.empty(SIZE, dtype=dtype, device=DEVICE) for _ in EVERYBODY]
        dist.all_gather(parts, own)  # padded to 32 bytes
        for rank, part in enumerate(parts):
            same(part, row(rank, dtype))
        dist.broadcast(own, WORLD - 1)
        same(own, row(WORLD - 1, dtype))
        got = torch.empty(SIZE, dtype=dtype, device=DEVICE)
        dist.scatter(got, [row(rank, dtype).to(DEVICE) for rank in EVERYBODY] if RANK == 0 else None, src=0)
        same(got, row(RANK, dtype))
    gathered = [torch.empty(SIZE, device=DEVICE) for _ in EVERYBODY] if RANK == 0 else None
    dist.gather(row(RANK, torch.float32).to(DEVICE), gathered, 0)
    for rank, part in enumerate(gathered or ()):
        same(part, row(rank, torch.float32))


def unequal_sizes() -> None:
    parts = [torch.empty(rank + 1, device=DEVICE) for rank in EVERYBODY]
    dist.all_gather(parts, torch.full((RANK + 1,), float(RANK), device=DEVICE))
    for rank, part in enumerate(parts):
        same(part, torch.full((rank + 1,), float(rank)))


def split(sender: int, receiver: int) -> int:
    return (sender + receiver) % 3


def all_to_all() -> None:
    data = (torch.arange(WORLD * 4) + 100 * RANK).float()
    result = torch.empty(WORLD * 4, device=DEVICE)
    dist.all_to_all_single(result, data.to(DEVICE))
    same(result, torch.cat([torch.arange(4) + 4 * RANK + 100 * rank for rank in EVERYBODY]).float())
    sent, got = [split(RANK, peer) for peer in EVERYBODY], [split(peer, RANK) for peer in EVERYBODY]
    data = torch.cat([torch.full((count, 2), 10.0 * RANK + peer) for peer, count in enumerate(sent)])
    result = torch.empty(sum(got), 2, device=DEVICE)
    dist.all_to_all_single(result, data.to(DEVICE), got, sent)
    same(result, torch.cat([torch.full((count, 2), 10.0 * peer + RANK) for peer, count in enumerate(got)]))
    results = [torch.empty(peer + 1, device=DEVICE) for peer in EVERYBODY]
    dist.all_to_all(results, [torch.full((RANK + 1,), 10.0 * RANK + peer, device=DEVICE) for peer in EVERYBODY])
    for peer, one in enumerate(results):
        same(one, torch.full((peer + 1,), 10.0 * peer + RANK))


def messages() -> None:
    for size in (5, 100_000):
        if RANK == 0:
            dist.send(torch.arange(size, device=DEVICE), 1)
        elif RANK == 1:
            got = torch.empty(size, dtype=torch.int64, device=DEVICE)
            dist.recv(got, 0)
            same(got, torch.arange(size))
    after, before = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    own, got = torch.full((4,), RANK, device=DEVICE), torch.empty(4, dtype=torch.int64, device=DEVICE)
    if WORLD > 2:  # every rank receives first: no device waits for another call of its own host
        works = [dist.irecv(got, before), dist.isend(own, after)]
        for work in works:
            work.wait()
        same(got * 2, torch.full((4,), 2 * before))
    got.zero_()
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, own, after), dist.P2POp(dist.irecv, got, before)]):
        work.wait()
    same(got, torch.full((4,), before))


def groups() -> None:
    some = dist.new_group([0, WORLD - 1])
    if RANK in (0, WORLD - 1):
        own = torch.full((3,), RANK + 1, device=DEVICE)
        dist.all_reduce(own, group=some)
        same(own, torch.full((3,), WORLD + 1))
    group = dist.group.WORLD._get_backend(torch.device("npu"))
    name = group.get_hccl_comm_name(RANK)
    names = [None] * WORLD
    dist.all_gather_object(names, name)
    assert 0 < len(name) < 128, name
    assert len(set(names)) == 1, names
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("npu", (WORLD,), mesh_dim_names=("tp",))
    assert mesh.get_local_rank() == RANK
    own = torch.full((3,), RANK, device=DEVICE)
    dist.all_reduce(own, group=mesh["tp"].get_group())
    same(own, torch.full((3,), sum(EVERYBODY)))


def objects() -> None:
    found = [None] * WORLD
    dist.all_gather_object(found, {"rank": RANK})
    assert found == [{"rank": rank} for rank in EVERYBODY]
    sent = [("from", RANK)]
    dist.broadcast_object_list(sent, 0)
    assert sent == [("from", 0)]


def gradients() -> None:
    """A model whose gradients are averaged has those of the whole batch, and the ranks stay the same."""
    torch.manual_seed(3)
    model, whole = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    whole.load_state_dict(model.state_dict())
    model.to(DEVICE)
    data = torch.randint(-4, 4, (2 * WORLD, 4)).float()
    model(data[2 * RANK : 2 * RANK + 2].to(DEVICE)).sum().backward()
    whole(data).sum().backward()
    for parameter, expected in zip(model.parameters(), whole.parameters(), strict=True):
        dist.all_reduce(parameter.grad)
        same(parameter.grad, expected.grad)  # sums of small integers


def large() -> None:
    for size in (1 << 18, (1 << 20) + 1):
        own = (torch.arange(size) % 1000 + RANK).to(DEVICE)
        dist.all_reduce(own)
        same(own, (torch.arange(size) % 1000) * WORLD + sum(EVERYBODY))


def asynchronous() -> None:
    """Kernels behind a collective that waits for another rank run after it, on any stream that waits for it."""
    import time

    own = torch.full((8,), RANK, device=DEVICE)
    if RANK == 1:
        time.sleep(1.5)
    work = dist.all_reduce(own, async_op=True)
    if RANK == 0:
        assert not work.is_completed()
    work.wait()
    doubled = own * 2 + 1
    same(doubled, torch.full((8,), 2 * sum(EVERYBODY) + 1))


def graph() -> None:
    """A collective within a graph runs at each replay, on what is in memory then."""
    own, shown = torch.zeros(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    dist.all_reduce(own)  # the communicator is made outside
    captured = torch.npu.NPUGraph()
    with torch.npu.graph(captured):
        doubled = own * 2
        dist.all_reduce(doubled)
        shown.copy_(doubled + 1)
    same(shown, torch.zeros(4))
    for value in (1.0, 5.0):
        own.fill_(value + RANK)
        captured.replay()
        same(shown, torch.full((4,), 2 * (WORLD * value + sum(EVERYBODY)) + 1))


CHECKS = (
    reductions, refusals, averages_and_truths, moves, unequal_sizes, all_to_all, messages, groups, objects, gradients,
    large, asynchronous, graph,
)  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    torch.npu.set_device(DEVICE)
    dist.init_process_group("hccl")
    for check in CHECKS:
        if not sys.argv[1:] or check.__name__ in sys.argv[1:]:
            check()
            dist.barrier()
            if RANK == 0:
                print(check.__name__, "holds", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
