"""Drawing cases of MLA preprocessing: small where the implementation allows it, production sizes where it must be."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume
from hypothesis import strategies as st

from npudiff.draw.chooser import Chooser, within
from npudiff.model.constraints import Box, Constraints
from npudiff.properties._shared.padding import draw_place
from npudiff.properties._shared.rows import ROWS
from npudiff.properties.mla_preprocess.case import (
    AXES,
    DIMS,
    LAYOUTS,
    PADDINGS,
    RECIPES,
    MlaPreprocessCase,
    check_case,
    values,
)

WORK = 2**22
"""Elements of hidden states and weights, times heads, up to which a case may have more than one head."""

ABSORBED = 2**22
"""Elements of all heads' matrices that are absorbed into the query, up to which a case may have more than one head."""


def cases(constraints: Constraints) -> st.SearchStrategy[MlaPreprocessCase]:
    """Return a strategy of cases that lie within the constraints."""
    return _draw_case(constraints.boxes)


@st.composite
def _draw_case(draw: st.DrawFn, boxes: Sequence[Box]) -> MlaPreprocessCase:
    choose = Chooser(draw)
    box = choose.pick(boxes)
    choose.draw_outlier_axis(AXES, "heads", "tokens", "spare_pages")
    far_rows = choose.far in ("heads", "tokens")
    page_size = choose.value(box, "page_size", (16, 128, 32, 48, 256))
    tokens = choose.value(box, "tokens", (1, 2, 3, 7, page_size - 1, page_size + 1))
    hidden_size = choose.value(
        box, "hidden_size", (256, 64, 80) if far_rows else (*(256, 64, 80, 1024) * 6, 6144, 7168, 7680)
    )
    query_rank = choose.value(box, "query_rank", (64, 16) if far_rows else (64, 16, 96, 1536))
    nope_dim, rope_dim, latent_dim = map(int, str(choose.value(box, "dims", DIMS)).split("/"))
    heads = choose.pick(_heads(choose.options(box, "heads", (1, 2, 3, 4, 8)), query_rank, nope_dim * latent_dim))
    quantised = bool(choose.value(box, "quantised", (False, False, True)))
    recipe = choose.value(box, "recipe", ("gaussian",) if quantised else RECIPES)
    assume(not quantised or recipe == "gaussian")
    padded = _padded_tokens(choose, box, tokens)
    case = MlaPreprocessCase(
        tokens=tokens,
        padded_tokens=padded,
        padding=choose.value(box, "padding", PADDINGS),
        hidden_size=hidden_size,
        query_rank=query_rank,
        heads=heads,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        latent_dim=latent_dim,
        page_size=page_size,
        spare_pages=choose.value(box, "spare_pages", (0, 1, 3)),
        layout=choose.value(box, "layout", LAYOUTS),
        recipe=recipe,
        quantised=quantised,
        epsilon=choose.value(box, "epsilon", (1e-6, 1e-5)),
        table=choose.value(box, "table", (*(64, 1, 5, 4097) * 12, 2**20)),
        rows=choose.value(box, "rows", ROWS),
        seed=choose.pick(range(1024)),
        padding_place=draw_place(choose, box, padded),
    )
    return choose.tie_sizes(case, ("tokens", "heads", "query_rank"), values, check_case, box)


def _heads(allowed: Sequence[int], query_rank: int, absorbed: int) -> Sequence[int]:
    """Numbers of heads whose matrices are not too large, or the fewest."""
    cheap = [count for count in allowed if count * query_rank * 1024 <= WORK and count * absorbed <= ABSORBED]
    return cheap or [min(allowed)]


def _padded_tokens(choose: Chooser, box: Box, tokens: int) -> int:
    wanted = [count for count in within((0, 0, 1, 3), box.get("padded_tokens"))[:4096] if count < tokens]
    assume(wanted)
    return int(choose.pick(wanted))
