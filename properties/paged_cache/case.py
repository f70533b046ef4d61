"""Cases of writing into a paged cache: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis
from npudiff.properties._shared import padding, rows
from npudiff.properties._shared.head_dims import join_head_dims
from npudiff.reference.cache_layout import LAYOUTS, CacheLayout
from npudiff.text import counted

DTYPES = ("bfloat16", "float16", "int8")
PADDINGS = ("slot 0", "slot -1")
HEAD_DIMS = ("32", "64", "128", "192/128", "512/64", "80", "96", "256", "576")

_SIZES = range(1, 2**16 + 1)

AXES = {
    "tokens": Axis("new tokens, padded ones included; 1 is a decode of one request", range(1, 2**16 + 1)),
    "pages": Axis("pages of the pool, the dummy page 0 included", range(2, 2**16 + 1)),
    "page_size": Axis("tokens per page", _SIZES),
    "kv_heads": Axis("KV heads", _SIZES),
    "head_dims": Axis("head dim of keys, and of values if it differs: 128 or 192/128", HEAD_DIMS),
    "dtype": Axis("dtype of keys, values and caches", DTYPES),
    "layout": Axis("how the caches lie", LAYOUTS),
    "slots_dtype": Axis("dtype of the slots", ("int32", "int64")),
    "padding": Axis("where padded tokens go", PADDINGS),
    "rows": rows.AXIS,
    "padded_tokens": Axis("tokens that are padding", range(2**16)),
    "padding_place": padding.AXIS,
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class PagedCacheCase:
    """New tokens that are written into a paged cache.

    Attributes
    ----------
    tokens : int
        New tokens that go to slots of their own.
    padded_tokens : int
        Padded tokens besides.
    padding : str
        ``slot 0`` or ``slot -1``: where padded tokens go.
    pages, page_size, kv_heads, head_dim, value_head_dim : int
        Geometry; page 0 is a dummy.
    dtype, layout, slots_dtype, rows, padding_place : str
        See the axes.
    seed : int
        Seed of data and slots.
    """

    tokens: int
    padded_tokens: int = 0
    padding: str = "slot 0"
    pages: int = 2
    page_size: int = 16
    kv_heads: int = 1
    head_dim: int = 64
    value_head_dim: int = 64
    dtype: str = "bfloat16"
    layout: str = "PA_BSND"
    slots_dtype: str = "int32"
    rows: str = "contiguous"
    seed: int = 0
    padding_place: str = "end"

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of keys, values and caches."""
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}[self.dtype]


def layout_of(case: PagedCacheCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose heads have ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, case.kv_heads, dim, case.torch_dtype)


def values(case: PagedCacheCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    return {
        "tokens": (case.tokens + case.padded_tokens,),
        "pages": (case.pages,),
        "page_size": (case.page_size,),
        "kv_heads": (case.kv_heads,),
        "head_dims": (join_head_dims(case.head_dim, case.value_head_dim),),
        "dtype": (case.dtype,),
        "layout": (case.layout,),
        "slots_dtype": (case.slots_dtype,),
        "rows": (case.rows,),
        "padding": (case.padding,) if case.padded_tokens else (),
        "padded_tokens": (case.padded_tokens,),
        "padding_place": (case.padding_place,) if case.padded_tokens else (),
    }


def features(case: PagedCacheCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "one token": case.tokens == 1,
        "NZ": case.layout == "PA_NZ",
        "several heads": case.kv_heads > 1,
        "V dim differs": case.head_dim != case.value_head_dim,
        "padded tokens": case.padded_tokens > 0,
        "padding before others": case.padded_tokens > 0 and case.padding_place != "end",
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        "int8": case.dtype == "int8",
        "slots beyond 16 bits": case.pages * case.page_size > 2**16,
        "pool filled": case.tokens == (case.pages - 1) * case.page_size,
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: PagedCacheCase) -> str:
    """Return the case as one short line."""
    parts = [
        counted(case.tokens, "token"),
        f"{case.padded_tokens} padded to {case.padding}" if case.padded_tokens else "",
        f"padding {case.padding_place}" if case.padding_place != "end" else "",
        case.layout,
        f"pages {case.pages} x {case.page_size}",
        f"heads {case.kv_heads}",
        f"dim {join_head_dims(case.head_dim, case.value_head_dim)}",
        case.dtype,
        f"{case.slots_dtype} slots",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: PagedCacheCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    for name in ("tokens", "pages", "page_size", "kv_heads", "head_dim", "value_head_dim"):
        if not 1 <= getattr(case, name) <= 65_536:
            raise ValueError(f"{name} must lie in 1..65536, got {getattr(case, name)}")
    if case.dtype not in DTYPES or case.layout not in LAYOUTS or case.padding not in PADDINGS:
        raise ValueError(f"unknown dtype, layout or padding: {case.dtype}, {case.layout}, {case.padding}")
    rows.check_rows(case.rows)
    padding.check_place(case.padding_place)
    if case.slots_dtype not in ("int32", "int64") or not 0 <= case.padded_tokens < 2**16 or not 0 <= case.seed < 2**63:
        raise ValueError("slots_dtype, padded_tokens or seed out of range")
    if case.tokens > (case.pages - 1) * case.page_size:
        raise ValueError(f"{case.tokens} tokens do not fit into {case.pages - 1} pages of {case.page_size}")
    widest = max(case.head_dim, case.value_head_dim) * case.kv_heads
    if widest * max(case.pages * case.page_size, case.tokens + case.padded_tokens) > _MAX_ELEMENTS:
        raise ValueError(f"a cache would have more than {_MAX_ELEMENTS} elements")
    for dim in (case.head_dim, case.value_head_dim):
        _ = layout_of(case, dim).shape  # raises for strips that are not filled
