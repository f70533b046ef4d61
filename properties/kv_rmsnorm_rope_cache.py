"""MLA's write into the cache, normalised and rotated on the way: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, choice, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box, Joined, Numbers, allows
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.cache_coordinates import cache_coordinates
from npudiff.properties._shared.head_dims import unfilled_strips
from npudiff.properties._shared.illegal import illegal_rows, illegal_slots
from npudiff.properties._shared.long_table import table_of_numbers
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties._shared.padding import padded_text, padding_axis, padding_place_axis, with_padding
from npudiff.properties._shared.rows import COUNTS, with_row_stride
from npudiff.properties._shared.slots import SLOT_ORDERS, page_names, page_order_axis, slots_of
from npudiff.reference.cache_layout import CacheLayout
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs, kv_rmsnorm_rope_cache
from npudiff.text import counted

DTYPES = ("bfloat16", "float16")
DIMS = ("512/64", "128/64", "64/32")
TINY_DIMS = ("16/16", "8/4", "32/32")
"""Where tokens are beyond a thousand."""
LAYOUTS = ("PA_BSND", "PA_NZ")
PLACEMENTS = ("scattered", "pages", "rows")
"""scattered: any slots of any pages. pages: each request fills pages from their first slot on. rows: each request has
one page of its own, as long as the cache is, and any slots in it."""
RECIPES = ("gaussian", "outlier", "tiny", "large")
"""outlier: one element of a latent is 64 times larger. tiny: latents around the square root of epsilon. large: squares
beyond the range of float16."""

_SIZES = range(1, 2**16 + 1)

TOKENS = 256
"""Tokens of all requests up to which a case may have more than one request."""

MOST_TOKENS = 2**12
"""Tokens of all requests up to which a case may have more requests than the constraints ask for."""

MOST_OF_POOL = 2**20
"""Elements of both caches, where an axis goes far and there is a choice."""

MOST_SLOTS = 2**12
"""Slots of all pages that requests begin up to which a case may have more requests than the constraints ask for: each
slot is compared, and nearly all of them were not written."""

COST = 1.5
"""What an element costs beside one of other components: it is normalised, turned, quantised and written."""

CACHE_SLOTS = 2**10
"""Slots of a pool up to which a case may have spare pages."""

COMPANY = {"batch": range(2, 2**16 + 1), "padded_tokens": (0,), "placement": ("scattered", "pages")}


def _lengths(case: KvRmsnormRopeCacheCase) -> Sequence[int]:
    size = case.page_size
    return (1,) if case.kind == "decode" else (2, 3, size - 1, size, size + 1, 2 * size)


def _draw_spare_pages(choose: Chooser, box: Box, case: KvRmsnormRopeCacheCase) -> int:
    most = max(1, CACHE_SLOTS // case.page_size)
    wanted = choose.value(box, "spare_pages", [count for count in (0, 1, 3, 8) if count <= most])
    if case.placement != "rows":
        return int(wanted)
    assume(allows(box.get("spare_pages", (0,)), 0))
    return 0


def _width(dims: str) -> int:
    return sum(map(int, dims.split("/")))


def _least_width(case: KvRmsnormRopeCacheCase) -> int:
    """Elements of a token at least, which are drawn later."""
    return min(map(_width, case.box.get("dims", TINY_DIMS)))


def _fills_strips(case: KvRmsnormRopeCacheCase, dims: str) -> bool:
    width = 32 if case.quantised else 16
    return case.layout != "PA_NZ" or all(int(dim) % width == 0 for dim in dims.split("/"))


def _affords_requests(case: KvRmsnormRopeCacheCase, count: int) -> bool:
    """Whether there is a choice of so many requests: by their tokens, and by pages of usual dims that they begin."""
    slots = count * -(-case.length // case.page_size) * case.page_size
    return count * case.length <= (TOKENS if case.far else MOST_TOKENS) and slots <= MOST_SLOTS


def _affords_dims(case: KvRmsnormRopeCacheCase, dims: str) -> bool:
    slots = case.batch * -(-case.length // case.page_size) * case.page_size
    return not case.far or case.affords(int(COST * slots * _width(dims)), MOST_OF_POOL)


@dataclass(frozen=True)
class KvRmsnormRopeCacheCase(Case):
    """One call, as sizes and recipes."""

    batch: int = axis(
        "requests", _SIZES, drawn=lambda case: [1, *(n for n in (2, 3, 8, 17, 65) if n * case.length <= TOKENS)],
        affordable=_affords_requests,
        shown=lambda case: f"{counted(case.batch, 'request')} of {counted(case.length, 'token')}",
    )  # fmt: skip
    length: int = axis(
        "tokens of each request; 1 is a decode", COUNTS, 1, drawn=_lengths,
        affordable=lambda case, length: not case.huge or case.affords(int(COST * length * _least_width(case)), 0),
        fits=lambda case, length: case.placement != "rows" or length <= case.page_size, shown="",
    )  # fmt: skip
    spare_pages: int = axis(
        "pages beyond those that the placement needs", range(2**16), 0, draw=_draw_spare_pages,
        shown="{} spare page(s)",
    )  # fmt: skip
    page_size: int = axis(
        "tokens per page", _SIZES, 16, drawn=(16, 32, 48, 64, 128, 192, 256), shown="page {}", always=True
    )
    latent_dim: int = part(512)
    rope_dim: int = part(64)
    dtype: str = axis("dtype of the tokens", DTYPES, "bfloat16", always=True)
    quantised: bool = axis(
        "whether the caches are int8", (False, True), False, drawn=(False, False, True), shown="int8 caches",
        region="int8",
    )  # fmt: skip
    layout: str = axis("how the caches lie", LAYOUTS, "PA_BSND", always=True, region="NZ")
    placement: str = axis(
        "which slots a request has", PLACEMENTS, "scattered",
        drawn=lambda case: PLACEMENTS[:2] if case.huge else PLACEMENTS,
    )  # fmt: skip
    padding: str = padding_axis()
    padded_tokens: int = axis(
        "tokens that are padding; only among scattered slots", range(2**16), 0, drawn=(0, 0, 1, 3),
        fits=lambda case, count: count < case.batch * case.length and (count == 0 or case.placement == "scattered"),
        shown=padded_text, region="padded tokens",
    )  # fmt: skip
    recipe: str = axis("how the tokens are made", RECIPES, "gaussian", region="{}")
    epsilon: float = axis(
        "added to the mean of squares", Numbers(1e-12, 1), 1e-6, drawn=(1e-6, 1e-5), shown="epsilon {:g}"
    )
    table: int = axis(
        "rows of the table of cosines and sines", range(1, 2**20 + 1), 64,
        drawn=(*(64, 1, 5, 4097) * 6, 70_001, 2**20), shown="table {}",
    )  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()
    padding_place: str = padding_place_axis()
    slot_order: str = axis(
        "how scattered slots lie: anywhere, a run, a run with a stray, or rising with gaps", SLOT_ORDERS, "scattered",
        drawn=(*("scattered",) * 4, "run", "run with a stray", "gaps"),
        applies=lambda case: case.placement == "scattered",
        shown="slots in {}", region="slots in {}",
    )  # fmt: skip
    page_order: str = page_order_axis(applies=lambda case: case.placement == "pages")

    kind = choice(("decode", "extend"))
    drawn_first = (
        "page_size", "placement", "kind", "length", "batch", "padded_tokens", "quantised", "layout", "dims",
        "spare_pages",
    )  # fmt: skip
    shown_first = (
        "batch", "padded_tokens", "padding_place", "placement", "layout", "page_size", "spare_pages", "dims",
    )  # fmt: skip
    outliers = ("batch", "length", "spare_pages", "dims")
    huge_axes = ("length",)
    tied = ("batch", "length", "page_size")

    @derived(
        "elements of the latent and of the rope key", Joined((_SIZES, range(2, 2**16 + 1, 2))),
        drawn=lambda case: (*TINY_DIMS, *DIMS) if case.huge else DIMS, fits=_fills_strips, affordable=_affords_dims,
        into=lambda text: dict(zip(("latent_dim", "rope_dim"), map(int, text.split("/")), strict=True)),
        shown="dim {}",
    )  # fmt: skip
    def dims(self) -> str:
        """Elements of the latent and of the rope key."""
        return f"{self.latent_dim}/{self.rope_dim}"

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

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        tokens = self.batch * self.length
        if self.padded_tokens and self.padded_tokens >= tokens:
            yield f"padded_tokens must leave a token of {tokens}, got {self.padded_tokens}"
        if self.padded_tokens and self.placement != "scattered":
            yield f"padded tokens go among scattered slots only, got placement {self.placement}"
        if self.placement == "rows" and self.length > self.page_size:
            yield f"rows of {self.page_size} slots are too short for {self.length} tokens"
        if self.placement == "rows" and self.spare_pages:
            yield "there are no spare pages where every request has a row"
        if (self.latent_dim + self.rope_dim) * max(self.pages * self.page_size, tokens) > 2**26:
            yield f"the inputs would have more than {2**26} elements"
        yield from unfilled_strips(*(layout_of(self, dim) for dim in (self.latent_dim, self.rope_dim)))

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "decode": self.length == 1,
            "crosses pages": self.placement == "pages" and self.length > self.page_size,
            "partial page": self.placement == "pages" and self.length % self.page_size != 0,
        }


def layout_of(case: KvRmsnormRopeCacheCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose one head has ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, 1, dim, case.cache_dtype)


def build_inputs(case: KvRmsnormRopeCacheCase) -> KvRmsnormRopeCacheInputs:
    """Build the inputs of a case. The table holds numbers, not cosines: then no two entries are alike."""
    weight = 1 + 0.5 * Stream(case.seed, "weight").normal((case.latent_dim,), torch.float32)
    positions = Stream(case.seed, "positions").integers(0, case.table, case.batch * case.length)
    return KvRmsnormRopeCacheInputs(
        kv=_laid_tokens(case),
        weight=weight.to(case.torch_dtype),
        epsilon=case.epsilon,
        positions=with_row_stride(torch.tensor(positions).reshape(case.batch, case.length), case.rows),
        cos_sin_cache=with_row_stride(
            table_of_numbers(case.seed, case.table, case.rope_dim, case.torch_dtype), case.rows
        ),
        latent_cache=_cache(case, "latent cache", case.latent_dim),
        rope_cache=_cache(case, "rope cache", case.rope_dim),
        slots=with_row_stride(torch.tensor(_slots(case)).reshape(case.batch, case.length), case.rows),
        page_size=case.page_size,
        layout=case.layout,
        latent_scale=_scale(case, "latent scale", case.latent_dim) if case.quantised else None,
        rope_scale=_scale(case, "rope scale", case.rope_dim) if case.quantised else None,
        dummy_page=case.placement != "rows",
    )


def _laid_tokens(case: KvRmsnormRopeCacheCase) -> torch.Tensor:
    """The tokens; as slices, all of them lie as far apart as those of one projection do."""
    tokens = _tokens(case)
    return with_row_stride(tokens.flatten(0, 1), case.rows).view(tokens.shape)


def _tokens(case: KvRmsnormRopeCacheCase) -> torch.Tensor:
    stream = Stream(case.seed, "kv")
    tokens = stream.normal((case.batch * case.length, case.latent_dim + case.rope_dim), torch.float32)
    if case.recipe == "outlier":
        places = magnitudes.places_of_largest(stream, case.latent_dim, len(tokens))
        tokens[places] *= 64
    factors = {"tiny": case.epsilon**0.5, "large": 2000.0}
    tokens *= factors.get(case.recipe, 1.0)
    return tokens.to(case.torch_dtype).reshape(case.batch, case.length, -1)


def _slots(case: KvRmsnormRopeCacheCase) -> Sequence[int]:
    """Slots of all tokens, one request after the other."""
    stream, size, tokens = Stream(case.seed, "slots"), case.page_size, case.batch * case.length
    if case.placement == "rows":
        return [row * size + slot for row in range(case.batch) for slot in stream.permutation(size)[: case.length]]
    if case.placement == "pages":
        pages = page_names("slots", case.seed, case.pages, case.page_order)
        own = [pages[case.pages_per_request * row :] for row in range(case.batch)]
        return [
            own[row][token // size] * size + token % size for row in range(case.batch) for token in range(case.length)
        ]
    real = tokens - case.padded_tokens
    return with_padding(slots_of(case, real, case.pages - 1), case)


def _cache(case: KvRmsnormRopeCacheCase, name: str, dim: int) -> torch.Tensor:
    """What the cache holds before: finite numbers, all different as far as there are enough."""
    shape = layout_of(case, dim).shape
    if case.quantised:
        words = Stream(case.seed, name).random_uint64(-(-int(torch.Size(shape).numel()) // 8)).view("int8")
        return torch.from_numpy(words[: torch.Size(shape).numel()].copy()).reshape(shape)
    return Stream(case.seed, name).normal(shape, case.torch_dtype)


def _scale(case: KvRmsnormRopeCacheCase, name: str, dim: int) -> torch.Tensor:
    """Factors that spread values over the range of int8; some values lie beyond it."""
    size = {"tiny": case.epsilon**0.5, "large": 2000.0}.get(case.recipe, 1.0) if name == "rope scale" else 1.0
    steps = torch.tensor(Stream(case.seed, name).integers(8, 48, dim), dtype=torch.float32)
    return steps / size


def coordinates(inputs: KvRmsnormRopeCacheInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: request, token and element, or the axes of the layout."""
    batch, length, _ = inputs.kv.shape
    if output in ("rope", "latent"):
        dim = inputs.rope_dim if output == "rope" else inputs.latent_dim
        return {
            "request": torch.arange(batch)[:, None, None],
            "token": torch.arange(length)[None, :, None],
            "position": inputs.positions[:, :, None],
            "element": torch.arange(dim)[None, None, :],
        }
    cache = inputs.rope_cache if output == "rope_cache" else inputs.latent_cache
    return cache_coordinates(cache, inputs.layout, inputs.page_size, inputs.slots)


