"""Writing into a paged cache: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, choice, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import compare, same_bits
from npudiff.model.component import Comparison, Component, NotApplicable, Property, Subject
from npudiff.model.constraints import Box
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.cache_coordinates import cache_coordinates
from npudiff.properties._shared.head_dims import (
    HEAD_DIMS,
    into_head_dims,
    join_head_dims,
    split_head_dims,
    unfilled_strips,
)
from npudiff.properties._shared.illegal import illegal_slots
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties._shared.padding import padded_text, padding_axis, padding_place_axis, with_padding
from npudiff.properties._shared.rows import COUNTS, GAPS, SEVERAL, with_row_stride
from npudiff.properties._shared.slots import slot_order_axis, slots_of
from npudiff.reference.bounds import exactly
from npudiff.reference.cache_layout import LAYOUTS, CacheLayout, strip_width
from npudiff.reference.paged_cache import PagedCacheInputs, paged_cache

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
DIMS = ("32", "64", "128", "192/128", "512/64", "80", "96", "256", "576", "512", "72")
TINY_DIMS = ("8", "16", "32")
"""Where tokens are beyond a thousand: the smallest that may be, as many elements fill strips."""

_SIZES = range(1, 2**16 + 1)

CACHE_ELEMENTS = 2**19
"""Elements of both caches up to which a case may have more than two pages."""

MOST_OF_POOL = 2**22
"""Elements of both caches of a pool that is not large on purpose, where there is a choice."""

MOST_DIMS = 1152
"""Elements of a key and a value of one head at most."""

LARGE_SLOTS, LARGE_ELEMENTS = 2**16 + 2**12, 9 * 2**20
"""Slots of a large pool, beyond 16 bits, and elements of both caches up to which it is that large."""

_TINY_PAGE = 4
"""Tokens of a page of which a pool has many."""

LARGE_SHARE = 96
"""One of so many cases has a large pool."""

MOST_TOKENS = 2**13
"""Slots of a pool up to which it may be filled."""


def _is_large(case: PagedCacheCase) -> bool:
    return case.huge or bool(case.place_of_large == LARGE_SHARE - 1 and not case.far)


def _draw_tokens(choose: Chooser, box: Box, case: PagedCacheCase) -> int:
    """Real tokens that fit into the pool; the axis counts padded ones as well."""
    size, padded = case.page_size, case.padded_tokens
    room = (case.pages - 1) * size
    counts = sorted({1, 2, 3, size - 1, size, size + 1, room, room // 2 or 1} - {0})
    counts = counts if room <= MOST_TOKENS else [3, 2049, 4097]
    allowed = choose.options(box, "tokens", [count + padded for count in counts])
    fitting = [total - padded for total in allowed if 0 < total - padded <= room]
    assume(fitting)
    return int(choose.pick(fitting))


def _pages(case: PagedCacheCase) -> Sequence[int]:
    """Sizes of the pool; a large one as far as its elements allow."""
    if _is_large(case):
        return [max(2, min(LARGE_SLOTS // case.page_size, LARGE_ELEMENTS // case.page_elements, _SIZES[-1]))]
    several = (3, 5, 9, 48) if case.page_size > _TINY_PAGE else (48, 9, 130)
    return [2, *(count for count in several if count * case.page_elements <= CACHE_ELEMENTS)]


def _fills_strips(case: PagedCacheCase, dims: str) -> bool:
    if case.layout != "PA_NZ":
        return True
    width = strip_width(case.torch_dtype)
    return all(case.kv_heads * dim % width == 0 for dim in split_head_dims(dims))


def _affords_dims(case: PagedCacheCase, dims: str) -> bool:
    if case.huge:
        return case.affords(LARGE_SLOTS * max(split_head_dims(dims)), 0)
    return case.far != "head_dims" or case.page_size * case.kv_heads * sum(split_head_dims(dims)) <= CACHE_ELEMENTS


@dataclass(frozen=True)
class PagedCacheCase(Case):
    """New tokens that are written into a paged cache; page 0 is a dummy."""

    tokens: int = axis(
        "new tokens, padded ones included; 1 is a decode of one request", COUNTS, draw=_draw_tokens,
        value=lambda case: case.tokens + case.padded_tokens, shown="{} token(s)",
    )  # fmt: skip
    """New tokens that go to slots of their own; padded ones come besides."""
    # The operator asks for a slot for each token, padding included: what is padding has room in the dummy page.
    padded_tokens: int = axis(
        "tokens that are padding", range(2**16), 0,
        drawn=lambda case: [min(count, case.page_size) for count in (0, 0, 1, 3)],
        shown=padded_text, region="padded tokens",
    )  # fmt: skip
    padding: str = padding_axis()
    pages: int = axis(
        "pages of the pool, the dummy page 0 included", range(2, 2**16 + 1), 2, drawn=_pages,
        affordable=lambda case, count: _is_large(case) or count * case.page_elements <= MOST_OF_POOL,
        shown=lambda case: f"pages {case.pages} x {case.page_size}",
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", _SIZES, 16,
        drawn=lambda case: (2, 3, 16, 32) if case.far else (2, 1, 3, 16, 24, 32, 48, 64, 100, 128, 192, 256), shown="",
    )  # fmt: skip
    kv_heads: int = axis(
        "KV heads", _SIZES, 1, drawn=lambda case: (1,) if _is_large(case) else (1, 2, 3, 8),
        affordable=lambda case, count: not case.far or count <= MOST_OF_POOL // (2 * case.page_size * MOST_DIMS),
        shown="heads {}", always=True, region="several heads",
    )  # fmt: skip
    head_dim: int = part(64)
    value_head_dim: int = part(64)
    dtype: str = axis("dtype of keys, values and caches", tuple(DTYPES), "bfloat16", always=True)
    layout: str = axis("how the caches lie", LAYOUTS, "PA_BSND", always=True)
    slots_dtype: str = axis("dtype of the slots", ("int32", "int64"), "int32", shown="{} slots", always=True)
    rows: str = rows.axis(several="tokens")
    seed: int = seed()
    padding_place: str = padding_place_axis()
    slot_order: str = slot_order_axis()

    place_of_large = choice(range(LARGE_SHARE))
    drawn_first = (
        "page_size", "place_of_large", "kv_heads", "dtype", "layout", "head_dims", "pages", "padded_tokens", "tokens",
        "padding", "rows",
    )  # fmt: skip
    shown_first = ("tokens", "padded_tokens", "padding_place", "layout", "pages", "kv_heads", "head_dims", "dtype")
    outliers = ("kv_heads", "tokens", "pages", "head_dims")
    huge_axes = ("tokens",)
    tied = ("tokens", "kv_heads", "pages")

    @derived(
        "head dim of keys, and of values if it differs: 128 or 192/128", HEAD_DIMS,
        drawn=lambda case: TINY_DIMS if case.huge else DIMS,
        fits=_fills_strips, affordable=_affords_dims, into=into_head_dims, shown="dim {}",
    )  # fmt: skip
    def head_dims(self) -> str:
        """Head dim of keys, and of values if it differs."""
        return join_head_dims(self.head_dim, self.value_head_dim)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of keys, values and caches."""
        return DTYPES[self.dtype]

    @property
    def page_elements(self) -> int:
        """Elements of a page of both caches."""
        return self.page_size * self.kv_heads * (self.head_dim + self.value_head_dim)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if not 1 <= self.tokens <= (self.pages - 1) * self.page_size:
            yield f"{self.tokens} tokens do not fit into {self.pages - 1} pages of {self.page_size}"
        widest = max(self.head_dim, self.value_head_dim) * self.kv_heads
        if widest * max(self.pages * self.page_size, self.tokens + self.padded_tokens) > 2**26:
            yield f"a cache would have more than {2**26} elements"
        yield from unfilled_strips(*(layout_of(self, dim) for dim in (self.head_dim, self.value_head_dim)))

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "one token": self.tokens == 1,
            "NZ": self.layout == "PA_NZ",
            "V dim differs": self.head_dim != self.value_head_dim,
            "int8": self.dtype == "int8",
            "slots beyond 16 bits": self.pages * self.page_size > 2**16,
            "pool filled": self.tokens == (self.pages - 1) * self.page_size,
        }


