"""What must hold between casts of one implementation, whatever the order of elements is."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff.judge.compare import same_bits
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties._shared.moved_data import DTYPES
from npudiff.properties.format_cast.case import FormatCastCase
from npudiff.properties.format_cast.inputs import build_inputs
from npudiff.reference.format_cast import FormatCastInputs

WIDEST_TILE = 32
_SAME_SIZE = {"bfloat16": "float16", "float16": "bfloat16", "float32": "int32", "int32": "float32"}


def _matrices_do_not_mix(subject: Subject, case: FormatCastCase) -> Comparison:
    subject.require(replace(case, leading=()), "one matrix")
    inputs = build_inputs(case)
    matrices = inputs.tensor.reshape(-1, case.rows, case.columns)
    alone = [_storage(subject, matrix) for matrix in matrices]
    whole = subject.run(inputs)["storage"]
    return same_bits({"storage": torch.cat(alone)}, {"storage": whole}, "all matrices against one by one")


def _strips_do_not_mix(subject: Subject, case: FormatCastCase) -> Comparison:
    """Cut a matrix between strips of columns; the storages of both parts follow each other."""
    cut = (case.columns - 1) // WIDEST_TILE * WIDEST_TILE
    subject.require(replace(case, columns=cut), "the columns before the cut")
    subject.require(replace(case, columns=case.columns - cut), "the columns behind the cut")
    inputs = build_inputs(case)
    parts = [_storage(subject, part) for part in (inputs.tensor[..., :cut], inputs.tensor[..., cut:])]
    whole = subject.run(inputs)["storage"]
    return same_bits({"storage": torch.cat(parts)}, {"storage": whole}, "the whole against two parts")


def _only_bits_move(subject: Subject, case: FormatCastCase) -> Comparison:
    other = _SAME_SIZE[case.dtype]
    subject.require(replace(case, dtype=other), "the same bits in another dtype")
    inputs = build_inputs(case)
    one = subject.run(inputs)["storage"].view(DTYPES[other])
    two = subject.run(replace(inputs, tensor=inputs.tensor.view(DTYPES[other])))["storage"]
    return same_bits({"storage": one}, {"storage": two}, f"bits of {case.dtype} against the same of {other}")


def _storage(subject: Subject, part: torch.Tensor) -> torch.Tensor:
    """Cast a part of a tensor as a tensor of its own."""
    return subject.run(FormatCastInputs(part.clone(memory_format=torch.contiguous_format)))["storage"]


_WHOLE = {"view": ("whole",)}

RELATIONS = (
    Property(
        "matrices_do_not_mix",
        "the storage of several matrices is theirs, one after the other",
        _matrices_do_not_mix,
        within={"rank": (3, 4), **_WHOLE},
        needs={"rank": (2,), **_WHOLE},
    ),
    Property(
        "strips_do_not_mix",
        "the storage of a matrix is that of its strips of columns, one after the other",
        _strips_do_not_mix,
        within={"rank": (2,), "columns": range(WIDEST_TILE + 1, 2**16 + 1), **_WHOLE},
    ),
    Property(
        "only_bits_move",
        "dtypes of the same size are moved alike",
        _only_bits_move,
        within={"dtype": tuple(_SAME_SIZE)},
    ),
)
