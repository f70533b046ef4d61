from __future__ import annotations

import pytest
import torch

from npudiff.device import targets
from npudiff.device.ascend.decoder_layer import layer_by_flags
from npudiff.device.mutants import decoder_layer as mutants
from npudiff.device.mutants import decoder_layer_latent as latent_mutants
from npudiff.model.component import NotApplicable, Subject
from npudiff.properties.decoder_layer import DecoderLayerCase, LayerRequest, component
from npudiff.properties.decoder_layer.inputs import build_inputs, steps_of, token_places
from npudiff.properties.decoder_layer.relations import regrouped
from npudiff.reference.decoder_layer import LayerStep

REQUESTS = (LayerRequest(0, 5), LayerRequest(3, 7))
STEP = DecoderLayerCase(REQUESTS, decode_steps=2, top_k=2, seed=3)
SLIDING = DecoderLayerCase(REQUESTS, decode_steps=2, window=3, top_k=2, seed=3)
LATENT = DecoderLayerCase(REQUESTS, kind="deepseek", decode_steps=2, top_k=2, seed=3)
RELATIONS = {relation.name: relation for relation in component.relations}


def judged(relation, implementation, case):
    target = targets.sim(None)
    with target.activate():
        return RELATIONS[relation].check(Subject(component, implementation, target), case)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("case", [STEP, SLIDING, LATENT], ids=["full", "sliding", "latent"])
def test_it_holds_of_the_right_layer(relation, case):
    assert judged(relation, layer_by_flags, case).worst <= 1


@pytest.mark.parametrize(
    ("relation", "mutant", "case"),
    [
        ("decode_is_prefill", mutants.WindowInPrefillOnly, SLIDING),
        ("decode_is_prefill", mutants.WrittenAfterAttention, STEP),
        ("decode_is_prefill", mutants.PositionsOfTheStep, STEP),
        ("decode_is_prefill", latent_mutants.QueryTurnedUnlikeItsKeys, LATENT),
        ("chunks_change_nothing", latent_mutants.PrefixNotGathered, LATENT),
        ("chunks_change_nothing", mutants.PositionsOfTheStep, STEP),
        ("requests_do_not_mix", mutants.SlotsOfTheFullPool, None),
        ("flags_change_nothing", latent_mutants.NzByTheWriterOnly, None),
    ],
)
def test_it_does_not_hold_of_a_wrong_one(relation, mutant, case):
    if mutant is mutants.SlotsOfTheFullPool:
        case = SLIDING
    if mutant is latent_mutants.NzByTheWriterOnly:
        case = DecoderLayerCase(REQUESTS, kind="deepseek", use_fia=True, fia_nz=True, mlapo=True, seed=3)
        mutant = unrestricted(mutant)
    assert judged(relation, mutant, case).worst > 1


def unrestricted(mutant):
    """The mutant on every flag: it is right where pages are not NZ."""
    from dataclasses import replace

    return replace(mutant, constraints=layer_by_flags.constraints)


def test_flags_say_nothing_of_a_layer_with_one_path():
    from dataclasses import replace

    from npudiff.model.constraints import Constraints

    single = replace(layer_by_flags, constraints=Constraints.of({"use_fia": (True,), "native_norm": (False,),
                                                                 "fia_nz": (False,), "mlapo": (False,)}))  # fmt: skip
    with pytest.raises(NotApplicable, match="one path only"):
        judged("flags_change_nothing", single, STEP)


def test_steps_are_prefixes_prefills_and_decodes():
    assert steps_of(STEP) == (
        LayerStep((1,), (3,), (3,)),
        LayerStep((0, 1), (5, 7), (5, 10)),
        LayerStep((0, 1), (1, 1), (6, 11)),
        LayerStep((0, 1), (1, 1), (7, 12)),
    )
    request, position = token_places(steps_of(STEP))
    assert request.tolist() == [1] * 3 + [0] * 5 + [1] * 7 + [0, 1, 0, 1]
    assert position[:8].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert position[-4:].tolist() == [5, 10, 6, 11]


def test_tokens_keep_their_data_in_other_steps():
    inputs = build_inputs(STEP)
    other, order = regrouped(inputs, [LayerStep((0, 1), STEP.lengths, STEP.lengths)])
    assert torch.equal(other.positions, torch.cat([torch.arange(length) for length in STEP.lengths]))
    assert torch.equal(other.hidden, inputs.hidden[order])
    assert sorted(order.tolist()) == list(range(len(inputs.hidden)))


def test_the_pools_have_pages_of_their_own_and_poison_everywhere():
    inputs = build_inputs(SLIDING)
    assert not torch.equal(inputs.slots, inputs.sliding_slots)
    assert torch.equal(inputs.slots % 16, inputs.sliding_slots % 16)
    assert len(set(inputs.sliding_slots.tolist())) == len(inputs.hidden)
    assert int(inputs.slots.min()) >= 16
    assert bool((inputs.key_cache == 512).all())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"requests": ()}, "batch must lie in 1..256, got 0"),
        ({"requests": (LayerRequest(1, 0),)}, "prefill must lie in 1..16384, got 0"),
        ({"hidden_size": 0}, r"hidden_size must lie in 1..16384, got 0"),
        ({"kind": "gpt"}, "kind is one of step-3.5, deepseek, got gpt"),
        ({"form": "w8a16"}, "form is one of float, w8a8, w4a8, got w8a16"),
        ({"kind": "deepseek", "window": 3}, "layers with latents have no window"),
        ({"decode_steps": 65}, "decode_steps must lie in 0..64, got 65"),
        ({"window": 0}, "window must be none or lie in 1"),
        ({"groups": 2}, "4 experts do not make 2 groups of more than two"),
        ({"experts": 8, "groups": 2, "top_k": 5}, "5 experts cannot be chosen of 8 in 2 groups"),
        ({"form": "w4a8", "hidden_size": 60}, "columns of int4 fill words of eight, got 60 and 32"),
        ({"limit": -1.0}, "limit must be none or lie in 0.001..10000, got -1"),
        ({"requests": (LayerRequest(0, 9000),)}, "a tensor would have more than"),
    ],
)
def test_cases_that_make_no_sense_are_refused(changed, message):
    from dataclasses import replace

    with pytest.raises(ValueError, match=message):
        component.check_case(replace(STEP, **changed))


def test_a_case_in_one_line():
    case = DecoderLayerCase(REQUESTS, window=3, decode_steps=1, limit=7.0, shared_limit=0.5, form="w4a8", seed=2)
    assert component.describe(case) == (
        "step-3.5 · tokens 5 3+7 · 1 decode step · window 3 · hidden 64 · heads 1:1 · dim 64 · experts 1 of 4 · w4a8 · "
        "limit 7 · shared limit 0.5 · page 16 · use_fia · seed 2"
    )
    assert "decode beyond the window" in component.features(case)
