"""Rotary position embedding: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import assume
from hypothesis import strategies as st

from npudiff.compare import Comparison, compare, same_bits
from npudiff.component import Component, Subject
from npudiff.constraints import Axis, Box, Constraints
from npudiff.data import Stream
from npudiff.draw import Chooser, within
from npudiff.property import NotApplicable, Property
from npudiff.text import counted
from reference.rotary import STYLES, RotaryInputs, rotary

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POSITIONS = ("consecutive", "scattered", "last")
"""consecutive: as in a prompt, from some start. scattered: as in a decode batch. last: the end of the table."""
DATA = ("numbers", "cosines")
"""numbers: a table whose entries are all different, so that one which is read in another's place shows. cosines: real
cosines and sines of base 10000, so that queries and keys are turned, and relations between turns can be asked for."""
DIMS = ("64", "128", "192", "32/64", "64/128", "64/192", "96/128", "16/80")

_SIZES = range(1, 2**16 + 1)

AXES = {
    "tokens": Axis("rows", _SIZES),
    "heads": Axis("query heads", _SIZES),
    "kv_heads": Axis("key heads", _SIZES),
    "dims": Axis("rotary dim, and head dim if it differs: 64 or 64/128", DIMS),
    "dtype": Axis("dtype of states and table", tuple(DTYPES)),
    "style": Axis("which elements form a pair, and where it goes", STYLES),
    "positions": Axis("which rows of the table are used", POSITIONS),
    "table": Axis("rows of the table", range(1, 2**20 + 1)),
    "data": Axis("what the table holds", DATA),
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class RotaryCase:
    """One call: sizes, style, and which positions the tokens have."""

    tokens: int
    heads: int = 1
    kv_heads: int = 1
    rotary_dim: int = 64
    head_dim: int = 64
    dtype: str = "bfloat16"
    style: str = "half"
    positions: str = "consecutive"
    table: int = 64
    data: str = "numbers"
    seed: int = 0


def dims_of(case: RotaryCase) -> str:
    """Return the dims as the axis names them."""
    return str(case.head_dim) if case.rotary_dim == case.head_dim else f"{case.rotary_dim}/{case.head_dim}"


def cases(constraints: Constraints) -> st.SearchStrategy[RotaryCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> RotaryCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    rotary_dim, _, head_dim = str(choose.value(box, "dims", DIMS)).partition("/")
    tokens = choose.value(box, "tokens", (1, 2, 3, 7, 16, 17, 65, 257))
    tables = [rows for rows in within((64, 1, 5, 1025, 4097) * 3 + (70_001,), box.get("table"))[:4096] if rows >= 1]
    assume(tables)
    return RotaryCase(
        tokens=tokens,
        heads=choose.value(box, "heads", (1, 2, 3, 8)),
        kv_heads=choose.value(box, "kv_heads", (1, 2, 3)),
        rotary_dim=int(rotary_dim),
        head_dim=int(head_dim or rotary_dim),
        dtype=choose.value(box, "dtype", tuple(DTYPES)),
        style=choose.value(box, "style", STYLES),
        positions=choose.value(box, "positions", POSITIONS),
        table=choose.pick(tables),
        data=choose.value(box, "data", ("numbers", "numbers", "cosines")),
        seed=choose.pick(range(1024)),
    )


def build_inputs(case: RotaryCase) -> RotaryInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]
    states = {
        name: Stream(case.seed, name).normal((case.tokens, heads, case.head_dim), dtype)
        for name, heads in (("query", case.heads), ("key", case.kv_heads))
    }
    return RotaryInputs(states["query"], states["key"], _positions(case), _table(case).to(dtype), case.style)


def _table(case: RotaryCase) -> torch.Tensor:
    """The table before it is rounded to its dtype, float32 numbers or float64 cosines and sines."""
    if case.data == "numbers":
        return Stream(case.seed, "table").normal((case.table, case.rotary_dim), torch.float32) * 0.5
    exponents = torch.arange(0, case.rotary_dim, 2, dtype=torch.float64) / case.rotary_dim
    angles = torch.outer(torch.arange(case.table, dtype=torch.float64), 10_000.0**-exponents)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def _positions(case: RotaryCase) -> torch.Tensor:
    stream = Stream(case.seed, "positions")
    if case.positions == "scattered":
        return torch.tensor(stream.integers(0, case.table, case.tokens))
    start = case.table - case.tokens if case.positions == "last" else stream.integers(0, case.table, 1)[0]
    return (torch.arange(case.tokens) + start) % case.table


def values(case: RotaryCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {name: (dims_of(case) if name == "dims" else getattr(case, name),) for name in AXES}


def features(case: RotaryCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "partial rotary": case.rotary_dim != case.head_dim,
        "pairs are neighbours": case.style != "half",
        "dim is no power of two": case.rotary_dim & (case.rotary_dim - 1) != 0,
        "one token": case.tokens == 1,
        "large positions": case.table > 65_536,
        "real cosines": case.data == "cosines",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: RotaryCase) -> str:
    """Return the case as one short line."""
    parts = [
        counted(case.tokens, "token"),
        f"heads {case.heads}:{case.kv_heads}",
        f"dim {dims_of(case)}",
        case.style,
        case.dtype,
        f"{case.positions} of {case.table}",
        "cosines" if case.data == "cosines" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: RotaryCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    for name in ("tokens", "heads", "kv_heads", "rotary_dim", "head_dim"):
        if not 1 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 1..65536, got {getattr(case, name)}")
    if case.rotary_dim % 2 or case.rotary_dim > case.head_dim:
        raise ValueError(f"rotary_dim must be even and at most head_dim, got {case.rotary_dim} and {case.head_dim}")
    if case.dtype not in DTYPES or case.style not in STYLES or case.positions not in POSITIONS:
        raise ValueError(f"unknown dtype, style or positions: {case.dtype}, {case.style}, {case.positions}")
    if case.data not in DATA:
        raise ValueError(f"data is one of {', '.join(DATA)}, got {case.data}")
    if not 1 <= case.table <= 2**20 or not 0 <= case.seed < 2**63:
        raise ValueError(f"table {case.table} or seed {case.seed} out of range")
    if max(case.tokens * max(case.heads, case.kv_heads) * case.head_dim, case.table * case.rotary_dim) > _MAX_ELEMENTS:
        raise ValueError(f"the inputs would have more than {_MAX_ELEMENTS} elements")


def coordinates(inputs: RotaryInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, position, head and element."""
    states = inputs.query if output == "query" else inputs.key
    return {
        "token": torch.arange(states.shape[0])[:, None, None],
        "position": inputs.positions[:, None, None],
        "head": torch.arange(states.shape[1])[None, :, None],
        "element": torch.arange(states.shape[2])[None, None, :],
    }


