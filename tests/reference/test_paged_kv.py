from __future__ import annotations

import pytest
import torch

from npudiff.reference.paged_kv import PagedKV

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


@pytest.fixture
def strips():
    """NZ pages of 3 heads of dim 32: every element says its page, head, column and offset."""
    page, head, strip, offset, column = torch.meshgrid(
        torch.arange(PAGES), torch.arange(3), torch.arange(2), torch.arange(SIZE), torch.arange(16), indexing="ij"
    )
    key = page * 1000 + head * 200 + (strip * 16 + column) + offset * 40
    table = torch.tensor([[5, 2, 4, 0], [3, 3, 1, 0]], dtype=torch.int32)
    return PagedKV(key.to(torch.float64), -key[:, :, :1].to(torch.float64), table, "PA_NZ")


def test_nz_pages_have_sizes_of_their_own_axes(strips):
    sizes = (strips.page_size, strips.kv_heads, strips.head_dim, strips.value_head_dim)
    assert sizes == (SIZE, 3, 32, 16)


def test_tokens_of_nz_pages_are_put_together_from_their_strips(strips):
    keys, values = strips.read(0, 3, 7)
    for row, token in enumerate(range(3, 7)):
        page, offset = int(strips.block_table[0, token // SIZE]), token % SIZE
        right = [[page * 1000 + head * 200 + dim + offset * 40 for dim in range(32)] for head in range(3)]
        assert keys[row].tolist() == right
        assert (-values[row]).tolist() == [head[:16] for head in right]


def test_a_layout_that_does_not_fit_the_axes_is_refused(pool, strips):
    with pytest.raises(ValueError, match="PA_NZ pools have 5 axes, got 4 and 4"):
        PagedKV(pool.key, pool.value, pool.block_table, "PA_NZ")
    with pytest.raises(ValueError, match="PA_BSND pools have 4 axes, got 5 and 5"):
        PagedKV(strips.key, strips.value, strips.block_table)
    with pytest.raises(ValueError, match="layout is one of PA_BSND, PA_NZ, got NZ"):
        PagedKV(pool.key, pool.value, pool.block_table, "NZ")
