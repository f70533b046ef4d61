"""What must hold of where everything lies, after every step, in words that say what does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from npudiff.reference.hybrid_pools.contract import PoolsSnapshot
from npudiff.reference.hybrid_pools.ledger import PageLedger
from npudiff.reference.hybrid_pools.steps import names, request_name

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Places = Mapping[int, int]
"""Name of a page in the ledger to its place in a pool."""


def violations(ledger: PageLedger, snapshot: PoolsSnapshot) -> list[str]:
    """Compare where everything lies with the account of the pages; what the pages are called does not matter.

    Returns
    -------
    list of str
        What is wrong. Later rules are only looked at where the earlier ones hold, since they build on them.
    """
    found = list(_wrong_form(ledger, snapshot))
    if found:
        return found
    slots = {request: row.tolist() for request, row in snapshot.slots.items()}
    found = list(_wrong_requests(ledger, slots))
    places: dict[int, int] = {}
    found = found or list(_wrong_pages(ledger, slots, places))
    sliding: dict[int, int] = {}
    found = found or list(_wrong_mapping(ledger, snapshot.mapping.tolist(), places, sliding))
    if found:
        return found
    sizes = ledger.sizes
    found += _wrong_free_pages("full", sizes.full_pages, snapshot.free_pages.tolist(), ledger, places)
    found += _wrong_free_pages("sliding", sizes.sliding_pages, snapshot.free_sliding_pages.tolist(), ledger, sliding)
    order = list(slots)
    found += _wrong_table("block_table", snapshot.block_table, order, ledger, places)
    found += _wrong_table("sliding_block_table", snapshot.sliding_block_table, order, ledger, sliding)
    return found


def _wrong_form(ledger: PageLedger, snapshot: PoolsSnapshot) -> Iterator[str]:
    """Whole numbers in as many dimensions as the contract says, and an entry of the mapping for each slot."""
    slots: object = snapshot.slots  # an implementation may put anything in any place
    if not isinstance(slots, Mapping) or any(type(request) is not int for request in slots):
        yield f"slots must be a mapping from requests, which are int, got a {type(slots).__name__}"
        return
    parts: dict[str, tuple[object, int]] = {}
    parts |= {f"slots of {request_name(request)}": (row, 1) for request, row in slots.items()}
    parts |= {name: (getattr(snapshot, name), 1) for name in ("mapping", "free_pages", "free_sliding_pages")}
    parts |= {name: (getattr(snapshot, name), 2) for name in ("block_table", "sliding_block_table")}
    for name, (tensor, dims) in parts.items():
        if not isinstance(tensor, torch.Tensor):
            yield f"{name} must be a tensor, got a {type(tensor).__name__}"
        elif tensor.dim() != dims or tensor.dtype not in _INTEGERS:
            yield f"{name} must be integers in {dims} dimensions, got {tensor.dtype} {list(tensor.shape)}"
    mapping, count = parts["mapping"][0], (1 + ledger.sizes.full_pages) * ledger.sizes.page_size
    if isinstance(mapping, torch.Tensor) and (not mapping.dim() or len(mapping) < count):
        yield f"mapping has shape {list(mapping.shape)}, and the full pool {count} slots"


def _wrong_requests(ledger: PageLedger, slots: Mapping[int, Sequence[int]]) -> Iterator[str]:
    """The live requests, each with a slot per token."""
    if set(slots) != set(ledger.tables):
        live = names(tuple(sorted(ledger.tables))) or "nobody"
        yield f"live are {live}, the snapshot has {names(tuple(sorted(slots))) or 'nobody'}"
        return
    for request, length in ledger.lengths.items():
        if len(slots[request]) != length:
            yield f"{request_name(request)} has {length} tokens and {len(slots[request])} slots"


def _wrong_pages(ledger: PageLedger, slots: Mapping[int, Sequence[int]], places: dict[int, int]) -> Iterator[str]:
    """Tokens lie side by side in pages, at their own offsets; a page is shared by design or not at all."""
    size = ledger.sizes.page_size
    tenants: dict[int, int] = {}
    for request, table in ledger.tables.items():
        row, who = slots[request], request_name(request)
        for index, name in enumerate(table):
            inside = row[index * size : (index + 1) * size]
            page = inside[0] // size
            if not 1 <= page <= ledger.sizes.full_pages:
                yield f"token {index * size} of {who} has slot {inside[0]}, in page {page}, which is nobody's"
            elif list(inside) != list(range(page * size, page * size + len(inside))):
                yield f"page {index} of {who} has slots {_abridged(inside)}, which do not fill a page from its start"
            elif places.setdefault(name, page) != page:
                yield f"{_owners(ledger, name)} share a page, and have it at {places[name]} and at {page}"
            elif tenants.setdefault(page, name) != name:
                yield f"page {page} of the full pool {_strangers(ledger, tenants[page], name)}"


def _wrong_mapping(
    ledger: PageLedger, mapping: Sequence[int], places: Places, sliding: dict[int, int]
) -> Iterator[str]:
    """Pages of the full pool are mapped to pages of the sliding pool, at the same offsets; all else to 0."""
    size, filled = ledger.sizes.page_size, _filled(ledger)
    rest = list(mapping[: (1 + ledger.sizes.full_pages) * size])
    tenants: dict[int, int] = {}
    for name, place in places.items():
        if name in ledger.evicted:
            continue  # its slots stay in the rest, and must be mapped to 0
        entries = rest[place * size : (place + 1) * size]
        rest[place * size : (place + 1) * size] = [0] * size
        page, right = entries[0] // size, range(entries[0], entries[0] + size)
        used = filled[name]
        if not 1 <= page <= ledger.sizes.sliding_pages:
            who = _owners(ledger, name)
            yield f"page {place} of {who} belongs in the sliding pool, and is mapped to slot {entries[0]}"
        elif entries[0] % size or list(right[:used]) != entries[:used]:
            slots = _abridged(entries[:used])
            yield f"page {place} of {_owners(ledger, name)} is mapped to {slots}: not the same offsets"
        elif any(entry not in (0, slot) for entry, slot in zip(entries[used:], right[used:], strict=True)):
            yield f"page {place} of {_owners(ledger, name)} is mapped to {_abridged(entries)} where it holds no token"
        elif tenants.setdefault(page, name) != name:
            yield f"page {page} of the sliding pool {_strangers(ledger, tenants[page], name)}"
        sliding[name] = page
    if any(rest):
        slot = next(slot for slot, entry in enumerate(rest) if entry)
        evicted = [_owners(ledger, name) for name, place in places.items() if place == slot // size]
        reason = f"was evicted of {evicted[0]}" if evicted else "belongs to nobody"
        yield f"slot {slot} of the full pool {reason}, and is mapped to slot {rest[slot]}"


def _wrong_free_pages(pool: str, pages: int, free: Sequence[int], ledger: PageLedger, places: Places) -> Iterator[str]:
    """Every page but page 0 is either free, once, or held."""
    listed = set(free)
    held = {place: name for name, place in places.items()}
    if len(listed) != len(free):
        yield f"a page of the {pool} pool is free twice: {_abridged(sorted(free))}"
    strange = sorted(page for page in listed if not 1 <= page <= pages)
    if strange:
        yield f"page {strange[0]} is free in the {pool} pool, which has pages 1 to {pages}"
    for page in range(1, pages + 1):
        if page in listed and page in held:
            yield f"page {page} of the {pool} pool is free and has tokens of {_owners(ledger, held[page])}"
        elif page not in listed and page not in held:
            yield f"page {page} of the {pool} pool is neither free nor anybody's"


def _wrong_table(
    name: str, table: torch.Tensor, order: Sequence[int], ledger: PageLedger, places: Places
) -> Iterator[str]:
    """Tables have a row per request, as wide as the longest needs; what is evicted is page 0."""
    width = max((len(ledger.tables[request]) for request in order), default=0)
    if list(table.shape) != [len(order), width] and order:
        yield f"{name} has shape {list(table.shape)}, expected {[len(order), width]}"
        return
    for request, row in zip(order, table.tolist(), strict=False):
        pages = [places.get(page, 0) for page in ledger.tables[request]]
        if row[: len(pages)] != pages:
            yield f"{name} of {request_name(request)} is {_abridged(row)}, expected {_abridged(pages)}"


def _owners(ledger: PageLedger, page: int) -> str:
    """The requests that have a page, in words."""
    return " and ".join(request_name(request) for request, table in ledger.tables.items() if page in table)


def _strangers(ledger: PageLedger, one: int, other: int) -> str:
    """What is wrong with a place where two pages lie."""
    return f"has tokens of {_owners(ledger, one)} and others of {_owners(ledger, other)}"


def _filled(ledger: PageLedger) -> dict[int, int]:
    """Tokens in each page."""
    size = ledger.sizes.page_size
    return {
        page: min(size, ledger.lengths[request] - index * size)
        for request, table in ledger.tables.items()
        for index, page in enumerate(table)
    }


def _abridged(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:6])
    return f"[{shown}{', ...' if len(numbers) > 6 else ''}]"
