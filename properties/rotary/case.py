"""Cases of rotary embedding: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis
from npudiff.properties._shared import rows
from npudiff.properties._shared.long_table import ROW_STEP
from npudiff.reference.rotary import STYLES
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POSITIONS = ("consecutive", "scattered", "last")
"""consecutive: as in a prompt, from some start. scattered: as in a decode batch. last: the end of the table."""
DATA = ("numbers", "cosines")
"""numbers: a table whose entries are all different, so that one which is read in another's place shows. cosines: real
cosines and sines of base 10000, so that queries and keys are turned, and relations between turns can be asked for."""
MAGNITUDES = ("usual", "large", "small")
"""large: near the end of the dtype, where every right result still is inside. small: subnormal in float16, and such
that squares vanish in others."""
DIMS = ("64", "32/64", "64/128", "64/192", "128", "192", "96/128", "16/80")

SECTIONS = ("none", "16/24/24", "24/20/20", "8/12/12", "16/16/16/16")
"""How many frequencies belong to each kind of position (time, height and width of an image); none: all to one."""

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
    "sections": Axis("how many frequencies belong to each kind of position", SECTIONS),
    "rows": rows.AXIS,
    "data": Axis("what the table holds", DATA),
    "magnitude": Axis("how large the states are", MAGNITUDES),
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
    sections: str = "none"
    magnitude: str = "usual"
    rows: str = "contiguous"
    seed: int = 0

    @property
    def section_sizes(self) -> tuple[int, ...]:
        """Frequencies of each section; empty if there is one kind of position."""
        return () if self.sections == "none" else tuple(map(int, self.sections.split("/")))


def dims_of(case: RotaryCase) -> str:
    """Return the dims as the axis names them."""
    return str(case.head_dim) if case.rotary_dim == case.head_dim else f"{case.rotary_dim}/{case.head_dim}"


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
        "many rows": case.tokens * (case.heads + case.kv_heads) > 2**13,
        "large positions": case.table > 65_536,
        "real cosines": case.data == "cosines",
        "sections": case.sections != "none",
        f"{case.magnitude} states": case.magnitude != "usual",
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
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
        f"sections {case.sections}" if case.sections != "none" else "",
        "sliced rows" if case.rows == "sliced" else "",
        "cosines" if case.data == "cosines" else "",
        f"{case.magnitude} states" if case.magnitude != "usual" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


_NAMED = {"data": DATA, "sections": SECTIONS, "rows": rows.ROWS, "magnitude": MAGNITUDES}


def check_case(case: RotaryCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    for name in ("tokens", "heads", "kv_heads", "rotary_dim", "head_dim"):
        if not 1 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 1..65536, got {getattr(case, name)}")
    if case.rotary_dim % 2 or case.rotary_dim > case.head_dim:
        raise ValueError(f"rotary_dim must be even and at most head_dim, got {case.rotary_dim} and {case.head_dim}")
    if case.dtype not in DTYPES or case.style not in STYLES or case.positions not in POSITIONS:
        raise ValueError(f"unknown dtype, style or positions: {case.dtype}, {case.style}, {case.positions}")
    for name, known in _NAMED.items():
        if getattr(case, name) not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(case, name)}")
    if case.section_sizes and 2 * sum(case.section_sizes) != case.rotary_dim:
        raise ValueError(f"sections {case.sections} do not add up to half of rotary_dim {case.rotary_dim}")
    if case.data == "cosines" and case.table > 100_000:
        raise ValueError(f"a table of cosines has at most 100000 rows, got {case.table}")
    if not 1 <= case.table <= 2**20 or not 0 <= case.seed < 2**63:
        raise ValueError(f"table {case.table} or seed {case.seed} out of range")
    if max(case.tokens * max(case.heads, case.kv_heads) * case.head_dim, case.table * ROW_STEP) > _MAX_ELEMENTS:
        raise ValueError(f"the inputs would have more than {_MAX_ELEMENTS} elements")
