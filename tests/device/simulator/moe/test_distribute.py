"""Dispatch and combine between ranks that are threads, against loops over single copies."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from npudiff.device.simulator import (
    PROFILES,
    DeviceFault,
    NotSimulated,
    OperatorRejected,
    UndefinedBehaviour,
    use_profile,
)
from npudiff.device.simulator.moe import distribute
from npudiff.device.simulator.norms.unwritten import unwritten


class Threads:
    """Ranks that are threads: what ``torch.distributed`` does of the calls that the kernels make."""

    def __init__(self, ranks):
        self.ranks, self.local = ranks, threading.local()
        self.barrier, self.given = threading.Barrier(ranks, timeout=20), [None] * ranks

    def _all(self, mine):
        self.given[self.local.rank] = mine
        self.barrier.wait()
        everybody = list(self.given)
        self.barrier.wait()
        return everybody

    def all_gather_into_tensor(self, output, mine, group):
        output.copy_(torch.cat(self._all(mine.clone())))

    def all_to_all_single(self, output, mine, received, sent, group):
        parts = [torch.split(rows, splits)[self.local.rank] for rows, splits in self._all((mine.clone(), sent))]
        assert [len(part) for part in parts] == received
        output.copy_(torch.cat(parts))

    def run(self, function):
        """Call a function of each rank's number in its thread; the first error of a rank is raised."""

        def of_rank(rank):
            self.local.rank = rank
            try:
                return function(rank)
            except Exception as error:  # noqa: BLE001 - it is raised below, once no rank waits for another
                self.barrier.abort()
                return error

        with ThreadPoolExecutor(self.ranks) as threads:
            answers = list(threads.map(of_rank, range(self.ranks)))
        errors = [one for one in answers if isinstance(one, Exception)]
        real = [one for one in errors if not isinstance(one, threading.BrokenBarrierError)]
        if errors:
            raise (real or errors)[0]
        return answers


@pytest.fixture
def over(monkeypatch):
    """Function of a number of ranks and a function to what each rank returns."""

    def run(ranks, function):
        world = Threads(ranks)
        monkeypatch.setattr(distribute, "dist", world)
        monkeypatch.setattr(distribute, "host_group", lambda name: {"ep": None}[name])
        return world.run(function)

    return run


def domain(rank, ranks, experts, **others):
    return {"group_ep": "ep", "ep_world_size": ranks, "ep_rank_id": rank, "moe_expert_num": experts, **others}


def scene(ranks, experts, *, rows=4, k=2, hidden=32, seed=0, dtype=torch.bfloat16, counts=None):
    """States, experts and weights of each rank."""
    generator = torch.Generator().manual_seed(seed)
    counts = counts or [rows] * ranks
    states = [torch.randn(count, hidden, generator=generator).to(dtype) for count in counts]
    ids = [torch.rand(count, experts, generator=generator).argsort(dim=1)[:, :k].int() for count in counts]
    weights = [torch.rand(count, k, generator=generator) for count in counts]
    return SimpleNamespace(states=states, ids=ids, weights=weights, ranks=ranks, experts=experts, k=k)


