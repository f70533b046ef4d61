"""The decorator: names, inputs on the device, state, and arguments that it does not have."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import npudiff
from npudiff.model.implementation import snake_case


@dataclass
class Inputs:
    """What records where it was sent."""

    device: str = "host"

    def to(self, device):
        return Inputs(device)


class Device:
    device = "npu:0"


def test_it_is_called_as_its_function_unless_it_says_otherwise():
    def mine(inputs, target):
        """Does it.

        And more.
        """

    assert npudiff.implementation("toy")(mine).name == "mine"
    assert npudiff.implementation("toy", name="other")(mine).name == "other"
    assert npudiff.implementation("toy")(mine).summary == "Does it."


def test_a_class_has_its_name_in_small_letters():
    class NewPageLate:
        """What computes a history."""

        def __init__(self, inputs, target):
            self.given = (inputs, target)

    item = npudiff.implementation("toy")(NewPageLate)
    assert item.name == "new_page_late"
    assert item("inputs", "target").given == ("inputs", "target")
    assert [snake_case(name) for name in ("EvictsAPageEarly", "NPUPools", "SinkOf50", "as_it_is", "mixedCase")] == [
        "evicts_a_page_early", "npu_pools", "sink_of50", "as_it_is", "mixedCase"]  # fmt: skip


def test_what_has_no_name_is_asked_for_one():
    with pytest.raises(TypeError, match=r"^an implementation of toy: <function .* has no name of its own, give it one"):
        npudiff.implementation("toy")(lambda inputs, target: None)


@pytest.mark.parametrize(("on_device", "device"), [(True, "npu:0"), (False, "host")])
def test_inputs_are_on_the_device_for_those_who_say_so(on_device, device):
    @npudiff.implementation("toy", on_device=on_device)
    def mine(inputs, target):
        return inputs.device, target

    given, target = Inputs(), Device()
    assert mine(given, target) == (device, target)
    assert given.device == "host"
    assert mine.on_device is on_device


def test_a_stateful_one_gets_its_inputs_on_the_device_too():
    @npudiff.implementation("toy", on_device=True, stateful=True)
    def mine():
        seen = []

        def function(inputs, target):
            seen.append(inputs.device)
            return list(seen)

        return function

    one = mine.fresh()
    assert [one(Inputs(), Device()), one(Inputs(), Device())] == [["npu:0"], ["npu:0", "npu:0"]]
    assert mine(Inputs(), Device()) == ["npu:0"]
    assert mine.fresh()(Inputs(), Device()) == ["npu:0"]


@pytest.mark.parametrize("decorator", [npudiff.implementation, npudiff.mutant])
@pytest.mark.parametrize(
    ("name", "message"),
    [("keeps", "has no argument keeps=: it is called stateful= now"), ("limits", "has no argument limits=$")],
)
def test_arguments_that_it_does_not_have_are_refused_and_old_ones_with_the_new_name(decorator, name, message):
    with pytest.raises(TypeError, match=rf"^npudiff\.{decorator.__name__}\(\) {message}"):
        decorator("toy", *([""] if decorator is npudiff.mutant else []), **{name: True})
