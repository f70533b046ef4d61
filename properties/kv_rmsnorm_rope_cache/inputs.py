"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.cache_coordinates import cache_coordinates
from npudiff.properties._shared.long_table import table_of_numbers
from npudiff.properties._shared.padding import with_padding
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties.kv_rmsnorm_rope_cache.case import KvRmsnormRopeCacheCase, layout_of
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs


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
    )


def _laid_tokens(case: KvRmsnormRopeCacheCase) -> torch.Tensor:
    """The tokens; as slices, all of them lie as far apart as those of one projection do."""
    tokens = _tokens(case)
    return with_row_stride(tokens.flatten(0, 1), case.rows).view(tokens.shape)


def _tokens(case: KvRmsnormRopeCacheCase) -> torch.Tensor:
    stream = Stream(case.seed, "kv")
    tokens = stream.normal((case.batch * case.length, case.latent_dim + case.rope_dim), torch.float32)
    if case.recipe == "outlier":
        columns = stream.integers(0, case.latent_dim, len(tokens))
        tokens[range(len(tokens)), columns] *= 64
    factors = {"tiny": case.epsilon**0.5, "large": 2000.0}
    tokens *= factors.get(case.recipe, 1.0)
    return tokens.to(case.torch_dtype).reshape(case.batch, case.length, -1)


def _slots(case: KvRmsnormRopeCacheCase) -> Sequence[int]:
    """Slots of all tokens, one request after the other."""
    stream, size, tokens = Stream(case.seed, "slots"), case.page_size, case.batch * case.length
    if case.placement == "rows":
        return [row * size + slot for row in range(case.batch) for slot in stream.permutation(size)[: case.length]]
    if case.placement == "pages":
        pages = [1 + page for page in stream.permutation(case.pages - 1)]
        own = [pages[case.pages_per_request * row :] for row in range(case.batch)]
        return [
            own[row][token // size] * size + token % size for row in range(case.batch) for token in range(case.length)
        ]
    real = tokens - case.padded_tokens
    slots = [size + slot for slot in stream.permutation((case.pages - 1) * size)[:real]]
    return with_padding(slots, case)


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