def rows_of(given, rank, apart=0, shared=1, masks=None):
    """Copies that come to a rank, by its experts, then by source, then as they are there: source, token, copy."""
    each = given.experts // (given.ranks - apart)
    found = []
    for expert in [0] if rank < apart else range((rank - apart) * each, (rank - apart + 1) * each):
        found.append([])
        for source, ids in enumerate(given.ids):
            for token, chosen in enumerate(ids.tolist()):
                mask = [True] * given.k if masks is None else masks[source][token].expand(given.k).tolist()
                if rank < apart and any(mask) and source % (apart // shared) == rank % (apart // shared):
                    found[-1].append((source, token, given.k + rank // (apart // shared)))
                found[-1] += [(source, token, copy) for copy, one in enumerate(chosen)
                              if rank >= apart and one == expert and mask[copy]]  # fmt: skip
    return found


V2 = ("npu_moe_distribute_dispatch_v2", "npu_moe_distribute_combine_v2")
V1 = ("npu_moe_distribute_dispatch", "npu_moe_distribute_combine")
both = pytest.mark.parametrize("names", [V1, V2], ids=["v1", "v2"])


def operators(names):
    return [getattr(torch.ops.npu, name) for name in names]


LAYOUTS = [
    pytest.param(2, 4, 0, 1, {}, id="two ranks"),
    pytest.param(3, 3, 0, 1, {"counts": [4, 1, 2]}, id="unequal"),
    pytest.param(4, 8, 0, 1, {"k": 4, "seed": 3}, id="four ranks"),
    pytest.param(4, 6, 1, 1, {"hidden": 1024}, id="a shared expert"),
    pytest.param(6, 4, 4, 2, {"hidden": 1024, "k": 3}, id="two shared experts"),
]


@pytest.mark.few(6)
@both
@pytest.mark.parametrize(("ranks", "experts", "apart", "shared", "sizes"), LAYOUTS)
@pytest.mark.parametrize("kind", [0, 1])
def test_rows_come_by_expert_then_rank_and_go_back(over, names, ranks, experts, apart, shared, sizes, kind):
    given = scene(ranks, experts, **sizes)
    counts = [len(states) for states in given.states]
    dispatch, combine = operators(names)
    others = {"shared_expert_num": shared, "shared_expert_rank_num": apart,
              "global_bs": max(counts) * ranks if len(set(counts)) > 1 else 0}  # fmt: skip

    def function(rank):
        args = domain(rank, ranks, experts, **others)
        sent = dispatch(given.states[rank], given.ids[rank], **args, expert_token_nums_type=kind)
        said = (sent[0].float() * (rank + 2)).bfloat16()
        back = combine(said, given.ids[rank], sent[2], sent[4], given.weights[rank], **args)
        return sent, back

    answers = over(ranks, function)
    each = experts // (ranks - apart)
    for rank, (sent, back) in enumerate(answers):
        groups = rows_of(given, rank, apart, shared)
        rows = [copy for group in groups for copy in group]
        assert [given.states[source][token].tolist() for source, token, _ in rows] == sent[0][: len(rows)].tolist()
        poison = unwritten((1,), sent[0].dtype)
        assert bool((sent[0][len(rows) :] == poison).all())
        sizes_of_groups = torch.tensor([len(group) for group in groups])
        assert torch.equal(sent[3], sizes_of_groups if kind else sizes_of_groups.cumsum(0))
        assert int(sent[4][-1]) == len(rows)
        assert bool((sent[1] == unwritten((1,), torch.float32)).all())
        for token, ids in enumerate(given.ids[rank].tolist()):
            total = torch.zeros(len(back[0]))
            for expert, weight in zip(ids, given.weights[rank][token], strict=True):
                owner = apart + expert // each
                total += weight * (given.states[rank][token].float() * (owner + 2)).bfloat16().float()
            for number in range(shared if apart else 0):
                server = number * (apart // shared) + rank % (apart // shared)
                total += (given.states[rank][token].float() * (server + 2)).bfloat16().float()
            assert torch.equal(back[token], total.bfloat16())


@both
def test_masked_tokens_go_nowhere_and_are_not_written_also_where_a_rank_has_no_other(over, names):
    given = scene(2, 4)
    masks = [torch.tensor([True, True, False, False]), torch.zeros(4, dtype=torch.bool)]
    given.ids[1][:] = 0  # what fills up may have an expert twice
    given.states[1][:] = torch.nan
    dispatch, combine = operators(names)

    def function(rank):
        args = domain(rank, 2, 4, x_active_mask=masks[rank])
        sent = dispatch(given.states[rank], given.ids[rank], **args, expert_token_nums_type=1)
        return sent, combine(sent[0], given.ids[rank], sent[2], sent[4], given.weights[rank], **args)

    answers = over(2, function)
    for rank, (sent, back) in enumerate(answers):
        groups = rows_of(given, rank, masks=masks)
        assert sent[3].tolist() == [len(group) for group in groups]
        assert bool((back[~masks[rank]] == unwritten((1,), back.dtype)).all())
    wanted = given.states[0][:2].float() * given.weights[0][:2].sum(dim=1, keepdim=True)
    assert torch.allclose(answers[0][1][:2].float(), wanted, rtol=2**-7)


def test_copies_can_be_masked_one_by_one(over):
    given = scene(2, 4, hidden=1024)
    masks = [torch.tensor([[True, False]] * 3 + [[True, True]]), torch.tensor([[False, True]] * 4)]
    dispatch, combine = operators(V2)

    def function(rank):
        args = domain(rank, 2, 4, x_active_mask=masks[rank])
        sent = dispatch(given.states[rank], given.ids[rank], **args, expert_token_nums_type=1)
        return sent, combine(sent[0], given.ids[rank], sent[2], sent[4], given.weights[rank], **args)

    for rank, (sent, back) in enumerate(over(2, function)):
        assert sent[3].tolist() == [len(group) for group in rows_of(given, rank, masks=masks)]
        weights = (given.weights[rank] * masks[rank]).sum(dim=1, keepdim=True)
        assert torch.allclose(back.float(), given.states[rank].float() * weights, rtol=2**-7)


@pytest.mark.parametrize("smooth", [False, True])
def test_int8_rows_by_their_largest(over, smooth):
    given = scene(2, 4)
    given.states[0][1] = 0.0
    scales = torch.rand(4, 32, generator=torch.Generator().manual_seed(9)) + 0.5 if smooth else None
    dispatch, _ = operators(V2)

    def function(rank):
        return dispatch(given.states[rank], given.ids[rank], **domain(rank, 2, 4), quant_mode=2, scales=scales)

    for rank, sent in enumerate(over(2, function)):
        assert sent[0].dtype == torch.int8
        row = 0
        for number, group in enumerate(rows_of(given, rank)):
            for source, token, _ in group:
                values = given.states[source][token].float() * (1.0 if scales is None else scales[2 * rank + number])
                largest = float(values.abs().max())
                assert float(sent[1][row]) == pytest.approx(largest / 127, rel=1e-6)
                assert sent[0][row].tolist() == [round(127 * float(one) / largest) if largest else 0 for one in values]
                row += 1


def test_shapes_of_what_is_returned(over):
    given = scene(4, 6, hidden=1024, k=3)
    others = {"shared_expert_rank_num": 1}

    def function(rank):
        args = domain(rank, 4, 6, **others)
        return [[list(one.shape) for one in operator(given.states[rank], given.ids[rank], tp_world_size=1, **args)]
                for operator in (operators(V1)[0], operators(V2)[0])]  # fmt: skip

    first, second = over(4, function)[1]
    room = 4 * 4 * 2  # rows of all ranks, and of each at most two for two experts
    assert second == [[room, 1024], [room], [room * 128], [2], [8], [1], [room]]
    assert first[2] == [12]
    shared = over(4, function)[0][1]
    assert shared[0] == [16, 1024]  # every rank's tokens
    assert shared[3:5] == [[1], [4]]
    with torch.device("meta"):
        states, ids = torch.empty(4, 1024, dtype=torch.bfloat16), torch.empty(4, 3, dtype=torch.int32)
    meta = operators(V2)[0](states, ids, tp_world_size=1, **domain(1, 4, 6, **others))
    assert [list(one.shape) for one in meta] == second


def called(over, given, ranks=2, experts=4, changed=None, of_rank=None, operator=V2[0]):
    """Call dispatch with something changed, of all ranks or of one."""

    def function(rank):
        mine = (changed or {}) if of_rank in (None, rank) else {}
        args = domain(rank, ranks, experts) | {"x": given.states[rank], "expert_ids": given.ids[rank]} | mine
        return getattr(torch.ops.npu, operator)(**args)

    return over(ranks, function)


LONG = scene(2, 4, hidden=1024)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ep_rank_id": 2}, "ep_rank_id was 2; allowed: 0 to 1"),
        ({"shared_expert_rank_num": 2}, "shared_expert_rank_num was 2; allowed: 0 to 1"),
        ({"shared_expert_num": 2, "shared_expert_rank_num": 1}, "shared_expert_num was 2 of 1 ranks"),
        ({"expert_token_nums_type": 2}, "expert_token_nums_type was 2"),
        ({"x": torch.ones(4, 32)}, "x was float32"),
        ({"x": torch.ones(4, 48).half()}, "x was of width 48; allowed: multiples of 32 up to 10240, on A2"),
        ({"expert_ids": torch.zeros(4, 2, dtype=torch.int64)}, "expert_ids was int64"),
        ({"moe_expert_num": 5}, "moe_expert_num was 5; allowed: a multiple of 2"),
        ({"quant_mode": 4}, "quant_mode was 4"),
        ({"scales": torch.ones(4, 32)}, "scales was given; allowed: None with quant_mode 0"),
        ({"scales": torch.ones(3, 32), "quant_mode": 2}, r"scales was of shape \[3, 32\]"),
        ({"tp_world_size": 2}, "tp_world_size was 2"),
        ({"elastic_info": torch.zeros(4, dtype=torch.int32)}, "elastic_info was given; allowed: None"),
        ({"comm_alg": "ring"}, "comm_alg was 'ring'"),
        ({"x_active_mask": torch.ones(3, dtype=torch.bool)}, r"x_active_mask was of shape \[3\]"),
        ({"x_active_mask": torch.ones(4, 2, dtype=torch.bool)}, "x was of width 32; allowed: 1024 to 8192, on A3"),
        ({"shared_expert_rank_num": 1}, "x was of width 32; allowed: 1024 to 8192, on A3"),
        ({"x": torch.ones(0, 32).half(), "expert_ids": torch.ones(0, 2).int()}, "x was of 0 rows; allowed: 1 to 256"),
    ],
)
def test_what_dispatch_refuses(over, changed, message):
    with pytest.raises(OperatorRejected, match=message):
        called(over, scene(2, 4), changed=changed)


@pytest.mark.parametrize("name", ["zero_expert_num", "copy_expert_num", "const_expert_num"])
def test_what_is_not_simulated_says_so(over, name):
    with pytest.raises(NotSimulated, match=name):
        called(over, scene(2, 4), changed={name: 1})


@pytest.mark.parametrize(("soc", "width", "allowed"), [("A2", 1024, True), ("A3", 1024, True), ("A3", 32, False)])
def test_a_profile_says_which_soc_it_is(over, soc, width, allowed):
    given = LONG if width == 1024 else scene(2, 4)

    def function(rank):  # profiles are of a thread
        with use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", moe_distribute_soc=soc)):
            return torch.ops.npu.npu_moe_distribute_dispatch_v2(
                given.states[rank], given.ids[rank], **domain(rank, 2, 4)
            )

    if allowed:
        over(2, function)
        return
    with pytest.raises(OperatorRejected, match="allowed: 1024 to 8192, on A3"):
        over(2, function)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"global_bs": 8}, r"global_bs is not the same on all ranks: \[0, 8\]"),
        ({"quant_mode": 2}, r"quantisation is not the same on all ranks: \[0, 2\]"),
        ({"x": torch.ones(2, 32).bfloat16(), "expert_ids": torch.tensor([[0, 1]] * 2).int()},
         r"ranks have \[4, 2\] rows, and global_bs is 0"),
    ],
)  # fmt: skip
def test_ranks_must_be_alike(over, changed, message):
    with pytest.raises(UndefinedBehaviour, match=message):
        called(over, scene(2, 4), changed=changed, of_rank=1)


