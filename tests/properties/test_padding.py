"""Padded tokens: where they stand, that it is drawn, and that a kernel which stops at the first of them is found."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

import npudiff
from draws import drawn
from npudiff.device import ascend, targets
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job
from npudiff.properties._shared import padding
from npudiff.properties.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheCase
from npudiff.properties.mla_preprocess import MlaPreprocessCase
from npudiff.properties.paged_cache import PagedCacheCase
from npudiff.run.discovery import load_component
from npudiff.run.engine import run_job

COMPONENTS = ("paged_cache", "kv_rmsnorm_rope_cache", "mla_preprocess")


class Case(NamedTuple):
    """What padding asks of a case."""

    padding: str
    padded_tokens: int
    padding_place: str


PADDED = (
    PagedCacheCase(4, padded_tokens=2, padding="slot -1"),
    KvRmsnormRopeCacheCase(6, padded_tokens=2, padding="slot -1"),
    MlaPreprocessCase(6, padded_tokens=2, padding="slot -1", hidden_size=64, query_rank=16),
)


def test_the_places_are_those_that_are_named():
    placed = {place: padding.with_padding([5, 6, 7], Case("slot -1", 2, place)) for place in padding.PLACES}
    assert placed == {
        "end": [5, 6, 7, -1, -1],
        "start": [-1, -1, 5, 6, 7],
        "between": [5, 6, -1, -1, 7],
        "alternating": [5, -1, 6, -1, 7],
    }


@pytest.mark.parametrize("place", padding.PLACES)
def test_no_token_is_lost_and_real_ones_keep_their_order(place):
    for own in range(1, 5):
        for padded in range(5):
            slots = padding.with_padding(range(1, own + 1), Case("slot 0", padded, place))
            assert [slot for slot in slots if slot] == list(range(1, own + 1))
            assert slots.count(0) == padded


@pytest.mark.parametrize("case", PADDED, ids=COMPONENTS)
def test_slots_of_a_case_stand_as_it_says(case):
    component = load_component({type(case): name for case, name in zip(PADDED, COMPONENTS, strict=True)}[type(case)])
    real = {}
    for place in padding.PLACES:
        placed = replace(case, padding_place=place)
        component.check_case(placed)
        real[place] = (component.inputs(placed).slots.flatten() >= 0).tolist()
    assert real == {
        "end": [True, True, True, True, False, False],
        "start": [False, False, True, True, True, True],
        "between": [True, True, False, False, True, True],
        "alternating": [True, False, True, False, True, True],
    }
    with pytest.raises(ValueError, match="padding_place is one of"):
        component.check_case(replace(case, padding_place="nowhere"))


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_place_is_drawn_and_only_where_there_is_padding(name):
    cases = drawn(load_component(name), Constraints(), 100)
    assert {case.padding_place for case in cases if case.padded_tokens} == set(padding.PLACES)
    assert {case.padding_place for case in cases if not case.padded_tokens} == {"end"}


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.parametrize(
    "item", [ascend.scatter_pa_norm, ascend.decode_pa_bnsd, ascend.native_mla_preprocess], ids=COMPONENTS
)
def test_a_kernel_that_stops_at_the_first_padded_token_is_found(item):
    def function(inputs, target):
        after = (inputs.slots.flatten() < 0).cumsum(0) > 0
        return item.function(
            replace(inputs, slots=inputs.slots.masked_fill(after.view(inputs.slots.shape), -1)), target
        )

    supports = [dict(box) for box in item.constraints.boxes]
    mine = npudiff.implementation(item.component, name="mine", supports=supports)(function)
    job = Job(Subject(load_component(item.component), mine, targets.sim(None)), EQUIVALENCE, mine.constraints)
    failure = run_job(job, Budget(examples=100, seed=2)).failure
    assert failure is not None
    assert failure.case.padding_place != "end"
    assert failure.case.padded_tokens == 1
