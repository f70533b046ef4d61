"""The collectives of ranks without a device, by hand: rank r of n has the numbers r * 3 to r * 3 + 2."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from npudiff.model.component import ImplementationRaised
from npudiff.run.ranks import collectives

WIDTH = 3
both_sizes = pytest.mark.parametrize("ranks", [1, 3])


def whole():
    return torch.arange(dist.get_world_size() * WIDTH, dtype=torch.float32).view(-1, WIDTH)


def checks(ranked, ranks, function):
    """Run a function in each rank, which fails by an assertion."""

    def checked(part, target):
        function(part.rows.clone(), dist.get_rank(), dist.get_world_size())
        return ranked.total(part, target)

    ranked.subject(checked).run(ranked.inputs(ranks, WIDTH))


def test_the_backend_has_a_name_and_its_ranks_are_numbered(ranked):
    def function(own, rank, size):
        assert (dist.get_backend(), size) == (collectives.BACKEND, 3)
        assert own.tolist() == [[rank * 3.0, rank * 3.0 + 1, rank * 3.0 + 2]]

    checks(ranked, 3, function)


@both_sizes
@pytest.mark.parametrize(("operation", "wanted"), [
    ("SUM", torch.sum), ("MAX", torch.amax), ("MIN", torch.amin), ("PRODUCT", torch.prod), ("AVG", torch.mean),
])  # fmt: skip
def test_reductions(ranked, ranks, operation, wanted):
    def function(own, rank, size):
        dist.all_reduce(own, op=getattr(dist.ReduceOp, operation))
        assert own[0].tolist() == wanted(whole(), 0).tolist()

    checks(ranked, ranks, function)


def test_one_rank_has_what_is_reduced_to_it_and_the_others_have_theirs(ranked):
    def function(own, rank, size):
        before = own.clone()
        dist.reduce(own, dst=1)
        assert own.tolist() == (whole().sum(0, keepdim=True) if rank == 1 else before).tolist()

    checks(ranked, 3, function)


@both_sizes
def test_gathers(ranked, ranks):
    def function(own, rank, size):
        joined = torch.empty(size, WIDTH)
        dist.all_gather_into_tensor(joined, own)
        parts = [torch.empty(1, WIDTH) for _ in range(size)]
        dist.all_gather(parts, own)
        assert joined.tolist() == torch.cat(parts).tolist() == whole().tolist()

    checks(ranked, ranks, function)


def test_what_ranks_gather_may_have_different_sizes(ranked):
    def function(own, rank, size):
        parts = [torch.empty(peer) for peer in range(size)]
        dist.all_gather(parts, torch.full((rank,), float(rank)))
        assert [part.tolist() for part in parts] == [[], [1.0], [2.0, 2.0]]

    checks(ranked, 3, function)


@both_sizes
def test_scattered_reductions(ranked, ranks):
    def function(own, rank, size):
        mine, given = torch.empty(2), torch.arange(2.0 * size) + rank
        dist.reduce_scatter_tensor(mine, given)
        first = torch.empty(2)
        dist.reduce_scatter(first, list(given.chunk(size)))
        added = sum(range(size))
        assert mine.tolist() == first.tolist() == [2.0 * rank * size + added, (2.0 * rank + 1) * size + added]

    checks(ranked, ranks, function)


def test_rows_go_from_all_to_all_in_splits_some_of_which_are_empty(ranked):
    def function(own, rank, size):
        gives = [peer for peer in range(size)]  # noqa: C416 - to rank p as many rows as its number
        rows = torch.full((sum(gives), 2), float(rank))
        got = torch.empty(rank * size, 2)
        dist.all_to_all_single(got, rows, [rank] * size, gives)
        assert got[:, 0].tolist() == [float(peer) for peer in range(size) for _ in range(rank)]

    checks(ranked, 3, function)


@both_sizes
def test_rows_go_from_all_to_all_in_equal_parts(ranked, ranks):
    def function(own, rank, size):
        got = torch.empty(size)
        dist.all_to_all_single(got, torch.arange(float(size)) + 10 * rank)
        parts = [torch.empty(1) for _ in range(size)]
        dist.all_to_all(parts, [torch.tensor([peer + 10.0 * rank]) for peer in range(size)])
        assert got.tolist() == torch.cat(parts).tolist() == [rank + 10.0 * peer for peer in range(size)]

    checks(ranked, ranks, function)


def test_one_gives_to_all_and_all_to_one(ranked):
    def function(own, rank, size):
        given = torch.full((2,), float(rank))
        dist.broadcast(given, src=2)
        assert given.tolist() == [2.0, 2.0]
        mine = torch.empty(1)
        dist.scatter(mine, [torch.tensor([7.0 + peer]) for peer in range(size)] if rank == 1 else None, src=1)
        assert mine.tolist() == [7.0 + rank]
        parts = [torch.empty(1) for _ in range(size)] if rank == 0 else None
        dist.gather(mine, parts, dst=0)
        assert parts is None or torch.cat(parts).tolist() == [7.0, 8.0, 9.0]

    checks(ranked, 3, function)


def test_messages_go_in_order_and_are_waited_for_when_they_are_needed(ranked):
    def function(own, rank, size):
        before, after = (rank - 1) % size, (rank + 1) % size
        got = [torch.empty(1), torch.empty(1)]
        waits = [dist.irecv(one, src=before) for one in got]  # before anybody has sent
        for number in (1.0, 2.0):
            dist.send(torch.tensor([number + 10 * rank]), dst=after)
        for wait in waits:
            wait.wait()
        assert torch.cat(got).tolist() == [1.0 + 10 * before, 2.0 + 10 * before]

    checks(ranked, 3, function)


def test_more_is_sent_than_a_line_holds(ranked):
    def function(own, rank, size):
        parts = [torch.empty(2**20) for _ in range(size)]  # 4 MB from each to each
        dist.all_gather(parts, torch.full((2**20,), float(rank)))
        assert [float(part.sum()) for part in parts] == [peer * 2.0**20 for peer in range(size)]

    checks(ranked, 3, function)


def test_groups_of_some_ranks(ranked):
    def function(own, rank, size):
        pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        dist.all_reduce(own, group=pairs[rank % 2])
        mates = [0, 2] if rank % 2 == 0 else [1, 3]
        assert own[0].tolist() == whole()[mates].sum(0).tolist()

    checks(ranked, 4, function)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int32, torch.int64, torch.bfloat16, torch.float64])
def test_dtypes_keep_their_bits(ranked, dtype):
    def function(own, rank, size):
        given = torch.tensor([[1, 0, rank % 2]]).to(dtype)
        joined = torch.empty(size, 3, dtype=dtype)
        dist.all_gather_into_tensor(joined, given)
        assert joined[:, 2].tolist() == torch.tensor([0, 1, 0]).to(dtype).tolist()
        dist.all_reduce(given)
        assert given.dtype == dtype
        assert given[0, 0] == torch.tensor(3).to(dtype)

    checks(ranked, 3, function)


def test_a_sum_is_rounded_after_each_addition_and_all_ranks_have_the_same_bits(ranked):
    def function(own, rank, size):
        given = torch.full((3,), (256.0, 1.0, 1.0)[rank], dtype=torch.bfloat16)  # 257 is no bfloat16, 258 is
        dist.all_reduce(given)
        # Element e ends at rank e: it begins with the rank after that. 256 + 1 + 1 = 256, and 1 + 1 + 256 = 258.
        assert given.tolist() == [258.0, 256.0, 256.0]

    checks(ranked, 3, function)


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda own: dist.all_reduce(own.to(torch.int32), op=dist.ReduceOp.BOR), "Cannot use ReduceOp.BOR with HCCL"),
    (lambda own: dist.all_reduce(own.to(torch.int32), op=dist.ReduceOp.AVG), "ReduceOp.AVG with torch.int32"),
    (lambda own: dist.all_reduce(own.expand(2, -1).t()), "Tensors must be contiguous"),
    (lambda own: dist.all_to_all_single(own, own), "has 1 rows, which 2 ranks do not divide"),
    (lambda own: dist.all_to_all_single(own, own, [1, 1], [1, 0]), r"output splits \[1, 1\] of 2 ranks, and 1 rows"),
    (lambda own: dist.all_to_all_single(own, own, [1, 0], [1, 0]), "what rank [01] gives has"),
    (lambda own: dist.all_gather([own], own), "all_gather of 2 ranks into 1 tensors"),
    (lambda own: dist.reduce_scatter_tensor(own.clone(), own), "reduce_scatter over 2 ranks of"),
])  # fmt: skip
def test_what_a_device_refuses(ranked, wrong, said):
    with pytest.raises(ImplementationRaised, match=said):
        checks(ranked, 2, lambda own, rank, size: wrong(own))
