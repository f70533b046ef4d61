"""Cases of state pools: what the machine draws, what is refused, what is simpler, and what a session compares."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from npudiff.device.ascend.state_pools import TorchPools
from npudiff.device.targets import sim
from npudiff.draw.presets import hypothesis_settings, without_constants_of_code
from npudiff.judge.judge import TraceExecutor
from npudiff.model.case import dumps, loads
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation
from npudiff.properties.state_pools import component
from npudiff.properties.state_pools.case import KINDS, StatePoolsCase
from npudiff.properties.state_pools.inputs import POISON, build_inputs, open_inputs, tokens_of
from npudiff.properties.state_pools.simpler import SIMPLER
from npudiff.reference.state_pools import Decode, Evict, Extend, Fork, Free, Restore, Verify, in_words


def case(*steps, **sizes):
    return replace(StatePoolsCase(3, 3, steps=steps), **sizes)


class Recorder:
    def __init__(self):
        self.traces = []

    def begin(self, case):
        pass

    def take(self, case):
        pass

    def end(self, case):
        self.traces.append(case)


def traces(batches, steps=20, **supports):
    """Traces as a run draws them: in batches of nine."""
    recorder = Recorder()
    for batch in range(batches):
        factory = seed(batch)(lambda: component.history.machine(Constraints.of(supports), recorder))
        settings = hypothesis_settings(9, deterministic=False, seeded=True, shrink=False, memory=None, steps=steps)
        with without_constants_of_code():  # as a run has it; else what was imported before takes part in the draws
            run_state_machine_as_test(factory, settings=settings)
    return recorder.traces


@pytest.fixture(scope="module")
def drawn():
    return traces(16)


@pytest.mark.slow
def test_every_step_that_is_drawn_makes_sense(drawn):
    for trace in drawn:
        trace.check()
        assert 15 < len(trace.steps) < 45


@pytest.mark.slow
def test_every_kind_of_step_is_drawn_often(drawn):
    kinds = Counter(step.kind for trace in drawn for step in trace.steps)
    assert set(kinds) == {"extend", *KINDS}
    assert min(kinds.values()) > sum(kinds.values()) / 60, (
        kinds
    )  # the rarest, a restored request, is 1 of 33 in 360 traces


@pytest.mark.slow
def test_queries_and_keys_that_a_norm_sees_are_tiny_now_and_then(drawn):
    tiny = [trace for trace in drawn if trace.keys == "tiny"]
    assert len(tiny) > len(drawn) / 20  # one of six in 540 traces
    assert all(trace.raw for trace in tiny)
    weight = open_inputs(replace(tiny[0], keys="usual")).weight.float()
    keys = 2 * tiny[0].key_heads * tiny[0].key_dim
    torch.testing.assert_close(open_inputs(tiny[0]).weight.float()[:, :keys] * 2**10, weight[:, :keys])
    torch.testing.assert_close(open_inputs(tiny[0]).weight.float()[:, keys:], weight[:, keys:])


def test_the_regions_where_bugs_live_are_met_in_many_runs(drawn):
    found = Counter(feature for trace in drawn for feature in component.features(trace))
    often = ("next chunk", "drafts taken back", "padded rows", "no request", "forked", "evicted", "reused slots")
    for feature in often:
        assert found[feature] > len(drawn) / 3, (feature, found)
    for feature in ("new and old in one batch", "accepted tokens differ"):
        assert found[feature] > len(drawn) / 5, (feature, found)


def test_sizes_are_drawn_on_every_axis(drawn):
    for name in ("requests", "drafts", "width", "group", "gates", "decays", "state_dtype", "raw", "chunked", "biased"):
        assert len({getattr(trace, name) for trace in drawn}) > 1, name


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_drawn_within_what_is_supported(kind):
    kinds = {step.kind for trace in traces(1, step=(kind,)) for step in trace.steps}
    assert kinds <= {"extend", kind}
    assert kind in kinds or kind == "restore"  # nobody comes back if nobody is evicted


@pytest.mark.slow
def test_drafts_of_which_nothing_is_kept_are_drawn_where_they_are_supported():
    counts = {
        some: {count for trace in traces(2, **some) for step in trace.steps if step.kind == "verify"
               for count in step.accepted}
        for some in (Frozen(), Frozen(nothing_accepted=(False,)))
    }  # fmt: skip
    assert [0 in found for found in counts.values()] == [True, False]


class Frozen(dict):
    def __hash__(self):
        return len(self)


def test_a_trace_is_read_back_from_a_line_and_is_one_line_of_words():
    steps = (Extend((0, 1), (5, 1)), Decode((1,), 1), Verify((0, 1), (1, 3)), Fork(0, 2), Evict(1), Free(0), Restore(1))
    trace = case(*steps, seed=7, gates="channel", state_dtype="float32")
    assert loads(StatePoolsCase, dumps(trace)) == trace
    assert component.describe(trace) == (
        "3 requests · 3 drafts · heads 1:1 · dim 16/16 · float32 states · decays of channel · seed 7 · "
        "extend a 5 b 1 · decode b + 1 padded · verify a 1 b 3 · fork a c · evict b · free a · restore b"
    )
    long = case(Extend((0,), (1,)), *[Decode((0,))] * 20)
    assert "9 steps before · decode a" in component.describe(long)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (case(requests=0), "requests must lie in"),
        (case(drafts=9), "drafts must lie in"),
        (case(width=1), "width"),
        (case(state_dtype="float16"), "state_dtype"),
        (case(gates="both"), "gates"),
        (case(seed=-1), "seed must lie in"),
        (case(key_dim=1024, value_dim=1024, key_heads=8), "more than 16777216 elements"),
        (case(*[Extend((0,), (1,))] * 10_001), "10000 steps"),
        (case(Extend((0,), (2**20,))), "its rows would have more than"),
        (case(Extend((0,), (3,)), Decode((1,))), "step 2, decode b: not live: b"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_cases_that_cannot_be_run_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        made.check()


def test_features_are_regions_of_the_trace():
    def regions(*steps):
        return component.features(case(*steps, requests=2))

    begun = Extend((0,), (3,))
    assert regions(begun) == []
    assert regions(begun, Extend((0,), (1,))) == ["next chunk"]
    assert regions(begun, Extend((0, 1), (1, 1))) == ["new and old in one batch", "next chunk"]
    assert regions(begun, Verify((0,), (3,))) == []
    assert regions(begun, Verify((0,), (2,), 1)) == ["drafts taken back", "padded rows"]
    assert regions(begun, Decode((), 1)) == ["no request", "padded rows"]
    assert regions(begun, Fork(0, 1), Verify((0, 1), (3, 3))) == ["forked"]
    assert regions(begun, Fork(0, 1), Verify((0, 1), (3, 0))) == [
        "accepted tokens differ",
        "drafts taken back",
        "forked",
    ]
    assert regions(begun, Evict(0), Restore(0), Free(0)) == ["evicted"]
    assert regions(begun, Free(0), begun, Free(0), begun) == ["reused slots"]
    assert component.values(case(begun, Evict(0), Verify((1,), (0,))))["step"] == {"evict", "verify"}


def test_inputs_are_the_layer_and_the_tokens_of_each_step():
    made = case(Extend((0, 1), (2, 1)), Verify((0,), (1,), 1), Free(0), key_heads=2, group=2, key_dim=8, value_dim=16)
    built = build_inputs(made)
    assert [tuple(new.mixed.shape) for _, new in built.steps] == [(3, 96), (6, 96), (0, 96)]
    assert built.pools.weight.shape == (4, 96)
    assert built.pools.lines(2, 5).unique().tolist() == [POISON]
    assert built.pools.states(3).shape == (3, 4, 16, 8)
    assert torch.equal(tokens_of(made, 1, 6).mixed, built.steps[1][1].mixed)
    assert not torch.equal(tokens_of(made, 0, 6).mixed, built.steps[1][1].mixed)
    by_channel = tokens_of(replace(made, gates="channel"), 0, 3)
    assert (by_channel.gate, by_channel.channel_gate.shape) == (None, (3, 4, 8))
    nothing = tokens_of(replace(made, gates="none"), 0, 3)
    assert (nothing.gate, nothing.channel_gate) == (None, None)
    assert open_inputs(replace(made, biased=True)).bias.shape == (96,)


def test_an_element_is_told_by_request_and_token():
    built = build_inputs(case(Extend((0, 1), (2, 1)), Decode((1,), 1)))
    places = component.coordinates(built, "output")
    assert (places["request"].flatten().tolist(), places["token"].flatten().tolist()) == ([1, -1], [1, -1])
    assert component.coordinates(built, "states")["request"].flatten().tolist() == [0, 1]
    assert component.coordinates(built, "lines")["row"].flatten().tolist() == [-3, -2, -1]
    expected = component.reference(built)
    for name, output in expected.items():
        for place in component.coordinates(built, name).values():
            torch.broadcast_to(place, output.value.shape)
    assert component.coordinates(built, "answer") == {}


STEPS = (Extend((0, 1), (5, 2)), Verify((1, 0), (1, 3), 1), Fork(0, 2), Evict(1), Decode((2, 0), 1), Restore(1),
         Extend((1, 2), (2, 1)), Free(0), Extend((0,), (4,)), Decode((), 2))  # fmt: skip


def walked(pools, *steps, **sizes):
    walk = TraceExecutor(Subject(component, Implementation("state_pools", "mine", pools), sim(None)))
    with sim(None).activate():
        return walk.run_to(case(*steps, **sizes)), walk


@pytest.mark.parametrize("gates", ["head", "none", "channel"])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "float32"])
def test_a_right_implementation_holds_in_every_step(gates, state_dtype):
    sizes = {"gates": gates, "state_dtype": state_dtype, "key_heads": 2, "group": 2, "biased": True}
    comparison, walk = walked(TorchPools, *STEPS, **sizes)
    assert comparison.holds
    assert [output.name for output in comparison.outputs] == ["convolved", "output", "lines", "states"]
    assert walk.case.steps == STEPS


def test_what_is_wrong_first_is_told_alone():
    class Wrong(TorchPools):
        def decode(self, requests, tokens):
            outputs = super().decode(requests, tokens)
            outputs[self.name][0, 0] += 64.0
            return outputs

    class Convolved(Wrong):
        name = "convolved"

    class Output(Wrong):
        name = "output"

    for kind, names in ((Convolved, ["convolved"]), (Output, ["convolved", "output"])):
        comparison, walk = walked(kind, *STEPS)
        assert not comparison.holds
        assert [output.name for output in comparison.outputs] == names
        assert comparison.context == "after decode c a + 1 padded"
        assert walk.case.steps == STEPS[:5]


def test_the_state_of_a_request_that_a_step_leaves_alone_keeps_its_bits():
    class Touches(TorchPools):
        def decode(self, requests, tokens):
            outputs = super().decode(requests, tokens)
            others = [slot for request, slot in self.slots.items() if request not in requests]
            self.pool[others] *= 1 + 2**-20
            return outputs

    steps = (Extend((0, 1), (3, 3)), Decode((0,)))
    comparison, _ = walked(Touches, *steps, state_dtype="float32")
    assert comparison.worst_output.name == "states"
    assert comparison.worst_output.wrong.flatten(1).any(1).tolist() == [False, True]


def test_each_step_is_judged_from_what_a_device_has():
    class Drifts(TorchPools):
        def states(self, requests):
            found = super().states(requests)
            return {**found, "states": found["states"] * 1.5}

    class Rounds(TorchPools):
        """States of which each step may be off by what a rounding is; together they are far off."""

        def decode(self, requests, tokens):
            outputs = super().decode(requests, tokens)
            self.pool[self.slots_of(requests).long()] *= 1 + 2**-23
            return outputs

    assert not walked(Drifts, Extend((0,), (3,)))[0].holds
    begun = Extend((0,), (3,))
    assert walked(Rounds, begun, *[Decode((0,))] * 40, state_dtype="float32", gates="none")[0].holds


def test_an_output_that_is_left_out_is_a_finding():
    class Half(TorchPools):
        def decode(self, requests, tokens):
            return {"output": super().decode(requests, tokens)["output"]}

    class Stateless(TorchPools):
        def states(self, requests):
            return {"lines": super().states(requests)["lines"]}

    comparison, _ = walked(Half, *STEPS)
    assert (comparison.worst_output.name, comparison.worst_output.problem) == ("convolved", "was not returned")
    comparison, _ = walked(Stateless, *STEPS)
    assert (comparison.worst_output.name, comparison.worst_output.problem) == ("states", "was not returned")


def test_what_an_implementation_raises_is_a_finding():
    class Full(TorchPools):
        def fork(self, source, request):
            raise MemoryError("no slot")

    with pytest.raises(ImplementationRaised, match="MemoryError: no slot"):
        walked(Full, *STEPS)


def test_an_implementation_may_write_into_the_tokens_it_is_given():
    class Scales(TorchPools):
        def extend(self, requests, lengths, tokens):
            outputs = super().extend(requests, lengths, tokens)
            tokens.mixed.zero_()
            return outputs

    assert walked(Scales, *STEPS)[0].holds


def simpler(trace):
    return [one for way in SIMPLER for one in way(trace)]


def test_nothing_is_simpler_than_the_simplest():
    plainest = StatePoolsCase(1, 1, width=2, steps=(Extend((0,), (1,)),))
    left = [one for one in simpler(plainest) if one.steps and one.width <= 2]
    assert [component.describe(one) for one in left if one != plainest] == [
        "1 request · width 2 · heads 1:1 · dim 16/16 · bfloat16 states · decode a"
    ]


def test_sizes_get_plainer():
    trace = case(*STEPS, seed=3, key_heads=2, group=2, key_dim=32, value_dim=24, state_dtype="float32", raw=True,
                 biased=True, chunked=True, gates="none", activation=False, width=3)  # fmt: skip
    found = simpler(trace)
    assert trace not in found
    for changes in ({"seed": 0}, {"key_heads": 1}, {"group": 1}, {"key_dim": 16}, {"value_dim": 16}, {"raw": False},
                    {"state_dtype": "bfloat16"}, {"biased": False}, {"chunked": False}, {"gates": "head"},
                    {"activation": True}, {"width": 4}, {"width": 2}, {"requests": 2}, {"drafts": 1}):  # fmt: skip
        assert replace(trace, **changes) in found, changes


@pytest.mark.parametrize(
    ("steps", "other"),
    [
        ((Extend((0, 1), (3, 2)),), (Extend((0,), (3,)),)),
        ((Extend((0,), (9,)),), (Extend((0,), (4,)),)),
        ((Extend((0,), (9,)),), (Extend((0,), (8,)),)),
        ((Extend((0,), (3,)), Extend((0,), (1,))), (Extend((0,), (3,)), Decode((0,)))),
        ((Extend((1,), (3,)), Fork(1, 0)), (Extend((0,), (3,)), Fork(0, 1))),
        ((Extend((0, 1), (1, 1)), Verify((1, 0), (1, 2), 1)), (Extend((0, 1), (1, 1)), Verify((0, 1), (2, 1), 1))),
        ((Extend((0, 1), (1, 1)), Verify((1, 0), (1, 2), 1)), (Extend((0, 1), (1, 1)), Verify((0,), (2,), 1))),
        ((Extend((0,), (1,)), Verify((0,), (3,), 2)), (Extend((0,), (1,)), Verify((0,), (3,), 1))),
        ((Extend((0,), (1,)), Verify((0,), (3,))), (Extend((0,), (1,)), Verify((0,), (2,)))),
        ((Extend((0, 1), (1, 1)), Decode((1, 0), 2)), (Extend((0, 1), (1, 1)), Decode((1, 0)))),
        ((Extend((0, 1), (1, 1)), Free(0), Decode((1,))), (Extend((1,), (1,)), Decode((1,)))),
        ((Extend((0, 1), (1, 1)), Free(0), Fork(1, 0), Decode((0,))), (Extend((1,), (1,)), Fork(1, 0), Decode((0,)))),
    ],
    ids=lambda steps: " · ".join(map(in_words, steps)),
)
def test_simpler_words(steps, other):
    assert other in [one.steps for one in simpler(case(*steps))]
