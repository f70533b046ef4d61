from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, seed, settings


def drawn(component, constraints, count=60, number=0):
    """Cases of a component, as many as drawn within the constraints."""
    found = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(component.strategy(constraints))
    def collect(case):
        found.append(case)

    collect()
    return found  # fmt: skip
