"""Drawing cases of MLA's write into the cache: axes jointly, lengths near the borders of pages."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.model.constraints import Box, Constraints, allows
from npudiff.properties._shared.padding import draw_place
from npudiff.properties._shared.rows import ROWS
from npudiff.properties.kv_rmsnorm_rope_cache.case import (
    AXES,
    DIMS,
    DTYPES,
    LAYOUTS,
    PADDINGS,
    PLACEMENTS,
    RECIPES,
    KvRmsnormRopeCacheCase,
    check_case,
    values,
)

TOKENS = 256
"""Tokens of all requests up to which a case may have more than one request."""

MOST_TOKENS = 2**12
"""Tokens of all requests up to which a case may have more requests than the constraints ask for."""

CACHE_SLOTS = 2**10
"""Slots of a pool up to which a case may have spare pages."""


def cases(constraints: Constraints) -> st.SearchStrategy[KvRmsnormRopeCacheCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> KvRmsnormRopeCacheCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "batch", "length", "spare_pages")
    page_size = choose.value(box, "page_size", (16, 32, 48, 64, 128, 192, 256))
    placement = choose.value(box, "placement", PLACEMENTS)
    kind = choose.pick(("decode", "extend"))
    lengths = [1] if kind == "decode" else [2, 3, page_size - 1, page_size, page_size + 1, 2 * page_size]
    length = choose.pick(_lengths(choose.options(box, "length", lengths), page_size, placement))
    batch = choose.pick(_batches(choose, box, length))
    padded = _padded_tokens(choose, box, placement, batch * length)
    latent_dim, _, rope_dim = str(choose.value(box, "dims", DIMS)).partition("/")
    case = KvRmsnormRopeCacheCase(
        batch=batch,
        length=length,
        spare_pages=_spare_pages(choose, box, placement, page_size),
        page_size=page_size,
        latent_dim=int(latent_dim),
        rope_dim=int(rope_dim),
        dtype=choose.value(box, "dtype", DTYPES),
        quantised=choose.value(box, "quantised", (False, False, True)),
        layout=choose.value(box, "layout", LAYOUTS),
        placement=placement,
        padding=choose.value(box, "padding", PADDINGS),
        padded_tokens=padded,
        recipe=choose.value(box, "recipe", RECIPES),
        epsilon=choose.value(box, "epsilon", (1e-6, 1e-5)),
        table=choose.value(box, "table", (*(64, 1, 5, 4097) * 12, 70_001, 2**20)),
        rows=choose.value(box, "rows", ROWS),
        seed=choose.pick(range(1024)),
        padding_place=draw_place(choose, box, padded),
    )
    return choose.tie_sizes(case, ("batch", "length", "page_size"), values, check_case, box)


def _batches(choose: Chooser, box: Box, length: int) -> Sequence[int]:
    """Numbers of requests; where the constraints leave none that is cheap, the smallest that they allow."""
    defaults = [1, *(count for count in (2, 3, 8, 17, 65) if count * length <= TOKENS)]
    allowed = choose.options(box, "batch", defaults)
    most = TOKENS if choose.far else MOST_TOKENS
    return [count for count in allowed if count * length <= most] or [min(allowed)]


def _lengths(allowed: Sequence[int], page_size: int, placement: str) -> Sequence[int]:
    fitting = [length for length in allowed if placement != "rows" or length <= page_size]
    assume(fitting)
    return fitting


def _spare_pages(choose: Chooser, box: Box, placement: str, page_size: int) -> int:
    most = max(1, CACHE_SLOTS // page_size)
    wanted = choose.value(box, "spare_pages", [count for count in (0, 1, 3, 8) if count <= most])
    if placement != "rows":
        return int(wanted)
    assume(allows(box.get("spare_pages", (0,)), 0))
    return 0


def _padded_tokens(choose: Chooser, box: Box, placement: str, tokens: int) -> int:
    """Padding goes among scattered slots only, and leaves a token."""
    wanted = [count for count in within((0, 0, 1, 3), box.get("padded_tokens"))[:4096] if count < tokens]
    if placement != "scattered":
        wanted = [count for count in wanted if count == 0]
    assume(wanted)
    return int(choose.pick(wanted))