def test_a_mask_does_not_go_with_unequal_rows(over):
    given = scene(2, 4, counts=[4, 2])
    masks = [torch.ones(4, dtype=torch.bool), torch.ones(2, dtype=torch.bool)]

    def function(rank):
        args = domain(rank, 2, 4, global_bs=8, x_active_mask=masks[rank])
        return torch.ops.npu.npu_moe_distribute_dispatch_v2(given.states[rank], given.ids[rank], **args)

    with pytest.raises(UndefinedBehaviour, match=r"ranks have \[4, 2\] rows, and x_active_mask is given"):
        over(2, function)


def test_the_rows_of_all_ranks_are_not_fewer_than_there_are(over):
    with pytest.raises(UndefinedBehaviour, match="global_bs is 6, and 2 ranks have up to 4 rows each"):
        called(over, scene(2, 4), changed={"global_bs": 6})


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, -1], DeviceFault, r"expert_ids\[1, 1\] is -1, there are 4 experts"),
        ([4, 0], DeviceFault, r"expert_ids\[1, 0\] is 4, there are 4 experts"),
        ([2, 2], UndefinedBehaviour, r"token 1 has an expert twice: \[2, 2\]"),
    ],
)
def test_experts_exist_and_are_different(over, ids, error, message):
    given = scene(2, 4)
    given.ids[0][1] = torch.tensor(ids)
    with pytest.raises(error, match=message):
        called(over, given)


