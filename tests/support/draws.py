from __future__ import annotations

import functools
from itertools import islice

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from npudiff.draw.chosen import draw_of
from npudiff.draw.chosen import drawn as cases_of
from npudiff.model.constraints import Constraints

DEFAULT_CASES = 150


class Recorder:
    """Keeps the traces that a machine draws, without taking any step."""

    def __init__(self):
        self.traces = []

    def begin(self, case):
        pass

    def take(self, case):
        pass

    def end(self, case):
        self.traces.append(case)


def drawn(component, constraints, count=60, number=0):
    """Cases as a run draws them: whole ones from the strategy, traces from the machine."""
    strategy = component.strategy(constraints)
    draw = draw_of(strategy)
    if draw is not None and component.history is None:
        return [one.case for one in islice(cases_of(draw, number), count)]
    found = []
    configured = settings(
        max_examples=count,
        stateful_step_count=15,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    if component.history is not None:
        recorder = Recorder()
        factory = seed(number)(lambda: component.history.machine(constraints, recorder))
        run_state_machine_as_test(factory, settings=configured)
        return recorder.traces

    @seed(number)
    @configured
    @given(strategy)
    def collect(case):
        found.append(case)

    collect()
    return found


def default_cases(component, count=DEFAULT_CASES):
    """Cases of a component as they are drawn by default, so many at equal distances: drawn once for all tests."""
    cases = _all_default_cases(_ByIdentity(component))
    return [cases[place * len(cases) // count] for place in range(min(count, len(cases)))]


class _ByIdentity:
    """A component as a key: its own hash would be that of all that it holds."""

    def __init__(self, component):
        self.component = component

    def __eq__(self, other):
        return self.component is other.component

    def __hash__(self):
        return id(self.component)


@functools.cache
def _all_default_cases(key):
    return drawn(key.component, Constraints(), DEFAULT_CASES)
