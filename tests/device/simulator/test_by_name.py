"""Kernels that name the arguments they take: what the dispatcher passes reaches them, and nothing else does."""

import pytest

from npudiff.device.simulator.library import Operator, by_name

SCHEMA = "example(Tensor input, Tensor? scale=None, int axis=-1, *, str mode='half', int[]? sizes=None) -> Tensor"


def test_a_function_gets_the_arguments_that_it_names():
    def function(mode, axis):
        return axis, mode

    kernel = by_name(SCHEMA, function)
    assert kernel("x", "s", 3, mode="whole") == (3, "whole")
    assert kernel("x", sizes=[1]) == (-1, "half")


def test_a_default_of_the_signature_goes_before_that_of_the_schema():
    def function(*, mode="own", axis):
        return axis, mode

    assert by_name(SCHEMA, function)("x") == (-1, "own")


def test_parameters_before_the_slash_are_the_schemas_first():
    def function(x, /, axis):
        return x, axis

    assert by_name(SCHEMA, function)("x", "s", 2) == ("x", 2)


def test_two_stars_take_what_is_given_besides():
    def function(scale, **others):
        return scale, others

    kernel = by_name(SCHEMA, function)
    assert kernel("x") == (None, {"input": "x"})
    assert kernel("x", "s", 1, sizes=[2]) == ("s", {"input": "x", "axis": 1, "sizes": [2]})


def test_a_function_that_takes_all_is_returned_itself():
    def function(x, /, scale=None, axis=-1, *, mode="half", sizes=None):
        raise NotImplementedError

    assert by_name(SCHEMA, function) is function


@pytest.mark.parametrize(("name", "function"), [("axes", lambda axes: axes), ("x", lambda x, axis: (x, axis))])
def test_a_parameter_that_the_schema_has_not_is_an_error(name, function):
    with pytest.raises(TypeError, match=f"needs {name}, which is no argument of example"):
        by_name(SCHEMA, function)


def test_a_parameter_with_a_default_may_be_of_another_schema():
    def function(axis, workspace=None):
        return axis, workspace

    assert by_name(SCHEMA, function)("x") == (-1, None)


def test_a_request_is_made_once_for_both_kernels():
    def request(*, axis, mode):
        return axis, mode

    operator = Operator(SCHEMA, cpu=lambda given: ("cpu", given), meta=lambda given: ("meta", given), request=request)
    assert operator.cpu("x", None, 2) == ("cpu", (2, "half"))
    assert operator.meta("x", mode="whole") == ("meta", (-1, "whole"))
