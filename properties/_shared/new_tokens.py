"""Batches of which each row has something of its own, such as chosen keys: few rows, where there is a choice.

What relations take of such a batch stands here as well: which rows one request has, which ones are the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from npudiff.draw.cases import Chooser, assume
from npudiff.draw.data import Stream
from npudiff.judge.pattern import NOWHERE
from npudiff.model.component import NotApplicable
from npudiff.model.constraints import Box, allows
from npudiff.properties.sliding_attention.case import Request
from npudiff.properties.sliding_attention.requests import MAX_LENGTH, draw_requests


def draw_few(
    choose: Chooser, box: Box, page_size: int, long: Sequence[str], most_new: int, most: int
) -> tuple[Request, ...]:
    """Draw requests that have no fewer tokens than new ones.

    Parameters
    ----------
    choose, box, page_size
        As ``draw_requests`` takes them.
    long : sequence of str
        Whether a request has a long history, each as often as it stands there; the first says no.
    most_new, most : int
        New tokens and tokens of all requests, where the box says nothing of their number and lengths.
    """
    kind = choose.pick(long[:1] if choose.far or choose.usual_only else long)
    within: Box = {
        "kv_length": range(min(most, MAX_LENGTH) + 1),  # or long histories would nearly all be thrown away below
        **box,
        "fully_masked_rows": box.get("fully_masked_rows", ("none", "empty")),
    }
    drawn = draw_requests(choose, within, page_size, None, 1, kind)
    lengths = box.get("kv_length", range(MAX_LENGTH + 1))
    assume(all(allows(lengths, one.kv) for one in drawn))
    requests = tuple(replace(one, kv=max(one.kv, one.query)) if one.kv else one for one in drawn)
    asked = box.keys() & {"batch", "query_length", "kv_length"}
    assume(asked or (rows_of(requests) <= most_new and sum(one.kv for one in requests) <= most))
    return requests


def rows_of(requests: Sequence[Request]) -> int:
    """Return the new tokens of all requests."""
    return sum(one.query for one in requests)


def starts_of(requests: Sequence[Request]) -> list[int]:
    """Return the first row of each request, and the number of rows."""
    starts = [0]
    for request in requests:
        starts.append(starts[-1] + request.query)
    return starts


def one_of(requests: Sequence[Request], seed: int) -> tuple[int, list[int]]:
    """Return one of the requests that have rows, and its rows.

    Raises
    ------
    NotApplicable
        There is but one request, or no row.
    """
    with_rows = [index for index, request in enumerate(requests) if request.query]
    if len(requests) < 2 or not with_rows:
        raise NotApplicable("the batch has one request, or no rows")
    one = with_rows[Stream(seed, "alone").integers(0, len(with_rows), 1)[0]]
    starts = starts_of(requests)
    return one, list(range(starts[one], starts[one + 1]))


def last_rows(requests: Sequence[Request]) -> tuple[tuple[Request, ...], list[int]]:
    """Return decodes of the last rows, and which rows these are.

    Raises
    ------
    NotApplicable
        They are decodes already.
    """
    decodes = tuple(Request(min(1, one.query), one.kv) for one in requests)
    if decodes == tuple(requests):
        raise NotApplicable("no request has more than one new token")
    return decodes, [end - 1 for end, one in zip(starts_of(requests)[1:], requests, strict=True) if one.query]


def row_coordinates(tokens: int, new: Sequence[int], total: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return request, row and position of each of so many rows; a padded row is nowhere."""
    request, row, position = (torch.full((tokens,), NOWHERE) for _ in range(3))
    start = 0
    for index, (rows, tokens_of_one) in enumerate(zip(new, total, strict=True)):
        span = slice(start, start + rows)
        request[span], row[span] = index, torch.arange(rows)
        position[span] = torch.arange(tokens_of_one - rows, tokens_of_one)
        start += rows
    return {"request": request, "row": row, "kv position": position}


def renamed(table: torch.Tensor, pages: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block table after pages were given other names, and which page each was; page 0 stays."""
    names = torch.tensor([0, *(1 + page for page in Stream(seed, "rename").permutation(pages - 1))])
    return names[table.to(torch.int64)].to(torch.int32), torch.argsort(names)
