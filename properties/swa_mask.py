"""The mask of sliding-window attention: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, derived, part, within
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, rows_taken
from npudiff.model.component import Component
from npudiff.model.constraints import Allowed, Box, intersection
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_models
from npudiff.reference.swa_mask import SwaMaskInputs, swa_mask
from npudiff.text import listed

_WINDOWS = (1, 2, 3, 4, 15, 16, 17, 127, 128, 129, 511, 512, 513, 4096, None, None, None, None)
_LONG = (511, 512, 513, 1024, 4097, 10_001, 131_072)
_MAX_CELLS = 2**26
_CELLS = 2**20  # of a drawn mask, where the constraints leave a choice
_MAX_CAPACITY = 2**25


def _draw_lengths(choose: Chooser, box: Box, case: SwaMaskCase) -> tuple[int, ...]:
    batch = choose.value(box, "batch", (1, 2, 3, 4, 8, 33))
    options = _lengths(box, case.window, _CELLS // batch)
    return choose.draw_list_of(box, "batch", batch, lambda: int(choose.pick(choose.pick(options))))


def _draw_spare(choose: Chooser, box: Box, case: SwaMaskCase) -> int:
    longest = max(1, *case.kv_lengths)
    return int(choose.pick(_capacities(box, longest))) - longest


@dataclass(frozen=True)
class SwaMaskCase(Case):
    """Lengths of a decode batch, and what to build their mask for. Every row of the mask is of a query of length 1."""

    kv_lengths: tuple[int, ...] = part(
        draw=_draw_lengths, shown=lambda case: listed([f"kv{length}" for length in case.kv_lengths], "request")
    )
    window: int | None = axis(
        "visible keys, the query's own included; none for a full layer", range(1, 2**31), None, optional=True,
        drawn=_WINDOWS, shown="window {}", always=True,
    )  # fmt: skip
    spare: int = part(0, range(_MAX_CAPACITY), draw=_draw_spare, shown=lambda case: f"capacity {case.capacity}")
    """Columns beyond the longest length."""
    dtype: str = part("int32", shown=lambda case: case.dtype)
    column: bool = axis("whether the lengths are a column [batch, 1] instead of [batch]", (False, True), False)

    drawn_first = ("window", "kv_lengths", "spare", "lengths_dtype")
    outliers = ("batch",)
    huge_axes = ("batch",)

    @derived("number of requests", range(1, 4097))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.kv_lengths)

    @derived("tokens of a request; 0 is a dummy request", range(2**24 + 1), each=True)
    def kv_length(self) -> Collection[int]:
        """Tokens of the requests."""
        return set(self.kv_lengths)

    @derived("key columns of the mask, at least the longest length", range(1, _MAX_CAPACITY))
    def capacity(self) -> int:
        """Columns of the mask."""
        return max(1, *self.kv_lengths, 1) + self.spare

    @derived("dtype of the lengths, int32 or int64", ("int32", "int64"), drawn=("int32", "int64"),
             into=lambda dtype: {"dtype": dtype})  # fmt: skip
    def lengths_dtype(self) -> str:
        """Dtype of the lengths."""
        return self.dtype

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.capacity * len(self.kv_lengths) > _MAX_CELLS:
            yield f"the mask would have more than {_MAX_CELLS} cells"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "query length 1": True,
            "ragged": len(set(self.kv_lengths)) > 1,
            "window cuts": self.window is not None and max(self.kv_lengths) > self.window,
            "blind rows": 0 in self.kv_lengths,
            "long history": max(self.kv_lengths) > 8192,
        }


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


def _another_order(inputs: SwaMaskInputs, case: SwaMaskCase) -> Changed[SwaMaskInputs]:
    order = Stream(sum(case.kv_lengths), "order").permutation(len(case.kv_lengths))
    return Changed(replace(inputs, kv_lengths=inputs.kv_lengths[order]), rows_taken(order))


def _more_columns(inputs: SwaMaskInputs, case: SwaMaskCase) -> Changed[SwaMaskInputs]:
    wider = replace(case, spare=case.spare + 3)
    return Changed(
        replace(inputs, capacity=wider.capacity),
        part=lambda outputs: {name: mask[..., : case.capacity] for name, mask in outputs.items()},
        case=wider,
    )


def _wide_window(inputs: SwaMaskInputs, case: SwaMaskCase) -> Changed[SwaMaskInputs]:
    wide, none = replace(case, window=max(1, *case.kv_lengths)), replace(case, window=None)
    return Changed(replace(inputs, window=wide.window), case=(none, wide), before=replace(inputs, window=None))


def _sizes(model: Model) -> Box | None:
    windows = tuple(window for layer in model.layers for window in layer.windows)
    return {"window": tuple(dict.fromkeys(windows))} if model.windowed else None


def _of_other_lengths(case: SwaMaskCase) -> Iterator[SwaMaskCase]:
    """Requests that are longer or shorter, some of them without tokens, in a mask of as many columns."""
    for lengths in (
        tuple(case.capacity - length // 3 for length in case.kv_lengths),
        tuple(length // 2 for length in case.kv_lengths),
        tuple(0 if place % 2 else length for place, length in enumerate(case.kv_lengths[::-1])),
    ):
        yield replace(case, kv_lengths=lengths, spare=case.capacity - max(1, *lengths, 1))


component = Component(
    name="swa_mask",
    summary="which keys each request of a decode batch hides",
    case_type=SwaMaskCase,
    outputs=("mask",),
    inputs=build_inputs,
    reference=swa_mask,
    padded=_of_other_lengths,
    illegal=(
        wrong_element("a negative length", "kv_lengths", constant(-1)),
        wrong_element("a length beyond the capacity", "kv_lengths", lambda inputs: inputs.capacity + 1),
    ),
    coordinates=coordinates,
    highlighted_region="query length 1",
    relations=(
        relation("order_does_not_matter", "the order of the batch does not matter", _another_order, bits=True,
                 within={"batch": range(2, 4097)}),
        relation("capacity_does_not_matter", "spare columns do not matter", _more_columns, bits=True),
        relation("wide_window_equals_none", "a window as long as the history equals none", _wide_window, bits=True),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["swa_mask"],
)  # fmt: skip
