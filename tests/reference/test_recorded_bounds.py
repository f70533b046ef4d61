"""No bound becomes looser unseen: fixed cases of every component, whose bounds are recorded.

After a change of a bound that is meant, ``python -m benchmarks.recorded_bounds`` records it, and says what it was.
"""

from __future__ import annotations

import pytest

from benchmarks.recorded_bounds import UNREACHED, bounds_of, reached, read
from npudiff.run.discovery import load_component

RECORDED = read()

CASES = [pytest.param(name, one, id=f"{name}-{place}") for name, kept in RECORDED.items()
         for place, one in enumerate(kept)]  # fmt: skip

LITTLE = {}


@pytest.mark.parametrize(("name", "recorded"), CASES)
def test_bounds_are_those_that_are_recorded_and_correct_chains_come_as_near_to_them(name, recorded):
    component = load_component(name)
    expected = component.reference(component.inputs(recorded.case))
    bounds = bounds_of(expected)
    assert bounds.keys() == recorded.bounds.keys()
    changed = {output: (before, bounds[output]) for output, before in recorded.bounds.items()
               if before.change(bounds[output]) > 1}  # fmt: skip
    assert not changed, "python -m benchmarks.recorded_bounds records what was changed on purpose"
    nearest = reached(component, recorded.case, expected)
    assert max(nearest.values(), default=0.0) <= 1
    assert not {output: ratio for output, ratio in recorded.reached.items() if nearest[output] < UNREACHED * ratio}


def float_outputs(name):
    """Outputs of a component that have a bound in some recorded case, and how near to it correct chains come."""
    nearest = {}
    for one in RECORDED[name]:
        for output, summary in one.bounds.items():
            if summary.most:
                nearest[output] = max(nearest.get(output, 0.0), one.reached.get(output, 0.0))
    return nearest
