"""Profiles: how one is chosen, and what each choice does. None of this is asserted of hardware."""

import contextvars
import dataclasses
import threading

import pytest
import torch

from npudiff.device import simulator
from npudiff.device.simulator import PROFILES, OperatorRejected, active_profile, use_profile


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def test_the_default_is_a_profile_and_is_active():
    assert simulator.DEFAULT_PROFILE == "8.5"
    assert active_profile() is PROFILES["8.5"]


def test_profiles_nest_and_end():
    with use_profile("9.0") as outer:
        assert active_profile() is outer is PROFILES["9.0"]
        with use_profile(PROFILES["pessimistic"]):
            assert active_profile().name == "pessimistic"
        assert active_profile() is outer
    assert active_profile().name == "8.5"


def test_an_error_ends_the_block_too():
    with pytest.raises(ZeroDivisionError), use_profile("9.0"):
        raise ZeroDivisionError
    assert active_profile().name == "8.5"


def test_an_unknown_name_is_told_the_known_ones():
    message = r"unknown CANN profile '7\.0'; known: 8\.5, 9\.0, 9\.1, pessimistic"
    with pytest.raises(ValueError, match=message), use_profile("7.0"):
        pass
    assert active_profile().name == "8.5"


def test_a_profile_holds_for_its_own_context():
    seen = []
    with use_profile("9.0"):
        thread = threading.Thread(target=lambda: seen.append(active_profile().name))
        thread.start()
        thread.join()
        assert contextvars.copy_context().run(active_profile).name == "9.0"
    assert seen == ["8.5"]


def test_profiles_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROFILES["8.5"].name = "other"
    with pytest.raises(TypeError):
        PROFILES["8.5"] = PROFILES["9.0"]


def banded_decode(lab, lengths=(1, 1)):
    sequences = lab.ragged(list(lengths), [300, 300], dim=128)
    return lab.pack(sequences, "TND", block_size=128) | {
        "sparse_mode": 4,
        "pre_tokens": 15,
        "next_tokens": 0,
        "atten_mask": lab.template(),
    }


@pytest.mark.parametrize(("profile", "honoured"), [("8.5", True), ("9.0", True), ("pessimistic", False)])
def test_tnd_band_at_query_length_one(lab, profile, honoured):
    arguments = banded_decode(lab, (1, 2))
    everything = arguments | {"pre_tokens": 299}
    with use_profile(profile):
        banded, full = lab.call(arguments)[0], lab.call(everything)[0]
    assert torch.equal(banded[0], full[0]) != honoured
    # Two queries keep their band in any profile.
    assert not torch.equal(banded[1:], full[1:])


def accepted(lab, arguments, **kwargs):
    try:
        lab.call(arguments, **kwargs)
    except OperatorRejected:
        return False
    return True


@pytest.mark.parametrize(
    ("layout", "queries", "dim", "block_size", "source", "docs"),
    [
        ("TND", 2, 128, 128, True, True),
        ("TND", 2, 128, 16, True, False),
        ("TND", 2, 128, 1024, True, False),
        ("TND", 1, 128, 16, True, True),
        ("TND", 1, 128, 1024, True, False),
        ("BSND", 2, 80, 16, False, False),
        ("BSND", 2, 80, 640, True, False),
        ("BSND", 1, 80, 16, True, True),
        ("BSND", 1, 80, 528, False, False),
        ("BSND", 2, 64, 24, False, False),
        ("BSND", 2, 64, 1040, False, False),
    ],
)
def test_block_size_rule(lab, *, layout, queries, dim, block_size, source, docs):
    arguments = lab.pack(lab.ragged([queries], [40], dim=dim), layout, block_size=block_size)
    with changed(block_size_rule="source"):
        assert accepted(lab, arguments) == source
    with changed(block_size_rule="docs"):
        assert accepted(lab, arguments) == docs
    assert PROFILES["8.5"].block_size_rule == PROFILES["9.0"].block_size_rule == "source"
    assert PROFILES["pessimistic"].block_size_rule == "docs"


@pytest.mark.parametrize(("layout", "docs"), [("TND", True), ("BNSD", True), ("BSND", False), ("BSH", False)])
def test_four_dimensional_cache(lab, layout, docs):
    arguments = lab.pack(lab.ragged([2], [40]), layout, block_size=128, rank=4)
    with changed(four_dimensional_cache="any_layout"):
        assert accepted(lab, arguments)
    with changed(four_dimensional_cache="bnsd_and_tnd"):
        assert accepted(lab, arguments) == docs


@pytest.mark.parametrize("layout", ["TND", "BNSD", "BSND", "BSH"])
def test_five_dimensional_cache(lab, layout):
    arguments = lab.pack(lab.ragged([2], [40]), layout, block_size=128, rank=5)
    assert accepted(lab, arguments)
    with changed(five_dimensional_cache="rejected"):
        assert not accepted(lab, arguments)
        assert accepted(lab, lab.pack(lab.ragged([2], [40]), layout, block_size=128, rank=4))
    assert PROFILES["8.5"].five_dimensional_cache == PROFILES["9.0"].five_dimensional_cache == "any_layout"
    assert PROFILES["pessimistic"].five_dimensional_cache == "rejected"


def test_tnd_paging(lab):
    arguments = lab.pack(lab.ragged([2], [40]), "TND", block_size=128)
    assert accepted(lab, arguments)
    with changed(tnd_paging="rejected"):
        assert not accepted(lab, arguments)
        assert accepted(lab, lab.pack(lab.ragged([2], [40]), "TND"))
        assert accepted(lab, lab.pack(lab.ragged([2], [40]), "BSND", block_size=128))


