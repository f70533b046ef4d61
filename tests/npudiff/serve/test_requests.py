"""Requests are read strictly: what is not understood is refused, and named."""

from __future__ import annotations

import pytest

from npudiff.errors import UsageError
from npudiff.serve.lines import Lines
from npudiff.serve.requests import (
    MOST_BYTES,
    CancelRequest,
    CheckRequest,
    ComponentsRequest,
    HelloRequest,
    read_request,
)
from npudiff.serve.verdict import source_of

GIVEN = {"component": "swiglu", "source": "x = 1"}


def test_requests_are_read():
    assert read_request({"id": [1], **GIVEN}) == ([1], CheckRequest("swiglu", "x = 1"))
    assert read_request({"do": "check", **GIVEN, "seconds": 2, "seed": None})[1].seconds == 2.0
    assert read_request({"do": "components", "names": ["a"]}) == (None, ComponentsRequest(("a",)))
    assert read_request({"do": "cancel", "of": {"any": 1}}) == (None, CancelRequest({"any": 1}))
    assert read_request({"do": "hello"}) == (None, HelloRequest())


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ([], "a request is a JSON object"),
        ({"do": "chek"}, "did you mean 'check'"),
        ({"do": 1}, "do 1: there is check"),
        ({"component": "swiglu"}, "source must be given"),
        ({}, "component, source must be given"),
        ({**GIVEN, "sorce": ""}, "did you mean 'source'"),
        ({**GIVEN, "quite_another": 1}, "there is component, source"),
        ({**GIVEN, "examples": "5"}, "examples: expected an integer"),
        ({**GIVEN, "examples": True}, "examples: expected an integer"),
        ({**GIVEN, "examples": 0}, "examples must lie in 1.."),
        ({**GIVEN, "seconds": -1}, "seconds must be positive"),
        ({**GIVEN, "seconds": float("nan")}, "seconds must be positive"),
        ({**GIVEN, "call_seconds": 1e9}, "at most 3600"),
        ({**GIVEN, "memory": 5}, "memory is in bytes"),
        ({**GIVEN, "where": "tokens=1"}, "where: expected a list of texts"),
        ({**GIVEN, "where": [1]}, "where: expected a list of texts"),
        ({**GIVEN, "thorough": 1}, "expected true or false"),
        ({**GIVEN, "function": "a b"}, "is no name"),
        ({**GIVEN, "supports": ["tokens=1"]}, "supports is of a function"),
        ({"do": "cancel"}, "of must be given"),
    ],
)
def test_what_is_not_understood_is_refused(message, said):
    with pytest.raises(UsageError) as refusal:
        read_request(message)
    assert said in str(refusal.value)


def test_a_function_is_decorated_behind_the_last_line():
    request = CheckRequest("swiglu", "def f(inputs, target): ...", "f", ("tokens=1..4", "dtype=bfloat16"))
    *before, last, end = source_of(request).split("\n")
    assert before == ["def f(inputs, target): ...", ""]
    assert end == ""
    assert last == (
        "candidate = __import__('npudiff').implementation('swiglu', name='candidate', "
        "supports={'tokens': range(1, 5), 'dtype': ('bfloat16',)})(f)"
    )


def test_lines_come_in_pieces():
    lines = Lines()
    assert list(lines.complete(b'{"a": 1}\n{"b"')) == [{"a": 1}]
    assert list(lines.complete(b": 2}\n\n")) == [{"b": 2}]
    assert list(lines.complete(b"x" * (MOST_BYTES + 1))) == ["a line that is too long"]
    assert list(lines.complete(b"\n[]\n")) == [[]]
