"""What stands before MLA attention, from hidden states to queries and caches: cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, derived, part, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Component
from npudiff.model.constraints import Box, Joined, Numbers, least
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.cache_coordinates import cache_coordinates
from npudiff.properties._shared.head_dims import unfilled_strips
from npudiff.properties._shared.illegal import illegal_rows, illegal_slots
from npudiff.properties._shared.long_table import table_of_numbers
from npudiff.properties._shared.models import PAGE_SIZE, Model, of_models
from npudiff.properties._shared.padding import padded_text, padding_axis, padding_place_axis, with_padding
from npudiff.properties._shared.rows import COUNTS, SEVERAL, with_row_stride
from npudiff.properties._shared.slots import slot_order_axis, slots_of
from npudiff.reference.cache_layout import CacheLayout
from npudiff.reference.mla_preprocess import Int8Steps, MlaPreprocessInputs, mla_preprocess

LAYOUTS = ("PA_BSND", "PA_NZ")
DIMS = ("128/64/512", "32/16/64", "192/64/512")
TINY_DIMS = ("8/16/16",)
"""Where tokens are beyond a thousand."""
RECIPES = ("gaussian", "outlier", "tiny")
"""outlier: one element of a row of hidden states is 64 times larger. tiny: hidden states so small that epsilon decides
what the norms return."""
_SIZES = range(1, 2**16 + 1)

WORK = 2**22
"""Elements of hidden states and weights, times heads, up to which a case may have more than one head."""

ABSORBED = 2**22
"""Elements of all heads' matrices that are absorbed into the query, up to which a case may have more than one head."""

COMPANY = {"tokens": SEVERAL, "padded_tokens": (0,)}


def _has_far_rows(case: MlaPreprocessCase) -> bool:
    return case.far in ("heads", "tokens")


def _hidden_sizes(case: MlaPreprocessCase) -> Sequence[int]:
    if case.huge:
        return (16, 40)
    return (256, 64, 80) if _has_far_rows(case) else (*(256, 64, 80, 1024) * 6, 6144, 7168, 7680)


def _query_ranks(case: MlaPreprocessCase) -> Sequence[int]:
    if case.huge:
        return (16, 8)
    return (64, 16) if _has_far_rows(case) else (64, 16, 96, 1536)


def _dims_of(text: str) -> tuple[int, int, int]:
    nope, rope, latent = map(int, text.split("/"))
    return nope, rope, latent


def _width(case: MlaPreprocessCase, dims: str) -> int:
    """Elements of a token of one head, from hidden state to cache."""
    nope, rope, latent = _dims_of(dims)
    sizes = [int(least(case.box.get(name, (size,)))) for name, size in (("hidden_size", 16), ("query_rank", 8))]
    return sum(sizes) + nope + 2 * (rope + latent)


def _least_width(case: MlaPreprocessCase) -> int:
    """The fewest of them: sizes are drawn later."""
    return min(_width(case, dims) for dims in case.box.get("dims", TINY_DIMS))


def _affords_dims(case: MlaPreprocessCase, dims: str) -> bool:
    nope, _, latent = _dims_of(dims)
    return not case.huge or case.affords(case.tokens * _width(case, dims), nope * latent)


def _fills_strips(case: MlaPreprocessCase, dims: str) -> bool:
    _, rope, latent = _dims_of(dims)
    return case.layout != "PA_NZ" or (rope % 16 == 0 and latent % 16 == 0)


