"""Cases of MLA's write into the cache: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis
from npudiff.properties._shared import padding, rows
from npudiff.reference.cache_layout import CacheLayout
from npudiff.text import counted

DTYPES = ("bfloat16", "float16")
DIMS = ("512/64", "128/64", "64/32")
LAYOUTS = ("PA_BSND", "PA_NZ")
PLACEMENTS = ("scattered", "pages", "rows")
"""scattered: any slots of any pages. pages: each request fills pages from their first slot on. rows: each request has
one page of its own, as long as the cache is, and any slots in it."""
PADDINGS = ("slot 0", "slot -1")
RECIPES = ("gaussian", "outlier", "tiny", "large")
"""outlier: one element of a latent is 64 times larger. tiny: latents around the square root of epsilon. large: squares
beyond the range of float16."""

_SIZES = range(1, 2**16 + 1)

AXES = {
    "batch": Axis("requests", _SIZES),
    "length": Axis("tokens of each request; 1 is a decode", _SIZES),
    "spare_pages": Axis("pages beyond those that the placement needs", range(2**16)),
    "page_size": Axis("tokens per page", _SIZES),
    "dims": Axis("elements of the latent and of the rope key", DIMS),
    "dtype": Axis("dtype of the tokens", DTYPES),
    "quantised": Axis("whether the caches are int8", (False, True)),
    "layout": Axis("how the caches lie", LAYOUTS),
    "placement": Axis("which slots a request has", PLACEMENTS),
    "padding": Axis("where padded tokens go", PADDINGS),
    "padded_tokens": Axis("tokens that are padding; only among scattered slots", range(2**16)),
    "padding_place": padding.AXIS,
    "recipe": Axis("how the tokens are made", RECIPES),
    "epsilon": Axis("added to the mean of squares", (1e-6, 1e-5)),
    "rows": rows.AXIS,
    "table": Axis("rows of the table of cosines and sines", range(1, 2**20 + 1)),
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class KvRmsnormRopeCacheCase:
    """One call, as sizes and recipes; see the axes for their meaning."""

    batch: int
    length: int = 1
    spare_pages: int = 0
    page_size: int = 16
    latent_dim: int = 512
    rope_dim: int = 64
    dtype: str = "bfloat16"
    quantised: bool = False
    layout: str = "PA_BSND"
    placement: str = "scattered"
    padding: str = "slot 0"
    padded_tokens: int = 0
    recipe: str = "gaussian"
    epsilon: float = 1e-6
    table: int = 64
    rows: str = "contiguous"
    seed: int = 0
    padding_place: str = "end"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the tokens."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float16

    @property
    def cache_dtype(self) -> torch.dtype:
        """Dtype of the caches."""
        return torch.int8 if self.quantised else self.torch_dtype

    @property
    def pages_per_request(self) -> int:
        """Pages that a request fills or begins when its tokens lie one after the other."""
        return -(-self.length // self.page_size)

    @property
    def pages(self) -> int:
        """Pages of the pool: one per request where each has a row, else the dummy page 0 and enough for all."""
        if self.placement == "rows":
            return self.batch
        return 1 + self.batch * self.pages_per_request + self.spare_pages


def layout_of(case: KvRmsnormRopeCacheCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose one head has ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, 1, dim, case.cache_dtype)


def dims_of(case: KvRmsnormRopeCacheCase) -> str:
    """Return the dims as the axis names them."""
    return f"{case.latent_dim}/{case.rope_dim}"


def values(case: KvRmsnormRopeCacheCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name),) for name in AXES if name != "dims"}
    used["dims"] = (dims_of(case),)
    return used if case.padded_tokens else used | {"padding": (), "padding_place": ()}


def features(case: KvRmsnormRopeCacheCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "decode": case.length == 1,
        "NZ": case.layout == "PA_NZ",
        "int8": case.quantised,
        "sliced rows": case.rows == "sliced",
        "padded tokens": case.padded_tokens > 0,
        "padding before others": case.padded_tokens > 0 and case.padding_place != "end",
        "crosses pages": case.placement == "pages" and case.length > case.page_size,
        "partial page": case.placement == "pages" and case.length % case.page_size != 0,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: KvRmsnormRopeCacheCase) -> str:
    """Return the case as one short line."""
    parts = [
        f"{counted(case.batch, 'request')} of {counted(case.length, 'token')}",
        f"{case.padded_tokens} padded to {case.padding}" if case.padded_tokens else "",
        f"padding {case.padding_place}" if case.padding_place != "end" else "",
        case.placement if case.placement != "scattered" else "",
        case.layout,
        f"page {case.page_size}",
        f"{counted(case.spare_pages, 'spare page')}" if case.spare_pages else "",
        f"dim {dims_of(case)}",
        case.dtype,
        "int8 caches" if case.quantised else "",
        case.recipe if case.recipe != "gaussian" else "",
        f"epsilon {case.epsilon:g}" if case.epsilon != 1e-6 else "",
        f"table {case.table}" if case.table != 64 else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: KvRmsnormRopeCacheCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    for name in ("batch", "length", "page_size", "latent_dim", "rope_dim"):
        if not 1 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 1..65536, got {getattr(case, name)}")
    words = {"dtype": DTYPES, "layout": LAYOUTS, "placement": PLACEMENTS, "padding": PADDINGS, "recipe": RECIPES}
    for name, known in words.items():
        if getattr(case, name) not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(case, name)}")
    if case.rope_dim % 2 or not 1e-12 <= case.epsilon <= 1 or not 1 <= case.table <= 2**20:
        raise ValueError("rope_dim, epsilon or table out of range")
    if not 0 <= case.spare_pages <= 2**16 or not 0 <= case.seed < 2**63:
        raise ValueError("spare_pages or seed out of range")
    rows.check_rows(case.rows)
    padding.check_place(case.padding_place)
    _check_placement(case)
    width = case.latent_dim + case.rope_dim
    if width * max(case.pages * case.page_size, case.batch * case.length) > _MAX_ELEMENTS:
        raise ValueError(f"the inputs would have more than {_MAX_ELEMENTS} elements")
    for dim in (case.latent_dim, case.rope_dim):
        _ = layout_of(case, dim).shape  # raises for strips that are not filled


def _check_placement(case: KvRmsnormRopeCacheCase) -> None:
    if not 0 <= case.padded_tokens < case.batch * case.length and case.padded_tokens:
        raise ValueError(f"padded_tokens must leave a token of {case.batch * case.length}, got {case.padded_tokens}")
    if case.padded_tokens and case.placement != "scattered":
        raise ValueError(f"padded tokens go among scattered slots only, got placement {case.placement}")
    if case.placement == "rows" and case.length > case.page_size:
        raise ValueError(f"rows of {case.page_size} slots are too short for {case.length} tokens")
    if case.placement == "rows" and case.spare_pages:
        raise ValueError("there are no spare pages where every request has a row")
