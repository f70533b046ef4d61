from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.reference.cache_layout import LAYOUTS, CacheLayout, strip_width

LAWS = settings(max_examples=100, derandomize=True, database=None, deadline=None)


@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.bfloat16, 16), (torch.float16, 16), (torch.int8, 32), (torch.float32, 8)]
)
def test_a_strip_has_32_bytes(dtype, width):
    assert strip_width(dtype) == width


def test_addresses_of_nz_worked_by_hand():
    """Pages of 4 tokens, one head of 32: slot 5 is page 1, offset 1; its two strips are rows 9 and 13 of 16 columns."""
    layout = CacheLayout("PA_NZ", 3, 4, 1, 32, torch.bfloat16)
    assert layout.shape == (3, 2, 4, 16)
    rows = layout.addresses(torch.tensor([5, 0, 7])) // 16
    assert rows[:, 0, ::16].tolist() == [[9, 13], [0, 4], [11, 15]]
    columns = layout.addresses(torch.tensor([5]))[0, 0] % 16
    assert columns.tolist() == [*range(16), *range(16)]


def test_addresses_of_nz_with_heads_and_int8_worked_by_hand():
    """Two heads of 16 share a strip of 32: head 1, dim 3 of page 2, offset 1 (pages of 2) is column 19."""
    layout = CacheLayout("PA_NZ", 3, 2, 2, 16, torch.int8)
    assert layout.shape == (3, 1, 2, 32)
    assert int(layout.addresses(torch.tensor([5]))[0, 1, 3]) == (2 * 2 + 1) * 32 + 19


def test_nd_layouts_are_those_of_the_tensor():
    slots = torch.tensor([0, 6, 11])
    for name, place in (("PA_BSND", lambda p, o, h, d: (p, o, h, d)), ("PA_BNSD", lambda p, o, h, d: (p, h, o, d))):
        layout = CacheLayout(name, 3, 4, 2, 5, torch.float16)
        numbered = torch.arange(3 * 4 * 2 * 5).reshape(layout.shape)
        for row, slot in zip(layout.addresses(slots), slots.tolist(), strict=True):
            for head in range(2):
                for dim in range(5):
                    assert int(row[head, dim]) == int(numbered[place(slot // 4, slot % 4, head, dim)])


@LAWS
@given(
    st.sampled_from(LAYOUTS), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.sampled_from([32, 64, 96]),
    st.sampled_from([torch.bfloat16, torch.int8]),
)  # fmt: skip
def test_every_element_has_an_address_of_its_own(name, pages, size, heads, dim, dtype):
    layout = CacheLayout(name, pages, size, heads, dim, dtype)
    addresses = layout.addresses(torch.arange(pages * size)).flatten()
    assert sorted(addresses.tolist()) == list(range(pages * size * heads * dim))
    assert int(torch.tensor(layout.shape).prod()) == len(addresses)


@LAWS
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.sampled_from([16, 48, 64]))
def test_nz_is_the_permutation_that_backends_use(pages, size, heads, dim):
    """nd.view(blocks, P, D / 16, 16).permute(0, 2, 1, 3), as the gather helper of sglang undoes it."""
    layout = CacheLayout("PA_NZ", pages, size, heads, dim, torch.bfloat16)
    nd = torch.arange(pages * size * heads * dim).reshape(pages, size, heads * dim)
    nz = nd.view(pages, size, heads * dim // 16, 16).permute(0, 2, 1, 3)
    assert tuple(nz.shape) == layout.shape
    read = nz.reshape(-1)[layout.addresses(torch.arange(pages * size))]
    assert torch.equal(read.reshape(nd.shape), nd)


@LAWS
@given(
    st.sampled_from(LAYOUTS), st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.sampled_from([32, 64, 96]),
    st.sampled_from([torch.bfloat16, torch.int8, torch.float32]),
)  # fmt: skip
def test_views_and_permutations_move_tokens_to_their_addresses(name, pages, size, heads, dim, dtype):
    layout = CacheLayout(name, pages, size, heads, dim, dtype)
    tokens = (torch.arange(pages * size * heads * dim) % 113).to(dtype).view(pages, size, heads, dim)
    by_address = torch.empty(tokens.numel(), dtype=dtype)
    by_address[layout.addresses(torch.arange(pages * size))] = tokens.flatten(0, 1)
    cache = layout.from_tokens(tokens)
    assert tuple(cache.shape) == layout.shape
    assert cache.is_contiguous()
    assert torch.equal(cache.flatten(), by_address)
    assert torch.equal(layout.to_tokens(by_address.view(layout.shape)), tokens)


def test_tokens_of_nz_worked_by_hand():
    """One page of 2 tokens, 2 heads of 16: a token's heads are rows 0 and 2, or 1 and 3, of the page in NZ order."""
    layout = CacheLayout("PA_NZ", 1, 2, 2, 16, torch.float16)
    rows = torch.arange(4).repeat_interleave(16).to(torch.float16)
    tokens = layout.to_tokens(rows.view(layout.shape))
    assert tokens[..., 0].tolist() == [[[0, 2], [1, 3]]]
    assert torch.equal(layout.from_tokens(tokens).flatten(), rows)


@pytest.mark.parametrize("name", LAYOUTS)
def test_caches_and_tokens_of_another_shape_or_dtype_are_refused(name):
    layout = CacheLayout(name, 3, 4, 2, 32, torch.float16)
    with pytest.raises(ValueError, match=r"expected \(3, 4, 2, 32\) of torch.float16, got \(3, 4, 64\)"):
        layout.from_tokens(torch.zeros(3, 4, 64, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"of torch.float16, got .* of torch.float32"):
        layout.to_tokens(torch.zeros(layout.shape))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (CacheLayout("PA_NZ", 1, 4, 1, 24, torch.bfloat16), "multiple of 16, got 1 \\* 24"),
        (CacheLayout("PA_NZ", 1, 4, 1, 80, torch.int8), "multiple of 32"),
        (CacheLayout("NZ", 1, 4, 1, 64, torch.int8), "layout is one of PA_BSND, PA_BNSD, PA_NZ, got NZ"),
    ],
)
def test_what_cannot_lie_is_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        _ = layout.shape
