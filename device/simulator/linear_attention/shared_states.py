"""States that several sequences of one call use: what hardware makes of them depends on which core is first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile


@dataclass(frozen=True)
class Use:
    """What one sequence does with the states of a pool."""

    rows: slice
    """Its rows of the output."""
    read: int | None
    """The state with which it begins; None if that is in no pool, or nothing is read."""
    written: frozenset[int]
    """The states that it writes."""


def spoil(uses: Sequence[Use], pool: Tensor, outputs: Tensor, profile: CannProfile) -> None:
    """Fill states that two sequences write, and all of a sequence whose first state another one writes.

    Parameters
    ----------
    uses : sequence of Use
        Of all sequences of a call.
    pool : Tensor
        [states, ...], written already.
    outputs : Tensor
        [tokens, ...], written already.
    profile : CannProfile
        Nothing is filled unless its ``linear_shared_states`` is "unpredictable".
    """
    if profile.linear_shared_states == "in_order":
        return
    writers = Counter(state for use in uses for state in use.written)
    for use in uses:
        late = use.read is not None and writers[use.read] > (use.read in use.written)
        for state in use.written:
            if late or writers[state] > 1:
                pool[state].copy_(unwritten(pool.shape[1:], pool.dtype))
        if late:
            outputs[use.rows].copy_(unwritten(outputs[use.rows].shape, outputs.dtype))
