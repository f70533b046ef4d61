"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.cache_coordinates import cache_coordinates
from npudiff.properties._shared.long_table import table_of_numbers
from npudiff.properties._shared.padding import with_padding
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties.mla_preprocess.case import MlaPreprocessCase, layout_of
from npudiff.reference.mla_preprocess import Int8Steps, MlaPreprocessInputs

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
        hidden[range(case.tokens), stream.integers(0, case.hidden_size, case.tokens)] *= 64
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
    room = (case.pages - 1) * case.page_size
    own = [case.page_size + slot for slot in Stream(case.seed, "slots").permutation(room)[: case.real_tokens]]
    return torch.tensor(with_padding(own, case))


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
