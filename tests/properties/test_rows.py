"""Slices of wider rows: what stands before, between and behind their rows, and that a wrong stride is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import npudiff
from npudiff.device import ascend, targets
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.job import Budget, Job
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.reference.views import GAP, MOST_SPARE, moved
from npudiff.run.discovery import load_component
from npudiff.run.engine import run_job


def storage_of(tensor):
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())


def test_all_but_the_rows_is_filled_and_goes_on_behind_the_last():
    rows = torch.arange(1.0, 13).view(3, 4)
    view = with_row_stride(rows, "sliced")
    whole = storage_of(view)
    assert torch.equal(view, rows)
    assert int((whole == GAP).sum()) == len(whole) - rows.numel()
    assert len(whole) > 8 * rows.numel()


def test_what_is_behind_is_not_more_than_a_limit():
    view = with_row_stride(torch.zeros(2, 2**17), "sliced")
    assert len(storage_of(view)) <= 2 * (2**17 + GAPS[0]) + MOST_SPARE


def test_the_rows_that_are_moved_have_as_much_behind_them():
    view = with_row_stride(torch.zeros(3, 4), "sliced")
    copied = moved(view, "cpu", copy=True)
    assert len(storage_of(copied)) == len(storage_of(view))
    assert copied.stride() == view.stride()


def test_contiguous_rows_have_nothing_behind_them():
    assert len(storage_of(with_row_stride(torch.zeros(3, 4), "contiguous"))) == 12


def with_stride_of(view, other):
    """A view as it would be with the rows of another one; itself where it is as long and contiguous."""
    if view.is_contiguous() or other.is_contiguous():
        return view
    return view.as_strided(view.shape, (other.stride(0), *view.stride()[1:]), view.storage_offset())


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("item", "one", "other", "within"),
    [
        (ascend.index_put, "value", "key", {}),
        (
            ascend.native_rotary,
            "key",
            "query",
            {"tokens": range(1, 18), "heads": range(1, 9)},
        ),  # what is behind is enough
        (ascend.native_finalize, "residual", "expanded_rows", {}),
    ],
    ids=["paged_cache", "rotary", "moe_finalize"],
)
def test_a_kernel_that_reads_one_tensor_with_the_stride_of_another_is_found(item, one, other, within):
    def function(inputs, target):
        views = getattr(inputs, one), getattr(inputs, other)
        changed = {} if views[0] is None else {one: with_stride_of(*views)}
        return item.function(replace(inputs, **changed), target)

    supports = [{**box, **within} for box in item.constraints.boxes]
    mine = npudiff.implementation(item.component, name="mine", supports=supports)(function)
    job = Job(Subject(load_component(item.component), mine, targets.sim(None)), EQUIVALENCE, mine.constraints)
    failure = run_job(job, Budget(examples=100, seed=2)).failure
    assert failure is not None
    assert failure.error is None  # what it reads is inside the storage, and wrong
    assert failure.case.rows == "sliced"
