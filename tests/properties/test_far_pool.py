"""Pools beyond 2**31 elements: where their pages lie, and that offsets of 32 bits are found there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import npudiff
from npudiff.device import targets
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.constraints import parse_where
from npudiff.model.job import Budget, Job
from npudiff.properties._shared import far_pool
from npudiff.run.discovery import load_component, select_implementations
from npudiff.run.engine import run_job

FAR = ("far_pool=true",)


def outcome(name, item, *where, examples=3):
    component = load_component(name)
    within = parse_where((*FAR, *where))
    job = Job(Subject(component, item, targets.sim(None)), EQUIVALENCE, item.constraints.within(within))
    return run_job(job, Budget(examples=examples, seed=1, shrink=False))


def gathered(wraps):
    """Tokens by offsets that are counted in int32, or are not."""

    def run(inputs, target):
        found = {}
        for name, cache in (("key", inputs.key_cache), ("value", inputs.value_cache)):
            rows, size = getattr(inputs, name).clone(), inputs.page_size
            width, row = cache.shape[2] * cache.shape[3], 0
            for pages, length in zip(inputs.block_table.long(), inputs.lengths.tolist(), strict=True):
                token = torch.arange(length)
                offset = (pages[token // size] * size + token % size) * width
                offset = offset.to(torch.int32).long() % cache.numel() if wraps else offset
                taken = cache.view(-1)[offset.unsqueeze(1) + torch.arange(width)]
                rows[row : row + length] = taken.view(length, *cache.shape[2:])
                row += length
            found[name] = rows
        return found

    plain = {"layout": ("PA_BSND",), "starts": ("none",)}
    return npudiff.implementation("cache_gather", name="mine", supports=plain)(run)


@pytest.fixture
def near(monkeypatch):
    monkeypatch.setattr(far_pool, "ELEMENTS", 5000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cache_gather", "sliding_attention"])
def test_implementations_hold_whatever_lies_before(near, name):
    component = load_component(name)
    for item in (one for one in select_implementations([component], ()) if one.wrong is None):
        assert outcome(name, item, examples=8).failure is None, item.name


def test_pages_lie_behind_the_elements(near):
    pages = torch.arange(1, 7, dtype=torch.bfloat16).view(3, 2)
    case = SimpleNamespace(far_pool=True, page_size=1, kv_heads=1, head_dim=2, value_head_dim=1)
    before = far_pool.pages_before(case)
    assert before == 2500
    pool = far_pool.behind(pages, before)
    assert torch.equal(pool[before:], pages)
    assert not bool(pool[:before].any())
    assert pool.dtype == pages.dtype
    case.far_pool = False
    assert far_pool.behind(pages, far_pool.pages_before(case)) is pages


def test_nobody_draws_one_who_did_not_ask():
    component = load_component("cache_gather")
    assert component.axes["far_pool"].legal == (False, True)
    item = gathered(wraps=False)
    job = Job(Subject(component, item, targets.sim(None)), EQUIVALENCE, item.constraints)
    found = run_job(job, Budget(examples=30, seed=1, shrink=False))
    assert not found.features["far pool"]


@pytest.mark.slow
def test_offsets_of_32_bits_are_found_there_and_right_ones_are_not():
    where = ("dtype=int8", "page_size=256", "kv_heads=1", "head_dims=64")
    assert outcome("cache_gather", gathered(wraps=False), *where, examples=2).failure is None
    assert outcome("cache_gather", gathered(wraps=True), *where, examples=2).failure is not None
