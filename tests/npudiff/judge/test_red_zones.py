"""Red zones: a write beyond a tensor is seen wherever that came from, and memory that nobody wrote is no number."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import pytest
import torch

from npudiff.judge.memory import STAYS_WITHIN
from npudiff.model import red_zones
from npudiff.model.component import ImplementationRaised, NotApplicable
from npudiff.model.faults import Kind, RemoteError
from npudiff.model.red_zones import RedZones, WroteOutside, called_in_red_zones, in_red_zones
from npudiff.run.discovery import load_target


@dataclass(frozen=True)
class Pair:
    """Two parts of the same rows, and something beside them."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float = 2.0
    lengths: tuple[int, ...] = (1, 2)
    more: tuple[torch.Tensor, ...] = ()


def write(tensor, offset, count=1):
    """Write bytes from an offset in bytes behind the end of a tensor, or before its beginning."""
    end = tensor.data_ptr() + (tensor.numel() * tensor.element_size() if offset >= 0 else 0)
    ctypes.memset(end + offset, 7, count)


def empty(inputs):
    return torch.empty_like(inputs.x)


def cloned(inputs):
    return inputs.x.clone()


def of_product(inputs):
    return inputs.x * 1


def given(inputs):
    return inputs.x


@pytest.mark.parametrize("makes", [empty, cloned, of_product, given])
@pytest.mark.parametrize(
    ("offset", "said"),
    [(0, "1 byte behind"), (511, "up to 512 behind it"), (-1, "from 1 before it"), (-512, "1 byte before")],
)
def test_a_write_beyond_a_tensor_is_found_however_it_was_made(toy, makes, offset, said):
    def kernel(inputs, target):
        tensor = makes(inputs)
        write(tensor, offset)
        return inputs.x * 2

    with pytest.raises(WroteOutside, match=said) as raised:
        called_in_red_zones(kernel, toy.component.inputs(toy.Case((3, 4))), toy.job(kernel).subject.target)
    text = str(raised.value)
    if makes is given:
        assert "the input x" in text
    else:
        assert "the tensor float32 [2] of " in text
        assert "test_red_zones.py:" in text


@pytest.mark.parametrize(("reads", "holds"), [(torch.empty_like, False), (torch.zeros_like, True)])
def test_what_nobody_has_written_is_not_a_number(toy, reads, holds):
    def adds(inputs, target):
        return reads(inputs.x).add_(inputs.x * 2)

    assert STAYS_WITHIN.check(toy.job(adds).subject, toy.Case((3, 4))).holds == holds


def test_a_read_beyond_a_tensor_is_not_a_number(toy):
    def shifted(inputs, target):
        behind = (ctypes.c_float * 1).from_address(inputs.x.data_ptr() + inputs.x.numel() * 4)
        return inputs.x * 2 + behind[0] * 0

    assert not STAYS_WITHIN.check(toy.job(shifted).subject, toy.Case((3, 4))).holds


def test_it_is_a_property_of_every_implementation_and_its_finding_says_where(toy):
    def kernel(inputs, target):
        out = torch.empty_like(inputs.x)
        torch.mul(inputs.x, 2, out=out)
        if red_zones_are_there(out):
            write(out, 0, 3)
        return out

    def red_zones_are_there(out):
        return out.storage_offset() > 0

    subject = toy.job(kernel).subject
    with pytest.raises(ImplementationRaised, match=r"WroteOutside: the implementation wrote 3 bytes behind the tensor"):
        STAYS_WITHIN.check(subject, toy.Case((3, 4)))


def test_a_write_is_told_of_a_kernel_that_is_wrong_anyway_and_nothing_is_called_after_it(toy):
    calls = []

    def kernel(inputs, target):
        out = inputs.x * 3
        calls.append(out.storage_offset() > 0)
        write(out, 0)
        return out

    with pytest.raises(ImplementationRaised, match="WroteOutside: the implementation wrote 1 byte behind"):
        STAYS_WITHIN.check(toy.job(kernel).subject, toy.Case((3, 4)))
    assert calls == [True]  # a call without zones would write into somebody's memory


def test_what_is_wrong_without_zones_as_well_is_left_to_equivalence(toy):
    def raises(inputs, target):
        raise ValueError

    for function in (lambda inputs, target: inputs.x * 3, raises):
        with pytest.raises(NotApplicable, match="a plain call of the same inputs is wrong as well"):
            STAYS_WITHIN.check(toy.job(function).subject, toy.Case((3, 4)))


def test_who_forgets_the_offset_of_a_tensor_is_found(toy):
    def forgets(inputs, target):
        whole = torch.empty(0).set_(inputs.x.untyped_storage())
        return whole[: len(inputs.x)] * 2

    assert not STAYS_WITHIN.check(toy.job(forgets).subject, toy.Case((3, 4))).holds