def layout_of(case: PagedCacheCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose heads have ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, case.kv_heads, dim, case.torch_dtype)


def build_inputs(case: PagedCacheCase) -> PagedCacheInputs:
    """Build the inputs of a case: every element of data and caches has bits of its own, as far as there are enough."""
    slots = with_padding(slots_of(case, case.tokens, case.pages - 1), case)
    rows = len(slots)
    return PagedCacheInputs(
        key=_rows(case, "key", (rows, case.kv_heads, case.head_dim)),
        value=_rows(case, "value", (rows, case.kv_heads, case.value_head_dim), GAPS[1]),
        key_cache=_data(case, "key cache", layout_of(case, case.head_dim).shape),
        value_cache=_data(case, "value cache", layout_of(case, case.value_head_dim).shape),
        slots=with_row_stride(
            torch.tensor(slots, dtype=torch.int32 if case.slots_dtype == "int32" else torch.int64), case.rows
        ),
        page_size=case.page_size,
        layout=case.layout,
    )


def _rows(case: PagedCacheCase, name: str, shape: Sequence[int], gap: int = GAPS[0]) -> torch.Tensor:
    return with_row_stride(_data(case, name, shape), case.rows, gap)


def _data(case: PagedCacheCase, name: str, shape: Sequence[int]) -> torch.Tensor:
    """Random bits; of a float dtype with the exponent's top bit cleared, so that all are finite numbers."""
    count = int(torch.Size(shape).numel())
    words = torch.from_numpy(Stream(case.seed, name).random_uint64(-(-count // 4)).view("int16")[:count].copy())
    if case.dtype == "int8":
        return (words & 0xFF).to(torch.int8).reshape(tuple(shape))
    return (words & -0x4001).view(case.torch_dtype).reshape(tuple(shape))


def coordinates(inputs: PagedCacheInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to a cache: the axes of its layout, and the new token."""
    cache = inputs.key_cache if output == "key_cache" else inputs.value_cache
    return cache_coordinates(cache, inputs.layout, inputs.page_size, inputs.slots)


def _rewrite_is_idempotent(subject: Subject, case: PagedCacheCase) -> Comparison:
    inputs = build_inputs(case)
    once = subject.run(inputs)
    twice = subject.run(replace(inputs, key_cache=once["key_cache"], value_cache=once["value_cache"]))
    return same_bits(_without_dummy(once), _without_dummy(twice), "written once against twice")


def _halves_equal_whole(subject: Subject, case: PagedCacheCase) -> Comparison:
    if case.tokens < 2:
        raise NotApplicable("one token cannot be written in two calls")
    inputs, cut = build_inputs(case), case.tokens // 2
    padded = cut - int(_is_real(inputs)[:cut].sum())
    subject.require(replace(case, tokens=cut - padded, padded_tokens=padded), "the first half")
    rest_padded = case.padded_tokens - padded
    subject.require(replace(case, tokens=case.tokens - cut + padded, padded_tokens=rest_padded), "the second half")
    whole = subject.run(inputs)
    part = replace(inputs, key=inputs.key[:cut], value=inputs.value[:cut], slots=inputs.slots[:cut])
    first = subject.run(part)
    rest = subject.run(
        replace(
            inputs,
            key=inputs.key[cut:],
            value=inputs.value[cut:],
            slots=inputs.slots[cut:],
            key_cache=first["key_cache"],
            value_cache=first["value_cache"],
        )
    )
    return same_bits(_without_dummy(whole), _without_dummy(rest), "two calls against one")


def _what_is_written_is_read(subject: Subject, case: PagedCacheCase) -> Comparison:
    """Read the tokens back by the addresses of the layout."""
    inputs = build_inputs(case)
    outputs = subject.run(inputs)
    real = _is_real(inputs)
    slots = inputs.slots[real].to(torch.int64)
    places = (("key_cache", case.head_dim), ("value_cache", case.value_head_dim))
    read = {name: outputs[name].reshape(-1)[layout_of(case, dim).addresses(slots)] for name, dim in places}
    right = {"key_cache": exactly(inputs.key[real]), "value_cache": exactly(inputs.value[real])}
    return compare(right, read, "read back against what was given")


def _is_real(inputs: PagedCacheInputs) -> torch.Tensor:
    """Which tokens are no padding, bool ``[tokens]``: padded ones go nowhere or to slot 0."""
    return inputs.slots > 0


def _without_dummy(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Leave out page 0; pages are the first axis of every layout."""
    return {name: cache[1:] for name, cache in outputs.items()}


def _sizes(model: Model) -> Box | None:
    if not model.layers:
        return None
    return {
        "head_dims": model.head_dims,
        "kv_heads": model.kv_heads,
        "page_size": (PAGE_SIZE,),
        "dtype": ("bfloat16",),
    }


def _fewer_real(case: PagedCacheCase) -> Iterator[PagedCacheCase]:
    """Half as many real tokens, and as many altogether."""
    real = case.tokens // 2
    yield replace(case, tokens=real, padded_tokens=case.padded_tokens + case.tokens - real)


component = Component(
    name="paged_cache",
    summary="keys and values of new tokens, written at slots of a paged cache, byte by byte",
    case_type=PagedCacheCase,
    outputs=("key_cache", "value_cache"),
    inputs=build_inputs,
    reference=paged_cache,
    padded=_fewer_real,
    illegal=illegal_slots("key_cache", lambda inputs: inputs.page_size),
    coordinates=coordinates,
    highlighted_region="NZ",
    relations=(
        Property("rewrite_is_idempotent", "writing the same again changes nothing", _rewrite_is_idempotent),
        Property(
            "halves_equal_whole",
            "two calls write what one call writes",
            _halves_equal_whole,
            within={"tokens": SEVERAL},
        ),
        Property("what_is_written_is_read", "every token is read back from its slot", _what_is_written_is_read),
    ),
    example_ratio=0.7,
    profiles=of_models(_sizes),
    baselines=BASELINES["paged_cache"],
)
