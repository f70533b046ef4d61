"""Cases of hybrid pools: what the machine draws, what is refused, what is simpler, and what a session compares."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from npudiff.device.ascend.hybrid_pools import AscendPools, NativePools
from npudiff.device.targets import sim
from npudiff.draw.presets import hypothesis_settings
from npudiff.judge.judge import TraceExecutor
from npudiff.model.case import dumps, loads
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.properties.hybrid_pools import component
from npudiff.properties.hybrid_pools.case import KINDS, HybridPoolsCase
from npudiff.properties.hybrid_pools.choices import CHOICES
from npudiff.properties.hybrid_pools.inputs import LARGE, TokenSource, build_inputs, open_inputs
from npudiff.properties.hybrid_pools.simpler import SIMPLER
from npudiff.reference.hybrid_pools import (
    Allocate,
    Decode,
    Evict,
    Extend,
    Fork,
    Free,
    PageLedger,
    Preempt,
    Readmit,
    Share,
    in_words,
)

check_case = HybridPoolsCase.check
describe = HybridPoolsCase.describe
features = HybridPoolsCase.features


def case(*steps, **sizes):
    return replace(HybridPoolsCase(4, 8, 8, 3, 3, True, steps=steps), **sizes)


class Recorder:
    def __init__(self):
        self.traces = []

    def begin(self, case):
        pass

    def take(self, case):
        check_case(replace(case, steps=case.steps[-40:]) if len(case.steps) < 40 else case)

    def end(self, case):
        self.traces.append(case)


def traces(batches, steps=30, **supports):
    """Traces as a run draws them: in batches of nine."""
    recorder = Recorder()
    for batch in range(batches):
        factory = seed(batch)(lambda: component.history.machine(Constraints.of(supports), recorder))
        settings = hypothesis_settings(9, deterministic=False, seeded=True, shrink=False, memory=None, steps=steps)
        run_state_machine_as_test(factory, settings=settings)
    return recorder.traces


@pytest.fixture(scope="module")
def drawn():
    return traces(12)


@pytest.mark.slow
def test_every_step_that_is_drawn_makes_sense(drawn):
    for trace in drawn:
        check_case(trace)
        assert 20 < len(trace.steps) < 60


@pytest.mark.slow
def test_every_kind_of_step_is_drawn_often(drawn):
    kinds = Counter(step.kind for trace in drawn for step in trace.steps)
    assert set(kinds) == {"allocate", *KINDS}
    assert min(kinds.values()) > sum(kinds.values()) / 60, kinds


@pytest.mark.slow
def test_the_regions_where_bugs_live_are_met_in_many_runs(drawn):
    found = Counter(feature for trace in drawn for feature in component.features(trace))
    for feature in ("pages run out", "evicted", "readmitted", "shared", "longer than the window", "reused pages"):
        assert found[feature] > len(drawn) / 5, (feature, found)
    assert found["shared and evicted"] > len(drawn) / 25


@pytest.mark.slow
def test_requests_meet_each_other(drawn):
    together = Counter()
    for trace in drawn:
        ledger = PageLedger(trace.sizes)
        for step in trace.steps:
            ledger.take(step)
            together[len(ledger.tables)] += 1
    assert sum(count for live, count in together.items() if live > 1) > sum(together.values()) / 3


def test_steps_are_refused_for_want_of_pages_but_seldom_twice_in_a_row(drawn):
    refused = twice = 0
    for trace in drawn:
        ledger, before = PageLedger(trace.sizes), True
        for step in trace.steps:
            taken = ledger.take(step)
            refused, twice, before = refused + (not taken), twice + (not taken and not before), taken
    assert refused > 2 * len(drawn)
    assert twice < refused / 20


@pytest.mark.slow
def test_steps_are_drawn_within_what_is_supported():
    for kind in KINDS:
        kinds = {step.kind for trace in traces(1, step=(kind,)) for step in trace.steps}
        assert kinds <= {"allocate", kind}
        assert kind in kinds or kind == "readmit"  # nobody waits if nobody is preempted
    assert {step.kind for trace in traces(1, step=()) for step in trace.steps} == {"allocate"}


def test_without_prefix_sharing_nothing_is_shared():
    kinds = {step.kind for trace in traces(2, prefix_sharing=(False,)) for step in trace.steps}
    assert not kinds & {"share", "fork"}


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_makes_sense_whatever_happened_before(name):
    for trace in traces(1, steps=12):
        ledger = PageLedger(trace.sizes)
        for step in (*trace.steps, None):
            for choice in CHOICES[name](ledger):
                assert ledger.reason_against(choice) is None, in_words(choice)
            if step is not None:
                ledger.take(step)


def test_a_trace_is_read_back_from_a_line_and_is_one_line_of_words():
    steps = (Allocate(0, 5), Decode((0,)), Evict((0,)), Share(0, 1, 1, 2), Fork(1, 2), Preempt(0), Free(1), Readmit(0))
    trace = case(*steps, Extend(0, 3), seed=7)
    assert loads(HybridPoolsCase, dumps(trace)) == trace
    assert describe(trace) == (
        "page 4 · window 3 · pools 8/8 · prefix sharing · seed 7 · allocate a 5 · decode a · evict a · "
        "share 1 page of a with b 2 · fork b c · preempt a · free b · readmit a · extend a 3"
    )
    plain = HybridPoolsCase(4, 6, 4, 3, steps=(Allocate(0, 5), Decode((0,)), Evict((0,))))
    assert describe(plain) == "page 4 · window 3 · pools 6/4 · allocate a 5 · decode a · evict a"


def test_of_a_long_trace_the_last_steps_are_shown():
    trace = case(Allocate(0, 1), *[Decode((0,))] * 20)
    assert "9 steps before · decode a" in describe(trace)
    assert describe(trace).count("decode") == 12


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (case(page_size=1), "page_size must lie in 2..1024, got 1"),
        (case(full_pages=0), "full_pages"),
        (case(window=0), "window"),
        (case(requests=0), "requests"),
        (case(head_dim=48), "head_dims is one of"),
        (case(dtype="float32"), "dtype"),
        (case(poison="zero"), "poison"),
        (case(seed=-1), "seed must lie in"),
        (case(kv_heads=1024), "at most 256 heads"),
        (case(page_size=1024, full_pages=2**16), "more than 67108864 elements"),
        (
            case(Allocate(0, 2**20)),
            "a 1048576: 1048576 tokens at once are more than 67108864 elements",
        ),
        (case(Allocate(0, 2**17)), "step 1, allocate a 131072: 131072 tokens at once are more than 4294967296 scores"),
        (case(*[Decode((0,))] * 10_001), "10000 steps"),
        (case(Allocate(0, 3), Decode((1,))), "step 2, decode b: not live: b"),
        (case(Allocate(0, 3), Fork(0, 1), prefix_sharing=False), "step 2, fork a b: prefixes are not shared"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cases_that_cannot_be_run_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        check_case(made)


def test_features_are_regions_of_the_trace():
    assert features(case()) == []
    assert features(case(Allocate(0, 3))) == []
    assert features(case(Allocate(0, 4))) == ["longer than the window", "whole page"]
    assert "pages run out" in features(case(Allocate(0, 33)))
    assert "evicted" not in features(case(Allocate(0, 5), Evict((0,)), prefix_sharing=False))
    assert "evicted" in features(case(Allocate(0, 7), Evict((0,)), prefix_sharing=False))
    assert "readmitted" in features(case(Allocate(0, 7), Preempt(0), Readmit(0)))
    assert "reused pages" not in features(case(Allocate(0, 32), Free(0)))
    assert "reused pages" in features(case(Allocate(0, 32), Free(0), Allocate(0, 1)))
    assert "shared" in features(case(Allocate(0, 4), Fork(0, 1)))
    assert "shared" not in features(case(Allocate(0, 3), Fork(0, 1)))
    assert "shared and evicted" in features(case(Allocate(0, 12), Evict((0,)), Share(0, 1, 2, 1)))


def test_storage_is_poison_and_tokens_are_not():
    for poison, check in (("large", lambda value: (value == LARGE).all()), ("nan", lambda value: value.isnan().all())):
        opened = open_inputs(case(poison=poison, full_pages=3, sliding_pages=2, kv_heads=2, value_head_dim=128))
        assert opened.full.key.shape == (4, 4, 2, 64)
        assert opened.sliding.value.shape == (3, 4, 2, 128)
        assert check(opened.full.value)
        assert check(opened.sliding.value)
    assert opened.scale == 1 / math.sqrt(64)


@pytest.mark.slow
def test_the_tokens_of_a_case_come_in_their_order_whatever_the_steps():
    made = case(kv_heads=2, group=3, value_head_dim=128, seed=5)
    one, other = TokenSource(made), TokenSource(made)
    parts = [other.next(count) for count in (3, 60, 0, 130, 7)]
    whole = one.next(200)
    assert torch.equal(whole.query, torch.cat([part.query for part in parts]))
    for name in whole.states.__dataclass_fields__:
        assert torch.equal(getattr(whole.states, name), torch.cat([getattr(part.states, name) for part in parts]))
    assert whole.query.shape == (200, 6, 64)
    assert whole.states.sliding_value.shape == (200, 2, 128)
    assert len({tuple(row.flatten().tolist()) for row in whole.states.full_key}) == 200
    assert not torch.equal(whole.states.full_key, whole.states.sliding_key)
    other_seed = TokenSource(replace(made, seed=6)).next(200)
    assert not torch.equal(whole.query, other_seed.query)


def test_inputs_are_the_pools_and_the_tokens_of_each_step():
    built = build_inputs(case(Allocate(0, 5), Evict((0,)), Allocate(1, 2), Decode((0, 1))))
    assert [len(new) for _, new in built.steps] == [5, 0, 2, 2]
    assert component.reference(built)["full"].value.shape == (2, 1, 64)
    places = component.coordinates(built, "sliding")
    assert places["request"].flatten().tolist() == [0, 1]
    assert places["kv position"].flatten().tolist() == [5, 2]
    assert places["visible keys"].flatten().tolist() == [3, 3]
    assert places["page offset"].flatten().tolist() == [1, 2]
    assert component.coordinates(built, "pages") == {}


def opened(pools):
    item = Implementation("hybrid_pools", "mine", pools)
    return Subject(component, item, sim(None))


STEPS = (Allocate(0, 9), Evict((0,)), Fork(0, 1), Decode((0, 1)), Preempt(0), Extend(1, 3), Readmit(0), Free(1),
         Share(0, 2, 2, 5), Allocate(1, 40), Decode((2, 0)))  # fmt: skip


def walked(pools, *steps, **sizes):
    walk = TraceExecutor(opened(pools))
    with sim(None).activate():
        return walk.run_to(case(*steps, **sizes)), walk


def test_a_right_implementation_holds_in_every_step():
    comparison, walk = walked(NativePools, *STEPS)
    assert comparison.holds
    assert [output.name for output in comparison.outputs] == ["answer", "pages", "full", "sliding"]
    assert 0 < comparison.worst < 1
    assert walk.case.steps == STEPS


def test_an_implementation_that_shows_nothing_is_judged_by_its_attention():
    class Closed(NativePools):
        def snapshot(self):
            return None

    class Wrong(Closed):
        def unmap(self, pages):
            """Nobody sees the mapping."""

        def evict_up_to(self, request, length):
            """Nobody sees that nothing is given up, until there are too few pages."""

    assert walked(Closed, *STEPS)[0].holds
    assert walked(Wrong, *STEPS)[0].holds
    comparison, _ = walked(Wrong, *STEPS, sliding_pages=3, full_pages=8)
    assert comparison.worst_output.name == "answer"


def test_an_answer_is_true_or_false_and_says_what_was_needed():
    class Silent(NativePools):
        def allocate(self, request, tokens):
            super().allocate(request, tokens)

    class Full(NativePools):
        def fits(self, requests, counts):
            return False

    comparison, walk = walked(Silent, Allocate(0, 5))
    assert comparison.worst_output.problem == "answered None, expected True: it needs 2 pages, free are 8 and 8"
    assert [output.name for output in comparison.outputs] == ["answer"]
    assert comparison.context == "after allocate a 5"
    comparison, _ = walked(Silent, Allocate(0, 50))
    assert comparison.worst_output.problem == "answered None, expected False: it needs 13 pages, free are 8 and 8"
    assert "answered False, expected True" in walked(Full, Allocate(0, 5))[0].worst_output.problem
    assert walk.case.steps == (Allocate(0, 5),)


def test_a_wrong_place_comes_before_the_wrong_attention_that_it_makes():
    class Lost(NativePools):
        def snapshot(self):
            found = super().snapshot()
            return replace(found, free_pages=found.free_pages[1:])

    comparison, _ = walked(Lost, Allocate(0, 5))
    assert comparison.worst_output.name == "pages"
    assert "neither free nor anybody's" in comparison.worst_output.problem


def test_a_snapshot_of_another_kind_is_a_finding_and_no_defect():
    class Other(NativePools):
        def snapshot(self):
            return {"slots": {}}

    class Short(NativePools):
        def snapshot(self):
            return replace(super().snapshot(), mapping=self.mapping[:5])

    problem = walked(Other, Allocate(0, 5))[0].worst_output.problem
    assert problem == "snapshot answered dict, expected PoolsSnapshot or None"
    assert "mapping has shape [5]" in walked(Short, Allocate(0, 5))[0].worst_output.problem


def test_wrong_attention_of_one_request_is_found_at_its_coordinates():
    class Swapped(NativePools):
        def attend(self, requests, query_lengths, query):
            found = super().attend(requests, query_lengths, query)
            if len(requests) == 2:
                found["sliding"][1] = 9.0
            return found

    comparison, walk = walked(Swapped, Allocate(0, 5), Allocate(1, 3))
    assert comparison.worst_output.name == "sliding"
    assert comparison.worst_output.wrong.any(dim=(1, 2)).tolist() == [False, True, False, False]
    assert walk.case.steps[-1] == Allocate(1, 3)


def test_an_output_that_is_left_out_is_not_compared_and_another_is_refused():
    class Half(NativePools):
        def attend(self, requests, query_lengths, query):
            return {"full": super().attend(requests, query_lengths, query)["full"]}

    class Other(NativePools):
        def attend(self, requests, query_lengths, query):
            return {"output": query}

    comparison, _ = walked(Half, Allocate(0, 5))
    assert [output.name for output in comparison.outputs] == ["answer", "pages", "full"]
    with pytest.raises(ImplementationRaised, match="must return outputs among"):
        walked(Other, Allocate(0, 5))


def test_an_implementation_may_write_into_the_tokens_it_is_given():
    class Scales(NativePools):
        def append(self, requests, counts, tokens, *, decode=False):
            taken = super().append(requests, counts, tokens, decode=decode)
            tokens.full_key.zero_()
            tokens.sliding_value.zero_()
            return taken

    assert walked(Scales, *STEPS)[0].holds


def test_nan_in_page_0_reaches_the_fused_operator_and_not_the_gathered_keys():
    steps = (Allocate(0, 40), Evict((0,)))
    assert walked(NativePools, *steps, poison="nan", page_size=16)[0].holds
    assert walked(AscendPools, *steps, poison="large", page_size=16)[0].holds
    assert walked(AscendPools, *steps, poison="nan", page_size=16)[0].worst_output.name == "sliding"


def simpler(trace):
    return [one for way in SIMPLER for one in way(trace)]


def test_nothing_is_simpler_than_the_simplest():
    plainest = HybridPoolsCase(2, 1, 1, 1, 1, steps=(Allocate(0, 1),))
    assert [one for one in simpler(plainest) if one.steps] == []


def test_what_is_simpler_is_another_case():
    trace = case(*STEPS, seed=3, kv_heads=2, group=2, head_dim=192, value_head_dim=128, dtype="float16", poison="nan")
    found = simpler(trace)
    assert trace not in found
    assert len(found) > 50
    for changes in ({"seed": 0}, {"kv_heads": 1}, {"head_dim": 64, "value_head_dim": 64}, {"dtype": "bfloat16"},
                    {"poison": "large"}, {"prefix_sharing": False}, {"window": 1}, {"requests": 1},
                    {"full_pages": 7}, {"sliding_pages": 2}, {"full_pages": 3, "sliding_pages": 3}):  # fmt: skip
        assert replace(trace, **changes) in found, changes


def steps_of(trace):
    return [one.steps for one in simpler(trace)]


@pytest.mark.parametrize(
    ("steps", "other"),
    [
        ((Allocate(0, 3), Extend(0, 4), Free(0)), (Allocate(0, 7), Free(0))),
        ((Allocate(0, 3), Decode((0,)), Decode((0,)), Evict((0,))), (Allocate(0, 5), Evict((0,)))),
        ((Allocate(0, 3), Extend(0, 1)), (Allocate(0, 3), Decode((0,)))),
        ((Allocate(0, 9),), (Allocate(0, 5),)),
        ((Allocate(0, 9),), (Allocate(0, 8),)),
        ((Allocate(1, 3), Fork(1, 0)), (Allocate(0, 3), Fork(0, 1))),
        ((Allocate(0, 3), Allocate(1, 3), Decode((0, 1))), (Allocate(0, 3), Allocate(1, 3), Decode((1,)))),
        ((Allocate(0, 3), Allocate(1, 3), Decode((0, 1))), (Allocate(0, 3), Decode((0,)))),
        ((Allocate(0, 3), Fork(0, 1), Free(0), Evict((1,))), (Allocate(0, 3), Evict((0,)))),
        ((Allocate(0, 9), Share(0, 1, 2, 3)), (Allocate(0, 9), Share(0, 1, 1, 3))),
        ((Allocate(0, 9), Share(0, 1, 2, 3)), (Allocate(0, 9), Allocate(1, 11))),
        ((Allocate(0, 3), Preempt(0)), (Allocate(0, 3), Free(0))),
    ],
    ids=lambda steps: " · ".join(map(in_words, steps)),
)
def test_simpler_words(steps, other):
    assert other in steps_of(case(*steps))


def test_smaller_pages_keep_the_distance_to_their_borders():
    found = simpler(case(Allocate(0, 31), Extend(0, 17), Decode((0,)), page_size=16, window=33))
    assert case(Allocate(0, 15), Extend(0, 9), Decode((0,)), page_size=8, window=17) in found
    assert case(Allocate(0, 3), Extend(0, 3), Decode((0,)), page_size=2, window=5) in found
