"""From a case to tensors, and where each of their elements is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.draw.data import Stream
from npudiff.judge.pattern import NOWHERE
from npudiff.properties._shared.moved_data import random_bits
from npudiff.properties.cache_gather.case import CacheGatherCase, layout_of
from npudiff.reference.cache_gather import CacheGatherInputs


def build_inputs(case: CacheGatherCase) -> CacheGatherInputs:
    """Build the inputs of a case: pages have names in no order, and all elements have bits of their own."""
    starts = torch.tensor([request.start for request in case.requests], dtype=torch.int32)
    return CacheGatherInputs(
        key_cache=_data(case, "key cache", layout_of(case, case.head_dim).shape),
        value_cache=_data(case, "value cache", layout_of(case, case.value_head_dim).shape),
        block_table=_block_table(case),
        lengths=torch.tensor([request.length for request in case.requests], dtype=torch.int32),
        starts=None if case.starts == "none" else starts,
        key=_data(case, "key", (case.rows, case.kv_heads, case.head_dim)),
        value=_data(case, "value", (case.rows, case.kv_heads, case.value_head_dim)),
        page_size=case.page_size,
        layout=case.layout,
    )


def _data(case: CacheGatherCase, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return random_bits(Stream(case.seed, name), shape, case.torch_dtype)


def _block_table(case: CacheGatherCase) -> torch.Tensor:
    """Pages of the requests; those before the first token that is read are pages as well, which nothing reads."""
    names = page_names(case.seed, case.pages)
    unused = {"page 0": [0], "-1": [-1], "any page": names}[case.unused]
    words = Stream(case.seed, "unused").random_uint64(len(case.requests) * case.width).tolist()
    filler, fresh = iter([unused[int(word % len(unused))] for word in words]), iter(names)
    shared = [next(fresh) for _ in range(min(case.shared_pages, max(map(case.last_page, case.requests))))]
    table = []
    for request in case.requests:
        first, last = request.start // case.page_size, case.last_page(request)
        pages = [*shared[:last], *(next(fresh) for _ in range(len(shared), last))]
        table.append([pages[column] if first <= column < last else next(filler) for column in range(case.width)])
    return torch.tensor(table, dtype=torch.int32)


def page_names(seed: int, pages: int) -> list[int]:
    """Return the pages of a pool but the dummy, in the order in which they are taken.

    Which of two pages lies first in the pool does not depend on how many there are, so that a case keeps it while it
    gets smaller.
    """
    words = Stream(seed, "pages").random_uint64(pages - 1)
    return [pages - 1 - int(rank) for rank in words.argsort(kind="stable").argsort(kind="stable")]


def coordinates(inputs: CacheGatherInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output; rows behind the last token are nowhere."""
    rows, heads, dim = (inputs.key if output == "key" else inputs.value).shape
    lengths = inputs.lengths.to(torch.int64)
    request = torch.full((rows,), NOWHERE)
    request[: int(lengths.sum())] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    first_row = (torch.cumsum(lengths, 0) - lengths)[request.clamp(min=0)]
    starts = torch.zeros_like(lengths) if inputs.starts is None else inputs.starts.to(torch.int64)
    token = torch.where(request == NOWHERE, NOWHERE, torch.arange(rows) - first_row + starts[request.clamp(min=0)])
    page = torch.where(token == NOWHERE, NOWHERE, token // inputs.page_size)
    offset = torch.where(token == NOWHERE, NOWHERE, token % inputs.page_size)
    places = {"request": request, "token": token, "logical page": page, "offset": offset}
    return {
        **{name: place[:, None, None] for name, place in places.items()},
        "head": torch.arange(heads)[None, :, None],
        "dim": torch.arange(dim)[None, None, :],
    }
