"""Adapters that move data: which operators they call, with what, and what they are not called for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.device import targets
from npudiff.device.ascend import cache_gather as gather
from npudiff.device.ascend import format_cast as cast
from npudiff.judge.compare import compare
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.properties import cache_gather, format_cast
from npudiff.properties.cache_gather import CacheGatherCase, Stretch
from npudiff.properties.format_cast import FormatCastCase

PAIR = CacheGatherCase((Stretch(20, 16), Stretch(0, 32), Stretch(3)), "page", 2, kv_heads=2, unused="-1")
OPERATORS = [gather.gather_pa, gather.gather_pa_cumulative]


def by_name(item):
    return item.name


class Recorder(TorchDispatchMode):
    """Keeps the name and the arguments of every call of an ``npu`` operator."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        if function.namespace == "npu":
            names = [argument.name for argument in function._schema.arguments]
            self.calls.append((function._opname, dict(zip(names, args, strict=False)) | (kwargs or {})))
        return function(*args, **(kwargs or {}))


def calls(component, item, case, cann=None):
    inputs, target = component.inputs(case), targets.sim(cann)
    with target.activate(), Recorder() as recorder:
        item(inputs, target)
    return inputs, recorder.calls


def holds(component, item, case, cann=None):
    inputs, target = component.inputs(case), targets.sim(cann)
    with target.activate():
        return compare(component.reference(inputs), Subject(component, item, target).run(inputs)).holds


@pytest.mark.parametrize(
    ("item", "lengths"), [(OPERATORS[0], [20, 0, 3]), (OPERATORS[1], [0, 20, 20, 23])], ids=["counts", "ends"]
)
def test_lengths_go_to_the_operator_as_counts_or_as_ends(item, lengths):
    inputs, ((name, arguments),) = calls(cache_gather.component, item, PAIR)
    assert name == "npu_gather_pa_kv_cache"
    assert arguments["seq_lens"].tolist() == lengths
    assert arguments["seq_lens"].dtype == torch.int32
    assert arguments.get("is_seq_lens_cumsum", False) == (len(lengths) == 4)
    assert torch.equal(arguments["seq_offset"], inputs.starts)
    assert torch.equal(arguments["block_tables"], inputs.block_table)
    assert arguments["key"].shape == (25, 2, 64)


@pytest.mark.parametrize("item", OPERATORS, ids=by_name)
def test_without_starts_nothing_is_said_of_them(item):
    _, ((_, arguments),) = calls(cache_gather.component, item, CacheGatherCase((Stretch(20), Stretch(3))))
    assert arguments.get("seq_offset") is None


@pytest.mark.parametrize("item", OPERATORS, ids=by_name)
def test_caches_in_nz_order_carry_the_format_and_rows_are_flat(item):
    _, made = calls(cache_gather.component, item, replace(PAIR, layout="PA_NZ"))
    assert [name for name, _ in made] == ["npu_format_cast", "npu_format_cast", "npu_gather_pa_kv_cache"]
    arguments = made[-1][1]
    assert [torch.ops.npu.get_npu_format(arguments[name]) for name in ("key_cache", "value_cache")] == [29, 29]
    assert arguments["key_cache"].shape == (6, 8, 16, 16)
    assert arguments["key"].shape == (25, 128)


@pytest.mark.parametrize("item", OPERATORS, ids=by_name)
def test_the_operator_is_not_called_for_no_rows(item):
    empty = CacheGatherCase((Stretch(0), Stretch(0)))
    assert calls(cache_gather.component, item, empty)[1] == []
    assert holds(cache_gather.component, item, empty)
    assert holds(cache_gather.component, item, replace(empty, spare_rows=1))


@pytest.mark.parametrize("item", OPERATORS, ids=by_name)
@pytest.mark.parametrize("layout", ["PA_BSND", "PA_NZ"])
def test_whether_starts_in_nz_count_tokens_is_an_open_question_and_profiles_differ_on_it(item, layout):
    """The documentation counts tokens in both modes; the kernel for NZ adds the number to the table's column."""
    case = replace(PAIR, layout=layout, requests=(Stretch(4, 32), Stretch(3)))
    assert holds(cache_gather.component, item, case)
    if layout == "PA_BSND":
        assert holds(cache_gather.component, item, case, "pessimistic")
    else:
        with pytest.raises(ImplementationRaised, match="DeviceFault"):
            holds(cache_gather.component, item, case, "pessimistic")


@pytest.mark.parametrize("item", [*OPERATORS, gather.index_pages, gather.index_nz_pages], ids=by_name)
def test_reading_is_right_at_the_edges(item):
    layout = "PA_NZ" if item.name == "index_nz_pages" else "PA_BSND"
    for requests in ([(16, 0)], [(17, 0)], [(15, 0)], [(16, 16), (0, 0), (1, 48)], [(0, 16), (33, 32)]):
        case = CacheGatherCase(tuple(Stretch(*part) for part in requests), "page", layout=layout, spare_rows=1)
        assert holds(cache_gather.component, item, case), requests


def test_the_cast_in_place_gives_the_tensor_another_storage_and_returns_it():
    _, made = calls(format_cast.component, cast.npu_format_cast_in_place, FormatCastCase(5, 20, view="columns"))
    assert [name for name, _ in made] == ["npu_format_cast_", "get_npu_format", "npu_format_cast"]
    assert made[0][1]["input"].shape == (5, 10)
    assert made[2][1]["input"] is made[0][1]["input"]
    assert (made[0][1]["acl_format"], made[2][1]["acl_format"]) == (29, 2)


@pytest.mark.parametrize("item", [cast.npu_format_cast, cast.npu_format_cast_in_place], ids=by_name)
def test_a_program_that_does_not_allow_internal_formats_is_found(item):
    """torch_npu's own default: the cast gives ND, and whoever trusts the bytes is wrong."""
    from npudiff.device.simulator import PROFILES, use_profile

    component, target = format_cast.component, targets.sim(None)
    inputs = component.inputs(FormatCastCase(5, 20))
    closed = replace(PROFILES["8.5"], name="closed", internal_format="replaced_by_base_format")
    with use_profile(closed):
        found = compare(component.reference(inputs), Subject(component, item, target).run(inputs))
    assert {output.name for output in found.outputs if output.worst > 1} == {"storage", "format"}


def test_tiling_by_torch_calls_no_npu_operator():
    assert calls(format_cast.component, cast.pad_view_permute, FormatCastCase(5, 20))[1] == []
