"""The comparison with shape functions: it sees every kind of difference, and never raises into the caller."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.contract import shapes
from npudiff.device.contract.shapes import ShapeWatch, described, has_meta_function, is_of_torch_npu, registered_schemas

X = torch.ones(3, 4)

# What the CPU kernel returns, and what the shape function says of it.
KERNELS = {
    "right": (lambda x: (x + 1, x[:1]), lambda x: (torch.empty_like(x), x[:1])),
    "shape": (lambda x: (x + 1, x[:2]), lambda x: (torch.empty_like(x), x[:1])),
    "dtype": (lambda x: (x.half(), x[:1]), lambda x: (torch.empty_like(x), x[:1])),
    "raises": (lambda x: (x + 1, x[:1]), lambda x: 1 // 0),
}


@pytest.fixture(scope="module", autouse=True)
def operators():
    """Operators with a CPU kernel and a shape function each, and one without."""
    library = torch.library.Library("npudiff_shapes", "DEF")
    for name, (cpu, meta) in KERNELS.items():
        library.define(f"{name}(Tensor x) -> (Tensor, Tensor)")
        library.impl(name, cpu, "CPU")
        library.impl(name, meta, "Meta")
        library.impl(name, cpu, "PrivateUse1")  # as torch_npu's have
    library.define("simulated(Tensor x) -> Tensor")
    library.impl("simulated", lambda x: x.clone(), "CPU")
    library.impl("simulated", lambda x: x.half(), "Meta")
    library.define("plain(Tensor x) -> int")
    library.impl("plain", lambda x: 1, "CPU")
    library.define("writes(Tensor(a!) x) -> ()")
    library.impl("writes", lambda x: x.resize_(1) and None, "CPU")
    library.impl("writes", lambda x: None, "Meta")
    library.impl("writes", lambda x: None, "PrivateUse1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "NAMESPACES", ("npudiff_shapes",))
        yield
    library._destroy()


def watched(name, given=X):
    watch = ShapeWatch()
    with watch:
        result = getattr(torch.ops.npudiff_shapes, name)(given)
    return watch, result


def test_equal_shapes_and_dtypes_are_no_disagreement():
    watch, result = watched("right")
    assert torch.equal(result[0], X + 1)
    assert watch.disagreements == []
    assert watch.calls == watch.compared == {"npudiff_shapes::right": 1}


@pytest.mark.parametrize(
    ("name", "output", "simulated", "wheel"),
    [
        ("shape", 1, ((2, 4), torch.float32), ((1, 4), torch.float32)),
        ("dtype", 0, ((3, 4), torch.float16), ((3, 4), torch.float32)),
        (
            "raises",
            None,
            "[3, 4] torch.float32, [1, 4] torch.float32",
            "ZeroDivisionError: integer division or modulo by zero",
        ),
    ],
)
def test_every_difference_is_one(name, output, simulated, wheel):
    (one,) = watched(name)[0].disagreements
    assert (one.operator, one.output, one.simulated, one.wheel) == (f"npudiff_shapes::{name}", output, simulated, wheel)
    assert one.inputs == "[3, 4] torch.float32"


def test_another_number_of_outputs_is_a_difference():
    func = torch.ops.npudiff_shapes.right.default
    (one,) = shapes.compare_with_meta(func, ((shapes.meta_like(X),), {}), [(X, X[:1]), X])
    assert str(one) == (
        "npudiff_shapes::right: outputs: simulated [3, 4] torch.float32, "
        "wheel [3, 4] torch.float32, [1, 4] torch.float32, of [3, 4] torch.float32"
    )


@pytest.mark.parametrize(
    ("function", "outputs"), [(KERNELS["right"][1], []), (lambda x: (x, x[:2]), [1]), (lambda x: 1 // 0, [None])]
)
def test_our_own_shape_function_has_to_agree_too(function, outputs):
    watch = ShapeWatch({"npudiff_shapes::right": function})
    with watch:
        torch.ops.npudiff_shapes.right(X)
    assert [one.output for one in watch.disagreements] == outputs


def test_an_operator_without_a_shape_function_is_counted_and_not_compared():
    watch, result = watched("plain")
    assert (result, watch.calls, watch.compared) == (1, {"npudiff_shapes::plain": 1}, {})
    assert not has_meta_function("npudiff_shapes::plain")
    assert has_meta_function("npudiff_shapes::right")


def test_a_shape_function_that_is_not_torch_npus_is_not_asked():
    watch, _ = watched("simulated")
    assert (watch.calls, watch.compared, watch.disagreements) == ({"npudiff_shapes::simulated": 1}, {}, [])


def test_shapes_are_those_before_the_call():
    watch, _ = watched("writes", torch.ones(2))
    assert watch.disagreements == []
    strided = torch.ones(4, 6)[::2, 1:3]
    assert shapes.meta_like(strided).stride() == strided.stride() == (12, 1)


def test_none_and_numbers_are_outputs_too():
    assert described((None, [X, 2], ())) == ["None", ((3, 4), torch.float32), "2"]


def test_what_is_registered_here_is_seen():
    (schema,) = registered_schemas("npudiff_shapes::right")
    assert schema == "npudiff_shapes::right(Tensor x) -> (Tensor, Tensor)"
    assert registered_schemas("npudiff_shapes::none") == []
    assert is_of_torch_npu("npudiff_shapes::right")
    assert not is_of_torch_npu("npudiff_shapes::simulated")
