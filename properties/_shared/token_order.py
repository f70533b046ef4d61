"""The order of tokens: what a run gives for each does not depend on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Subject


def in_another_order(subject: Subject, inputs: Any, order: Sequence[int], names: Collection[str]) -> Comparison:  # noqa: ANN401 - of any component
    """Compare a run with one on the same tokens in another order; every output has a row per token.

    Parameters
    ----------
    subject : Subject
        What is run.
    inputs : object
        A frozen dataclass.
    order : sequence of int
        Which token comes first, second and so on.
    names : collection of str
        Tensors of ``inputs`` that have a row per token; those that are None stay so.
    """
    tensors = {name: getattr(inputs, name) for name in names}
    moved = {name: tensor[order] for name, tensor in tensors.items() if tensor is not None}
    before = {name: output[order] for name, output in subject.run(inputs).items()}
    other = replace(inputs, **moved)
    return compare_runs(bounds_of(subject.expected(other)), before, subject.run(other), "tokens in another order")