def test_a_mask_has_its_trues_first(over):
    with pytest.raises(UndefinedBehaviour, match="x_active_mask is not true first"):
        called(over, scene(2, 4), changed={"x_active_mask": torch.tensor([True, False, True, False])})


def combining(over, given, change, names=V2):
    dispatch, combine = operators(names)

    def function(rank):
        args = domain(rank, given.ranks, given.experts)
        sent = dispatch(given.states[rank], given.ids[rank], **args)
        call = {"expand_x": sent[0], "expert_ids": given.ids[rank], "ep_send_counts": sent[4],
                "expert_scales": given.weights[rank], **args}  # fmt: skip
        call["expand_idx" if names == V1 else "assist_info_for_combine"] = sent[2]
        return combine(**(call | change(call)))

    return over(given.ranks, function)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda call: {"expert_scales": call["expert_scales"].half()}, OperatorRejected, "expert_scales was float16"),
        (lambda call: {"expand_x": call["expand_x"].float()}, OperatorRejected, "expand_x was float32"),
        (lambda call: {"comm_quant_mode": 2}, NotSimulated, "comm_quant_mode was 2"),
        (lambda call: {"ep_send_counts": call["ep_send_counts"][:1]}, OperatorRejected, "counts was of length 1"),
        (lambda call: {"ep_send_counts": call["ep_send_counts"].flip(0)}, DeviceFault, "do not end among"),
        (lambda call: {"assist_info_for_combine": torch.zeros_like(call["assist_info_for_combine"])},
         (UndefinedBehaviour, DeviceFault), "in vain|names rank, token and copy"),
        (lambda call: {"shared_expert_x": torch.ones(4, 32)}, OperatorRejected, "shared_expert_x was float32"),
    ],
)  # fmt: skip
def test_what_combine_refuses_and_what_it_waits_for(over, change, error, message):
    with pytest.raises(error, match=message):
        combining(over, scene(2, 4), change)


def test_ordinals_of_another_order_are_other_rows_or_none(over):
    given = scene(2, 2, k=1, rows=6)
    right = combining(over, given, lambda call: {}, V1)
    wrong = combining(over, given, lambda call: {"expand_idx": call["expand_idx"].clamp(max=0)}, V1)
    assert any(not torch.equal(one, other) for one, other in zip(right, wrong, strict=True))


@both
def test_a_shared_expert_of_each_rank_is_added_in_float32(over, names):
    given = scene(2, 4)
    extra = torch.randn(4, 32, generator=torch.Generator().manual_seed(4)).bfloat16()
    for rank, back in enumerate(combining(over, given, lambda call: {"shared_expert_x": extra}, names)):
        rows = given.states[rank].float()
        one, two = (given.weights[rank][:, copy : copy + 1] * rows for copy in range(2))
        assert torch.equal(back, ((one + two) + extra.float()).bfloat16())
