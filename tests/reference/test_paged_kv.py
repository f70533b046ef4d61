from __future__ import annotations

import pytest
import torch

from reference.paged_kv import PagedKV

PAGES, SIZE = 6, 4


@pytest.fixture
def pool():
    """Every key says its page and offset, every value the negative of that."""
    page = torch.arange(PAGES).reshape(-1, 1, 1, 1)
    offset = torch.arange(SIZE).reshape(1, -1, 1, 1)
    head = torch.arange(2).reshape(1, 1, -1, 1)
    key = (page * 16 + offset * 4 + head * 2).expand(-1, -1, -1, 3).to(torch.bfloat16)
    value = -key[..., :2]
    table = torch.tensor([[5, 2, 4, 0], [3, 3, 1, 0]], dtype=torch.int32)
    return PagedKV(key.contiguous(), value.contiguous(), table)


@pytest.mark.parametrize("first", range(12))
@pytest.mark.parametrize("request_index", [0, 1])
def test_every_range_holds_the_tokens_that_the_table_names(pool, request_index, first):
    for last in range(first + 1, 13):
        keys, values = pool.read(request_index, first, last)
        assert keys.shape == (last - first, 2, 3)
        assert values.shape == (last - first, 2, 2)
        for row, token in enumerate(range(first, last)):
            page = int(pool.block_table[request_index, token // SIZE])
            assert torch.equal(keys[row], pool.key[page, token % SIZE])
            assert torch.equal(values[row], pool.value[page, token % SIZE])


def test_page_size_is_the_tokens_of_a_page(pool):
    assert pool.page_size == SIZE


@pytest.mark.parametrize("bad", [-1, PAGES, 10**9])
def test_a_table_entry_outside_the_pool_is_an_error_where_it_is_read(pool, bad):
    pool.block_table[0, 1] = bad
    with pytest.raises(IndexError, match="outside the pool of 6"):
        pool.read(0, 0, 5)
    with pytest.raises(IndexError):
        pool.read(0, 7, 8)


@pytest.mark.parametrize("bad", [-1, PAGES, 10**9])
def test_a_table_entry_outside_the_range_is_not_read(pool, bad):
    before = pool.read(0, 4, 8)
    pool.block_table[0, [0, 2, 3]] = bad
    after = pool.read(0, 4, 8)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("first", "last"), [(0, 17), (16, 17), (12, 20)])
def test_a_table_that_is_too_narrow_is_an_error(pool, first, last):
    with pytest.raises(IndexError, match=r"block_table has 4 pages"):
        pool.read(0, first, last)


def test_moving_keeps_the_three_tensors(pool):
    moved = pool.to("cpu")
    assert torch.equal(moved.key, pool.key)
    assert torch.equal(moved.value, pool.value)
    assert torch.equal(moved.block_table, pool.block_table)
