"""Programs of ``aten`` operators give on ``npu:0`` exactly what they give on the CPU.

"Exactly": values bit for bit, dtype, sizes, strides, offset, which values share memory, what autograd knows of them,
what is warned of, and what is raised.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.virtual

PROGRAMS = int(os.environ.get("NPUDIFF_VIRTUAL_PROGRAMS", "2000"))


def programs():
    from npu_programs import FAMILIES, OPERATIONS, Program, Step

    often = [name for name in OPERATIONS for _ in range(3 if FAMILIES[name] in ("layers", "gradients") else 1)]
    steps = st.builds(Step, st.sampled_from(sorted(often)), st.binary(min_size=6, max_size=10))
    few, many = st.lists(steps, min_size=1, max_size=12), st.lists(steps, min_size=8, max_size=12)
    inputs = st.lists(st.binary(min_size=4, max_size=8), min_size=1, max_size=4)
    return st.builds(Program, inputs.map(tuple), (few | many).map(tuple))


@pytest.fixture(scope="module")
def always_warn():
    import torch

    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else the device would keep silent of what the host has warned of
    yield
    torch.set_warn_always(before)


def test_programs_give_on_the_device_what_they_give_on_the_host(always_warn):
    from npu_programs import OPERATIONS, run

    ran, raised, impossible, steps = Counter(), Counter(), Counter(), 0

    @settings(
        max_examples=PROGRAMS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(programs())
    def check(program):
        nonlocal steps
        note(f"{program}")
        outcome = run(program)
        ran.update(outcome.ran)
        raised.update(outcome.raised)
        impossible.update(outcome.impossible)
        steps += len(program.steps)

    check()
    if PROGRAMS < 2000:
        return
    seldom = {name: ran[name] - raised[name] for name in OPERATIONS if ran[name] - raised[name] < 3}
    print(f"{PROGRAMS} programs, {steps} steps, {ran.total()} ran, {raised.total()} of them raised, seldom: {seldom}")
    assert not seldom, "operations that hardly ever run to their end"
    assert ran.total() > 4 * PROGRAMS
    assert raised.total() < ran.total() / 10
    assert impossible.total() < steps / 3


def test_a_difference_is_found_and_named(always_warn):
    """One wrong element of one operator is enough."""
    from npu_programs import Difference, Program, Step, run

    from device.virtual import faults

    program = Program((b"",), (Step("add", b""),))
    assert run(program).ran == {"add": 1}
    with faults.injected("aten::add:value"), pytest.raises(Difference, match=r"(?s)step 1, after add .*on the host"):
        run(program)


def test_no_operation_is_empty():
    """Every operation runs on some input."""
    from npu_programs import OPERATIONS

    assert len(OPERATIONS) > 300
