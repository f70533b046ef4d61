"""The one class of argument checks: what each says, and with which code."""

import pytest
import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, NotSimulated, OperatorRejected, UndefinedBehaviour

CHECK = ArgumentChecks("npu_example", default=ErrorCode.TILING)
X = torch.zeros(2, 3)


def code_of(check, *arguments, **options):
    with pytest.raises(OperatorRejected) as caught:
        check(*arguments, **options)
    return caught.value.code


def test_the_default_code_has_to_be_said():
    with pytest.raises(TypeError, match="default"):
        ArgumentChecks("npu_example")


@pytest.mark.parametrize("default", list(ErrorCode))
def test_all_but_dtypes_are_refused_with_the_default(default):
    check = ArgumentChecks("npu_example", default=default)
    assert check.rejected("x", 1, "2").code is default
    assert code_of(check.rank, "x", X, 3) is default
    assert code_of(check.shape, "x", X, (2, 4), meaning="[n, 4]") is default
    assert code_of(check.not_empty, "x", X[:0]) is default
    assert code_of(check.even, "x", X, 1) is default
    assert code_of(check.contiguous, x=X.t()) is default
    assert code_of(check.choice, "mode", 2, (0, 1)) is default
    assert code_of(check.between, "k", 3, 1, 2) is default
    assert code_of(check.axis, "dim", 2, 2) is default
    assert code_of(check.dtype, "x", X, "int8") is ErrorCode.PARAMETER
    assert code_of(check.same_dtype, "x", X, "y", X.half()) is ErrorCode.PARAMETER


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_code_at_the_call_goes_before_the_default(code):
    assert CHECK.rejected("x", 1, "2", code).code is code
    assert code_of(CHECK.rank, "x", X, 3, code=code) is code
    assert code_of(CHECK.shape, "x", X, (2, 4), meaning="[n, 4]", code=code) is code
    assert code_of(CHECK.dtype, "x", X, "int8", code=code) is code
    assert code_of(CHECK.not_empty, "x", X[:0], code) is code
    assert code_of(CHECK.even, "x", X, 1, code) is code
    assert code_of(CHECK.contiguous, x=X.t(), code=code) is code
    assert code_of(CHECK.choice, "mode", 2, (0, 1), code) is code
    assert code_of(CHECK.between, "k", 3, 1, 2, code) is code


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: CHECK.dtype("x", X, "int8", "int32"), "x was float32; allowed: int8 or int32 ["),
        (lambda: CHECK.same_dtype("x", X, "y", X.half()), "x was float32; allowed: float16, as y ["),
        (lambda: CHECK.rank("x", X, 3), "x was of rank 2, [2, 3]; allowed: rank 3 ["),
        (lambda: CHECK.rank("x", X, (1, 3), "[n]"), "x was of rank 2, [2, 3]; allowed: rank 1 or 3, [n] ["),
        (lambda: CHECK.rank("x", X, range(3, 9)), "x was of rank 2, [2, 3]; allowed: rank 3 to 8 ["),
        (
            lambda: CHECK.shape("x", X, (2,), (-1, 4), meaning="[n, 4]"),
            "x was of shape [2, 3]; allowed: [2] or [any, 4], [n, 4] [",
        ),
        (lambda: CHECK.not_empty("x", X[:0]), "x was empty, of shape [0, 3]; allowed: a tensor with elements ["),
        (lambda: CHECK.even("x", X, 1), "x was of shape [2, 3]; allowed: an even size of axis 1 ["),
        (lambda: CHECK.contiguous(x=X.t()), "x was not contiguous, strides (1, 3); allowed: a contiguous tensor ["),
        (lambda: CHECK.choice("mode", "a", ("b", None)), "mode was 'a'; allowed: 'b' or None ["),
        (lambda: CHECK.between("k", 3, 1, 2), "k was 3; allowed: 1 to 2 ["),
        (lambda: CHECK.axis("dim", -3, 2), "dim was -3; allowed: -2 to 1 ["),
    ],
)
def test_messages_name_the_argument_what_was_given_and_what_is_allowed(check, message):
    with pytest.raises(OperatorRejected) as caught:
        check()
    assert str(caught.value).startswith(f"npu_example: {message}")


def test_what_is_allowed_passes():
    CHECK.dtype("x", X, "float16", "float32")
    CHECK.same_dtype("x", X, "y", X)
    CHECK.rank("x", X, (2, 3))
    CHECK.shape("x", X, (5,), (2, -1), meaning="[2, n]")
    CHECK.not_empty("x", X)
    CHECK.even("x", X, 0)
    CHECK.contiguous(x=X, y=None)
    CHECK.addressed_as_contiguous(x=X, y=None)
    CHECK.simulated_contiguous("contiguous", x=X)
    CHECK.choice("mode", None, (None, 1))
    CHECK.between("k", 1, 1, 1)
    CHECK.indices("i", torch.tensor([0, 1]), 2, "rows")
    assert [CHECK.axis("dim", given, 2) for given in (-2, -1, 0, 1)] == [0, 1, 0, 1]


def test_other_errors_than_rejections():
    with pytest.raises(NotSimulated, match=r"x was not contiguous, strides \(1, 3\), which is not simulated"):
        CHECK.simulated_contiguous("contiguous caches", x=X.t())
    with pytest.raises(UndefinedBehaviour, match=r"npu_example: x is not contiguous, strides \(1, 3\) of \[3, 2\]"):
        CHECK.addressed_as_contiguous(x=X.t())
    with pytest.raises(DeviceFault, match=r"npu_example: i\[1, 0\] is 2, there are 2 rows"):
        CHECK.indices("i", torch.tensor([[0], [2]]), 2, "rows")
    with pytest.raises(DeviceFault, match=r"npu_example: i\[0\] is -2, there are 2 rows"):
        CHECK.indices("i", torch.tensor([-2]), 2, "rows", low=-1)
