"""Programs of several ranks on virtual NPUs: torch.distributed over torch_npu's own process group."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from npudiff.device.virtual.ranks import End, first_to_fail

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tests" / "support" / "rank_program.py"
EXAMPLE = ROOT / "docs" / "examples" / "tensor_parallel.py"

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is written there

CHECKS = (
    "reductions", "refusals", "averages_and_truths", "moves", "unequal_sizes", "all_to_all", "messages", "groups",
    "objects", "gradients", "large", "asynchronous", "graph",
)  # fmt: skip

virtual = pytest.mark.virtual


def ranks(count, *program, timeout=10, options=()):
    """Run a program as ranks; return its exit code, what ranks print on stdout, and stderr."""
    command = [sys.executable, "-m", "npudiff", "virtual", "--ranks", str(count), "--rank-timeout", str(timeout)]
    done = subprocess.run(
        [*command, *options, "--", sys.executable, *map(str, program)], capture_output=True, text=True, timeout=150
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def script(folder, body):
    """Write a program of ranks that has begun, and whose first collective is over."""
    path = folder / "program.py"
    path.write_text(
        "import os, signal, sys, time\nimport torch\nimport torch.distributed as dist\n"
        "rank = int(os.environ['RANK'])\ntorch.npu.set_device(rank)\ndist.init_process_group('hccl')\n"
        "x = torch.ones(4, device='npu')\ndist.all_reduce(x)\ntorch.npu.synchronize()\n" + body
    )
    return path


@virtual
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_collective_is_what_integers_give_by_hand(count):
    code, out, error = ranks(count, PROGRAM)
    assert code == 0, error
    assert out == [f"[rank 0] {check} holds" for check in CHECKS]


@virtual
@pytest.mark.slow
def test_sixteen_ranks():
    code, out, error = ranks(16, PROGRAM, "reductions", "all_to_all", "messages", timeout=60)
    assert code == 0, error
    assert out == [f"[rank 0] {check} holds" for check in ("reductions", "all_to_all", "messages")]


@virtual
@pytest.mark.slow
def test_messages_are_grouped_on_a_newer_cann():
    """torch_npu batches messages between HcclGroupStart and HcclGroupEnd since CANN 9.0."""
    code, _, error = ranks(3, PROGRAM, "messages", options=("--cann", "9.0"))
    assert code == 0, error


@virtual
def test_the_example_gives_what_one_process_gives():
    code, out, error = ranks(2, EXAMPLE)
    assert code == 0, error
    assert len(out) == 2
    assert re.fullmatch(r"\[rank 0\] 2 ranks on Ascend910B3, largest difference from float64 \d\.\de-0[5-9]", out[0])
    assert re.fullmatch(r"\[rank 0\] communicator \S+", out[1])


@virtual
@pytest.mark.slow
def test_calls_that_differ_end_the_program_and_name_ranks_and_calls(tmp_path):
    code, _, error = ranks(2, script(tmp_path, "dist.all_reduce(torch.ones(4 + rank, device='npu'))\nprint(x.cpu())\n"))
    assert code in (1, 128 + signal.SIGABRT)  # the error in Python, or torch_npu's watchdog
    last = error.splitlines()[-1]
    assert re.match(r"npudiff virtual: rank [01] of 2 ", last)
    assert "rank 0 calls HcclAllReduce(sum, 4 x float32), and rank 1 HcclAllReduce(sum, 5 x float32)" in last


@virtual
@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_seen_by_the_others_and_leaves_nothing(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"  # other tests have ranks, too
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    body = (
        "if rank == 1:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "try:\n    dist.all_reduce(x)\n    x.cpu()\nfinally:\n    print(os.getpid(), flush=True)\n    time.sleep(20)\n"
    )
    code, out, error = ranks(2, script(tmp_path, body), timeout=60)
    assert code == 128 + signal.SIGKILL
    assert error.splitlines()[-1] == "npudiff virtual: rank 1 of 2 was ended by SIGKILL"
    for line in out:  # the agent ends the other rank, perhaps before it can say anything
        assert not Path(f"/proc/{line.split()[-1]}").exists()
    left = [*temporary.iterdir(), *SHARED_MEMORY.iterdir()]
    assert not [path for path in left if path.name.startswith("npudiff")]


@virtual
@pytest.mark.slow
def test_an_exception_is_the_reason_and_not_that_others_wait_for_its_rank(tmp_path):
    body = "if rank == 1:\n    raise ValueError('of its own')\ndist.all_reduce(x)\nx.cpu()\n"
    code, _, error = ranks(2, script(tmp_path, body), timeout=60)
    assert code == 1
    assert re.fullmatch(
        r"npudiff virtual: rank 1 of 2 (failed|ended with exit code 1): ValueError: of its own", error.splitlines()[-1]
    )


@virtual
@pytest.mark.slow
def test_a_rank_that_does_not_call_is_waited_for_as_long_as_was_said(tmp_path):
    body = "if rank == 0:\n    dist.all_reduce(x)\n    x.cpu()\ntime.sleep(30)\n"
    code, _, error = ranks(2, script(tmp_path, body), timeout=2)
    assert code in (1, 128 + signal.SIGABRT)
    assert re.search(r"waited 2\.\d s; rank 1 is at call 1, HcclAllReduce\(sum, 4 x float32\)", error.splitlines()[-1])


@virtual
@pytest.mark.slow
def test_an_exit_code_is_the_programs(tmp_path):
    assert ranks(2, "-c", "import os, sys; sys.exit(3 * int(os.environ['RANK']))")[0] == 3


HCCL = "HCCL, communicator group of 2 ranks, rank 0 in its call 2: waited 3.0 s; rank 1 has ended"
RAISED = "Traceback (most recent call last):\n  File x\n[rank1]: ValueError: of its own\n[ERROR] of torch_npu\n"


@pytest.mark.parametrize(
    ("ends", "noticed", "first"),
    [
        ({0: End(-6, HCCL), 1: End(-9, "")}, 0, 1),
        ({0: End(-6, HCCL), 1: End(-15, RAISED)}, 0, 1),
        ({0: End(-15, ""), 1: End(3, "")}, 1, 1),
        ({0: End(-15, ""), 1: End(3, "")}, 0, 1),
        ({0: End(-6, HCCL), 1: End(-15, "")}, 0, 0),
        ({0: End(1, RAISED), 1: End(1, RAISED)}, 1, 1),
        ({0: End(-15, "")}, 0, 0),
    ],
)
def test_the_rank_that_is_the_reason(ends, noticed, first):
    assert first_to_fail(ends, noticed) == first


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (End(3, ""), 3, "ended with exit code 3"),
        (End(1, RAISED), 1, "ended with exit code 1: ValueError: of its own"),
        (End(-15, RAISED), 1, "failed: ValueError: of its own"),
        (End(-15, ""), 143, "was ended by SIGTERM"),
        (End(-6, f"what(): {HCCL}\n"), 134, f"was ended by SIGABRT: {HCCL}"),
        (End(-64, ""), 192, "was ended by SIGRTMAX"),
    ],
)
def test_how_a_rank_ended(end, code, said):
    assert (end.code(), end.said()) == (code, said)


def test_what_a_rank_said_cannot_steer_a_terminal():
    assert "\x1b" not in End(1, "Error: \x1b[2J").said()
