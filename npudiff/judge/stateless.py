"""What all components without history share: a call does not depend on the calls before it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from npudiff.draw.derived_cases import grown, longer, same_size, shrunk
from npudiff.judge.compare import same_bits
from npudiff.model.comparison import Comparison
from npudiff.model.component import ImplementationRaised, NotApplicable, Subject


def earlier_calls(subject: Subject, case: Any) -> Comparison:  # noqa: ANN401 - a case of any component
    """Call with the case alone; then one object with less, as many that are longer, as much, the case, more, the case.

    All answers to the case must have the same bits. What was captured for another batch of its size, made for a
    smaller one, or kept from the longest, shows in the second, and what a larger batch left behind shows in the third.
    """
    live, component = subject.fresh(), subject.component
    others = (
        shrunk(subject, case),
        *longer(subject, case),
        same_size(subject, case),
    )
    before = [other for other in others if other is not None]
    after = grown(subject, case)
    if not before and after is None:
        raise NotApplicable("no other case can be derived from this one")
    inputs = component.inputs(case)
    alone = _kept(subject.fresh().run(inputs))
    for other in before:
        _call(live, other)
    last = f"after {component.describe(before[-1])}" if before else "again"
    second = same_bits(alone, live.run(inputs), f"the same inputs alone, and {last}")
    if not second.holds or after is None:
        return second
    _call(live, after)
    return same_bits(alone, live.run(inputs), f"the same inputs alone, and after {component.describe(after)}")


def _call(live: Subject, other: Any) -> None:  # noqa: ANN401
    """Make another call. What it raises says nothing of the case; equivalence is there for cases by themselves."""
    with contextlib.suppress(ImplementationRaised):
        live.run(live.component.inputs(other))


def _kept(outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs in memory of their own: a buffer may be used again for the next call."""
    return {name: tensor.clone() for name, tensor in outputs.items()}
