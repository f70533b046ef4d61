"""The mask of sliding-window attention: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.model.comparison import Comparison
from npudiff.model.component import Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Allowed, Axis, Box, Constraints, intersection
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.reference.swa_mask import SwaMaskInputs, swa_mask
from npudiff.text import listed

AXES = {
    "batch": Axis("number of requests", range(1, 4097)),
    "kv_length": Axis("tokens of a request; 0 is a dummy request", range(2**24 + 1)),
    "window": Axis("visible keys, the query's own included; none for a full layer", range(1, 2**31), optional=True),
    "capacity": Axis("key columns of the mask, at least the longest length", range(1, 2**25)),
    "lengths_dtype": Axis("dtype of the lengths, int32 or int64", ("int32", "int64")),
    "column": Axis("whether the lengths are a column [batch, 1] instead of [batch]", (False, True)),
}

_WINDOWS = (1, 2, 3, 4, 15, 16, 17, 127, 128, 129, 511, 512, 513, 4096, None, None, None, None)
_LONG = (511, 512, 513, 1024, 4097, 10_001, 131_072)
_MAX_CELLS = 2**26
_CELLS = 2**20  # of a drawn mask, where the constraints leave a choice
_MAX_CAPACITY = 2**25


@dataclass(frozen=True)
class SwaMaskCase:
    """Lengths of a decode batch, and what to build their mask for."""

    kv_lengths: tuple[int, ...]
    """Tokens of each request."""
    window: int | None = None
    """Visible keys, the query's own included."""
    spare: int = 0
    """Columns beyond the longest length."""
    dtype: str = "int32"
    """``int32`` or ``int64``."""
    column: bool = False
    """Whether the lengths are ``[batch, 1]``."""

    @property
    def capacity(self) -> int:
        """Columns of the mask."""
        return max(1, *self.kv_lengths) + self.spare


