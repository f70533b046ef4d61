"""What must hold between runs of one implementation, without knowing the right answer.

Where both runs do the same arithmetic (renamed pages, other poison, the same call again) they must agree bit for bit.
Where a device may take another order (another batch, another chunk) each run may be off by its bound, so the two may
differ by twice that; the reference's bound is used, its value is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs, same_bits
from npudiff.model.component import Comparison, NotApplicable, Property, Subject
from npudiff.properties.sliding_attention.case import Request, SlidingAttentionCase
from npudiff.properties.sliding_attention.inputs import build_inputs
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs

Outputs = Mapping[str, torch.Tensor]


def _agree(subject: Subject, inputs: SlidingAttentionInputs, one: Outputs, other: Outputs, context: str) -> Comparison:
    """Compare two runs on the same rows, each of which may be off by the bound."""
    return compare_runs(bounds_of(subject.expected(inputs)), one, other, context)


def _rows(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    return {name: tensor[list(rows)] for name, tensor in outputs.items()}


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _with_requests(
    inputs: SlidingAttentionInputs, requests: Sequence[Request], keep: Sequence[int], rows: Sequence[int]
) -> SlidingAttentionInputs:
    """The same pools with other lengths: table rows ``keep``, query rows ``rows``, no padding."""
    keep = list(keep)

    def narrowed(pool: PagedKV | None) -> PagedKV | None:
        return None if pool is None else replace(pool, block_table=pool.block_table[keep])

    full = narrowed(inputs.full)
    assert full is not None  # noqa: S101 - the full pool always exists
    return replace(
        inputs,
        query=inputs.query[list(rows)],
        full=full,
        sliding=narrowed(inputs.sliding),
        query_lengths=tuple(request.query for request in requests),
        kv_lengths=tuple(request.kv for request in requests),
    )


def _starts(case: SlidingAttentionCase) -> list[int]:
    """First query row of each request."""
    starts = [0]
    for request in case.requests:
        starts.append(starts[-1] + request.query)
    return starts


def _changed(case: SlidingAttentionCase, requests: Sequence[Request]) -> SlidingAttentionCase:
    return replace(case, requests=tuple(requests), padded_rows=0)


def _decode_equals_last_row(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    if all(request.query <= 1 for request in case.requests):
        raise NotApplicable("no request has more than one new token")
    requests = [Request(min(request.query, 1), request.kv) for request in case.requests]
    subject.require(_changed(case, requests), "the same call as a decode")
    inputs = build_inputs(case)
    starts = _starts(case)
    last = [start - 1 for start, request in zip(starts[1:], case.requests, strict=True) if request.query]
    decode = _with_requests(inputs, requests, range(len(requests)), last)
    return _agree(subject, decode, _rows(subject.run(inputs), last), subject.run(decode), "decode against last row")


def _chunks_equal_one_shot(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    """Split the new tokens and run the parts one after the other; ragged requests are split at points of their own."""
    points = Stream(case.seed, "chunks").integers(0, 2**16, len(case.requests))
    if len({request.query for request in case.requests}) == 1:
        points = points[:1] * len(points)
    cuts = [1 + point % (request.query - 1) if request.query > 1 else request.query
            for point, request in zip(points, case.requests, strict=True)]  # fmt: skip
    if all(cut == request.query for cut, request in zip(cuts, case.requests, strict=True)):
        raise NotApplicable("no request has more than one new token")
    inputs, starts = build_inputs(case), _starts(case)
    first = [
        Request(cut, max(0, request.kv - request.query + cut)) for cut, request in zip(cuts, case.requests, strict=True)
    ]
    later = [i for i, request in enumerate(case.requests) if cuts[i] < request.query]
    second = [Request(case.requests[i].query - cuts[i], case.requests[i].kv) for i in later]
    subject.require(_changed(case, first), "the first chunk")
    subject.require(_changed(case, second), "the second chunk")
    first_rows = [starts[i] + row for i, cut in enumerate(cuts) for row in range(cut)]
    second_rows = [row for i in later for row in range(starts[i] + cuts[i], starts[i + 1])]
    parts = [
        subject.run(_with_requests(inputs, first, range(len(first)), first_rows)),
        subject.run(_with_requests(inputs, second, later, second_rows)),
    ]
    rows = [*first_rows, *second_rows]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    whole = replace(inputs, query=inputs.query[: starts[-1]])
    return _agree(subject, whole, subject.run(whole), _rows(_joined(parts), order), "chunks against one shot")


def _prefix_hit_equals_cold(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    """Run whole prompts cold, then only their last tokens on the cache that the prompts left."""
    cold_requests = [Request(request.kv, request.kv) for request in case.requests if request.query <= request.kv]
    hits = [request for request in case.requests if request.query <= request.kv]
    if all(hit == cold for hit, cold in zip(hits, cold_requests, strict=True)):
        raise NotApplicable("no request has a prefix")
    if not any(hit.query for hit in hits):
        raise NotApplicable("no request without blind rows has new tokens")
    cold_case = _changed(case, cold_requests)
    subject.require(cold_case, "the cold run")
    inputs, starts = build_inputs(cold_case), _starts(cold_case)
    rows = [row for i, hit in enumerate(hits) for row in range(starts[i + 1] - hit.query, starts[i + 1])]
    hit_inputs = _with_requests(inputs, hits, range(len(hits)), rows)
    cold = _rows(subject.run(inputs), rows)
    return _agree(subject, hit_inputs, cold, subject.run(hit_inputs), "prefix hit against cold run")


def _wide_window_equals_none(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    longest = max(request.kv for request in case.requests)
    wide = replace(case, window=max(1, longest + case.seed % 3), hybrid=False)
    full = replace(wide, window=None)
    subject.require(wide, "the same call with a window")
    subject.require(full, "the same call without a window")
    inputs = build_inputs(full)
    with_window = subject.run(replace(inputs, window=wide.window))
    return _agree(subject, inputs, subject.run(inputs), with_window, "window as long as the history against none")


def _page_names_do_not_matter(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    inputs = build_inputs(case)

    def renamed(pool: PagedKV) -> PagedKV:
        names = torch.tensor([0, *(1 + i for i in Stream(case.seed, "rename").permutation(pool.key.shape[0] - 1))])
        old = torch.argsort(names)
        table = names[pool.block_table.to(torch.int64)].to(torch.int32)
        return replace(pool, key=pool.key[old], value=pool.value[old], block_table=table)

    sliding = None if inputs.sliding is None else renamed(inputs.sliding)
    other = replace(inputs, full=renamed(inputs.full), sliding=sliding)
    return same_bits(subject.run(inputs), subject.run(other), "pages renamed")


def _batch_order_does_not_matter(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    if len(case.requests) < 2:
        raise NotApplicable("the batch has one request")
    order = Stream(case.seed, "order").permutation(len(case.requests))
    requests = [case.requests[i] for i in order]
    subject.require(_changed(case, requests), "the reordered batch")
    inputs, starts = build_inputs(case), _starts(case)
    rows = [row for i in order for row in range(starts[i], starts[i + 1])]
    other = _with_requests(inputs, requests, order, rows)
    return _agree(subject, other, _rows(subject.run(inputs), rows), subject.run(other), "batch reordered")


def _company_does_not_matter(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    if len(case.requests) < 2:
        raise NotApplicable("the batch has one request")
    inputs, starts = build_inputs(case), _starts(case)
    alone = [_with_requests(inputs, [request], [i], range(starts[i], starts[i + 1]))
             for i, request in enumerate(case.requests) if request.query]  # fmt: skip
    subject.require(_changed(case, case.requests[:1]), "one request alone")
    whole = replace(inputs, query=inputs.query[: starts[-1]])
    together, apart = subject.run(whole), _joined([subject.run(one) for one in alone])
    return _agree(subject, whole, together, apart, "each request alone against the batch")


def _padding_does_not_matter(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    """Add padded query rows, spare table columns and pages that nobody owns."""
    padded = replace(case, padded_rows=case.padded_rows + 2)
    subject.require(padded, "the same call with padded rows")
    inputs, rows = build_inputs(case), sum(request.query for request in case.requests)
    extra = torch.full_like(inputs.query[:1], 77.0).expand(2, -1, -1)

    def widened(pool: PagedKV) -> PagedKV:
        return replace(pool, block_table=torch.nn.functional.pad(pool.block_table, (0, 2)))

    sliding = None if inputs.sliding is None else widened(inputs.sliding)
    other = replace(inputs, query=torch.cat([inputs.query, extra]), full=widened(inputs.full), sliding=sliding)
    real = range(rows)
    one, two = _rows(subject.run(inputs), real), _rows(subject.run(other), real)
    return _agree(subject, replace(inputs, query=inputs.query[:rows]), one, two, "padding added")


def _poison_changes_no_bit(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    """Replace everything that must not be read by something else, twice: other finite values, and zeros."""
    inputs = build_inputs(case)
    used = _used_slots(case, inputs)

    def repoisoned(pool: PagedKV, keep: torch.Tensor, filler: float) -> PagedKV:
        where = keep[:, None, None, :, None] if pool.layout == "PA_NZ" else keep[:, :, None, None]
        key, value = (torch.where(where, cache, torch.full_like(cache, filler)) for cache in (pool.key, pool.value))
        return replace(pool, key=key, value=value)

    def refilled(pool: PagedKV, filler: float) -> PagedKV:
        return repoisoned(pool, used if pool is inputs.kv else _nothing(pool), filler)

    def other(filler: float) -> SlidingAttentionInputs:
        sliding = None if inputs.sliding is None else refilled(inputs.sliding, filler)
        return replace(inputs, full=refilled(inputs.full, filler), sliding=sliding)

    before = subject.run(inputs)
    zeros = same_bits(before, subject.run(other(0.0)), "poison against zeros")
    return zeros if not zeros.holds else same_bits(before, subject.run(other(-333.0)), "poison against other poison")


def _nothing(pool: PagedKV) -> torch.Tensor:
    return torch.zeros(pool.key.shape[0], pool.page_size, dtype=torch.bool)


def _used_slots(case: SlidingAttentionCase, inputs: SlidingAttentionInputs) -> torch.Tensor:
    """Which ``[page, offset]`` of the layer's pool some row sees."""
    used = _nothing(inputs.kv)
    for row, request in enumerate(case.requests):
        first = 0 if case.window is None else max(0, request.kv - request.query - case.window + 1)
        tokens = torch.arange(first, request.kv) if request.query else torch.arange(0)
        pages = inputs.kv.block_table[row].to(torch.int64)[tokens // case.page_size]
        used[pages, tokens % case.page_size] = True
    return used


def _repeats_are_identical(subject: Subject, case: SlidingAttentionCase) -> Comparison:
    inputs = build_inputs(case)
    return same_bits(subject.run(inputs), subject.run(inputs), "the same call twice")


_CHUNKS = {"query_length": range(2, 513), "kv_length": range(1025)}
_COMPANY = {"batch": range(2, 4097)}
_DECODE = {"query_length": (1,)}
_PROMPTS = {"query_length": range(9, 2**20)}
_SHORT = {"kv_length": range(257)}
_WINDOWED = {"window": range(1, 2**31)}

RELATIONS = (
    Property(
        "decode_equals_last_row",
        "decode of one token equals the last row of prefill",
        _decode_equals_last_row,
        within={"query_length": range(2, 513)},
        needs=_DECODE,
    ),
    Property("chunks_equal_one_shot", "one shot equals any chunking", _chunks_equal_one_shot, within=_CHUNKS),
    Property(
        "prefix_hit_equals_cold",
        "a prefix hit equals a cold run",
        _prefix_hit_equals_cold,
        within=_SHORT,
        needs=_PROMPTS,
    ),
    Property(
        "wide_window_equals_none",
        "a window as long as the history equals no window",
        _wide_window_equals_none,
        within=_WINDOWED,
        needs={"window": (None,)},
    ),
    Property("page_names_do_not_matter", "renaming pages changes no bit", _page_names_do_not_matter),
    Property(
        "batch_order_does_not_matter",
        "the order of the batch does not matter",
        _batch_order_does_not_matter,
        within=_COMPANY,
    ),
    Property(
        "company_does_not_matter",
        "a request's company in the batch does not matter",
        _company_does_not_matter,
        within=_COMPANY,
    ),
    Property("padding_does_not_matter", "added padding does not matter", _padding_does_not_matter),
    Property("poison_changes_no_bit", "what must not be read changes no bit", _poison_changes_no_bit),
    Property("repeats_are_identical", "the same call twice gives the same bits", _repeats_are_identical),
)
