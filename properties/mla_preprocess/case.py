"""Cases of MLA preprocessing: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis
from npudiff.properties._shared import padding, rows
from npudiff.reference.cache_layout import CacheLayout
from npudiff.text import counted

LAYOUTS = ("PA_BSND", "PA_NZ")
DIMS = ("128/64/512", "32/16/64")
RECIPES = ("gaussian", "outlier", "tiny")
"""outlier: one element of a row of hidden states is 64 times larger. tiny: hidden states so small that epsilon decides
what the norms return."""
PADDINGS = ("slot 0", "slot -1")

_SIZES = range(1, 2**16 + 1)

AXES = {
    "tokens": Axis("new tokens, padded ones included", _SIZES),
    "padded_tokens": Axis("tokens that are padding", range(2**16)),
    "padding_place": padding.AXIS,
    "padding": Axis("where padded tokens go", PADDINGS),
    "hidden_size": Axis("elements of a hidden state", _SIZES),
    "query_rank": Axis("elements of the query's latent", _SIZES),
    "heads": Axis("query heads", _SIZES),
    "dims": Axis("elements of a head without and with position, and of the keys' latent", DIMS),
    "page_size": Axis("tokens per page", _SIZES),
    "spare_pages": Axis("pages beyond those that are needed", range(2**16)),
    "layout": Axis("how the caches lie", LAYOUTS),
    "quantised": Axis("whether hidden states and weights are multiples of steps, for int8", (False, True)),
    "recipe": Axis("how hidden states are made", RECIPES),
    "epsilon": Axis("added to the mean of squares", (1e-6, 1e-5)),
    "rows": rows.AXIS,
    "table": Axis("rows of the table of cosines and sines", range(1, 2**20 + 1)),
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class MlaPreprocessCase:
    """One call, as sizes and recipes; see the axes for their meaning."""

    tokens: int
    padded_tokens: int = 0
    padding: str = "slot 0"
    hidden_size: int = 256
    query_rank: int = 64
    heads: int = 1
    nope_dim: int = 128
    rope_dim: int = 64
    latent_dim: int = 512
    page_size: int = 16
    spare_pages: int = 0
    layout: str = "PA_BSND"
    recipe: str = "gaussian"
    epsilon: float = 1e-6
    table: int = 64
    quantised: bool = False
    rows: str = "contiguous"
    seed: int = 0
    padding_place: str = "end"

    @property
    def real_tokens(self) -> int:
        """Tokens that go to slots of their own."""
        return self.tokens - self.padded_tokens

    @property
    def pages(self) -> int:
        """Pages of the pool: the dummy page 0, enough for all tokens, and spare ones."""
        return 1 + -(-self.real_tokens // self.page_size) + self.spare_pages


def layout_of(case: MlaPreprocessCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose one head has ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, 1, dim, torch.bfloat16)


def dims_of(case: MlaPreprocessCase) -> str:
    """Return the dims as the axis names them."""
    return f"{case.nope_dim}/{case.rope_dim}/{case.latent_dim}"


def values(case: MlaPreprocessCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name),) for name in AXES if name != "dims"}
    used["dims"] = (dims_of(case),)
    return used if case.padded_tokens else used | {"padding": (), "padding_place": ()}


def features(case: MlaPreprocessCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "one token": case.tokens == 1,
        "NZ": case.layout == "PA_NZ",
        "several heads": case.heads > 1,
        "padded tokens": case.padded_tokens > 0,
        "padding before others": case.padded_tokens > 0 and case.padding_place != "end",
        "int8": case.quantised,
        "sliced rows": case.rows == "sliced",
        "production size": case.hidden_size >= 6144,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: MlaPreprocessCase) -> str:
    """Return the case as one short line."""
    parts = [
        counted(case.tokens, "token"),
        f"{case.padded_tokens} padded to {case.padding}" if case.padded_tokens else "",
        f"padding {case.padding_place}" if case.padding_place != "end" else "",
        f"hidden {case.hidden_size}",
        f"rank {case.query_rank}",
        counted(case.heads, "head"),
        f"dim {dims_of(case)}",
        case.layout,
        f"page {case.page_size}",
        counted(case.spare_pages, "spare page") if case.spare_pages else "",
        "int8" if case.quantised else "",
        case.recipe if case.recipe != "gaussian" else "",
        f"epsilon {case.epsilon:g}" if case.epsilon != 1e-6 else "",
        f"table {case.table}" if case.table != 64 else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: MlaPreprocessCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    for name in ("tokens", "hidden_size", "query_rank", "heads", "nope_dim", "rope_dim", "latent_dim", "page_size"):
        if not 1 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 1..65536, got {getattr(case, name)}")
    for name, known in {"layout": LAYOUTS, "recipe": RECIPES, "padding": PADDINGS}.items():
        if getattr(case, name) not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(case, name)}")
    if not 0 <= case.padded_tokens < case.tokens or not 0 <= case.spare_pages < 2**16:
        raise ValueError("padded_tokens must leave a token, and spare_pages lie in 0..65535")
    if case.quantised and case.recipe != "gaussian":
        raise ValueError(f"values of recipe {case.recipe} are no multiples of a step")
    if case.rope_dim % 2 or not 1e-12 <= case.epsilon <= 1 or not 1 <= case.table <= 2**20:
        raise ValueError("rope_dim, epsilon or table out of range")
    rows.check_rows(case.rows)
    padding.check_place(case.padding_place)
    if not 0 <= case.seed < 2**63:
        raise ValueError(f"seed {case.seed} out of range")
    heads = case.heads * (case.nope_dim + case.rope_dim)
    width = case.latent_dim + case.rope_dim
    sizes = (
        case.hidden_size * (case.query_rank + width + case.tokens),
        case.query_rank * case.heads * (heads // case.heads + case.latent_dim),
        case.tokens * case.heads * width,
        case.pages * case.page_size * width,
    )
    if max(sizes) > _MAX_ELEMENTS:
        raise ValueError(f"the inputs would have more than {_MAX_ELEMENTS} elements")
    for dim in (case.latent_dim, case.rope_dim):
        _ = layout_of(case, dim).shape  # raises for strips that are not filled
