"""Batches that are padded for a graph, among experts: their cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import Model, of_experts
from npudiff.properties._shared.rows import with_row_stride
from npudiff.reference.padded_tokens import PaddedTokensInputs, padded_tokens, real_rows
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POISONS = ("stale", "large", "nan", "infinite")
"""What padded rows hold, and their weights: numbers as of any row, 4096, NaN, or infinity."""
EARLIER = ("all", "none")
"""How many rows were real in the batch before: all of a chunk, or none."""

MOST_ELEMENTS = 2**16
"""Elements of all copies up to which a chunk may have more rows than it must."""


@dataclass(frozen=True)
class Batch:
    """Where a chunk comes from: how many rows of its batch are real, and with which row of it the chunk begins."""

    total: int
    offset: int = 0


def _batch(choose: Chooser, box: Box, chunk: int) -> Batch:
    """Where a chunk comes from: from one real row on, to borders of the chunk and beyond, where it is a part."""
    real = (1, 0, chunk // 2, chunk - 1, chunk)
    if not choose.value(box, "split", (False, False, True)):
        return Batch(choose.pick(real))
    offset = choose.pick((1, 2, 3, 300, 40000)) * chunk
    return Batch(choose.pick((*(offset + count for count in real), offset - 1, 0, offset + chunk + 1)), offset)


def _draw_batches(choose: Chooser, box: Box, case: PaddedTokensCase) -> tuple[Batch, ...]:
    ranks = (1,) if case.huge else (1, 1, 2, 3, 4, 9)
    return choose.draw_list(box, "ranks", ranks, lambda: _batch(choose, box, case.chunk))


def _chunks_drawn(case: PaddedTokensCase) -> Sequence[int]:
    return (2, 1, 3, 4) if case.far == "ranks" else (2, 1, 3, 4, 8, 16, 33, 65, 130, 300)


def _described(case: PaddedTokensCase) -> str:
    chunks = [_real_rows(case, rank) for rank in range(min(case.ranks, 4))]
    size = f"{counted(case.ranks, 'rank')} of {counted(case.chunk, 'row')}"
    return f"{size} · {', '.join(chunks)}" + (", …" if case.ranks > len(chunks) else "")


def _real_rows(case: PaddedTokensCase, rank: int) -> str:
    batch = case.batches[rank]
    if not batch.offset and batch.total <= case.chunk:
        return f"{batch.total} real"
    return f"{case.real[rank]} real (from {batch.offset} on of {batch.total})"


@dataclass(frozen=True)
class PaddedTokensCase(Case):
    """One call, as the batches of its chunks, sizes, and what padding holds."""

    batches: tuple[Batch, ...] = part(draw=_draw_batches, shown=_described)
    chunk: int = axis(
        "rows of a chunk, padded ones included", rows.COUNTS, 2, drawn=_chunks_drawn,
        affordable=lambda case, rows: case.affords(rows * case.top_k * case.width, MOST_ELEMENTS), shown="",
    )  # fmt: skip
    experts: int = axis(
        "experts of the model", range(1, 2049), 4,
        drawn=lambda case: (64, 257, 288) if case.far == "top_k" else (4, 8, 16, 64, 257, 288), shown="",
    )  # fmt: skip
    top_k: int = axis(
        "experts of a row", range(1, 513), 1, drawn=(1, 2, 3, 4, 8), fits=lambda case, top_k: top_k <= case.experts,
        shown=lambda case: f"to {case.top_k} of {case.experts}", region="several experts",
        was="chosen",
    )  # fmt: skip
    width: int = axis(
        "elements of a row",
        range(1, 2**16 + 1),
        64,
        drawn=lambda case: (1, 3) if case.huge else (64, 16, 32, 80),
        shown="width {}",
        always=True,
    )
    dtype: str = axis("dtype of states and weights", tuple(DTYPES), "bfloat16", always=True)
    poison: str = axis("what padded rows hold", POISONS, "stale")
    earlier: str = axis("rows that were real in the batch before", EARLIER, "all", shown="{} before")
    rows: str = rows.axis(several="all_rows")
    seed: int = seed()

    drawn_first = ("experts", "top_k", "width", "chunk")
    outliers = ("top_k", "ranks", "experts", "chunk")
    huge_axes = ("chunk",)

    @derived("chunks of the buffer", range(1, 65))
    def ranks(self) -> int:
        """Chunks of the buffer."""
        return len(self.batches)

    @derived("whether a chunk is a later part of a batch that was split over ranks", (False, True), each=True)
    def split(self) -> Collection[bool]:
        """Whether chunks are later parts of a batch that was split over ranks."""
        return {batch.offset > 0 for batch in self.batches}

    @property
    def all_rows(self) -> int:
        """Rows of the buffer."""
        return self.ranks * self.chunk

    @property
    def real(self) -> list[int]:
        """Real rows of each chunk."""
        return [min(max(batch.total - batch.offset, 0), self.chunk) for batch in self.batches]

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.top_k > self.experts:
            yield f"{self.top_k} experts cannot be chosen of {self.experts}"
        for batch in self.batches:
            if not 0 <= batch.total < 2**31 or not 0 <= batch.offset < 2**31:
                yield f"total and offset of a batch must lie in 0..2**31 - 1, got {batch}"
        if self.all_rows * max(self.top_k * self.width, self.experts) > 2**26:
            yield f"there would be more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        padded = [real < self.chunk for real in self.real]
        ends = [rank for rank, real in enumerate(self.real) if real]
        return {
            "padding": any(padded),
            "real rows are no prefix": any(padded[: ends[-1]]) if ends else False,
            "a rank without real rows": 0 in self.real,
            "no padding": not any(padded),
            "part of a batch": any(batch.offset for batch in self.batches),
            "nan or infinite": any(padded) and self.poison in ("nan", "infinite"),
        }


POISON = {"large": 4096.0, "nan": math.nan, "infinite": math.inf}


def build_inputs(case: PaddedTokensCase) -> PaddedTokensInputs:
    """Build the inputs of a case: all rows are made alike, then padded ones are poisoned, but for their experts."""
    dtype, count = DTYPES[case.dtype], case.all_rows
    states = Stream(case.seed, "states").normal((count, case.width), torch.float32)
    weights = Stream(case.seed, "weights").normal((count, case.top_k), torch.float32).abs() + 0.125
    totals = torch.tensor([batch.total for batch in case.batches])
    offsets = torch.tensor([batch.offset for batch in case.batches])
    inputs = PaddedTokensInputs(
        states=states.to(dtype),
        experts=_experts(case),
        weights=(weights / weights.sum(dim=1, keepdim=True)).to(dtype),
        factors=torch.tensor([_factor(expert) for expert in range(case.experts)], dtype=dtype),
        totals=totals,
        offsets=offsets,
        earlier=offsets + case.chunk if case.earlier == "all" else torch.zeros_like(totals),
    )
    padded = ~real_rows(inputs)
    if case.poison in POISON:
        inputs.states[padded] = POISON[case.poison]
        inputs.weights[padded] = POISON[case.poison]
    return PaddedTokensInputs(**{**vars(inputs), "states": with_row_stride(inputs.states, case.rows)})


def _experts(case: PaddedTokensCase) -> torch.Tensor:
    """Different experts for each row: the first of an order of its own."""
    words = torch.from_numpy(Stream(case.seed, "experts").random_uint64(case.all_rows * case.experts) >> 2).to(
        torch.int64
    )
    order = words.reshape(case.all_rows, case.experts).argsort(dim=1, stable=True)
    return order[:, : case.top_k].to(torch.int32)


def _factor(expert: int) -> float:
    """A power of two for each expert, unlike those of the nine before and behind it."""
    return (1, -1)[expert // 5 % 2] * (1.0, 2.0, 0.5, 4.0, 0.25)[expert % 5]


def coordinates(inputs: PaddedTokensInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: rank, row of its chunk, and choice or column; or expert."""
    if output == "counts":
        return {"expert": torch.arange(len(inputs.factors))}
    place = torch.arange(len(inputs.states)).unsqueeze(1)
    last = {"column": inputs.states.shape[1]} if output == "output" else {"choice": inputs.experts.shape[1]}
    along = {name: torch.arange(count).unsqueeze(0) for name, count in last.items()}
    return {"rank": place // inputs.chunk, "row": place % inputs.chunk, **along}


OF_ROWS = ("weights", "experts", "output")
"""Outputs that have a row for each row of the buffer."""

MORE = 3
"""Rows by which every chunk is padded further."""


def _zeros_in_padding(inputs: PaddedTokensInputs, case: PaddedTokensCase) -> PaddedTokensInputs:
    del case
    padded = ~real_rows(inputs).unsqueeze(1)
    states, weights = inputs.states.masked_fill(padded, 0.0), inputs.weights.masked_fill(padded, 0.0)
    return replace(inputs, states=states, weights=weights)


def _more_padding(inputs: PaddedTokensInputs, case: PaddedTokensCase) -> Changed[PaddedTokensInputs]:
    """Every chunk gets more rows, which are copies of its first one and not real."""
    states, experts, weights = (_longer(inputs, part) for part in (inputs.states, inputs.experts, inputs.weights))
    added = _chunks(inputs, experts)[:, case.chunk :]
    own = torch.bincount(added.flatten().to(torch.int64), minlength=case.experts)

    def cut(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {**{name: _cut(outputs[name], inputs) for name in OF_ROWS}, "counts": outputs["counts"]}

    def counted_more(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {**outputs, "counts": outputs["counts"] + own}

    return Changed(replace(inputs, states=states, experts=experts, weights=weights), counted_more, cut)


def _chunks(inputs: PaddedTokensInputs, rows: torch.Tensor) -> torch.Tensor:
    """Rows by chunk, ``[chunks, rows of one, columns]``."""
    return rows.reshape(len(inputs.totals), -1, rows.shape[1])


def _longer(inputs: PaddedTokensInputs, rows: torch.Tensor) -> torch.Tensor:
    chunks = _chunks(inputs, rows)
    return torch.cat([chunks, chunks[:, :1].expand(-1, MORE, -1)], dim=1).flatten(0, 1)


def _cut(rows: torch.Tensor, inputs: PaddedTokensInputs) -> torch.Tensor:
    return _chunks(inputs, rows)[:, : inputs.chunk].flatten(0, 1)


def _every_rank_alone(subject: Subject, case: PaddedTokensCase) -> Comparison:
    """Chunks that were gathered give what each gives by itself; counts add up."""
    inputs = build_inputs(case)
    alone = [subject.run(_chunk_of(inputs, rank)) for rank in range(case.ranks)]
    others: Mapping[str, torch.Tensor] = {
        **{name: torch.cat([outputs[name] for outputs in alone]) for name in OF_ROWS},
        "counts": torch.stack([outputs["counts"] for outputs in alone]).sum(dim=0),
    }
    return compare_runs(bounds_of(subject.expected(inputs)), subject.run(inputs), others, "every chunk by itself")


def _chunk_of(inputs: PaddedTokensInputs, rank: int) -> PaddedTokensInputs:
    rows, one = slice(rank * inputs.chunk, (rank + 1) * inputs.chunk), slice(rank, rank + 1)
    return PaddedTokensInputs(
        states=inputs.states[rows],
        experts=inputs.experts[rows],
        weights=inputs.weights[rows],
        factors=inputs.factors,
        totals=inputs.totals[one],
        offsets=inputs.offsets[one],
        earlier=inputs.earlier[one],
    )


def _sizes(model: Model) -> Box:
    return {"experts": (model.experts,), "top_k": (model.top_k,), "width": (model.hidden,), "dtype": ("bfloat16",)}


component = Component(
    name="padded_tokens",
    summary="rows that pad a batch for a graph: no weight, still counted, and no way into the result of real rows",
    case_type=PaddedTokensCase,
    outputs=("weights", "experts", "counts", "output"),
    inputs=build_inputs,
    reference=padded_tokens,
    illegal=(wrong_element("a negative number of real rows", "totals", constant(-1)),),
    coordinates=coordinates,
    highlighted_region="real rows are no prefix",
    relations=(
        relation("what_padding_holds", "what padded rows hold does not matter", _zeros_in_padding),
        relation("more_padding", "more padded rows change nothing but counts, by their own", _more_padding,
                 within={"split": (False,)}),
        Property("every_rank_alone", "gathered chunks give what each gives by itself", _every_rank_alone,
                 within={"ranks": range(2, 65)}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["padded_tokens"],
)  # fmt: skip
