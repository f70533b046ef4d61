"""Where a process is, as it is asked by who is about to kill it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from npudiff.run.isolation.stack import Stack, write_here


def asleep(seconds):
    time.sleep(seconds)


@pytest.fixture
def stack():
    one = Stack()
    yield one
    one.close()


def test_a_process_that_sleeps_says_where(stack):
    pid = os.fork()
    if not pid:
        write_here(stack.file)
        asleep(20)
        os._exit(0)
    try:
        time.sleep(0.2)
        stack.ask(pid)
        assert stack.innermost.startswith("asleep (test_stack.py:")
        assert stack.frames[-1].endswith("in asleep: time.sleep(seconds)")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_one_that_is_gone_or_stopped_says_nothing_and_costs_a_moment(stack):
    pid = os.fork()
    if not pid:
        write_here(stack.file)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    time.sleep(0.1)
    began = time.monotonic()
    stack.ask(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    stack.ask(pid)
    assert (stack.innermost, stack.frames) == ("", ())
    assert time.monotonic() - began < 2