@pytest.mark.parametrize("what", ["resize_", "out", "set_", "view", "in place", "cat", "split", "integers", "nothing"])
def test_what_torch_may_do_is_no_write_beyond(toy, what):
    def kernel(inputs, target):
        made = torch.empty(1)
        if what == "resize_":
            made.resize_(100).zero_()
        elif what == "out":
            made = torch.empty(0)
            torch.mul(inputs.x, torch.ones(300, 1), out=made)
        elif what == "set_":
            made.set_(torch.ones(50)).mul_(3)
        elif what == "view":
            torch.ones(4, 6)[1:3, 2:5].t().contiguous().view(-1).fill_(2)
        elif what == "in place":
            torch.ones(4, 6, dtype=torch.bfloat16)[:, ::2].add_(1)
        elif what == "cat":
            torch.cat([inputs.x, inputs.x]).sort()
        elif what == "split":
            [part.add_(1) for part in inputs.x.repeat(4).split(2)]
        elif what == "integers":
            torch.arange(9, dtype=torch.int8).view(3, 3).cumsum(1, dtype=torch.int64)
        return inputs.x * 2

    assert STAYS_WITHIN.check(toy.job(kernel).subject, toy.Case((3, 4))).holds


def test_inputs_keep_strides_offsets_and_what_they_share():
    rows = torch.arange(24, dtype=torch.bfloat16).view(4, 6)
    inputs = Pair(rows[:, 1:3], rows[:, 3:5], more=(rows.t(), torch.arange(3)))
    around = RedZones().around(inputs)
    for new, old in (
        (around.left, inputs.left),
        (around.right, inputs.right),
        *zip(around.more, inputs.more, strict=True),
    ):
        assert torch.equal(new, old)
        assert new.stride() == old.stride()
        assert new.data_ptr() != old.data_ptr()
    assert around.right.data_ptr() - around.left.data_ptr() == 2 * rows.element_size()
    around.left.zero_()
    assert (around.more[0][1:3] == 0).all()
    assert (around.scale, around.lengths) == (2.0, (1, 2))
    assert rows.count_nonzero() == 23


def test_beyond_its_memory_nothing_is_guarded(monkeypatch):
    monkeypatch.setattr(red_zones, "MOST_BYTES", 40)
    zones = RedZones()
    with zones:
        first, second, third = torch.zeros(4), torch.zeros(7), torch.zeros(6)
    assert [one.storage_offset() > 0 for one in (first, second, third)] == [True, False, True]


def test_one_that_keeps_something_is_opened_anew_and_one_elsewhere_is_asked_there(toy):
    item = toy.job(lambda inputs, target: inputs.x * 2).subject.implementation
    opened = []

    def opens():
        opened.append(1)
        return lambda inputs, target: inputs.x * 2

    stateful = in_red_zones(replace(item, factory=opens))
    assert (stateful.factory, opened) == (None, [1])
    there = replace(item, name="there")
    assert in_red_zones(replace(item, elsewhere_in_red_zones=lambda fill: there)) is there


def test_a_format_of_a_part_of_a_tensor_is_not_asked_for(toy):
    def casts(inputs, target):
        torch.ops.npu.npu_format_cast(torch.ones(4, 4)[:2], 29)
        return inputs.x * 2

    subject = toy.job(casts).subject
    with load_target("sim", None).activate(), pytest.raises(NotApplicable, match="format of a part"):
        STAYS_WITHIN.check(subject, toy.Case((3, 4)))

    def elsewhere(inputs, target):
        raise RemoteError("NoZones", "the format of a part", Kind.RAISED)

    item = replace(subject.implementation, function=elsewhere)
    there = replace(subject.implementation, elsewhere_in_red_zones=lambda fill: item)
    with pytest.raises(NotApplicable, match="format of a part"):
        STAYS_WITHIN.check(replace(subject, implementation=there), toy.Case((3, 4)))


@pytest.mark.slow
def test_a_candidate_in_a_process_of_its_own_is_guarded_there(cli, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import ctypes, torch, npudiff\n"
        "from npudiff.device.ascend.swa_mask import window_mask\n"
        "@npudiff.implementation('swa_mask')\n"
        "def mine(inputs, target):\n"
        "    mask = window_mask(inputs.kv_lengths, inputs.capacity, inputs.window).clone()\n"
        "    if mask.storage_offset():\n"
        "        ctypes.memset(mask.data_ptr() + mask.numel(), 0, 2)\n"
        "    return mask\n"
    )
    for more in ((), ("--untrusted",)):
        result = cli(
            "check", "swa_mask", "--impl", "mine.py", "--target", "sim", "--examples", 20, "--workers", 1, *more
        )
        assert result.code == 1
        assert "FINDING swa_mask.mine · stays_within_its_memory · exception" in result.out
        assert "the implementation wrote 2 bytes behind the tensor bool" in result.out
        assert "mine.py:5" in result.out
        assert result.out.count("FINDING") == 1
