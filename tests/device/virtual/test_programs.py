"""Programs of ``aten`` operators give on ``npu:0`` exactly what they give on the CPU.

"Exactly": values bit for bit, dtype, sizes, strides, offset, which values share memory, what autograd knows of them,
what is warned of, and what is raised.
"""

from __future__ import annotations

import os
from collections import Counter
from statistics import median

import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.virtual

BATCHES = 20
PROGRAMS = int(os.environ.get("NPUDIFF_VIRTUAL_PROGRAMS", "2000")) // BATCHES
"""In each batch."""

ran, raised, impossible, batches = Counter(), Counter(), Counter(), set()


def programs(batch):
    """Half of a batch's steps are of a tenth of all operations, so that all of them come up often."""
    from npu_programs import OPERATIONS, Program, Step

    kinds = sorted(OPERATIONS)
    kind = st.sampled_from(kinds[batch % 10 :: 10]) | st.sampled_from(kinds)
    steps = st.builds(Step, kind, st.binary(min_size=6, max_size=10))
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


@pytest.mark.parametrize("batch", range(BATCHES))
def test_programs_give_on_the_device_what_they_give_on_the_host(batch, always_warn):
    from npu_programs import run

    @seed(batch)
    @settings(max_examples=PROGRAMS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(programs(batch))
    def check(program):
        note(f"{program}")
        outcome = run(program)
        ran.update(outcome.ran)
        raised.update(outcome.raised)
        impossible.update(outcome.impossible)

    check()
    batches.add(batch)


def test_every_operation_came_up_often_and_few_raised():
    from npu_programs import OPERATIONS

    if len(batches) < BATCHES or PROGRAMS < 100:
        pytest.skip("of a whole run of 2,000 programs")
    done = ran - raised
    print(f"{ran.total()} steps ran, {raised.total()} raised, {impossible.total()} had nothing to run on")
    often = sum(done[name] >= 8 for name in OPERATIONS)
    print(f"{often} of {len(OPERATIONS)} operations at least 8 times, the median {median(done.values()):.0f} times")
    # What is drawn depends on the versions of Python and Hypothesis: in some, a rare operation does not come up.
    assert sum(done[name] > 0 for name in OPERATIONS) > 0.97 * len(OPERATIONS)
    assert often > 0.85 * len(OPERATIONS)
    assert ran.total() > 4 * PROGRAMS * BATCHES
    assert raised.total() < ran.total() / 10
    assert impossible.total() < ran.total() / 2


def test_a_difference_is_found_and_named(always_warn):
    """One wrong element of one operator is enough."""
    from npu_programs import Difference, Program, Step, run
    from npudiff.device.virtual import faults

    program = Program((b"",), (Step("add", b""),))
    assert run(program).ran == {"add": 1}
    with faults.injected("aten::add:value"), pytest.raises(Difference, match=r"(?s)step 1, after add .*on the host"):
        run(program)


def test_no_operation_is_empty():
    """Every operation runs on some input."""
    from npu_programs import OPERATIONS

    assert len(OPERATIONS) > 300
