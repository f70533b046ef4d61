"""What the text of an error means for the device, and how the end of a process is told."""

from __future__ import annotations

import os
import signal

import pytest

from npudiff.model.faults import Kind, RemoteError, died, kind_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ValueError: no such number", Kind.RAISED),
        ("tiling failed, error code is 561002", Kind.REJECTED),
        ("aclnn returned 161001", Kind.REJECTED),
        ("EZ1001: shapes do not match", Kind.REJECTED),
        ("15610021", Kind.RAISED),
        ("NPU out of memory. Tried to allocate 2 GiB", Kind.OUT_OF_MEMORY),
        ("Out Of Memory", Kind.OUT_OF_MEMORY),
        ("error 207018", Kind.OUT_OF_MEMORY),
        ("aicore exception, error code is 507015", Kind.FAULT),
        ("the runtime said 507899", Kind.FAULT),
        ("capture is invalid: 107030", Kind.FAULT),
        ("the Context is Abort", Kind.FAULT),
        ("561002 after 507015", Kind.FAULT),
        ("out of memory, 507035", Kind.FAULT),
        ("561002: out of memory", Kind.REJECTED),
    ],
)
def test_the_text_of_an_error_says_what_it_means(text, kind):
    assert kind_of(text) is kind


def test_what_ends_a_worker_and_what_puts_its_device_in_doubt():
    assert {kind for kind in Kind if kind.ends_worker} == {Kind.FAULT, Kind.DIED, Kind.TIMED_OUT}
    assert {kind for kind in Kind if kind.needs_probe} == {Kind.REJECTED, Kind.OUT_OF_MEMORY}


def test_an_exception_is_told_with_its_type_and_its_text_says_the_kind():
    told = RemoteError.of(RuntimeError("error code is 507015"))
    assert (told.name, told.text, told.kind) == ("RuntimeError", "error code is 507015", Kind.FAULT)
    assert RemoteError.of(told) is told
    assert RemoteError.of(MemoryError("")).kind is Kind.RAISED


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (lambda: os._exit(7), "the process ended: exit code 7"),
        (lambda: os._exit(0), "the process ended: exit code 0"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "the process died: SIGTERM"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process died: SIGKILL (killed, as for want of memory)"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 3), f"the process died: signal {signal.SIGRTMIN + 3}"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_end_of_a_process_is_told(end, text):
    process = os.fork()
    if not process:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a command that ran in this process has set another handler
        end()
        os._exit(99)
    assert died(os.waitpid(process, 0)[1]) == text
