"""Products that communicate, on two ranks of this host against sums by hand; and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from npudiff.device import targets
from npudiff.device.communicators import name_of
from npudiff.device.simulator.errors import NotSimulated, OperatorRejected
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.model.implementation import Implementation
from npudiff.properties.tensor_parallel import component
from npudiff.properties.tensor_parallel.case import TensorParallelCase
from npudiff.run.ranks import with_ranks

K, N = 256, 8
NPU = torch.ops.npu


@pytest.fixture
def on_ranks():
    """Run a function of rank and group name on each of some ranks; it fails by an assertion."""
    made = []

    def run(function, ranks=2):
        def checked(part, target):
            function(dist.get_rank(), name_of())
            return {"output": part.states.new_zeros(part.tokens, len(part.first.weight))}

        target = with_ranks(targets.sim(None), 30.0)
        made.append(target)
        with target.activate():
            subject = Subject(component, Implementation("tensor_parallel", "mine", checked), target)
            subject.run(component.inputs(TensorParallelCase(1, ranks)))

    yield run
    for target in made:
        target.on_ranks.close()


def whole(rows, columns, seed):
    return ((torch.arange(rows * columns) * 7 + 3 * seed) % 5 - 2).view(rows, columns)


def test_all_reduce_adds_bias_and_x3_of_every_rank(on_ranks):
    def check(rank, name):
        x, weight = whole(4, K, rank).half(), whole(K, N, rank + 1).half()
        bias, x3 = torch.full((N,), 1.0 + rank).half(), torch.full((4, N), 10.0).half()
        output = NPU.npu_mm_all_reduce_base(x, weight, name, bias=bias, x3=x3)
        right = sum(whole(4, K, r).double() @ whole(K, N, r + 1).double() + 11 + r for r in range(2))
        assert torch.equal(output.double(), right.half().double())

    on_ranks(check)


@pytest.mark.parametrize("token_scale", [False, True])
def test_all_reduce_of_integers(on_ranks, token_scale):
    def check(rank, name):
        x, weight = whole(4, K, rank).to(torch.int8), whole(K, N, rank + 1).to(torch.int8)
        scale = torch.full((N,), 2.0**-6)
        tokens = torch.tensor([1.0, 2.0, 0.5, 1.0]) if token_scale else None
        given = scale if token_scale else NPU.npu_trans_quant_param(scale)
        bias = torch.full((N,), 64, dtype=torch.int32)
        output = NPU.npu_mm_all_reduce_base(x, weight, name, bias=bias, dequant_scale=given, pertoken_scale=tokens)
        sums = sum(whole(4, K, r).double() @ whole(K, N, r + 1).double() + 64 for r in range(2))
        right = sums / 64 * (1 if tokens is None else tokens.double().unsqueeze(1))
        assert output.dtype == torch.float16
        assert torch.allclose(output.double(), right, rtol=2e-3, atol=0.02)

    on_ranks(check)


def test_all_reduce_of_weights_that_are_dequantised(on_ranks):
    def check(rank, name):
        x, weight = whole(1, 64, rank).bfloat16().unsqueeze(0), whole(64, N, 1).to(torch.int8)
        scale = torch.tensor([[1.0], [2.0]]).expand(2, N).bfloat16().contiguous()
        output = NPU.npu_mm_all_reduce_base(
            x, weight, name, antiquant_scale=scale, antiquant_offset=torch.ones_like(scale), antiquant_group_size=32
        )
        matrix = (weight.double() + 1) * scale.double().repeat_interleave(32, dim=0)
        right = sum(whole(1, 64, r).double() @ matrix for r in range(2))
        assert tuple(output.shape) == (1, 1, N)
        assert torch.allclose(output[0].double(), right, rtol=0.01, atol=4)

    on_ranks(check)


def test_each_rank_has_its_rows_of_the_sum(on_ranks):
    def check(rank, name):
        x, weight = whole(4, K, rank).half(), whole(K, N, rank + 1).half()
        output = NPU.npu_mm_reduce_scatter_base(x, weight, name, 2)
        right = sum(whole(4, K, r).double() @ whole(K, N, r + 1).double() for r in range(2))
        assert torch.equal(output.double(), right[2 * rank : 2 * rank + 2])
        scales = {"x1_scale": torch.full((4, 1), 0.5), "x2_scale": torch.full((1, N), 0.25)}
        whole_numbers = NPU.npu_mm_reduce_scatter_base(
            x.to(torch.int8), weight.to(torch.int8), name, 2, comm_mode="aiv", output_dtype=torch.float16, **scales
        )
        assert torch.equal(whole_numbers.double(), right[2 * rank : 2 * rank + 2] / 8)

    on_ranks(check)


def test_the_rows_of_all_ranks_are_multiplied_and_returned(on_ranks):
    def check(rank, name):
        weight = whole(K, N, rank).half()
        output, rows = NPU.npu_all_gather_base_mm(whole(2, K, rank).half(), weight, name, 2)
        everything = torch.cat([whole(2, K, r) for r in range(2)])
        assert torch.equal(rows.double(), everything.double())
        assert torch.equal(output.double(), everything.double() @ whole(K, N, rank).double())
        _, none = NPU.npu_all_gather_base_mm(rows[:2], weight, name, 2, gather_output=False)
        assert tuple(none.shape) == (0,)

    on_ranks(check)


def test_a_group_of_another_size_is_refused(on_ranks):
    def wrong_world(rank, name):
        NPU.npu_mm_reduce_scatter_base(whole(4, K, 0).half(), whole(K, N, 0).half(), name, 4)

    with pytest.raises(ImplementationRaised, match="2, the ranks of the group"):
        on_ranks(wrong_world)

    def three(rank, name):
        NPU.npu_mm_all_reduce_base(whole(4, K, 0).half(), whole(K, N, 0).half(), name)

    with pytest.raises(ImplementationRaised, match="a group of 1, 2, 4 or 8"):
        on_ranks(three, 3)


X, W = whole(4, K, 0).half(), whole(K, N, 0).half()
Q, V = X.to(torch.int8), W.to(torch.int8)


def refused(name, *given, match, error=OperatorRejected, **more):
    with targets.sim(None).activate():
        call = getattr(NPU, name)
        with pytest.raises(error, match=match):
            call(*given, **more)


@pytest.mark.parametrize(("given", "more", "match"), [
    ((X, W.unsqueeze(0)), {}, "rank 2"),
    ((X, W[1:]), {}, "K of x1 and x2 should be same"),
    ((X.float(), W.float()), {}, "float16 or bfloat16 or int8"),
    ((X[:0], W), {}, "a tensor with elements"),
    ((X, W), {"dequant_scale": torch.ones(N)}, "dequant_scale"),
    ((Q, V), {"antiquant_scale": torch.ones(N)}, "antiquant_scale"),
    ((Q, V), {}, "a tensor, with int8"),
    ((Q, V), {"dequant_scale": torch.ones(N)}, "int64 or bfloat16"),
    ((X, W), {"bias": torch.ones(N)}, "bias"),
    ((X, W), {"x3": torch.ones(3, N).half()}, "x3"),
    ((X, W), {"reduce_op": "max"}, "sum"),
    ((X, W), {"comm_turn": 1}, "comm_turn"),
    ((X, V), {"antiquant_scale": torch.ones(3, N).half(), "antiquant_group_size": 32}, "antiquant_scale"),
])  # fmt: skip
def test_what_all_reduce_refuses(given, more, match):
    refused("npu_mm_all_reduce_base", *given, "nobody", match=match, **more)


def test_sums_that_travel_as_integers_are_not_simulated():
    scales = {f"comm_quant_scale_{n}": torch.ones(N).half() for n in (1, 2)}
    refused("npu_mm_all_reduce_base", Q, V, "nobody", match="comm_quant", error=NotSimulated,
            dequant_scale=torch.ones(N).bfloat16(), **scales)  # fmt: skip


@pytest.mark.parametrize(("call", "given", "more", "match"), [
    ("npu_mm_reduce_scatter_base", (X, W, "nobody", 3), {}, "world_size should be in"),
    ("npu_mm_reduce_scatter_base", (X.unsqueeze(0), W, "nobody", 2), {}, "required to be 2D"),
    ("npu_mm_reduce_scatter_base", (X, W[1:], "nobody", 2), {}, "K-axis"),
    ("npu_mm_reduce_scatter_base", (X[:3], W, "nobody", 2), {}, "be divisible by world_size"),
    ("npu_mm_reduce_scatter_base", (X[:, 1:], W[1:], "nobody", 2), {}, "256 to 65534"),
    ("npu_mm_reduce_scatter_base", (Q, V, "nobody", 2), {"x2_scale": torch.ones(1, N)}, "quantization not supported"),
    ("npu_mm_reduce_scatter_base", (X, W, "nobody", 2), {"comm_mode": "ccu"}, "ai_cpu or aiv"),
    ("npu_mm_reduce_scatter_base", (X, W, "nobody", 2), {"reduce_op": "avg"}, "sum"),
    ("npu_all_gather_base_mm", (X, W, "nobody", 2), {"gather_index": 1}, "gather_index"),
    ("npu_all_gather_base_mm", (X[:, 1:], W[1:], "nobody", 2), {"comm_mode": "aiv"}, "256 to 65534"),
])  # fmt: skip
def test_what_the_others_refuse(call, given, more, match):
    refused(call, *given, match=match, **more)


def test_nobody_has_no_communicator():
    refused("npu_mm_all_reduce_base", X, W, "nobody", match="no communicator is called", error=RuntimeError)


def test_shapes_without_data():
    with targets.sim(None).activate():
        x, weight = X.to("meta"), W.to("meta")
        assert tuple(NPU.npu_mm_all_reduce_base(x, weight, "").shape) == (4, N)
        assert tuple(NPU.npu_mm_reduce_scatter_base(x, weight, "", 2).shape) == (2, N)
        output, rows = NPU.npu_all_gather_base_mm(x, weight, "", 2)
        assert (tuple(output.shape), tuple(rows.shape)) == ((8, N), (8, K))
