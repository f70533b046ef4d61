"""Relations that are a transformation: inputs that are changed, and what becomes of the outputs.

Where a device may take another path for the changed inputs, each run may be off by its bound; where both runs do the
same arithmetic, ``bits`` asks for equality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic

from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs, same_bits
from npudiff.model.anything import AnyCase, AnyInputs
from npudiff.model.component import CaseT, Comparison, Property, Subject
from npudiff.model.constraints import Box
from npudiff.model.implementation import InputsT

if TYPE_CHECKING:
    import torch

Outputs = Mapping[str, "torch.Tensor"]


def same(outputs: Outputs) -> Outputs:
    """Return outputs as they are."""
    return outputs


@dataclass(frozen=True)
class Changed(Generic[InputsT]):
    """Changed inputs, where more has to be said of them."""

    inputs: InputsT
    outputs: Callable[[Outputs], Outputs] = same
    """What becomes of the outputs of the run before."""
    part: Callable[[Outputs], Outputs] = same
    """What is compared of the outputs of the run on the changed inputs, and of their bounds."""
    case: object = None
    """The case that the changed inputs are like, or several, which the implementation has to support."""
    before: InputsT | None = None
    """Inputs of the run before, where they are not those of the case."""


def relation(
    name: str,
    summary: str,
    transform: Callable[[InputsT, CaseT], InputsT | Changed[InputsT]],
    *,
    bits: bool = False,
    within: Box | None = None,
    needs: Box | None = None,
    example_ratio: float = 0.1,
) -> Property[CaseT]:
    """Return the property that a transformation of inputs changes outputs as it says, or not at all.

    Parameters
    ----------
    name, summary, within, needs, example_ratio
        See ``Property``.
    transform : callable
        Inputs and case to changed inputs, or to ``Changed`` where outputs change as well. Raises ``NotApplicable``
        where the relation says nothing.
    bits : bool
        Whether the outputs must agree bit for bit.
    """

    def check(subject: Subject, case: CaseT) -> Comparison:
        inputs: InputsT = subject.component.inputs(case)
        answer = transform(inputs, case)
        changed = answer if isinstance(answer, Changed) else Changed(answer)
        for other in changed.case if isinstance(changed.case, tuple) else (changed.case,):
            if other is not None:
                subject.require(other, summary)
        before = changed.outputs(subject.run(inputs if changed.before is None else changed.before))
        after = changed.part(subject.run(changed.inputs))
        if bits:
            return same_bits(before, after, summary)
        return compare_runs(changed.part(bounds_of(subject.expected(changed.inputs))), before, after, summary)

    return Property(name, summary, check, within or {}, needs or {}, example_ratio)


def rows_taken(rows: Sequence[int] | slice) -> Callable[[Outputs], Outputs]:
    """Return what takes some rows of all outputs, in that order."""
    return lambda outputs: {name: output[rows] for name, output in outputs.items()}


def rows_reordered(inputs: InputsT, order: Sequence[int], *names: str) -> Changed[InputsT]:
    """Return inputs whose tensors of some names have their rows in another order, as the outputs then have."""
    tensors = {name: getattr(inputs, name) for name in names}
    moved = {name: tensor[order] for name, tensor in tensors.items() if tensor is not None}
    return Changed(_replaced(inputs, moved), rows_taken(order))


def tokens_do_not_mix(*names: str, most: int = 2**17, within: Box | None = None) -> Property[Any]:
    """Return the property that the order of tokens does not matter: each has the outputs that it had.

    Parameters
    ----------
    names : str
        Tensors of the inputs that have a row per token; those that are None stay so. Every output has one as well.
    most : int
        Tokens of a case, which has an axis ``tokens``.
    within : mapping
        What the cases are narrowed to besides.
    """

    def moved(inputs: AnyInputs, case: AnyCase) -> Changed[Any]:
        return rows_reordered(inputs, Stream(case.seed, "order").permutation(case.tokens), *names)

    limits = {"tokens": range(2, most + 1), **(within or {})}
    return relation("tokens_do_not_mix", "the order of tokens does not matter", moved, within=limits)


def _replaced(inputs: Any, changes: Mapping[str, object]) -> Any:  # noqa: ANN401 - a frozen dataclass
    return replace(inputs, **changes)
