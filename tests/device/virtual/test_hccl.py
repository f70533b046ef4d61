"""The stand-in for HCCL by itself: its functions called as torch_npu calls them, all ranks in one process."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
from ctypes import byref, c_char_p, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path

import pytest
import torch

from npudiff.device.virtual.build import FLAGS, SOURCES

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

OK, PARAMETER, NULL, NOT_SUPPORTED, TIMEOUT, RUNTIME, REMOTE = 0, 1, 2, 5, 9, 15, 21
TASK_TIMEOUT = 507048
SUM, PROD, MAX, MIN = range(4)
REDUCTIONS = {SUM: sum, PROD: math.prod, MAX: max, MIN: min}
REDUCED = {
    torch.int8: 0, torch.int16: 1, torch.int32: 2, torch.float16: 3, torch.float32: 4, torch.int64: 5,
    torch.bfloat16: 11,
}  # fmt: skip
MOVED = REDUCED | {
    torch.uint64: 6, torch.uint8: 7, torch.uint16: 8, torch.uint32: 9, torch.float64: 10, torch.float8_e4m3fn: 15,
    torch.float8_e5m2: 16, torch.float8_e8m0fnu: 17,
}  # fmt: skip
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is written there
STAGE = 1 << 20
"""Bytes that a rank shows the others at once."""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("hccl") / "libhccl.so"
    sources = [str(source) for source in SOURCES.glob("*.c")]
    subprocess.run([COMPILER, *FLAGS, "-Wpedantic", "-o", str(path), *sources, "-lpthread"], check=True)
    return path


@pytest.fixture(scope="module")
def runtime(library):
    """Load it, with eight devices, which are counted once."""
    before = os.environ.get("NPUDIFF_VIRTUAL_DEVICES")
    os.environ["NPUDIFF_VIRTUAL_DEVICES"] = "8"
    runtime = ctypes.CDLL(str(library))
    runtime.aclGetRecentErrMsg.restype = c_char_p
    runtime.npudiff_communicator.restype = c_void_p
    runtime.HcclGetErrorString.restype = c_char_p
    count = c_uint32()
    runtime.aclrtGetDeviceCount(byref(count))
    assert count.value == 8
    del os.environ["NPUDIFF_VIRTUAL_DEVICES"]
    if before is not None:
        os.environ["NPUDIFF_VIRTUAL_DEVICES"] = before
    return runtime


class Ranks:
    """All ranks of a communicator, a device each: calls are made for one after the other, and wait for each other."""

    def __init__(self, runtime, count):
        self.runtime, self.count = runtime, count
        self.handles, self.streams = (c_void_p * count)(), []
        runtime.aclrtSetDevice(0)
        assert runtime.HcclCommInitAll(count, (c_int32 * count)(*range(count)), self.handles) == OK
        for rank in range(count):
            stream = c_void_p()
            runtime.aclrtSetDevice(rank)
            runtime.aclrtCreateStream(byref(stream))
            self.streams.append(stream)

    def call(self, name, rank, *args):
        """Call a function for a rank; tensors and lists stand for their addresses."""
        self.runtime.aclrtSetDevice(rank)
        function = getattr(self.runtime, name)
        return function(*map(argument, args), c_void_p(self.handles[rank]), self.streams[rank])

    def each(self, name, arguments):
        """Call a function for each rank, with what a function gives for its number, and wait for all of them."""
        given = [arguments(rank) for rank in range(self.count)]
        for rank, args in enumerate(given):
            assert self.call(name, rank, *args) == OK, self.message()
        for rank in range(self.count):
            assert self.wait(rank) == OK, self.message()
        return given

    def wait(self, rank):
        self.runtime.aclrtSetDevice(rank)
        return self.runtime.aclrtSynchronizeStream(self.streams[rank])

    def message(self):
        return self.runtime.aclGetRecentErrMsg().decode()

    def destroy(self):
        self.runtime.npudiff_lose_device(0, b"")
        for rank in range(self.count):
            self.runtime.aclrtSetDevice(rank)
            self.runtime.HcclCommDestroy(c_void_p(self.handles[rank]))
            self.runtime.aclrtSynchronizeStream(self.streams[rank])
            self.runtime.aclrtDestroyStream(self.streams[rank])
        self.runtime.npudiff_lose_device(0, b"")
        self.runtime.aclGetRecentErrMsg()


def argument(value):
    if isinstance(value, torch.Tensor):
        return c_void_p(value.data_ptr())
    if isinstance(value, list):
        return (c_uint64 * len(value))(*value)
    return c_uint64(value) if value is not None else None


@pytest.fixture(params=[2, 3, 4])
def ranks(runtime, request):
    made = Ranks(runtime, request.param)
    yield made
    made.destroy()


@pytest.fixture
def two(runtime):
    made = Ranks(runtime, 2)
    yield made
    made.destroy()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("NPUDIFF_VIRTUAL_RANK_TIMEOUT", "0.2")


def values(rank, count=37):
    """Small integers, which every dtype has, and whose sums and products it has too."""
    return [(3 * place + 5 * rank) % 7 - 2 for place in range(count)]


def folded(reduction, rows):
    return [REDUCTIONS[reduction](column) for column in zip(*rows, strict=True)]


REDUCTION_CASES = [
    (dtype, reduction)
    for dtype in REDUCED
    for reduction in REDUCTIONS
    if reduction != PROD or dtype not in (torch.int16, torch.bfloat16)
]


@pytest.mark.few(26)
@pytest.mark.parametrize(("dtype", "reduction"), REDUCTION_CASES)
def test_reductions_are_those_of_integers(ranks, dtype, reduction):
    code, expected = REDUCED[dtype], folded(reduction, [values(rank) for rank in range(ranks.count)])

    def of_all(rank):
        return torch.tensor(values(rank), dtype=dtype), torch.zeros(37, dtype=dtype), 37, code, reduction

    for _, result, *_ in ranks.each("HcclAllReduce", of_all):
        assert result.tolist() == expected
    root = ranks.count - 1
    given = ranks.each("HcclReduce", lambda rank: (*of_all(rank), root))
    assert [args[1].tolist() for args in given] == [[0] * 37] * root + [expected]
    shares = [[values(rank + 2 * peer, 5) for peer in range(ranks.count)] for rank in range(ranks.count)]
    given = ranks.each(
        "HcclReduceScatter",
        lambda rank: (torch.tensor(shares[rank]).to(dtype), torch.zeros(5, dtype=dtype), 5, code, reduction),
    )
    for rank, args in enumerate(given):
        assert args[1].tolist() == folded(reduction, [share[rank] for share in shares])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_16_bit_floats_are_rounded_once(two, dtype):
    """Of all bit patterns: infinities, NaN, denormals. torch adds in float32 and rounds to nearest even."""
    one = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    other = one[torch.randperm(65536, generator=torch.Generator().manual_seed(1))]
    results = [torch.zeros_like(one), torch.zeros_like(one)]
    sends = [one.clone(), other.clone()]
    two.each("HcclAllReduce", lambda rank: (sends[rank], results[rank], one.numel(), REDUCED[dtype], SUM))
    expected = (one.float() + other.float()).to(dtype)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_many_ranks_are_in_the_order_of_ranks(ranks, dtype):
    generator = torch.Generator().manual_seed(ranks.count)
    rows = [torch.randn(1000, generator=generator).to(dtype) for _ in range(ranks.count)]
    given = ranks.each("HcclAllReduce", lambda rank: (rows[rank].clone(), rows[rank] * 0, 1000, REDUCED[dtype], SUM))
    total = rows[0].float()
    for row in rows[1:]:
        total = total + row.float()
    for args in given:
        assert torch.equal(args[1], total.to(dtype))


def test_integers_wrap_and_nan_is_the_largest_and_the_smallest(two):
    result = [torch.zeros(1, dtype=torch.int8) for _ in range(2)]
    two.each("HcclAllReduce", lambda rank: (torch.tensor([100], dtype=torch.int8), result[rank], 1, 0, SUM))
    assert [one.tolist() for one in result] == [[-56]] * 2
    for reduction in (MAX, MIN):
        rows = [torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.nan])]
        out = [torch.zeros(2) for _ in range(2)]
        two.each("HcclAllReduce", lambda rank, rows=rows, out=out, how=reduction: (rows[rank], out[rank], 2, 4, how))
        assert all(one.isnan().all() for one in out)


@pytest.mark.parametrize("count", [1, 8191, 8192, 8193, STAGE // 4 - 1, STAGE // 4, STAGE // 4 + 1, 1_000_003])
def test_sizes_around_the_borders_of_pieces(ranks, count):
    """What is reduced in shares begins at 32 KiB; a piece is 1 MiB."""
    base = torch.arange(count, dtype=torch.int32) % 1009
    rows = [base + rank for rank in range(ranks.count)]
    ranks.each("HcclAllReduce", lambda rank: (rows[rank], rows[rank], count, 2, SUM))  # in place
    whole = ranks.count * base + sum(range(ranks.count))
    assert all(torch.equal(row, whole) for row in rows)
    out = [torch.zeros(ranks.count, count, dtype=torch.int32) for _ in rows]
    ranks.each("HcclAllGather", lambda rank: (rows[rank] + rank, out[rank], count, 2))
    for one in out:
        assert torch.equal(one, torch.stack([whole + rank for rank in range(ranks.count)]))
    ranks.each("HcclAlltoAll", lambda rank: (out[rank] + 10 * rank, count, 2, out[rank], count, 2))
    for rank, one in enumerate(out):
        assert torch.equal(one, torch.stack([whole + rank + 10 * peer for peer in range(ranks.count)]))
    small = [torch.zeros(count, dtype=torch.int32) for _ in rows]
    ranks.each("HcclReduceScatter", lambda rank: (out[rank], small[rank], count, 2, MAX))
    for rank, one in enumerate(small):
        assert torch.equal(one, whole + 10 * rank + ranks.count - 1)


@pytest.mark.parametrize("dtype", MOVED)
def test_moves_keep_all_bits_of_every_dtype(ranks, dtype):
    generator = torch.Generator().manual_seed(3)
    width, code, count = dtype.itemsize, MOVED[dtype], 5

    def random(*sizes):
        return torch.randint(0, 256, (*sizes, width), generator=generator, dtype=torch.uint8)

    rows = [random(ranks.count, count) for _ in range(ranks.count)]
    outs = [torch.zeros_like(row) for row in rows]
    ranks.each("HcclAllGather", lambda rank: (rows[rank][rank], outs[rank], count, code))
    assert all(torch.equal(out, torch.stack([rows[peer][peer] for peer in range(ranks.count)])) for out in outs)
    ranks.each("HcclAlltoAll", lambda rank: (rows[rank], count, code, outs[rank], count, code))
    for rank, out in enumerate(outs):
        assert torch.equal(out, torch.stack([row[rank] for row in rows]))
    root = ranks.count - 1
    ranks.each("HcclScatter", lambda rank: (rows[rank] if rank == root else None, outs[rank], count, code, root))
    assert all(torch.equal(out[0], rows[root][rank]) for rank, out in enumerate(outs))
    copies = [row.clone() for row in rows]
    ranks.each("HcclBroadcast", lambda rank: (copies[rank], ranks.count * count, code, root))
    assert all(torch.equal(copy, rows[root]) for copy in copies)


def splits(sender, receiver):
    """How many elements a rank sends another one: none, few, and more than one piece for each rank takes."""
    return (0, 3, 1, 90_001)[(sender + 2 * receiver) % 4]


def places(counts):
    return [sum(counts[:place]) for place in range(len(counts))]


def test_forms_with_counts(ranks):
    everybody = range(ranks.count)
    sent = [[splits(rank, peer) for peer in everybody] for rank in everybody]
    got = [[splits(peer, rank) for peer in everybody] for rank in everybody]
    parts = [[torch.arange(sent[rank][peer]) + 1000 * rank + peer for peer in everybody] for rank in everybody]
    outs = [torch.zeros(sum(counts), dtype=torch.int64) for counts in got]
    given = [torch.cat(part) for part in parts]
    ranks.each(
        "HcclAlltoAllV",
        lambda rank: (given[rank], sent[rank], places(sent[rank]), 5, outs[rank], got[rank], places(got[rank]), 5),
    )
    for rank, out in enumerate(outs):
        assert torch.equal(out, torch.cat([parts[peer][rank] for peer in everybody]))
    matrix = [count for row in sent for count in row]
    ranks.each("HcclAlltoAllVC", lambda rank: (given[rank], matrix, 5, outs[rank].zero_(), 5))
    for rank, out in enumerate(outs):
        assert torch.equal(out, torch.cat([parts[peer][rank] for peer in everybody]))
    counts = [splits(rank, 1) for rank in everybody]
    rows = [torch.arange(counts[rank], dtype=torch.int32) + rank for rank in everybody]
    whole = [torch.zeros(sum(counts), dtype=torch.int32) for _ in everybody]
    ranks.each("HcclAllGatherV", lambda rank: (rows[rank], counts[rank], whole[rank], counts, places(counts), 2))
    assert all(torch.equal(one, torch.cat(rows)) for one in whole)
    shares = [torch.zeros(counts[rank], dtype=torch.int32) for rank in everybody]
    ranks.each(
        "HcclReduceScatterV",
        lambda rank: (whole[rank] + rank, counts, places(counts), shares[rank], counts[rank], 2, SUM),
    )
    for rank, share in enumerate(shares):
        assert torch.equal(share, ranks.count * rows[rank] + sum(everybody))


class Message(ctypes.Structure):
    """HcclSendRecvItem."""

    _fields_ = (
        ("receives", c_int32), ("buffer", c_void_p), ("count", c_uint64), ("dtype", c_int32), ("peer", c_uint32),
    )  # fmt: skip


def test_messages_of_any_size_arrive_in_their_order(two):
    for count in (1, 32_768, 32_769, 300_000):
        sent = [torch.arange(count, dtype=torch.int32) + start for start in (0, 7)]
        got = [torch.zeros(count, dtype=torch.int32) for _ in range(2)]
        for one in sent:
            assert two.call("HcclSend", 0, one, count, 2, 1) == OK
        for one in got:
            assert two.call("HcclRecv", 1, one, count, 2, 0) == OK
        assert two.wait(0) == two.wait(1) == OK
        assert all(torch.equal(*pair) for pair in zip(sent, got, strict=True))


def test_a_message_is_over_when_it_was_taken(two):
    state, sent, got = c_int32(), torch.ones(1), torch.zeros(1)
    assert two.call("HcclSend", 0, sent, 1, 4, 1) == OK
    two.runtime.aclrtStreamQuery(two.streams[0], byref(state))
    assert state.value == 1  # not ready
    assert two.call("HcclRecv", 1, got, 1, 4, 0) == OK
    assert two.wait(0) == two.wait(1) == OK
    assert got.tolist() == [1.0]


def test_a_batch_and_a_group_exchange_messages_at_once(ranks):
    everybody, count = range(ranks.count), 50_000
    for grouped in (False, True):
        sent = [torch.full((count,), rank) for rank in everybody]
        got = [torch.zeros(count, dtype=torch.int64) for _ in everybody]
        for rank in everybody:
            after, before = (rank + 1) % ranks.count, (rank - 1) % ranks.count
            if grouped:
                ranks.runtime.HcclGroupStart()
                assert ranks.call("HcclSend", rank, sent[rank], count, 5, after) == OK
                assert ranks.call("HcclRecv", rank, got[rank], count, 5, before) == OK
                assert ranks.runtime.HcclGroupEnd() == OK
                continue
            batch = (Message * 2)(
                Message(0, sent[rank].data_ptr(), count, 5, after), Message(1, got[rank].data_ptr(), count, 5, before)
            )
            ranks.runtime.aclrtSetDevice(rank)
            handle = c_void_p(ranks.handles[rank])
            assert ranks.runtime.HcclBatchSendRecv(batch, 2, handle, ranks.streams[rank]) == OK
        assert all(ranks.wait(rank) == OK for rank in everybody)
        assert [one.unique().tolist() for one in got] == [[(rank - 1) % ranks.count] for rank in everybody]
    assert ranks.runtime.HcclGroupEnd() == PARAMETER


def test_nothing_is_nothing(two):
    """HCCL returns at once where there is no element; a rank by itself does not wait."""
    assert two.call("HcclAllReduce", 0, None, None, 0, 4, SUM) == OK
    assert two.call("HcclSend", 0, None, 0, 4, 1) == OK
    assert two.wait(0) == OK


@pytest.mark.parametrize(
    ("name", "args", "result"),
    [
        ("HcclAllReduce", (1, 1, 1, 7, SUM), NOT_SUPPORTED),  # uint8
        ("HcclAllReduce", (1, 1, 1, 10, SUM), NOT_SUPPORTED),  # float64
        ("HcclAllReduce", (1, 1, 1, 1, PROD), NOT_SUPPORTED),  # int16
        ("HcclAllReduce", (1, 1, 1, 11, PROD), NOT_SUPPORTED),  # bfloat16
        ("HcclAllReduce", (1, 1, 1, 4, 4), NOT_SUPPORTED),
        ("HcclReduceScatter", (1, 1, 1, 6, MAX), NOT_SUPPORTED),
        ("HcclReduce", (1, 1, 1, 4, SUM, 2), PARAMETER),
        ("HcclAllGather", (1, 1, 1, 13), NOT_SUPPORTED),
        ("HcclAllGather", (None, 1, 1, 4), NULL),
        ("HcclBroadcast", (1, 1, 4, 2), PARAMETER),
        ("HcclSend", (1, 1, 4, 2), PARAMETER),
        ("HcclAlltoAll", (1, 1, 4, 1, 2, 4), PARAMETER),
    ],
)
def test_what_hccl_refuses(two, name, args, result):
    assert two.call(name, 0, *args) == result
    assert two.message()


def test_an_ascend_950_reduces_more(two, monkeypatch):
    monkeypatch.setenv("NPUDIFF_VIRTUAL_SOC", "Ascend950PR_9589")
    rows = [torch.tensor([0.5, 2.0], dtype=torch.float64) for _ in range(2)]
    two.each("HcclAllReduce", lambda rank: (rows[rank], rows[rank], 2, 10, PROD))
    assert [row.tolist() for row in rows] == [[0.25, 4.0]] * 2


def test_names_sizes_and_errors_are_told(two):
    name, size, rank, error = ctypes.create_string_buffer(128), c_uint32(), c_uint32(), c_int32(7)
    for number in range(2):
        handle = c_void_p(two.handles[number])
        assert two.runtime.HcclGetCommName(handle, name) == OK
        assert two.runtime.HcclGetRankSize(handle, byref(size)) == two.runtime.HcclGetRankId(handle, byref(rank)) == OK
        assert (size.value, rank.value) == (2, number)
        assert two.runtime.HcclGetCommAsyncError(handle, byref(error)) == error.value == OK
    assert name.value.startswith(b"group_")
    assert two.runtime.npudiff_communicator(name, byref(rank), byref(size))
    assert two.runtime.npudiff_communicator(b"another", byref(rank), byref(size)) is None
    assert two.runtime.HcclGetCommConfigCapability() >= 3
    assert two.runtime.HcclGetErrorString(TIMEOUT) == b"timeout"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (("HcclAllReduce", 1, 1, 4, 4, SUM), ("HcclAllReduce", 1, 1, 5, 4, SUM), "5 x float32"),
        (("HcclAllReduce", 1, 1, 4, 4, SUM), ("HcclAllReduce", 1, 1, 4, 2, SUM), "HcclAllReduce(sum, 4 x int32)"),
        (("HcclAllReduce", 1, 1, 4, 4, SUM), ("HcclAllReduce", 1, 1, 4, 4, MAX), "HcclAllReduce(max, 4 x float32)"),
        (("HcclBroadcast", 1, 4, 4, 0), ("HcclBroadcast", 1, 4, 4, 1), "HcclBroadcast(root 1, 4 x float32)"),
        (("HcclAllGather", 1, 1, 4, 4), ("HcclAllReduce", 1, 1, 4, 4, SUM), "HcclAllReduce(sum, 4 x float32)"),
    ],
)  # fmt: skip
def test_calls_that_differ_fail_and_name_both(two, first, second, said):
    buffers = [torch.zeros(64), torch.zeros(64)]

    def addressed(call):
        """Arguments whose value 1 stands first are buffers; a count of 1 is none of these."""
        pointers = 1 if call[0] == "HcclBroadcast" else 2
        return [buffers[place] if place < pointers else one for place, one in enumerate(call[1:])]

    assert two.call(first[0], 0, *addressed(first)) == OK
    assert two.call(second[0], 1, *addressed(second)) == RUNTIME
    for rank in range(2):
        assert two.wait(rank) == TASK_TIMEOUT
        message = two.message()
        assert "rank 0 calls " + first[0] in message
        assert f"and rank 1 {second[0]}" in message
        assert said in message
        error = c_int32()
        two.runtime.HcclGetCommAsyncError(c_void_p(two.handles[rank]), byref(error))
        assert error.value == TIMEOUT


def test_counts_that_do_not_fit_name_the_pair(two):
    data, zeros = torch.zeros(16), [0, 0]
    assert two.call("HcclAlltoAllV", 0, data, [1, 2], zeros, 4, data, [1, 3], zeros, 4) == OK
    two.call("HcclAlltoAllV", 1, data, [3, 1], zeros, 4, data, [4, 1], zeros, 4)
    assert two.wait(0) == TASK_TIMEOUT
    assert "counts of call 1 do not fit: rank 0 sends 2 elements to rank 1, which expects 4" in two.message()


def test_messages_that_differ_name_both(two):
    data = torch.zeros(16)
    assert two.call("HcclSend", 0, data, 4, 4, 1) == OK
    two.call("HcclRecv", 1, data, 4, 2, 0)
    for rank in (1, 0):
        assert two.wait(rank) == TASK_TIMEOUT
        assert "HcclSend(4 x float32 to rank 1), and rank 1 HcclRecv(4 x int32 from rank 0)" in two.message()


def test_a_rank_that_does_not_come_is_waited_for_as_long_as_was_said(runtime, impatient):
    ranks = Ranks(runtime, 3)
    data = [torch.zeros(4) for _ in range(3)]
    ranks.each("HcclBroadcast", lambda rank: (data[rank], 4, 4, 0))
    for rank in (0, 2):
        ranks.call("HcclAllReduce", rank, data[rank], data[rank], 4, 4, SUM)
    assert ranks.wait(0) == TASK_TIMEOUT
    message = ranks.message()
    assert "rank 0 in its call 2, HcclAllReduce(sum, 4 x float32): waited 0.2 s" in message
    assert "rank 1 is at call 1, HcclBroadcast(root 0, 4 x float32)" in message
    ranks.destroy()


def test_two_ranks_that_both_send_first_wait_for_each_other(runtime, impatient):
    """As on cards: a message is over when it was taken."""
    ranks = Ranks(runtime, 2)
    data = torch.zeros(4)
    for rank in range(2):
        ranks.call("HcclSend", rank, data, 4, 4, 1 - rank)
        ranks.call("HcclRecv", rank, data, 4, 4, 1 - rank)
    assert ranks.wait(0) == TASK_TIMEOUT
    assert "HcclSend(4 x float32 to rank 1): waited 0.2 s; rank 1" in ranks.message()
    ranks.destroy()


def test_a_rank_that_gave_up_is_not_waited_for(two):
    data = torch.zeros(4)
    two.call("HcclAllReduce", 0, data, data, 4, 4, SUM)
    two.runtime.aclrtSetDevice(0)
    two.runtime.npudiff_lose_device(507015, b"by a test")
    assert two.wait(0) == 507015
    two.runtime.aclrtSetDevice(1)
    assert two.runtime.aclrtSynchronizeDevice() == OK  # another device is not lost


def test_a_communicator_that_is_destroyed_ends_calls_that_wait(two):
    data = torch.zeros(4)
    assert two.call("HcclAllReduce", 0, data, data, 4, 4, SUM) == OK
    assert two.runtime.HcclCommDestroy(c_void_p(two.handles[0])) == OK
    assert two.wait(0) != OK
    assert two.call("HcclAllReduce", 0, data, data, 4, 4, SUM) == PARAMETER
    for result in (OK, TASK_TIMEOUT):  # what it had shown by then is there
        two.call("HcclAllReduce", 1, data, data, 4, 4, SUM)
        assert two.wait(1) == result
    assert "rank 0 has left the communicator" in two.message()


def test_ranks_of_a_communicator_are_numbered(runtime):
    root, handle = ctypes.create_string_buffer(4108), c_void_p()
    assert runtime.HcclGetRootInfo(root) == OK
    assert runtime.HcclCommInitRootInfo(1, root, 1, byref(handle)) == PARAMETER
    assert runtime.HcclCommInitRootInfo(0, root, 0, byref(handle)) == PARAMETER
    assert runtime.HcclCommInitRootInfo(1, ctypes.create_string_buffer(4108), 0, byref(handle)) == PARAMETER
    assert runtime.HcclCommInitRootInfo(1, root, 0, byref(handle)) == OK
    assert runtime.HcclCommDestroy(handle) == OK
    assert runtime.HcclCommInitRootInfo(1, root, 0, byref(handle)) == REMOTE  # the root has been forgotten


def test_who_does_not_come_is_named(runtime, impatient):
    root, handle = ctypes.create_string_buffer(4108), c_void_p()
    runtime.HcclGetRootInfo(root)
    assert runtime.HcclCommInitRootInfo(3, root, 1, byref(handle)) == TIMEOUT
    assert b"of 3 ranks: rank 1 has waited 0.2 s for rank 0, 2" in runtime.aclGetRecentErrMsg()


OTHER = """
import ctypes, os, signal, sys
runtime = ctypes.CDLL(sys.argv[1])
root, handle, stream = ctypes.create_string_buffer(bytes.fromhex(sys.argv[2]), 4108), ctypes.c_void_p(), None
assert runtime.HcclCommInitRootInfo(2, root, 1, ctypes.byref(handle)) == 0
data = (ctypes.c_int32 * 4)(1, 2, 3, 4)
def all_reduce():
    assert runtime.HcclAllReduce(data, data, ctypes.c_uint64(4), 2, 0, handle, None) == 0
    return runtime.aclrtSynchronizeStream(None)
