"""What must hold between readings of one implementation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties.cache_gather.case import CacheGatherCase, Stretch, layout_of
from npudiff.properties.cache_gather.inputs import build_inputs

PLAIN = "PA_BSND"


def _page_names_do_not_matter(subject: Subject, case: CacheGatherCase) -> Comparison:
    """Move every page to another place of the pool, and change the block table alike."""
    inputs = build_inputs(case)
    moved_to = torch.tensor([0, *(1 + page for page in Stream(case.seed, "names").permutation(case.pages - 1))])
    key_cache, value_cache = torch.empty_like(inputs.key_cache), torch.empty_like(inputs.value_cache)
    key_cache[moved_to], value_cache[moved_to] = inputs.key_cache, inputs.value_cache
    table = inputs.block_table.to(torch.int64)
    table = torch.where(table < 0, table, moved_to[table]).to(torch.int32)
    other = replace(inputs, key_cache=key_cache, value_cache=value_cache, block_table=table)
    return same_bits(subject.run(inputs), subject.run(other), "pages renamed")


def _pieces_equal_whole(subject: Subject, case: CacheGatherCase) -> Comparison:
    """Read every request up to the border of a page, and then from there."""
    inputs, lengths = build_inputs(case), [request.length for request in case.requests]
    cuts = [_cut(request, case.page_size) for request in case.requests]
    rest = [length - cut for length, cut in zip(lengths, cuts, strict=True)]
    begins = [request.start for request in case.requests]
    again = [begin + cut for begin, cut in zip(begins, cuts, strict=True)]
    pieces = []
    for counts, starts in ((cuts, begins), (rest, again)):
        requests = tuple(Stretch(length, start) for length, start in zip(counts, starts, strict=True))
        kind = "page" if case.starts == "none" else case.starts
        subject.require(replace(case, requests=requests, starts=kind), "a piece of every request")
        part = replace(inputs, lengths=_int32(counts), starts=_int32(starts))
        pieces.append(_by_request(subject.run(part), counts))
    whole = _by_request(subject.run(inputs), lengths)
    together = {name: torch.cat([pieces[0][name], pieces[1][name]]) for name in pieces[0]}
    return same_bits(whole, together, "in one call against two")


def _layouts_agree(subject: Subject, case: CacheGatherCase) -> Comparison:
    """Read the same tokens out of caches in the order of the tensor."""
    subject.require(replace(case, layout=PLAIN), "the same tokens in another layout")
    inputs = build_inputs(case)
    plain = replace(
        inputs,
        layout=PLAIN,
        key_cache=layout_of(case, case.head_dim).to_tokens(inputs.key_cache).contiguous(),
        value_cache=layout_of(case, case.value_head_dim).to_tokens(inputs.value_cache).contiguous(),
    )
    return same_bits(subject.run(plain), subject.run(inputs), f"{case.layout} against {PLAIN}")


def _cut(request: Stretch, page_size: int) -> int:
    """Tokens of the first piece: up to the last border of a page inside the stretch, none if there is no such."""
    last = request.start + request.length - 1
    return max(0, last // page_size * page_size - request.start) if request.length else 0


def _int32(numbers: Sequence[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _by_request(outputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Outputs of each request by themselves, without the rows behind the last token."""
    ends = list(itertools.accumulate(lengths))
    return {
        f"{name} of request {request}": rows[end - length : end]
        for name, rows in outputs.items()
        for request, (length, end) in enumerate(zip(lengths, ends, strict=True))
    }


RELATIONS = (
    Property(
        "page_names_do_not_matter",
        "where in the pool a page lies changes no bit",
        _page_names_do_not_matter,
    ),
    Property(
        "pieces_equal_whole",
        "two calls, the second one from where the first ended, read what one call reads",
        _pieces_equal_whole,
        needs={"starts": ("page", "token")},
    ),
    Property(
        "layouts_agree",
        "the same tokens are read out of every layout",
        _layouts_agree,
        within={"layout": ("PA_BNSD", "PA_NZ")},
        needs={"layout": (PLAIN,)},
    ),
)
