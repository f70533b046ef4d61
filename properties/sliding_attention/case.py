"""Cases of sliding-window attention: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from npudiff.model.constraints import Axis
from npudiff.properties._shared import rows
from npudiff.properties._shared.head_dims import join_head_dims
from npudiff.reference.paged_kv import LAYOUTS
from npudiff.text import counted, listed

RECIPES = ("gaussian", "needle", "outlier", "cold")
"""gaussian: independent values. needle: keys at every border take about half of the weight each. outlier: values at the
borders are 64 times larger. cold: every score is below -50,000."""

POISONS = ("large", "nan")
BLIND_ROWS = ("none", "empty", "any")
HEAD_DIMS = ("64", "128", "192/128", "80", "96", "192", "256", "576/512")

_LENGTHS = range(2**20 + 1)
_SIZES = range(1, 2**16 + 1)

AXES = {
    "batch": Axis("number of requests", range(1, 4097)),
    "query_length": Axis("new tokens of a request; 1 is a decode", _LENGTHS),
    "ragged": Axis("whether requests differ in their number of new tokens", (False, True)),
    "kv_length": Axis("tokens of a request, the new ones included", _LENGTHS),
    "window": Axis("visible keys, the query's own included; none for a full layer", range(1, 2**31), optional=True),
    "page_size": Axis("tokens per page", _SIZES),
    "kv_heads": Axis("KV heads", _SIZES),
    "group": Axis("query heads per KV head", _SIZES),
    "head_dims": Axis("head dim of queries and keys, and of values if it differs: 128 or 192/128", HEAD_DIMS),
    "dtype": Axis("dtype of queries, keys and values", ("bfloat16", "float16")),
    "layout": Axis("how the pages lie", LAYOUTS),
    "rows": rows.AXIS,
    "sinks": Axis("whether heads have a learned sink", (False, True)),
    "hybrid": Axis("whether the model has a second pool with a block table of its own", (False, True)),
    "padded_rows": Axis("query rows beyond the last request", range(2**16 + 1)),
    "fully_masked_rows": Axis(
        "rows that see no key: none, empty (requests of length 0), any (query longer than KV)", BLIND_ROWS
    ),
    "scale": Axis("factor of the scores, in units of 1/sqrt(head dim)", (1.0, 0.5, 4.0)),
    "recipe": Axis("how keys and values are made", RECIPES),
    "poison": Axis("what lies in storage that must not be used: large finite values, or NaN", POISONS),
}

_MAX_TOKENS = 2**20
_MAX_ELEMENTS = 2**28
_MAX_SCORES = 2**34
_MAX_COLD_DIM = 1024  # beyond, float32 cannot tell scores of -60,000 apart, and no bound says anything


@dataclass(frozen=True)
class Request:
    """New tokens and total tokens of one request."""

    query: int
    kv: int


@dataclass(frozen=True)
class SlidingAttentionCase:
    """One attention call, as sizes and a recipe."""

    requests: tuple[Request, ...]
    """The batch."""
    window: int | None = None
    """Visible keys, the query's own included."""
    page_size: int = 16
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 64
    value_head_dim: int = 64
    """Geometry; there are ``kv_heads * group`` query heads."""
    dtype: str = "bfloat16"
    """``bfloat16`` or ``float16``."""
    sinks: bool = False
    hybrid: bool = False
    """Whether heads have sinks, and whether there is a second pool."""
    padded_rows: int = 0
    """Query rows beyond the last request."""
    spare_pages: int = 0
    """Table columns beyond the longest request."""
    scale: float = 1.0
    """Factor of the scores in units of ``1 / sqrt(head_dim)``."""
    recipe: str = "gaussian"
    poison: str = "large"
    """See ``RECIPES`` and ``POISONS``."""
    seed: int = 0
    """Seed of the data."""
    layout: str = "PA_BSND"
    """How the pages of every pool lie."""
    rows: str = "contiguous"
    """How queries and block tables lie."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def tokens(self) -> int:
        """Query rows, padding included."""
        return sum(request.query for request in self.requests) + self.padded_rows

    @property
    def width(self) -> int:
        """Columns of the block table."""
        longest = max((request.kv for request in self.requests), default=0)
        return max(1, -(-longest // self.page_size)) + self.spare_pages


def head_dims(case: SlidingAttentionCase) -> str:
    """Return the head dims as the axis names them."""
    return join_head_dims(case.head_dim, case.value_head_dim)


def fully_masked_rows(case: SlidingAttentionCase) -> str:
    """Which query rows see no key: ``none``, ``empty`` (those of requests without tokens), or ``any``."""
    lengths = [request.kv for request in case.requests if request.query > request.kv]
    return "any" if any(lengths) else "empty" if lengths else "none"


def values(case: SlidingAttentionCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {
        "batch": (len(case.requests),),
        "query_length": {request.query for request in case.requests},
        "ragged": (len({request.query for request in case.requests}) > 1,),
        "kv_length": {request.kv for request in case.requests},
        "window": (case.window,),
        "page_size": (case.page_size,),
        "kv_heads": (case.kv_heads,),
        "group": (case.group,),
        "head_dims": (head_dims(case),),
        "dtype": (case.dtype,),
        "layout": (case.layout,),
        "rows": (case.rows,),
        "sinks": (case.sinks,),
        "hybrid": (case.hybrid,),
        "padded_rows": (case.padded_rows,),
        "fully_masked_rows": (fully_masked_rows(case),),
        "scale": (case.scale,),
        "recipe": (case.recipe,),
        "poison": (case.poison,),
    }


def features(case: SlidingAttentionCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    window = case.window
    checks = {
        "query length 1": any(request.query == 1 for request in case.requests),
        "query length 2..8": any(2 <= request.query <= 8 for request in case.requests),
        "mixed batch": len({request.query == 1 for request in case.requests}) == 2,
        "prefix": any(0 < request.query < request.kv for request in case.requests),
        "window cuts": window is not None and any(request.kv > window for request in case.requests),
        "long history": any(request.kv > 8192 for request in case.requests),
        "request without rows": any(not request.query for request in case.requests),
        "partial page": any(request.kv % case.page_size for request in case.requests),
        "blind rows": fully_masked_rows(case) != "none",
        "NZ pages": case.layout == "PA_NZ",
        "sliced rows": case.rows == "sliced",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: SlidingAttentionCase) -> str:
    """Return the case as one short line; what is at its plainest value is left out."""
    requests = listed([f"q{request.query}/kv{request.kv}" for request in case.requests], "request")
    parts = [
        requests,
        f"window {'none' if case.window is None else case.window}",
        f"page {case.page_size}",
        f"heads {case.heads}:{case.kv_heads}",
        f"dim {head_dims(case)}",
        case.dtype,
        "NZ pages" if case.layout == "PA_NZ" else "",
        "sinks" if case.sinks else "",
        "hybrid" if case.hybrid else "",
        f"{case.padded_rows} padded rows" if case.padded_rows else "",
        counted(case.spare_pages, "spare page") if case.spare_pages else "",
        f"scale x{case.scale:g}" if case.scale != 1 else "",
        case.recipe if case.recipe != "gaussian" else "",
        "NaN poison" if case.poison == "nan" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: SlidingAttentionCase) -> None:
    """Refuse a case that cannot be built, or that would take more memory than a test should.

    Raises
    ------
    ValueError
        With the field that is wrong.
    """
    positive = ("page_size", "kv_heads", "group", "head_dim", "value_head_dim")
    for name in positive:
        if not 1 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 1..65536, got {getattr(case, name)}")
    for name in ("padded_rows", "spare_pages"):
        if not 0 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 0..65536, got {getattr(case, name)}")
    if not 1 <= len(case.requests) <= 4096:
        raise ValueError(f"a case has 1 to 4096 requests, got {len(case.requests)}")
    if any(not 0 <= length <= _MAX_TOKENS for request in case.requests for length in (request.query, request.kv)):
        raise ValueError(f"lengths must lie in 0..{_MAX_TOKENS}")
    _check_words(case)
    rows.check_rows(case.rows)
    if case.recipe == "cold" and case.head_dim > _MAX_COLD_DIM:
        raise ValueError(f"a cold case has a head dim of at most {_MAX_COLD_DIM}, got {case.head_dim}")
    if not 1e-6 <= case.scale <= 1e6 or not 0 <= case.seed < 2**63:
        raise ValueError(f"scale {case.scale} or seed {case.seed} out of range")
    query = case.tokens * case.heads * (case.head_dim + case.value_head_dim)
    pages = (16 * len(case.requests) + 8) * case.page_size * case.kv_heads * (case.head_dim + case.value_head_dim)
    if max(query, pages, case.width * len(case.requests)) > _MAX_ELEMENTS:
        raise ValueError(f"the inputs would have more than {_MAX_ELEMENTS} elements")
    if case.heads * sum(request.query * request.kv for request in case.requests) > _MAX_SCORES:
        raise ValueError(f"the case would compute more than {_MAX_SCORES} scores")


def _check_words(case: SlidingAttentionCase) -> None:
    """Refuse a window, or a word, that there is not."""
    if case.window is not None and not 1 <= case.window < 2**31:
        raise ValueError(f"window must be none or in 1..2**31-1, got {case.window}")
    if case.dtype not in ("bfloat16", "float16") or case.recipe not in RECIPES or case.poison not in POISONS:
        raise ValueError(f"unknown dtype, recipe or poison: {case.dtype}, {case.recipe}, {case.poison}")
    if case.layout not in LAYOUTS or (case.layout == "PA_NZ" and (case.head_dim % 16 or case.value_head_dim % 16)):
        raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, and head dims of PA_NZ fill strips of 16")
