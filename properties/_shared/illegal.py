"""What can be wrong with inputs that several components have: pages, slots, lengths and positions."""

from __future__ import annotations

from collections.abc import Callable

from npudiff.model.anything import AnyInputs
from npudiff.model.illegal import Illegal, Where, beyond, constant, place_of_last_page, width_of, wrong_element


def illegal_pages(
    table: Where, pages: Where, page_size: Callable[[AnyInputs], int], read: Callable[[AnyInputs], list[int]]
) -> tuple[Illegal, ...]:
    """Return that an entry of a block table, which a request reads, is no page of the pool.

    Parameters
    ----------
    table, pages : Where
        The table, and a tensor with a row for each page.
    page_size, read : callable
        As of ``place_of_last_page``.
    """
    place = place_of_last_page(table, page_size, read)
    return (
        wrong_element("a page beyond the pool", table, beyond(pages), place),
        wrong_element("a negative page", table, constant(-1), place),
    )


def illegal_batch(pool: Where, page_size: Callable[[AnyInputs], int]) -> tuple[Illegal, ...]:
    """Return what can be wrong with the lengths and pages of a batch that reads a ``PagedKV``."""

    def of_pool(name: str) -> Callable[[AnyInputs], str]:
        return lambda inputs: f"{pool if isinstance(pool, str) else pool(inputs)}.{name}"

    return (
        *illegal_pages(of_pool("block_table"), of_pool("key"), page_size, read_by_batch),
        *illegal_lengths(of_pool("block_table"), page_size),
    )


def illegal_lengths(table: Where, page_size: Callable[[AnyInputs], int]) -> tuple[Illegal, ...]:
    """Return what can be wrong with the lengths of a batch that reads a block table."""
    return (
        wrong_element("a negative length", "kv_lengths", constant(-1)),
        wrong_element("a negative number of new tokens", "query_lengths", constant(-1)),
        wrong_element(
            "a length beyond the block table",
            "kv_lengths",
            lambda inputs: width_of(table, inputs) * page_size(inputs) + 1,
            _first_with_rows,
        ),
        wrong_element("more new tokens than rows", "query_lengths", lambda inputs: len(inputs.query) + 1),
    )


def read_by_batch(inputs: AnyInputs) -> list[int]:
    """Return the tokens of each request up to the last one that attention reads; 0 for one without new tokens."""
    return [total if new else 0 for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True)]


def _first_with_rows(inputs: AnyInputs) -> int | None:
    return next((request for request, new in enumerate(inputs.query_lengths) if new), None)


def illegal_slots(cache: str, page_size: Callable[[AnyInputs], int]) -> tuple[Illegal, ...]:
    """Return that a token goes to no slot of a cache, whose tensor has a row for each page."""
    pages = beyond(cache)
    return (
        wrong_element("a slot beyond the pool", "slots", lambda inputs: pages(inputs) * page_size(inputs)),
        wrong_element("a slot below -1", "slots", constant(-2)),
    )


def illegal_rows(path: str, of: str, what: str) -> tuple[Illegal, ...]:
    """Return that an index is no row of a tensor: a position of a table, say."""
    return (
        wrong_element(f"{what} beyond the last row", path, beyond(of)),
        wrong_element(f"a negative {what.removeprefix('a ')}", path, constant(-1)),
    )