def _a_request_alone(
    inputs: KvRmsnormRopeCacheInputs, case: KvRmsnormRopeCacheCase
) -> Changed[KvRmsnormRopeCacheInputs]:
    """The first request without the others: the same bits at its slots, and as outputs."""
    alone = replace(inputs, **{name: getattr(inputs, name)[:1] for name in ("kv", "positions", "slots")})

    def of_first(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What belongs to the first request: its outputs, and its slots of the caches."""
        parts = {name: outputs[name][:1] for name in ("rope", "latent") if name in outputs}
        for name, dim in (("rope_cache", case.rope_dim), ("latent_cache", case.latent_dim)):
            parts[name] = outputs[name].reshape(-1)[layout_of(case, dim).addresses(inputs.slots[0])]
        return parts

    single = replace(case, batch=1, spare_pages=case.pages - 1 - case.pages_per_request)
    return Changed(alone, of_first, of_first, case=single)


def _rewrite_is_idempotent(subject: Subject, case: KvRmsnormRopeCacheCase) -> Comparison:
    inputs = build_inputs(case)
    once = subject.run(inputs)
    again = subject.run(replace(inputs, latent_cache=once["latent_cache"], rope_cache=once["rope_cache"]))
    return same_bits(_without_dummy(case, once), _without_dummy(case, again), "written once against twice")


def _requests_in_reverse(
    inputs: KvRmsnormRopeCacheInputs, case: KvRmsnormRopeCacheCase
) -> Changed[KvRmsnormRopeCacheInputs]:
    """Requests in reverse: the caches are the same."""
    swapped = {name: getattr(inputs, name).flip(0) for name in ("kv", "positions", "slots")}

    def caches(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return _without_dummy(case, outputs)

    return Changed(replace(inputs, **swapped), caches, caches)


def _without_dummy(case: KvRmsnormRopeCacheCase, outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The caches without page 0, where it is a dummy; pages are the first axis of every layout."""
    first = 0 if case.placement == "rows" else 1
    return {name: outputs[name][first:] for name in ("rope_cache", "latent_cache")}


def _sizes(model: Model) -> Box | None:
    if not model.latent:
        return None
    return {"dims": model.head_dims, "dtype": ("bfloat16",), "epsilon": (1e-6,), "page_size": (PAGE_SIZE,)}


component = Component(
    name="kv_rmsnorm_rope_cache",
    summary="MLA's latent normalised, its rope key rotated, and both written into paged caches, ND or NZ, or int8",
    case_type=KvRmsnormRopeCacheCase,
    outputs=("rope", "latent", "rope_cache", "latent_cache"),
    inputs=build_inputs,
    reference=kv_rmsnorm_rope_cache,
    illegal=(
        *illegal_slots("latent_cache", lambda inputs: inputs.page_size),
        *illegal_rows("positions", "cos_sin_cache", "a position"),
    ),
    coordinates=coordinates,
    highlighted_region="NZ",
    relations=(
        relation("a_request_alone", "a request's company does not matter", _a_request_alone, within=COMPANY,
                 needs={"batch": (1,)}),
        Property("rewrite_is_idempotent", "writing the same again changes nothing", _rewrite_is_idempotent),
        relation("order_does_not_matter", "the order of requests does not matter", _requests_in_reverse,
                 within=COMPANY),
    ),
    example_ratio=0.5,
    profiles=of_models(_sizes),
    baselines=BASELINES["kv_rmsnorm_rope_cache"],
)  # fmt: skip