@dataclass(frozen=True)
class MlaPreprocessCase(Case):
    """One call, as sizes and recipes."""

    tokens: int = axis(
        "new tokens, padded ones included", COUNTS,
        drawn=lambda case: (1, 2, 3, 7, case.page_size - 1, case.page_size + 1),
        affordable=lambda case, tokens: not case.huge or case.affords(tokens * _least_width(case), 0),
        shown="{} token(s)",
    )  # fmt: skip
    padded_tokens: int = axis(
        "tokens that are padding", range(2**16), 0, drawn=(0, 0, 1, 3), fits=lambda case, count: count < case.tokens,
        shown=padded_text, region="padded tokens",
    )  # fmt: skip
    padding: str = padding_axis()
    hidden_size: int = axis(
        "elements of a hidden state", _SIZES, 256,
        drawn=_hidden_sizes,
        shown="hidden {}", always=True,
    )  # fmt: skip
    query_rank: int = axis(
        "elements of the query's latent", _SIZES, 64,
        drawn=_query_ranks, shown="rank {}", always=True,
    )  # fmt: skip
    heads: int = axis(
        "query heads", _SIZES, 1, drawn=(1, 2, 3, 4, 8),
        affordable=lambda case, count: count * case.query_rank * 1024 <= WORK
        and count * case.nope_dim * case.latent_dim <= ABSORBED,
        shown="{} head(s)", always=True, region="several heads",
    )  # fmt: skip
    nope_dim: int = part(128)
    rope_dim: int = part(64)
    latent_dim: int = part(512)
    page_size: int = axis("tokens per page", _SIZES, 16, drawn=(16, 128, 32, 48, 256), shown="page {}", always=True)
    spare_pages: int = axis(
        "pages beyond those that are needed", range(2**16), 0, drawn=(0, 1, 3), shown="{} spare page(s)"
    )
    layout: str = axis("how the caches lie", LAYOUTS, "PA_BSND", always=True, region="NZ")
    recipe: str = axis(
        "how hidden states are made", RECIPES, "gaussian",
        drawn=lambda case: ("gaussian",) if case.quantised else RECIPES,
        assumes=lambda case, recipe: not case.quantised or recipe == "gaussian", region="{}",
    )  # fmt: skip
    epsilon: float = axis(
        "added to the mean of squares", Numbers(1e-12, 1), 1e-6, drawn=(1e-6, 1e-5), shown="epsilon {:g}"
    )
    table: int = axis(
        "rows of the table of cosines and sines", range(1, 2**20 + 1), 64, drawn=(*(64, 1, 5, 4097) * 6, 2**20),
        shown="table {}",
    )  # fmt: skip
    quantised: bool = axis(
        "whether hidden states and weights are multiples of steps, for int8", (False, True), False,
        drawn=(False, False, True), shown="int8", region="int8",
    )  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()
    padding_place: str = padding_place_axis()
    slot_order: str = slot_order_axis()

    drawn_first = (
        "page_size", "tokens", "hidden_size", "query_rank", "layout", "dims", "heads", "quantised", "recipe",
        "padded_tokens",
    )  # fmt: skip
    shown_first = (
        "tokens", "padded_tokens", "padding_place", "hidden_size", "query_rank", "heads", "dims", "layout",
        "page_size", "spare_pages", "quantised",
    )  # fmt: skip
    outliers = ("heads", "tokens", "spare_pages", "dims")
    huge_axes = ("tokens",)
    tied = ("tokens", "heads", "query_rank")

    @derived(
        "elements of a head without and with position, and of the keys' latent",
        Joined((_SIZES, range(2, 2**16 + 1, 2), _SIZES)),
        drawn=lambda case: (*TINY_DIMS, *DIMS) if case.huge else DIMS, affordable=_affords_dims, fits=_fills_strips,
        into=lambda text: dict(zip(("nope_dim", "rope_dim", "latent_dim"), map(int, text.split("/")), strict=True)),
        shown="dim {}",
    )  # fmt: skip
    def dims(self) -> str:
        """Elements of a head without and with position, and of the keys' latent."""
        return f"{self.nope_dim}/{self.rope_dim}/{self.latent_dim}"

    @property
    def real_tokens(self) -> int:
        """Tokens that go to slots of their own."""
        return self.tokens - self.padded_tokens

    @property
    def pages(self) -> int:
        """Pages of the pool: the dummy page 0, enough for all tokens, and spare ones."""
        return 1 + -(-self.real_tokens // self.page_size) + self.spare_pages

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.padded_tokens >= self.tokens:
            yield f"padded_tokens must leave a token of {self.tokens}, got {self.padded_tokens}"
        if self.quantised and self.recipe != "gaussian":
            yield f"values of recipe {self.recipe} are no multiples of a step"
        width = self.latent_dim + self.rope_dim
        sizes = (
            self.hidden_size * (self.query_rank + width + self.tokens),
            self.query_rank * self.heads * (self.nope_dim + self.rope_dim + self.latent_dim),
            self.tokens * self.heads * width,
            self.pages * self.page_size * width,
        )
        if max(sizes) > 2**26:
            yield f"the inputs would have more than {2**26} elements"
        yield from unfilled_strips(*(layout_of(self, dim) for dim in (self.latent_dim, self.rope_dim)))

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {"one token": self.tokens == 1, "production size": self.hidden_size >= 6144}


def layout_of(case: MlaPreprocessCase, dim: int) -> CacheLayout:
    """Return the layout of the cache whose one head has ``dim`` elements."""
    return CacheLayout(case.layout, case.pages, case.page_size, 1, dim, torch.bfloat16)


ROW_STEP = 7
"""Every row of a weight matrix is a stretch of one stream of numbers that begins so many further than the row before:
millions of weights from a few thousand draws."""

HIDDEN_STEP, QUERY_STEP = 2.0**-4, 2.0**-3
"""Steps of int8: 127 of the second are more than any normalised query."""

WEIGHT_STEPS = 24
"""Steps of int8 in a standard deviation of a weight."""


def build_inputs(case: MlaPreprocessCase) -> MlaPreprocessInputs:
    """Build the inputs of a case. The table holds numbers, not cosines: then no two entries are alike."""
    heads = case.heads * (case.nope_dim + case.rope_dim)
    absorbed = _matrix(case, "k_up", case.heads * case.nope_dim, case.latent_dim, case.nope_dim)
    return MlaPreprocessInputs(
        hidden=with_row_stride(_hidden(case), case.rows),
        q_a_weight=_matrix(case, "q_a", case.hidden_size, case.query_rank),
        q_a_norm=_norm(case, "q_a norm", case.query_rank),
        q_b_weight=_matrix(case, "q_b", case.query_rank, heads),
        k_up_weight=absorbed.reshape(case.heads, case.nope_dim, case.latent_dim),
        kv_a_weight=_matrix(case, "kv_a", case.hidden_size, case.latent_dim + case.rope_dim),
        kv_a_norm=_norm(case, "kv_a norm", case.latent_dim),
        epsilon=case.epsilon,
        positions=with_row_stride(
            torch.tensor(Stream(case.seed, "positions").integers(0, case.table, case.tokens)), case.rows
        ),
        cos_sin_cache=with_row_stride(
            table_of_numbers(case.seed, case.table, case.rope_dim, torch.bfloat16), case.rows
        ),
        latent_cache=Stream(case.seed, "latent cache").normal(layout_of(case, case.latent_dim).shape, torch.bfloat16),
        rope_cache=Stream(case.seed, "rope cache").normal(layout_of(case, case.rope_dim).shape, torch.bfloat16),
        slots=with_row_stride(_slots(case), case.rows),
        page_size=case.page_size,
        layout=case.layout,
        steps=_steps(case),
    )


def _hidden(case: MlaPreprocessCase) -> torch.Tensor:
    stream = Stream(case.seed, "hidden")
    hidden = stream.normal((case.tokens, case.hidden_size), torch.float32)
    if case.quantised:
        return ((hidden / HIDDEN_STEP).round() * HIDDEN_STEP).bfloat16()
    if case.recipe == "outlier":
        hidden[magnitudes.places_of_largest(stream, case.hidden_size, case.tokens)] *= 64
    return (hidden * (case.epsilon**0.5 if case.recipe == "tiny" else 1.0)).bfloat16()


def _matrix(case: MlaPreprocessCase, name: str, rows: int, columns: int, inner: int | None = None) -> torch.Tensor:
    """A weight whose products are about as large as what it multiplies."""
    pool = Stream(case.seed, name).normal((rows * ROW_STEP + columns,), torch.float32)
    if case.quantised and name != "k_up":
        whole = (pool * WEIGHT_STEPS).round().as_strided((rows, columns), (ROW_STEP, 1))
        return (whole * _column_steps(rows, columns)).bfloat16()
    weights = (pool / math.sqrt(inner or rows)).bfloat16()
    return weights.as_strided((rows, columns), (ROW_STEP, 1)).contiguous()


def _column_steps(rows: int, columns: int) -> torch.Tensor:
    """Powers of two, so that multiples of them are exact: two kinds, so that columns are not alike."""
    step = 2.0 ** round(math.log2(1 / (WEIGHT_STEPS * math.sqrt(rows))))
    return step * torch.where(torch.arange(columns) % 3 == 1, 0.5, 1.0)


def _steps(case: MlaPreprocessCase) -> Int8Steps | None:
    if not case.quantised:
        return None
    heads = case.heads * (case.nope_dim + case.rope_dim)
    return Int8Steps(
        hidden=HIDDEN_STEP,
        query=QUERY_STEP,
        q_a=_column_steps(case.hidden_size, case.query_rank),
        kv_a=_column_steps(case.hidden_size, case.latent_dim + case.rope_dim),
        q_b=_column_steps(case.query_rank, heads),
    )


def _norm(case: MlaPreprocessCase, name: str, size: int) -> torch.Tensor:
    return (1 + 0.5 * Stream(case.seed, name).normal((size,), torch.float32)).bfloat16()


def _slots(case: MlaPreprocessCase) -> torch.Tensor:
    return torch.tensor(with_padding(slots_of(case, case.real_tokens, case.pages - 1), case))


def coordinates(inputs: MlaPreprocessInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, head and element, or the axes of the layout."""
    if output.startswith("query"):
        dim = inputs.rope_dim if output == "query_rope" else inputs.latent_dim
        return {
            "token": torch.arange(len(inputs.hidden))[:, None, None],
            "position": inputs.positions[:, None, None],
            "head": torch.arange(inputs.heads)[None, :, None],
            "element": torch.arange(dim)[None, None, :],
        }
    cache = inputs.rope_cache if output == "rope_cache" else inputs.latent_cache
    return cache_coordinates(cache, inputs.layout, inputs.page_size, inputs.slots)


PER_TOKEN = ("hidden", "positions", "slots")


def _in_another_order(inputs: MlaPreprocessInputs, case: MlaPreprocessCase) -> Changed[MlaPreprocessInputs]:
    """Tokens in another order: each has the queries that it had, and the caches are the same."""
    order = Stream(case.seed, "order").permutation(case.tokens)
    moved = replace(inputs, **{name: getattr(inputs, name)[order] for name in PER_TOKEN})
    return Changed(
        moved,
        lambda outputs: {
            name: output[order] if name.startswith("query") else output for name, output in outputs.items()
        },
    )


def _a_token_alone(inputs: MlaPreprocessInputs, case: MlaPreprocessCase) -> Changed[MlaPreprocessInputs]:
    """The first token without the others: the same queries, and the same at its slot."""
    alone = replace(inputs, **{name: getattr(inputs, name)[:1] for name in PER_TOKEN})

    def of_first(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What belongs to the first token: its queries, and its slots of the caches."""
        parts = {name: output[:1] for name, output in outputs.items() if name.startswith("query")}
        for name, dim in (("rope_cache", case.rope_dim), ("latent_cache", case.latent_dim)):
            if name in outputs:
                parts[name] = outputs[name].reshape(-1)[layout_of(case, dim).addresses(inputs.slots[:1])]
        return parts

    single = replace(case, tokens=1, padded_tokens=0, spare_pages=case.pages - 2)
    return Changed(alone, of_first, of_first, case=single)


def _sizes(model: Model) -> Box | None:
    if not model.latent:
        return None
    return {
        "hidden_size": (model.hidden,),
        "query_rank": (1536,),
        "dims": ("128/64/512",),
        "page_size": (PAGE_SIZE,),
        "epsilon": (1e-6,),
    }


component = Component(
    name="mla_preprocess",
    summary="from hidden states to absorbed queries, rotated queries, and the latent and rope key in the caches",
    case_type=MlaPreprocessCase,
    outputs=("query_nope", "query_rope", "rope_cache", "latent_cache"),
    inputs=build_inputs,
    reference=mla_preprocess,
    illegal=(
        *illegal_slots("latent_cache", lambda inputs: inputs.page_size),
        *illegal_rows("positions", "cos_sin_cache", "a position"),
    ),
    coordinates=coordinates,
    highlighted_region="NZ",
    relations=(
        relation("tokens_do_not_mix", "the order of tokens does not matter", _in_another_order, within=COMPANY),
        relation("a_token_alone", "a token's company does not matter", _a_token_alone, within=COMPANY,
                 needs={"tokens": (1,)}),
    ),
    example_ratio=0.04,
    profiles=of_models(_sizes),
    baselines=BASELINES["mla_preprocess"],
)  # fmt: skip
