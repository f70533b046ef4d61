"""Rotary position embedding: its cases, data, and what must hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, choice, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.judge.relations import Changed, relation, rows_taken
from npudiff.model.component import Comparison, Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Joined
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.head_dims import join_head_dims
from npudiff.properties._shared.illegal import illegal_rows
from npudiff.properties._shared.long_table import ROW_STEP, table_of_numbers
from npudiff.properties._shared.models import of_models, rotary_boxes
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.reference.rotary import STYLES, RotaryInputs, rotary

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POSITIONS = ("consecutive", "scattered", "last", "consecutive but one")
"""consecutive: as in a prompt, from some start. scattered: as in a decode batch. last: the end of the table.
consecutive but one: the one in the middle is elsewhere."""
DATA = ("numbers", "cosines")
"""numbers: a table whose entries are all different, so that one which is read in another's place shows. cosines: real
cosines and sines of base 10000, so that queries and keys are turned, and relations between turns can be asked for."""
MAGNITUDES = ("usual", "large", "small", "overflow")
"""large: near the end of the dtype, where every right result still is inside. small: subnormal in float16, and such
that squares vanish in others. overflow: at the end of float16, beyond which some are turned."""
DIMS = ("64", "32/64", "64/128", "64/192", "128", "192", "96/128", "16/80")

SECTIONS = ("none", "16/24/24", "24/20/20", "8/12/12", "16/16/16/16")
"""How many frequencies belong to each kind of position (time, height and width of an image); none: all to one."""


@dataclass(frozen=True)
class Sections(Joined):
    """None, or three or four numbers of frequencies."""

    def __contains__(self, value: object) -> bool:
        return value == "none" or (
            isinstance(value, str)
            and len(value) < 64
            and re.fullmatch(r"[1-9][0-9]*(/[1-9][0-9]*){2,3}", value, re.ASCII) is not None
        )

    def __iter__(self) -> Iterator[str]:
        return iter(SECTIONS)

    def __len__(self) -> int:
        return len(SECTIONS)

    def __str__(self) -> str:
        return "none, or three or four sections: 16/24/24"


ANY_SECTIONS = Sections(())

_SIZES = range(1, 2**16 + 1)
_COSINES = {
    "data": ("cosines",),
    "table": range(2, 4098),
    "sections": ("none",),
    "magnitude": ("usual", "large", "small"),
}

MOST_COSINES = 100_000

MOST_ROWS = 2**13
"""Rows of all heads up to which a case may have more heads than it must."""

MANY_SHARE = 8
"""One of so many cases has more rows than a kernel turns in one go."""

LEAST_OF_MANY, MOST_OF_MANY = 12_000, 2**15
"""Rows of all heads of such a case."""

MANY_TOKENS, MANY_HEADS = (257, 513, 1025), (64, 33, 12)
"""With the most heads the fewest tokens are enough, so that a case with too many rows has one smallest form."""


def _has_many_rows(case: RotaryCase) -> bool:
    return bool(case.place_of_many == MANY_SHARE - 1 and not case.huge)


def _heads(case: RotaryCase) -> Sequence[int]:
    """Numbers of heads, or those that give more rows than a kernel turns in one go."""
    if not _has_many_rows(case):
        return (1, 2, 3, 8, 33, 72)
    return [count for count in MANY_HEADS if LEAST_OF_MANY <= count * case.tokens <= MOST_OF_MANY] or [min(MANY_HEADS)]


def _half(sections: str) -> int:
    """Half of the rotary dim that sections add up to."""
    return sum(map(int, sections.split("/")))


def _sections(case: RotaryCase) -> Sequence[str]:
    """None, or sections that add up to half of the rotary dim; more often for a single token, which few cases have."""
    fitting = [text for text in SECTIONS[1:] if 2 * _half(text) == case.rotary_dim]
    half = case.rotary_dim // 2
    if half > 2:  # any three
        first = 1 + case.place_of_sections % (half - 2)
        second = 1 + case.place_of_sections // 64 % (half - first - 1)
        fitting.append(f"{first}/{second}/{half - first - second}")
    return ["none", *fitting, *(fitting if case.tokens == 1 else ["none"])]


def _dims(case: RotaryCase) -> Sequence[str]:
    """Dims of models; few elements where there are many rows."""
    if case.huge:
        return ("16", "8/16", "8")
    return ("64", "32/64") if _has_many_rows(case) else DIMS


def _turns_a_part(case: RotaryCase, text: str) -> bool:
    """Whether there are as many elements as are to turn."""
    del case
    dims = _into_dims(text)
    return dims["rotary_dim"] <= dims["head_dim"]


def _into_dims(text: str) -> dict[str, int]:
    rotary_dim, _, head_dim = text.partition("/")
    return {"rotary_dim": int(rotary_dim), "head_dim": int(head_dim or rotary_dim)}


@dataclass(frozen=True)
class RotaryCase(Case):
    """One call: sizes, style, and which positions the tokens have."""

    tokens: int = axis(
        "rows", rows.COUNTS,
        drawn=lambda case: MANY_TOKENS if _has_many_rows(case) else (1, 1, 2, 3, 7, 16, 17, 65, 257, 513),
        affordable=lambda case, tokens: not case.huge or case.affords(tokens * case.head_dim, 0),
        shown="{} token(s)",
    )  # fmt: skip
    heads: int = axis(
        "query heads", _SIZES, 1, drawn=_heads, shown=lambda case: f"heads {case.heads}:{case.kv_heads}",
        affordable=lambda case, count: count * case.tokens <= (MOST_OF_MANY if _has_many_rows(case) else MOST_ROWS),
    )  # fmt: skip
    kv_heads: int = axis(
        "key heads", _SIZES, 1, drawn=(1, 2, 3), affordable=lambda case, count: count * case.tokens <= MOST_ROWS,
        shown="",
    )  # fmt: skip
    rotary_dim: int = part(64)
    head_dim: int = part(64)
    dtype: str = axis("dtype of states and table", tuple(DTYPES), "bfloat16", always=True)
    style: str = axis(
        "which elements form a pair, and where it goes", STYLES, "half", always=True, region="pairs are neighbours"
    )
    positions: str = axis(
        "which rows of the table are used", POSITIONS, "consecutive",
        shown=lambda case: f"{case.positions} of {case.table}",
    )  # fmt: skip
    table: int = axis(
        "rows of the table", range(1, 2**20 + 1), 64, drawn=(*(1, 5, 64, 1025, 4097) * 5, 70_001, 2**20), shown=""
    )
    data: str = axis(
        "what the table holds", DATA, "numbers", drawn=("numbers", "numbers", "cosines"),
        fits=lambda case, data: data == "numbers" or case.table <= MOST_COSINES, region="real cosines",
    )  # fmt: skip
    sections: str = axis(
        "how many frequencies belong to each kind of position", ANY_SECTIONS, "none", drawn=_sections,
        fits=lambda case, text: text == "none" or 2 * _half(text) == case.rotary_dim,
        shown="sections {}", region="sections",
    )  # fmt: skip
    magnitude: str = axis(
        "how large the states are", MAGNITUDES, "usual",
        fits=lambda case, size: size != "overflow" or case.dtype == "float16", shown="{} states", region="{} states",
    )  # fmt: skip
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    place_of_many = choice(range(MANY_SHARE))
    place_of_sections = choice(range(2**12))
    drawn_first = ("place_of_many", "place_of_sections", "dims", "tokens", "table", "data")
    shown_first = ("tokens", "heads", "dims", "style", "dtype", "positions", "sections", "rows", "data", "magnitude")
    outliers = ("heads", "kv_heads", "tokens", "dims")
    huge_axes = ("tokens",)

    @derived(
        "rotary dim, and head dim if it differs: 64 or 64/128", Joined((range(2, 2**16 + 1, 2), _SIZES), short=True),
        drawn=_dims, fits=_turns_a_part, into=_into_dims, shown="dim {}",
    )  # fmt: skip
    def dims(self) -> str:
        """Rotary dim, and head dim if it differs."""
        return join_head_dims(self.rotary_dim, self.head_dim)

    @property
    def section_sizes(self) -> tuple[int, ...]:
        """Frequencies of each section; empty if there is one kind of position."""
        return () if self.sections == "none" else tuple(map(int, self.sections.split("/")))

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.rotary_dim > self.head_dim:
            yield f"rotary_dim must be at most head_dim, got {self.rotary_dim} and {self.head_dim}"
        if self.section_sizes and 2 * sum(self.section_sizes) != self.rotary_dim:
            yield f"sections {self.sections} do not add up to half of rotary_dim {self.rotary_dim}"
        if self.data == "cosines" and self.table > MOST_COSINES:
            yield f"a table of cosines has at most {MOST_COSINES} rows, got {self.table}"
        if max(self.tokens * max(self.heads, self.kv_heads) * self.head_dim, self.table * ROW_STEP) > 2**26:
            yield f"the inputs would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "partial rotary": self.rotary_dim != self.head_dim,
            "dim is no power of two": self.rotary_dim & (self.rotary_dim - 1) != 0,
            "one token": self.tokens == 1,
            "many rows": self.tokens * (self.heads + self.kv_heads) > 2**13,
            "large positions": self.table > 65_536,
        }


def build_inputs(case: RotaryCase) -> RotaryInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    states = {
        name: with_row_stride(_states(case, name, heads), case.rows, gap)
        for name, heads, gap in (("query", case.heads, GAPS[0]), ("key", case.kv_heads, GAPS[1]))
    }
    return RotaryInputs(
        states["query"],
        states["key"],
        with_row_stride(_positions(case), case.rows),
        with_row_stride(_stored_table(case, dtype), case.rows),
        case.style,
        case.section_sizes,
    )


def _states(case: RotaryCase, name: str, heads: int) -> torch.Tensor:
    """Queries or keys, ``[tokens, heads, head_dim]``."""
    dtype = DTYPES[case.dtype]
    shape = (case.tokens, heads, case.head_dim)
    if case.magnitude == "usual":
        return Stream(case.seed, name).normal(shape, dtype)
    numbers = Stream(case.seed, name).normal(shape, torch.float32)
    if case.magnitude == "small":
        return magnitudes.small(numbers, dtype).to(dtype)
    return magnitudes.large(numbers, dtype, magnitudes.TO_THE_END if case.magnitude == "overflow" else 1.0).to(dtype)


def _stored_table(case: RotaryCase, dtype: torch.dtype) -> torch.Tensor:
    if case.data == "cosines":
        return exact_table(case).to(dtype)
    return table_of_numbers(case.seed, case.table, case.rotary_dim, dtype)


def exact_table(case: RotaryCase) -> torch.Tensor:
    """The table before it is rounded to its dtype: float64 cosines and sines, or the numbers."""
    if case.data == "numbers":
        return table_of_numbers(case.seed, case.table, case.rotary_dim, torch.float64)
    exponents = torch.arange(0, case.rotary_dim, 2, dtype=torch.float64) / case.rotary_dim
    angles = torch.outer(torch.arange(case.table, dtype=torch.float64), 10_000.0**-exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _positions(case: RotaryCase) -> torch.Tensor:
    """Positions ``[tokens]``, or of each section ``[sections, tokens]``."""
    kinds = [_positions_of(case, f"positions {section}") for section in range(len(case.section_sizes))]
    return torch.stack(kinds) if kinds else _positions_of(case, "positions")


def _positions_of(case: RotaryCase, name: str) -> torch.Tensor:
    stream = Stream(case.seed, name)
    if case.positions == "scattered":
        return torch.tensor(stream.integers(0, case.table, case.tokens))
    start = case.table - case.tokens if case.positions == "last" else stream.integers(0, case.table, 1)[0]
    positions = (torch.arange(case.tokens) + start) % case.table
    if case.positions == "consecutive but one":
        positions[case.tokens // 2] = stream.integers(0, case.table, 1)[0]
    return positions


def coordinates(inputs: RotaryInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, position, head and element."""
    states = inputs.query if output == "query" else inputs.key
    return {
        "token": torch.arange(states.shape[0])[:, None, None],
        "position": inputs.positions.reshape(-1, len(states))[0][:, None, None],
        "head": torch.arange(states.shape[1])[None, :, None],
        "element": torch.arange(states.shape[2])[None, None, :],
    }


