"""What a mutant takes from the implementation that it is made from."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest

import npudiff
from npudiff.model.implementation import with_links


@dataclass(frozen=True)
class Numbers:
    first: int
    second: int
    device: str = "host"

    def to(self, device):
        return replace(self, device=device)


class Device:
    device = "npu:0"


@npudiff.implementation("toy", supports={"size": range(1, 9), "dtype": ("float16", "bfloat16")}, on_device=True)
def right(inputs, target):
    return inputs.first + inputs.second, inputs.device


def test_it_says_only_what_differs():
    @npudiff.mutant(right, "TOY-01 me/kernels/pull/7: the second is lost", supports={"size": range(4, 20)})
    def first_only(inputs, target):
        """Leave the second out."""
        return inputs.first, inputs.device

    assert (first_only.component, first_only.name, first_only.mutant_of) == ("toy", "first_only", "right")
    assert first_only.wrong == "TOY-01 https://github.com/me/kernels/pull/7: the second is lost"
    assert first_only.constraints.boxes == ({"size": range(4, 9), "dtype": ("float16", "bfloat16")},)
    assert first_only.summary == "Leave the second out."
    assert first_only.origin == __name__
    assert first_only(Numbers(1, 2), Device()) == (1, "npu:0")


def test_it_supports_what_the_other_does_if_it_says_nothing():
    item = npudiff.mutant(right, "somewhere", name="other")(lambda inputs, target: None)
    assert (item.name, item.constraints) == ("other", right.constraints)


def test_one_that_supports_nothing_is_refused():
    with pytest.raises(ValueError, match=r"a mutant of toy\.right: that supports no case of \{'size': \(9,\)\}"):
        npudiff.mutant(right, "somewhere", supports={"size": (9,)})


def test_a_stateful_one_opens_another_for_each_case():
    @npudiff.mutant(right, "somewhere", stateful=True)
    def counts():
        calls = []

        def function(inputs, target):
            calls.append(inputs.device)
            return len(calls)

        return function

    one = counts.fresh()
    assert [one(Numbers(1, 2), Device()), one(Numbers(1, 2), Device()), counts(Numbers(1, 2), Device())] == [1, 2, 1]


def test_perturbed_inputs_are_changed_on_the_host_and_moved_then():
    seen = []

    @npudiff.perturbed(right, "TOY-02 me/kernels/issues/8: the second is lost", supports={"dtype": ("float16",)})
    def second_lost(inputs):
        """Give 0 for the second."""
        seen.append(inputs.device)
        return replace(inputs, second=0)

    given = Numbers(1, 2)
    assert second_lost(given, Device()) == (1, "npu:0")
    assert seen == ["host"]
    assert given == Numbers(1, 2)
    assert (second_lost.name, second_lost.mutant_of, second_lost.summary) == (
        "second_lost", "right", "Give 0 for the second.")  # fmt: skip
    assert list(inspect.signature(second_lost.function).parameters) == ["inputs", "target"]
    assert second_lost.constraints.boxes == ({"dtype": ("float16",), "size": range(1, 9)},)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A-1 me/a.b-c/issues/12: x", "A-1 https://github.com/me/a.b-c/issues/12: x"),
        ("https://github.com/me/it/pull/3: x", "https://github.com/me/it/pull/3: x"),
        ("layers/moe/topk.py 1913: a/b", "layers/moe/topk.py 1913: a/b"),
        ("me/it/pull/3 and you/it/issues/4", "https://github.com/me/it/pull/3 and https://github.com/you/it/issues/4"),
    ],
)
def test_reports_are_whole_links_where_they_are_shown(text, shown):
    assert with_links(text) == shown