assert all_reduce() == 0
print(list(data), flush=True)
how = sys.argv[3]
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "killed while it waits":
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    runtime.HcclRecv(data, ctypes.c_uint64(4), 2, 0, handle, None)
    runtime.aclrtSynchronizeStream(None)
"""


@pytest.mark.parametrize("how", ["killed", "killed while it waits", "ended"])
def test_the_end_of_another_process_is_seen_at_once_and_leaves_nothing(library, runtime, how):
    files = len(list(Path("/proc/self/fd").iterdir()))
    shared = set(SHARED_MEMORY.iterdir())
    root, handle = ctypes.create_string_buffer(4108), c_void_p()
    runtime.aclrtSetDevice(0)
    assert runtime.HcclGetRootInfo(root) == OK
    command = [sys.executable, "-c", OTHER, str(library), root.raw.hex(), how]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert runtime.HcclCommInitRootInfo(2, root, 0, byref(handle)) == OK
    data = (c_int32 * 4)(10, 20, 30, 40)

    def all_reduce():
        runtime.HcclAllReduce(data, data, c_uint64(4), 2, SUM, handle, None)
        return runtime.aclrtSynchronizeStream(None)

    assert all_reduce() == OK
    assert list(data) == [11, 22, 33, 44]
    assert all_reduce() == TASK_TIMEOUT
    message = runtime.aclGetRecentErrMsg().decode()
    assert f"rank 1 has ended (process {other.pid})" in message
    out, _ = other.communicate(timeout=30)
    assert out == "[11, 22, 33, 44]\n"
    error = c_int32()
    runtime.HcclGetCommAsyncError(handle, byref(error))
    assert error.value == REMOTE
    assert runtime.HcclCommDestroy(handle) == OK
    runtime.npudiff_lose_device(0, b"")
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert set(SHARED_MEMORY.iterdir()) <= shared


def test_what_a_graph_captured_runs_at_each_replay(two):
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    graphs = []
    for rank in range(2):
        two.runtime.aclrtSetDevice(rank)
        graph = c_void_p()
        assert two.runtime.aclmdlRICaptureBegin(two.streams[rank], 2) == OK
        assert two.call("HcclAllReduce", rank, rows[rank], rows[rank], 2, 4, SUM) == OK
        assert two.runtime.aclmdlRICaptureEnd(two.streams[rank], byref(graph)) == OK
        graphs.append(graph)
    assert rows[0].tolist() == [1.0, 2.0]  # a capture runs nothing
    for expected in ([11.0, 22.0], [22.0, 44.0]):
        for rank in range(2):
            two.runtime.aclrtSetDevice(rank)
            assert two.runtime.aclmdlRIExecuteAsync(graphs[rank], two.streams[rank]) == OK
        assert two.wait(0) == two.wait(1) == OK
        assert [row.tolist() for row in rows] == [expected] * 2
    for graph in graphs:
        assert two.runtime.aclmdlRIDestroy(graph) == OK


def test_a_group_of_some_ranks(runtime):
    """The first and the last of three: made by two threads, since a communicator is there when all its ranks are."""
    from concurrent.futures import ThreadPoolExecutor

    ranks = Ranks(runtime, 3)
    chosen = (c_uint32 * 2)(0, 2)

    def make(place):
        runtime.aclrtSetDevice(chosen[place])
        parent, handle = c_void_p(ranks.handles[chosen[place]]), c_void_p()
        result = runtime.HcclCreateSubCommConfig(
            byref(parent), 2, chosen, c_uint64(5), c_uint32(place), None, byref(handle)
        )
        return result, handle

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(make, range(2)))
    assert [result for result, _ in made] == [OK, OK], ranks.message()
    rows = [torch.tensor([1.0]), torch.tensor([2.0])]
    for place, (_, handle) in enumerate(made):
        stream = ranks.streams[chosen[place]]
        address = c_void_p(rows[place].data_ptr())
        assert runtime.HcclAllReduce(address, address, c_uint64(1), 4, SUM, handle, stream) == OK
    assert ranks.wait(0) == ranks.wait(2) == OK
    assert [row.tolist() for row in rows] == [[3.0]] * 2
    for _, handle in made:
        runtime.HcclCommDestroy(handle)
    ranks.destroy()
