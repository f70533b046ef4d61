"""What an adapter's own lines raise where a backend has other names or signatures, and what is the backend's own."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from unittest import mock

import pytest

from npudiff.model.binding import misfit

BACKEND = """
import functools
from dataclasses import dataclass
from typing import NamedTuple
import torch

def function(x): return x
def inner(): return function(y=1)
def tensor_of_none(): return None

class Sent(NamedTuple):
    rows: int

@dataclass
class Batch:
    rows: int

class Attention:
    def forward(self, x): return x
    @functools.wraps(forward)
    def breaks(self): return self.unset
    def own_mistake(self): return self.forward(1, 2)

class Norm(torch.nn.Module):
    def forward(self, x): return x

BATCH, SENT, ATTENTION, NORM = Batch(1), Sent(1), Attention(), Norm()
"""

ADAPTERS = """
import backend
from dataclasses import replace
from unittest import mock

def keyword(): backend.function(y=1)
def missing(): backend.function()
def many(): backend.ATTENTION.forward(1, 2)
def constructor(): backend.Attention(size=3)
def field(): backend.Batch(lines=1)
def replaced(): replace(backend.BATCH, lines=1)
def module_call(): backend.NORM(1, 2)
def no_function(): backend.other()
def no_class_attribute(): backend.Attention.other
def no_method(): backend.ATTENTION.other()
def no_method_of_module(): backend.NORM.other(1)
def no_field(): backend.SENT.lines
def no_field_of_dataclass(): backend.BATCH.lines
def patched():
    with mock.patch.object(backend, "other", 1): pass

def inside(): backend.inner()
def mistake_inside(): backend.ATTENTION.own_mistake()
def unset_inside(): backend.ATTENTION.breaks()
def unset_attribute(): backend.ATTENTION.output
def unset_attribute_of_module(): backend.NORM.output
def nothing_returned(): backend.tensor_of_none().view(1)
def value(): raise TypeError("unsupported operand")
def other_error(): raise ValueError("takes 1 positional argument")
"""


@pytest.fixture(scope="module")
def adapters():
    """A module of a package ``room`` that calls a module ``backend``."""
    made = {"backend": ModuleType("backend"), "room.attention": ModuleType("room.attention")}
    with mock.patch.dict(sys.modules, made):
        exec(BACKEND, vars(made["backend"]))  # noqa: S102 - the text above
        exec(ADAPTERS, vars(made["room.attention"]))  # noqa: S102 - the text above
        yield made["room.attention"]


def misfit_of(function, package="room"):
    with pytest.raises((TypeError, AttributeError, ValueError)) as raised:
        function()
    return misfit(raised.value, package)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("keyword", r"function\(\) got an unexpected keyword argument 'y'"),
        ("missing", r"function\(\) missing 1 required positional argument: 'x'"),
        ("many", r"Attention.forward\(\) takes 2 positional arguments but 3 were given"),
        ("constructor", r"Attention\(\) takes no arguments"),
        ("field", r"__init__\(\) got an unexpected keyword argument 'lines'"),
        ("replaced", r"__init__\(\) got an unexpected keyword argument 'lines'"),
        ("module_call", r"Norm.forward\(\) takes 2 positional arguments but 3 were given"),
        ("no_function", "module 'backend' has no attribute 'other'"),
        ("no_class_attribute", "type object 'Attention' has no attribute 'other'"),
        ("no_method", "'Attention' object has no attribute 'other'"),
        ("no_method_of_module", "'Norm' object has no attribute 'other'"),
        ("no_field", "'Sent' object has no attribute 'lines'"),
        ("no_field_of_dataclass", "'Batch' object has no attribute 'lines'"),
        ("patched", "does not have the attribute 'other'"),
    ],
)
def test_another_name_or_signature_is_told(adapters, name, said):
    why = misfit_of(getattr(adapters, name))
    assert why.startswith("not applicable to this checkout: ")
    assert re.search(said, why)


@pytest.mark.parametrize(
    "name",
    ["inside", "mistake_inside", "unset_inside", "unset_attribute", "unset_attribute_of_module", "nothing_returned",
     "value", "other_error"],
)  # fmt: skip
def test_what_a_backend_does_wrong_itself_stays_a_finding(adapters, name):
    assert misfit_of(getattr(adapters, name)) == ""


def test_another_package_is_no_adapter(adapters):
    assert misfit_of(adapters.keyword, "room.attention")
    assert not misfit_of(adapters.keyword, "roo")
    assert not misfit_of(adapters.keyword, "room.attention.more")
