"""What must hold between runs of one implementation, without knowing the right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs, same_bits
from npudiff.judge.relations import Changed, Outputs
from npudiff.model.component import Comparison, Property, Subject
from npudiff.model.constraints import Box
from npudiff.properties.tensor_parallel.case import TensorParallelCase
from npudiff.reference.sharded_linear import LinearCheckpoint, own_columns
from npudiff.reference.tensor_parallel import TensorParallelInputs, is_divided

SEVERAL = (2, 3, 4, 8)
SAME_IN_PARTS = ("float", "w8a8_static", "w4a16")
"""Formats in which a sum over parts of a row is that of the row: none is quantised by its largest element."""


def _on_one_rank(inputs: TensorParallelInputs, case: TensorParallelCase) -> Changed[TensorParallelInputs]:
    """The same layers on one rank, whose outputs are divided as those of all ranks are."""
    projections = "qkv" if case.projections == "shared_kv" else case.projections
    alone = replace(case, ranks=1, width=case.divided, projections=projections)
    whole = replace(inputs, ranks=1, first=_undivided(inputs.first),
                    second=None if inputs.second is None else _undivided(inputs.second))  # fmt: skip
    return Changed(inputs, outputs=_divided(inputs), case=alone, before=whole)


def _undivided(layer: LinearCheckpoint) -> LinearCheckpoint:
    return replace(layer, copies=(1,) * len(layer.copies))


def _divided(inputs: TensorParallelInputs) -> Callable[[Outputs], Outputs]:
    """Return what gives each rank its part of the outputs of one rank."""

    def part(name: str, output: torch.Tensor) -> torch.Tensor:
        if not len(output):
            return output
        if is_divided(inputs, name):
            return _filled(output, inputs)
        layer = inputs.first if inputs.layer == "column" else inputs.second
        if name == "residual" or inputs.layer in ("row", "column_row") or layer is None:
            return output.repeat(inputs.ranks, 1)
        return torch.cat([output[:, own_columns(layer, rank, inputs.ranks)] for rank in range(inputs.ranks)])

    return lambda outputs: {name: part(name, output) for name, output in outputs.items()}


def _filled(rows: torch.Tensor, inputs: TensorParallelInputs) -> torch.Tensor:
    """Rows of all tokens, and zeros behind the last so that they divide."""
    return torch.nn.functional.pad(rows, (0, 0, 0, inputs.share * inputs.ranks - len(rows)))


def _whole(inputs: TensorParallelInputs, case: TensorParallelCase) -> Changed[TensorParallelInputs]:
    """The same layers with all tokens on each rank."""

    def rows(outputs: Outputs) -> Outputs:
        return {
            name: _filled(output[: case.tokens], inputs) if is_divided(inputs, name) and len(output) else output
            for name, output in outputs.items()
        }

    other = replace(inputs, form="whole")
    return Changed(inputs, outputs=rows, case=replace(case, form="whole"), before=other)


def _tokens_in_another_order(inputs: TensorParallelInputs, case: TensorParallelCase) -> Changed[TensorParallelInputs]:
    order = Stream(case.seed, "order").permutation(case.tokens)
    residual = None if inputs.residual is None else inputs.residual[order]

    def moved(outputs: Outputs) -> Outputs:
        return {
            name: output.view(case.ranks, case.tokens, -1)[:, order].reshape(output.shape) if len(output) else output
            for name, output in outputs.items()
        }

    return Changed(replace(inputs, states=inputs.states[order], residual=residual), outputs=moved)


def _parts_on_other_ranks(inputs: TensorParallelInputs, case: TensorParallelCase) -> Changed[TensorParallelInputs]:
    """Each rank has the part of the inner axis that the next one had; the first has that of the last."""
    first = inputs.first

    def turned(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.roll(tensor.shape[1] // case.ranks, dims=1)

    layer = replace(first, weight=_of(turned(first.weight)), scale=turned(first.scale) if first.group_size else
                    first.scale, scale_bias=turned(first.scale_bias))  # fmt: skip
    return Changed(replace(inputs, states=_of(turned(inputs.states)), first=layer))


def _of(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise AssertionError("states and weights are always there")
    return tensor


def _ranks_agree(subject: Subject, case: TensorParallelCase) -> Comparison:
    """``torch.distributed`` says of an all-reduce that all processes have the same bits."""
    outputs = subject.run(subject.component.inputs(case))
    first, every = outputs["output"][: case.tokens].repeat(case.ranks, 1), outputs["output"]
    return same_bits({"output": first}, {"output": every}, "what the first rank has")


def _agree(
    name: str,
    summary: str,
    transform: Callable[[TensorParallelInputs, TensorParallelCase], Changed[TensorParallelInputs]],
    within: Box,
    needs: Box | None = None,
) -> Property[TensorParallelCase]:
    """Return the property that two runs agree, each of which is off by a bound of its own.

    What a rank has of a sum is rounded, and may be far larger where another rank has it.
    """

    def check(subject: Subject, case: TensorParallelCase) -> Comparison:
        inputs: TensorParallelInputs = subject.component.inputs(case)
        changed = transform(inputs, case)
        if changed.case is not None:
            subject.require(changed.case, summary)
        before = inputs if changed.before is None else changed.before
        one, other = changed.outputs(subject.run(before)), subject.run(changed.inputs)
        mine, theirs = (bounds_of(subject.expected(given)) for given in (before, changed.inputs))
        moved = changed.outputs(mine)
        bounds = {output: torch.maximum(moved[output], bound) for output, bound in theirs.items()}
        return compare_runs(bounds, one, other, summary)

    return Property(name, summary, check, within, needs or {})


RELATIONS: Sequence[Property[TensorParallelCase]] = (
    _agree("any_number_of_ranks", "several ranks give what one gives", _on_one_rank,
           {"ranks": SEVERAL, "format": SAME_IN_PARTS, "tail": (0,)}, {"ranks": (1,)}),
    _agree("sequence_is_whole", "which tokens a rank has between layers does not matter", _whole,
           {"ranks": SEVERAL, "form": ("sequence",)}, {"form": ("whole",)}),
    _agree("tokens_do_not_mix", "the order of tokens does not matter", _tokens_in_another_order,
           {"form": ("whole",), "tokens": range(2, 2**17)}),
    _agree("parts_on_other_ranks", "which rank has which part of a sum does not matter", _parts_on_other_ranks,
           {"ranks": SEVERAL, "layer": ("row",), "form": ("whole",), "tail": (0,)}),
    Property("ranks_agree", "all ranks have the same bits of a sum", _ranks_agree,
             within={"ranks": SEVERAL, "layer": ("row", "column_row"), "form": ("whole",)}),
)  # fmt: skip