def test_mode_0_band_may_leave_out_tiles_only(lab):
    sequences = lab.ragged([3], [1100])
    nothing = torch.zeros(1, 3, 1100, dtype=torch.bool)
    arguments = lab.pack(sequences, "BSND") | {"atten_mask": nothing, "pre_tokens": 2000, "next_tokens": 5}
    exactly, _ = lab.call(arguments)
    with changed(mode_0_band="tiles_only"):
        coarse, _ = lab.call(arguments)
    first_tile, _ = lab.call(arguments | {"next_tokens": 2000, "actual_seq_kvlen": [512]})
    assert torch.equal(coarse, first_tile)
    assert not torch.equal(coarse, exactly)


@pytest.mark.parametrize(
    ("choice", "shorter", "equal", "longer"),
    [("any", True, True, True), ("at_most_keys", True, True, False), ("fewer_than_keys", True, False, False)],
)
def test_tnd_mode_3_queries(lab, choice, shorter, equal, longer):
    with changed(tnd_mode_3_queries=choice):
        for queries, right in ((3, shorter), (4, equal), (5, longer)):
            arguments = lab.pack(lab.ragged([2, queries], [8, 4]), "TND")
            assert accepted(lab, arguments | {"sparse_mode": 3, "atten_mask": lab.template()}) == right


@pytest.mark.parametrize(("choice", "right"), [("rejected", False), ("accepted", True)])
def test_tnd_float16(lab, choice, right):
    arguments = lab.pack(lab.ragged([2], [8], dtype=torch.float16), "TND")
    with changed(tnd_float16=choice):
        assert accepted(lab, arguments) == right


@pytest.mark.parametrize(
    ("dims", "default", "pessimistic"),
    [
        ((64, 64), True, False),
        ((128, 128), True, True),
        ((192, 128), True, True),
        ((192, 192), True, True),
        ((96, 96), False, False),
        ((128, 64), False, False),
        ((256, 256), False, False),
    ],
)
def test_tnd_head_dims(lab, dims, default, pessimistic):
    arguments = lab.pack(lab.ragged([2], [8], dim=dims[0], value_dim=dims[1]), "TND")
    assert accepted(lab, arguments) == default
    with use_profile("pessimistic"):
        assert accepted(lab, arguments) == pessimistic


@pytest.mark.parametrize(("profile", "right"), [("8.5", True), ("9.0", True), ("pessimistic", False)])
def test_tnd_unequal_head_dims_in_mode_4(lab, profile, right):
    arguments = lab.pack(lab.ragged([2], [8], dim=192, value_dim=128), "TND", block_size=128)
    arguments |= {"sparse_mode": 4, "pre_tokens": 3, "next_tokens": 0, "atten_mask": lab.template()}
    with use_profile(profile):
        assert accepted(lab, arguments) == right


def test_inner_precise_at_query_length_one(lab):
    arguments = lab.pack(lab.ragged([1], [8]), "BSND")
    assert [accepted(lab, arguments | {"inner_precise": p}) for p in range(4)] == [True, True, False, False]
    with changed(inner_precise_at_query_length_one=(0, 1, 2, 3)):
        assert accepted(lab, arguments | {"inner_precise": 3})


@pytest.mark.parametrize(("profile", "right"), [("8.5", True), ("9.0", True), ("pessimistic", False)])
def test_rank_2_decode_masks(lab, profile, right):
    arguments = lab.pack(lab.ragged([1], [8], dim=128), "BSND") | {"atten_mask": torch.zeros(1, 8).bool()}
    with use_profile(profile):
        assert accepted(lab, arguments) == right


def test_max_group_size(lab):
    arguments = lab.pack(lab.ragged([2], [8], heads=65, kv_heads=1), "BSND")
    assert not accepted(lab, arguments)
    with changed(max_group_size=None):
        assert accepted(lab, arguments)


@pytest.mark.parametrize("name", ["query", "key", "value", "atten_mask"])
def test_non_contiguous(lab, name):
    arguments = lab.pack(lab.ragged([2], [8]), "BNSD") | {"atten_mask": torch.zeros(1, 2, 8).bool()}
    with changed(non_contiguous="rejected"):
        assert accepted(lab, arguments)
        arguments[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
        with pytest.raises(OperatorRejected, match=f"{name} was not contiguous"):
            lab.call(arguments)
    assert accepted(lab, arguments)


def test_caches_with_gaps_between_blocks_are_contiguous_enough(lab):
    arguments = lab.pack(lab.ragged([2], [8]), "TND", block_size=128)
    for name in ("key", "value"):
        arguments[name] = torch.stack([arguments[name]] * 2, 1)[:, 0]
    with changed(non_contiguous="rejected"):
        assert accepted(lab, arguments)


def halves(lab):
    """Keys and values as the halves of one buffer, which a projection gives."""
    arguments = lab.pack(lab.ragged([3], [20], dim=128), "TND")
    both = torch.cat([arguments["key"], arguments["value"]], dim=-1)
    key, value = both.split(128, dim=-1)
    return arguments, arguments | {"key": key, "value": value}


def test_keys_with_gaps_are_copied_until_cann_9_0_and_refused_from_9_1_on(lab):
    whole, parts = halves(lab)
    for profile in ("8.5", "9.0"):
        with use_profile(profile):
            assert torch.equal(lab.call(parts)[0], lab.call(whole)[0])
    with use_profile("9.1"), pytest.raises(OperatorRejected, match="key was not contiguous"):
        lab.call(parts)
    with use_profile("9.1"):
        lab.call(whole)
        lab.call(whole | {"query": torch.cat([whole["query"]] * 2, dim=-1)[..., :128]})