def cases(constraints: Constraints) -> st.SearchStrategy[SwaMaskCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> SwaMaskCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "batch")
    window = choose.value(box, "window", _WINDOWS)
    batch = choose.value(box, "batch", (1, 2, 3, 4, 8, 33))
    options = _lengths(box, window, _CELLS // batch)
    lengths = choose.draw_list_of(box, "batch", batch, lambda: choose.pick(choose.pick(options)))
    longest = max(1, *lengths)
    return SwaMaskCase(
        kv_lengths=lengths,
        window=window,
        spare=choose.pick(_capacities(box, longest)) - longest,
        dtype=choose.value(box, "lengths_dtype", ("int32", "int64")),
        column=choose.value(box, "column", (False, True)),
    )


def _lengths(box: Box, window: int | None, affordable: int) -> Sequence[Sequence[int]]:
    """Lengths: anything small, or one away from the window, or at a threshold of some kernel, or long."""
    near_window = {max(0, window + step) for step in (-1, 0, 1, 2, window + 1)} if window else set()
    borders = near_window | {*_LONG[-2:]} if window else {0, *_LONG}
    borders = {length for length in borders if length <= affordable}
    widest = max(ends) if (ends := _ends(box.get("capacity"))) else _MAX_CAPACITY
    allowed = intersection(range(widest + 1), box.get("kv_length", range(widest + 1)))
    small = intersection(range(40), allowed)
    # Without a border that is affordable, anything would do for one, and a batch of thousands would have gigabytes.
    near = within(sorted(borders), allowed) if borders or not small else ()
    assume(small or near)
    return [lengths for lengths in (small, near) if lengths]  # type: ignore[misc]


def _capacities(box: Box, longest: int) -> Sequence[int]:
    """Columns of the mask: as many as the longest request has tokens, or more."""
    allowed = intersection(box.get("capacity", range(1, _MAX_CAPACITY)), range(longest, _MAX_CAPACITY))
    assume(allowed)
    return within([longest + spare for spare in (0, 1, 2, 15, 128, 1000)], allowed)


def _ends(allowed: Allowed | None) -> Collection[int]:
    if allowed is None:
        return ()
    return (allowed[0], allowed[-1]) if isinstance(allowed, range) else allowed


def build_inputs(case: SwaMaskCase) -> SwaMaskInputs:
    """Build the inputs of a case."""
    lengths = torch.tensor(case.kv_lengths, dtype=torch.int32 if case.dtype == "int32" else torch.int64)
    return SwaMaskInputs(lengths.unsqueeze(1) if case.column else lengths, case.capacity, case.window)


def values(case: SwaMaskCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {
        "batch": (len(case.kv_lengths),),
        "kv_length": set(case.kv_lengths),
        "window": (case.window,),
        "capacity": (case.capacity,),
        "lengths_dtype": (case.dtype,),
        "column": (case.column,),
    }


def features(case: SwaMaskCase) -> Collection[str]:
    """Return the regions of the input space that the case is in. Every row of this mask is of a query of length 1."""
    checks = {
        "query length 1": True,
        "ragged": len(set(case.kv_lengths)) > 1,
        "window cuts": case.window is not None and max(case.kv_lengths) > case.window,
        "blind rows": 0 in case.kv_lengths,
        "long history": max(case.kv_lengths) > 8192,
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: SwaMaskCase) -> str:
    """Return the case as one short line."""
    lengths = listed([f"kv{length}" for length in case.kv_lengths], "request")
    parts = [
        lengths,
        f"window {'none' if case.window is None else case.window}",
        f"capacity {case.capacity}",
        case.dtype,
        "column" if case.column else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: SwaMaskCase) -> None:
    """Refuse a case that cannot be built, or that would take more memory than a test should; raises ``ValueError``."""
    if not case.kv_lengths or any(not 0 <= length <= 2**24 for length in case.kv_lengths):
        raise ValueError("kv_lengths needs at least one length, each in 0..2**24")
    if case.window is not None and not 1 <= case.window < 2**31:
        raise ValueError(f"window must be none or in 1..2**31-1, got {case.window}")
    if not 0 <= case.spare <= 2**20 or case.dtype not in ("int32", "int64"):
        raise ValueError(f"spare {case.spare} or dtype {case.dtype} out of range")
    if case.capacity * len(case.kv_lengths) > _MAX_CELLS:
        raise ValueError(f"the mask would have more than {_MAX_CELLS} cells")


def coordinates(inputs: SwaMaskInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the mask: request, key, and how far the key lies behind the query."""
    del output  # there is one
    lengths = inputs.kv_lengths.flatten().to(torch.int64)[:, None, None]
    key = torch.arange(inputs.capacity)[None, None, :]
    return {
        "request": torch.arange(len(lengths))[:, None, None],
        "kv length": lengths,
        "key": key,
        "distance to query": lengths - 1 - key,
    }


def _order_does_not_matter(subject: Subject, case: SwaMaskCase) -> Comparison:
    if len(case.kv_lengths) < 2:
        raise NotApplicable("the batch has one request")
    order = Stream(sum(case.kv_lengths), "order").permutation(len(case.kv_lengths))
    other = replace(case, kv_lengths=tuple(case.kv_lengths[i] for i in order))
    before = {name: mask[order] for name, mask in subject.run(build_inputs(case)).items()}
    return same_bits(before, subject.run(build_inputs(other)), "batch reordered")


def _capacity_does_not_matter(subject: Subject, case: SwaMaskCase) -> Comparison:
    wider = replace(case, spare=case.spare + 3)
    subject.require(wider, "the same mask with more columns")
    narrow, wide = subject.run(build_inputs(case)), subject.run(build_inputs(wider))
    return same_bits(narrow, {name: mask[..., : case.capacity] for name, mask in wide.items()}, "more columns")


def _wide_window_equals_none(subject: Subject, case: SwaMaskCase) -> Comparison:
    wide = replace(case, window=max(1, *case.kv_lengths))
    none = replace(case, window=None)
    subject.require(none, "the same mask without a window")
    subject.require(wide, "the same mask with a window as long as the history")
    return same_bits(
        subject.run(build_inputs(none)),
        subject.run(build_inputs(wide)),
        "window as long as the history against none",
    )


def _sizes(model: Model) -> Box | None:
    return None if model.window is None else {"window": model.windows}


component = Component(
    name="swa_mask",
    summary="which keys each request of a decode batch hides",
    case_type=SwaMaskCase,
    outputs=("mask",),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=swa_mask,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    highlighted_region="query length 1",
    relations=(
        Property(
            "order_does_not_matter",
            "the order of the batch does not matter",
            _order_does_not_matter,
            within={"batch": range(2, 4097)},
        ),
        Property("capacity_does_not_matter", "spare columns do not matter", _capacity_does_not_matter),
        Property("wide_window_equals_none", "a window as long as the history equals none", _wide_window_equals_none),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["swa_mask"],
)
