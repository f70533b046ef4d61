"""What goes between the judge and a candidate arrives as it was; what is malformed is refused, and nothing worse."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.model.constraints import Constraints, Joined, Numbers
from npudiff.reference.swiglu import Activation, SwigluInputs
from npudiff.run.discovery import component_names, load_component
from npudiff.run.untrusted.wire import (
    Malformed,
    pack,
    pack_boxes,
    pack_outputs,
    unpack,
    unpack_boxes,
    unpack_outputs,
)


@pytest.fixture
def file():
    file = os.memfd_create("test", os.MFD_CLOEXEC)
    yield file
    os.close(file)


def there_and_back(value, file):
    return unpack(json.loads(json.dumps(pack(value, file))), file)


def same(one, other):
    if isinstance(one, torch.Tensor):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()
        first, second = (torch.empty(0, dtype=torch.uint8).set_(each.untyped_storage()) for each in (one, other))
        assert torch.equal(first, second)
    elif hasattr(one, "__dataclass_fields__"):
        assert type(one) is type(other)
        for field in fields(one):
            same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    else:
        assert repr(one) == repr(other)  # of NaN as well
        assert type(one) is type(other)


@pytest.mark.few(15)
@pytest.mark.parametrize("name", [name for name in component_names() if load_component(name).history is None])
def test_inputs_of_every_component_arrive_bit_for_bit_with_their_strides(name, file):
    component = load_component(name)
    seen = 0

    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @given(component.strategy(Constraints()))
    def tried(case):
        nonlocal seen
        inputs = component.inputs(case)
        same(inputs, there_and_back(inputs, file))
        seen += 1

    tried()
    assert seen


def test_a_tensor_without_elements_leaves_the_next_one_alone(file):
    empty, rows = torch.empty(1, 0, dtype=torch.int64), torch.arange(6.0)
    same((empty, rows, torch.empty(0)), there_and_back((empty, rows, torch.empty(0)), file))


def test_tensors_that_share_memory_still_do(file):
    rows = torch.arange(24.0).view(4, 6)
    first, second = there_and_back((rows[:, :3], rows[:, 3:]), file)
    first[0, 0] = 77.0
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert second.storage_offset() == 3


@pytest.mark.parametrize("count", [1, 5, 63, 64, 65])
def test_tensors_of_odd_sizes_do_not_lie_over_each_other(count, file):
    sent = [torch.full((count,), number, dtype=torch.int8) for number in range(3)]
    for one, other in zip(sent, there_and_back(sent, file), strict=True):
        assert torch.equal(one, other)


def test_what_is_no_part_of_a_contract_is_not_sent(file):
    for value in (object(), print, Numbers(0.0, 1.0), {1: lambda: 0}):
        with pytest.raises(TypeError):
            pack(value, file)
    plain = pack(SwigluInputs(torch.zeros(2, 4), Activation.SILU, None, math.inf), file)
    plain["type"] = "os.path.join"
    with pytest.raises(Malformed):
        unpack(plain, file)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.int64, torch.float8_e4m3fn]
)
def test_outputs_arrive(dtype, file):
    tensors = {
        "output": torch.arange(12).view(3, 4).t().to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "expanded": torch.ones((), dtype=dtype).expand(1),
    }
    back = unpack_outputs(json.loads(json.dumps(pack_outputs(tensors, file))), file)
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name].to(torch.float32), tensor.to(torch.float32))


GOOD = {"name": "output", "dtype": "float32", "shape": [2, 3], "at": 0}

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
damaged = st.builds(
    lambda key, value: {**GOOD, key: value},
    st.sampled_from(sorted(GOOD)),
    anything | st.sampled_from(["bfloat16", "storage", [2**39, 2**39], [0, 2**41], [-1], [True], 2**39, -8]),
)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, database=None)
@given(told=anything | st.lists(damaged, max_size=3))
def test_malformed_outputs_are_refused(told):
    file = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        os.pwrite(file, bytes(64), 0)
        outputs = unpack_outputs(told, file)
        assert all(isinstance(one, torch.Tensor) for one in outputs.values())
    except Malformed:
        pass
    finally:
        os.close(file)


MALFORMED = {
    "no list": {"output": GOOD},
    "too many": [{**GOOD, "name": str(number), "shape": [1]} for number in range(65)],
    "twice": [GOOD, GOOD],
    "a long name": [{**GOOD, "name": "n" * 201}],
    "many dimensions": [{**GOOD, "shape": [1] * 33}],
    "a dimension that is true": [{**GOOD, "shape": [True]}],
    "a dimension below zero": [{**GOOD, "shape": [-1, -6]}],
    "a dimension that no tensor has": [{**GOOD, "shape": [0, 2**40]}],
    "a place below zero": [{**GOOD, "at": -64}],
    "a place that is no number": [{**GOOD, "at": "0"}],
    "beyond the end": [{**GOOD, "at": 2**20}],
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_outputs_are_refused_where_there_are_bytes_enough(what, file):
    os.pwrite(file, bytes(1024), 0)
    assert list(unpack_outputs([GOOD], file)) == ["output"]
    with pytest.raises(Malformed):
        unpack_outputs(MALFORMED[what], file)


def test_all_outputs_together_have_a_limit(file, monkeypatch):
    monkeypatch.setattr("npudiff.run.untrusted.wire.MOST_BYTES", 40)
    os.pwrite(file, bytes(1024), 0)
    assert list(unpack_outputs([GOOD, {**GOOD, "name": "other", "shape": [4]}], file)) == ["output", "other"]
    with pytest.raises(Malformed, match="more than 0 GiB"):
        unpack_outputs([GOOD, {**GOOD, "name": "other", "shape": [5]}], file)


def test_no_memory_is_taken_for_what_is_only_claimed(file, monkeypatch):
    monkeypatch.setattr("npudiff.run.untrusted.wire.torch.empty", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(Malformed, match=r"4194304 bytes were told of, and 0 are there"):
        unpack_outputs([{**GOOD, "shape": [2**20]}], file)


def test_a_file_that_is_cut_off_while_it_is_read_is_too_short(file, monkeypatch):
    told = pack_outputs({"output": torch.ones(16)}, file)
    before = os.fstat(file)
    os.ftruncate(file, 32)
    monkeypatch.setattr("npudiff.run.untrusted.wire.os.fstat", lambda _: before)
    with pytest.raises(Malformed, match=r"64 bytes were told of, and 32 are there"):
        unpack_outputs(told, file)


def test_a_file_that_is_cut_off_is_too_short_and_kills_nobody(file):
    told = pack_outputs({"output": torch.ones(1 << 20)}, file)
    os.ftruncate(file, 100)
    with pytest.raises(Malformed, match=r"4194304 bytes were told of, and 100 are there"):
        unpack_outputs(told, file)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, database=None)
@given(anything)
def test_malformed_constraints_are_refused(plain):
    for one in (plain, [{"axis": plain}]):
        with contextlib.suppress(Malformed):
            unpack_boxes(one)


@pytest.mark.parametrize(
    "values",
    [
        {"range": [1, 9, 0]},
        {"range": [1, 9]},
        {"range": [1, 9.5, 1]},
        {"range": 9},
        {"numbers": [1, 2]},
        {"numbers": [1.0]},
        {"joined": [[1, 2]]},
        {"joined": [{"numbers": [1.0, 2.0]}]},
        [[1]],
        [{}],
    ],
    ids=json.dumps,
)
def test_values_of_an_axis_that_are_none_are_refused(values):
    with pytest.raises(Malformed, match="values of an axis that are none"):
        unpack_boxes([{"axis": values}])


def test_too_many_constraints_are_refused():
    assert len(unpack_boxes([{}] * 1000)) == 1000
    with pytest.raises(Malformed, match="no constraints"):
        unpack_boxes([{}] * 1001)


@pytest.mark.parametrize("short", [True, False])
def test_constraints_arrive(short):
    joined = Joined((range(1, 5), range(3)), short=short)
    box = {"a": range(1, 9, 2), "b": ("x", None, True, 3), "c": Numbers(0.5, 2.0), "d": joined}
    assert unpack_boxes(json.loads(json.dumps(pack_boxes([box])))) == [box]