def _tokens_do_not_mix(subject: Subject, case: RotaryCase) -> Comparison:
    inputs = build_inputs(case)
    order = Stream(case.seed, "order").permutation(case.tokens)
    before = {name: output[order] for name, output in subject.run(inputs).items()}
    other = replace(inputs, query=inputs.query[order], key=inputs.key[order], positions=inputs.positions[order])
    return same_bits(before, subject.run(other), "tokens in another order")


def _heads_do_not_mix(subject: Subject, case: RotaryCase) -> Comparison:
    """Queries and keys are rotated alike: swapping their roles swaps the outputs."""
    inputs = build_inputs(case)
    subject.require(replace(case, heads=case.kv_heads, kv_heads=case.heads), "queries and keys swapped")
    one, other = subject.run(inputs), subject.run(replace(inputs, query=inputs.key, key=inputs.query))
    return same_bits(one, {"query": other["key"], "key": other["query"]}, "queries and keys swapped")


@dataclass(frozen=True)
class _Derived:
    """What a run must give, taken from another run or from the inputs, and how far it may be from that."""

    value: torch.Tensor
    bound: torch.Tensor
    dtype: torch.dtype = torch.float64


def _turned(subject: Subject, case: RotaryCase, inputs: RotaryInputs) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return queries and keys as they were rotated, and how far each head may be from a turn by exact angles.

    That distance is the norm of the reference's bounds, plus what the table's rounding does: an entry pair that is off
    by ``(d, e)`` moves each pair of elements by ``hypot(d, e)`` times its length, at most.
    """
    expected = subject.expected(inputs)
    exact = _table(case)[inputs.positions]
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
    turned = _turned(subject, case, inputs)
    right = {
        name: _Derived(getattr(inputs, name).to(torch.float64).norm(dim=-1), distance)
        for name, (_, distance) in turned.items()
    }
    return compare(right, {name: rotated.norm(dim=-1) for name, (rotated, _) in turned.items()}, "lengths of heads")


def _relative_positions(subject: Subject, case: RotaryCase) -> Comparison:
    """Scores of queries and keys depend on the distance of their positions only: all are moved by as many rows."""
    subject.require(replace(case, positions="scattered"), "positions in any order")
    stream = Stream(case.seed, "moved")
    (moved,) = stream.integers(1, case.table, 1)
    positions = torch.tensor(stream.integers(0, case.table - moved, case.tokens))
    inputs = replace(build_inputs(case), positions=positions)
    scores = [_scores(_turned(subject, case, inputs))]
    scores.append(_scores(_turned(subject, case, replace(inputs, positions=positions + moved))))
    right = _Derived(scores[0][0], scores[0][1] + scores[1][1])
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


_COSINES = {"data": ("cosines",), "table": range(2, 4098)}

component = Component(
    name="rotary",
    summary="rotary position embedding of queries and keys, from a table of cosines and sines",
    case_type=RotaryCase,
    outputs=("query", "key"),
    axes=AXES,
    strategy=cases,
    inputs=build_inputs,
    reference=rotary,
    values=values,
    features=features,
    describe=describe,
    check_case=check_case,
    coordinates=coordinates,
    watched="partial rotary",
    relations=(
        Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
                 within={"tokens": range(2, 2**16 + 1)}),
        Property("heads_do_not_mix", "queries and keys are rotated alike", _heads_do_not_mix),
        Property("norm_is_preserved", "a rotation changes no length", _norm_is_preserved, within=_COSINES),
        Property("relative_positions", "scores depend on distances of positions only", _relative_positions,
                 within={**_COSINES, "tokens": range(1, 66)}, needs={"positions": ("scattered",)}),
    ),
    profiles={
        "step-3.5-flash": {"dims": ("64/128", "128"), "style": ("half",), "dtype": ("bfloat16",)},
        "deepseek-v3": {"dims": ("64",), "style": ("interleaved", "interleaved_to_half"), "dtype": ("bfloat16",)},
    },
)  # fmt: skip