def _in_another_order(inputs: RotaryInputs, case: RotaryCase) -> Changed[RotaryInputs]:
    order = Stream(case.seed, "order").permutation(case.tokens)
    moved = replace(inputs, query=inputs.query[order], key=inputs.key[order], positions=inputs.positions[..., order])
    return Changed(moved, rows_taken(order))


def _swapped(inputs: RotaryInputs, case: RotaryCase) -> Changed[RotaryInputs]:
    """Queries and keys are rotated alike: swapping their roles swaps the outputs."""
    return Changed(
        replace(inputs, query=inputs.key, key=inputs.query),
        lambda outputs: {
            name: outputs[source] for name, source in (("query", "key"), ("key", "query")) if source in outputs
        },
        case=replace(case, heads=case.kv_heads, kv_heads=case.heads),
    )


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


component = Component(
    name="rotary",
    summary="rotary position embedding of queries and keys, from a table of cosines and sines",
    case_type=RotaryCase,
    outputs=("query", "key"),
    inputs=build_inputs,
    reference=rotary,
    illegal=illegal_rows("positions", "cos_sin_cache", "a position"),
    coordinates=coordinates,
    highlighted_region="partial rotary",
    relations=(
        relation("tokens_do_not_mix", "the order of tokens does not matter", _in_another_order,
                 within={"tokens": rows.SEVERAL}),
        relation("heads_do_not_mix", "queries and keys are rotated alike", _swapped),
        Property("norm_is_preserved", "a rotation changes no length", _norm_is_preserved, within=_COSINES),
        Property("relative_positions", "scores depend on distances of positions only", _relative_positions,
                 within={**_COSINES, "tokens": range(1, 66)}, needs={"positions": ("scattered",)}),
    ),
    example_ratio=0.6,
    profiles=of_models(rotary_boxes),
    baselines=BASELINES["rotary"],
)  # fmt: skip
