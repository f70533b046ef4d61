"""What must hold between calls of one implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, bounds_of, compare, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import NotApplicable, Property, Subject
from npudiff.properties.rotary.case import RotaryCase
from npudiff.properties.rotary.inputs import build_inputs, exact_table
from npudiff.reference.rotary import RotaryInputs


def _tokens_do_not_mix(subject: Subject, case: RotaryCase) -> Comparison:
    inputs = build_inputs(case)
    order = Stream(case.seed, "order").permutation(case.tokens)
    before = {name: output[order] for name, output in subject.run(inputs).items()}
    other = replace(inputs, query=inputs.query[order], key=inputs.key[order], positions=inputs.positions[..., order])
    return compare_runs(bounds_of(subject.expected(other)), before, subject.run(other), "tokens in another order")


def _heads_do_not_mix(subject: Subject, case: RotaryCase) -> Comparison:
    """Queries and keys are rotated alike: swapping their roles swaps the outputs."""
    inputs = build_inputs(case)
    subject.require(replace(case, heads=case.kv_heads, kv_heads=case.heads), "queries and keys swapped")
    one, other = subject.run(inputs), subject.run(replace(inputs, query=inputs.key, key=inputs.query))
    swapped = {name: other[source] for name, source in (("query", "key"), ("key", "query")) if source in other}
    return compare_runs(bounds_of(subject.expected(inputs)), one, swapped, "queries and keys swapped")


def turned(subject: Subject, case: RotaryCase, inputs: RotaryInputs) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return queries and keys as they were rotated, and how far each head may be from a turn by exact angles.

    That distance is the norm of the reference's bounds, plus what the table's rounding does: an entry pair that is off
    by ``(d, e)`` moves each pair of elements by ``hypot(d, e)`` times its length, at most.
    """
    expected = subject.expected(inputs)
    exact = exact_table(case)[inputs.positions]
    cosine, sine = (inputs.cos_sin_cache[inputs.positions].to(torch.float64) - exact).chunk(2, dim=-1)
    rounding = torch.hypot(cosine, sine).amax(dim=1, keepdim=True)
    found = {}
    for name, rotated in subject.run(inputs).items():
        length = getattr(inputs, name).to(torch.float64).norm(dim=-1)
        found[name] = (rotated.to(torch.float64), expected[name].bound.norm(dim=-1) + rounding * length)
    return found


def _norm_is_preserved(subject: Subject, case: RotaryCase) -> Comparison:
    """A turn changes no length: that of a head after it is that before."""
    inputs = build_inputs(case)
    heads = turned(subject, case, inputs)
    right = {
        name: Derived(getattr(inputs, name).to(torch.float64).norm(dim=-1), distance)
        for name, (_, distance) in heads.items()
    }
    return compare(right, {name: rotated.norm(dim=-1) for name, (rotated, _) in heads.items()}, "lengths of heads")


def _relative_positions(subject: Subject, case: RotaryCase) -> Comparison:
    """Scores of queries and keys depend on the distance of their positions only: all are moved by as many rows."""
    subject.require(replace(case, positions="scattered"), "positions in any order")
    stream = Stream(case.seed, "moved")
    (moved,) = stream.integers(1, case.table, 1)
    positions = torch.tensor(stream.integers(0, case.table - moved, case.tokens))
    inputs = replace(build_inputs(case), positions=positions)
    scores = [_scores(turned(subject, case, inputs))]
    scores.append(_scores(turned(subject, case, replace(inputs, positions=positions + moved))))
    right = Derived(scores[0][0], scores[0][1] + scores[1][1])
    return compare({"query": right}, {"query": scores[1][0]}, f"scores, and with all positions {moved} further")


def _scores(turned: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores of all queries and keys, ``[tokens, heads, tokens, kv_heads]``, and how far they may be off."""
    if turned.keys() != {"query", "key"}:
        raise NotApplicable("queries or keys are not returned")
    (query, query_error), (key, key_error) = turned["query"], turned["key"]
    scores = torch.einsum("thd,skd->thsk", query, key)

    def products(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.einsum("th,sk->thsk", one, other)

    bound = products(query.norm(dim=-1), key_error) + products(query_error, key.norm(dim=-1))
    return scores, bound + products(query_error, key_error)


_COSINES = {"data": ("cosines",), "table": range(2, 4098), "sections": ("none",)}

RELATIONS = (
    Property(
        "tokens_do_not_mix",
        "the order of tokens does not matter",
        _tokens_do_not_mix,
        within={"tokens": range(2, 2**16 + 1)},
    ),
    Property("heads_do_not_mix", "queries and keys are rotated alike", _heads_do_not_mix),
    Property("norm_is_preserved", "a rotation changes no length", _norm_is_preserved, within=_COSINES),
    Property(
        "relative_positions",
        "scores depend on distances of positions only",
        _relative_positions,
        within={**_COSINES, "tokens": range(1, 66)},
        needs={"positions": ("scattered",)},
    ),
)
