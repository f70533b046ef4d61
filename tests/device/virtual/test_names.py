"""Nothing is silently skipped: operators are ours, views, or on a list; all others say no by name."""

from __future__ import annotations

import warnings

import pytest
import torch

pytestmark = pytest.mark.virtual

KEY = "PrivateUse1"
SPACES = ("aten", "npu", "atb")


def registered():
    """Operators of torch and torch_npu that have a kernel for the device and can be called."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(KEY)
    return sorted(name for name in names if name.partition("::")[0] in SPACES and schema(name) is not None)


def schema(qualified):
    name, _, overload = qualified.partition(".")
    try:  # torch_npu registers kernels for some operators of other versions, which nobody can call
        return torch._C._dispatch_find_schema_or_throw(name, overload) and overload_of(qualified)._schema
    except (RuntimeError, AttributeError):
        return None


def overload_of(qualified):
    space, _, rest = qualified.partition("::")
    name, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, space), name), overload or "default")


def of_python(qualified):
    """Whether the kernel that the dispatcher would run is one of ours; torch_npu's are in C++."""
    table = torch._C._dispatch_dump_table(qualified).splitlines()
    line = next(line for line in table if line.startswith(f"{KEY}: "))
    return "csrc" not in line and "RegisterNPU" not in line


def test_every_operator_is_ours_or_left_to_torch_npu_by_name():
    from npudiff.device.virtual import aten, operators

    left = {f"aten::{name}" for name in aten.LEFT_TO_TORCH_NPU} | operators.LEFT_TO_TORCH_NPU
    names = registered()
    others = [name for name in names if not of_python(name) and name not in left]
    views = {name for name in others if only_views(name)}
    assert len(names) > 1800
    assert set(others) == views, "kernels of torch_npu that nobody replaced, and that are no views"
    assert views <= {
        "aten::_reshape_alias", "aten::as_strided", "aten::squeeze", "aten::squeeze.dim", "aten::unfold",
        "aten::unsqueeze", "aten::view", "aten::view_as_complex", "aten::view_as_real",
    }  # fmt: skip


def only_views(qualified):
    found = schema(qualified)
    return not found.is_mutable and all(
        result.alias_info is not None and not result.alias_info.is_write for result in found.returns
    )


def test_gradients_are_torchs_own():
    """No operator of torch's is differentiated by a function of torch_npu's."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(f"Autograd{KEY}")
    aten = [name for name in names if name.startswith("aten::") and schema(name) is not None]
    theirs = []
    for name in aten:
        table = torch._C._dispatch_dump_table(name).splitlines()
        line = next(line for line in table if line.startswith(f"Autograd{KEY}: "))
        theirs += [name] if "torch_npu/csrc" in line else []
    assert len(aten) > 40
    assert not theirs


def test_operators_that_are_left_do_what_they_do_without_device_code():
    """They allocate, or change what a tensor says of itself; the memory that they give is the device's."""
    x = torch.empty(2, 3, device="npu").fill_(1)
    assert torch.empty_like(x).shape == (2, 3)
    assert torch.empty_strided((2, 3), (1, 2), device="npu").stride() == (1, 2)
    assert x.resize_(3, 2).tolist() == [[1, 1]] * 3
    assert x.as_strided_((2,), (1,)).tolist() == [1, 1]
    assert torch.empty(0, device="npu").set_(x).is_set_to(x)
    assert not x.is_pinned()


MISSING = (  # of torch_npu, with arguments that its shape rules let through
    ("npu::npu_stride_add", lambda op, x: op(x, x, 0.0, 0.0, 1.0)),
    ("npu::npu_ciou", lambda op, x: op(x, x)),
    ("npu::npu_iou", lambda op, x: op(x, x)),
    ("npu::npu_ptiou", lambda op, x: op(x, x)),
    ("npu::npu_giou", lambda op, x: op(x, x)),
    ("npu::npu_get_float_status", lambda op, x: op(x)),
    ("npu::npu_alloc_float_status", lambda op, x: op(x)),
    ("npu::npu_bounding_box_encode", lambda op, x: op(x, x, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0)),
    ("npu::npu_clear_float_status", lambda op, x: op(x)),
    ("npu::npu_gather_sparse_index", lambda op, x: op(x, x[0].long())),
)


@pytest.mark.parametrize(("name", "call"), MISSING, ids=[name for name, _ in MISSING])
def test_an_operator_that_nobody_has_raises_its_name(name, call):
    from npudiff.device.virtual.memory import NotOnVirtualNpu

    x = torch.ones(4, 4, device="npu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotOnVirtualNpu, match=name.partition(".")[0]):
            call(overload_of(name), x)


def test_an_operator_of_torch_without_a_kernel_of_the_cpu_raises_its_name():
    x = torch.ones(4, 4, device="npu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call, name in (
            (
                lambda: torch.ops.aten._cudnn_rnn_flatten_weight([x], 1, 4, 2, 2, 0, 1, False, False),
                "_cudnn_rnn_flatten",
            ),
            (lambda: torch.ops.aten._thnn_fused_lstm_cell(x, x, x), "_thnn_fused_lstm_cell"),
            (lambda: torch.ops.aten.cudnn_convolution_relu(x, x, None, [1], [0], [1], 1), "cudnn_convolution_relu"),
        ):
            with pytest.raises(RuntimeError, match=name):
                call()


def test_every_operator_that_nobody_has_is_a_kernel_that_only_raises():
    """All of torch_npu's that the simulator does not have, called as the dispatcher calls them."""
    from npudiff.device.simulator.library import operators as simulated
    from npudiff.device.simulator.schemas import namespace, qualified_name
    from npudiff.device.virtual import operators
    from npudiff.device.virtual.memory import NotOnVirtualNpu

    known = {f"{namespace(one.schema)}::{qualified_name(one.schema)}" for one in simulated()}
    known |= operators.LEFT_TO_TORCH_NPU | {
        "npu::_npu_moe_token_unpermute", "npu::_npu_format_cast", "npu::_npu_dtype_cast"
    }  # fmt: skip
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))
    names = [name for name in registered() if name.partition("::")[0] != "aten" and name not in known]
    names = [name for name in names if not name.startswith("npu::npu_format_cast")]
    for name in names:
        arguments = [_plain(argument) for argument in schema(name).arguments if not argument.has_default_value()]
        positional = [value for is_named, _, value in arguments if not is_named]
        named = {key: value for is_named, key, value in arguments if is_named}
        with pytest.raises(NotOnVirtualNpu, match=name.replace(".", r"\.")):
            torch.library.get_kernel(name, KEY).call_boxed(keys, *positional, **named)
    assert len(names) > 250


def test_every_operator_has_a_kernel_for_the_device_and_those_without_tensors_raise_their_names():
    """Else torch_npu's fallback would run it on the CPU, or its own kernel would look for CANN's functions."""
    from npudiff.device.virtual import operators
    from npudiff.device.virtual.memory import NotOnVirtualNpu

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [
        f"{one.name}.{one.overload_name}".rstrip(".")
        for one in torch._C._jit_get_all_schemas()
        if one.name.partition("::")[0] in ("npu", "atb")
    ]
    assert len(names) > 400
    assert [name for name in names if not has(name, KEY) and not has(name, "CompositeImplicitAutograd")] == []
    alone = [name for name in names if not has(name, KEY) and name not in operators.LEFT_TO_TORCH_NPU]
    assert "npu::npu_dropout_gen_mask" in alone
    for name in alone:
        arguments = [_plain(argument) for argument in schema(name).arguments if not argument.has_default_value()]
        with pytest.raises(NotOnVirtualNpu, match=name):
            overload_of(name)(*[value for is_named, _, value in arguments if not is_named])


def test_an_operator_that_nobody_has_defined_is_named():
    from npudiff.device.simulator import OperatorMissing

    x = torch.ones(2, device="npu")
    for space, name in (("npu", "npu_nothing"), ("atb", "_npu_ring_nothing"), ("_C_ascend", "mla_nothing")):
        with pytest.raises(OperatorMissing, match=f"^{space}::{name} is not simulated: "):
            getattr(getattr(torch.ops, space), name)(x)


def _plain(argument):
    """Some value of an argument's type."""
    kind = str(argument.type)
    values = {
        "Tensor": torch.empty(0), "List[Tensor]": [], "int": 0, "float": 0.0, "bool": False, "str": "", "number": 0,
        "List[int]": [], "List[float]": [], "Device": torch.device("cpu"), "List[bool]": [],
    }  # fmt: skip
    return argument.kwarg_only, argument.name, values.get(kind)


def test_torch_npus_fallback_to_the_cpu_is_not_taken():
    """It warns; what runs here says nothing."""
    x = torch.ones(4, 4, device="npu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.linalg.eigh(x)
        torch.special.bessel_j0(x)
        torch.lobpcg(x @ x.T + torch.eye(4, device="npu"), k=1)
        torch.polygamma(1, x)
        torch.linalg.lstsq(x, x)
    assert not [one for one in said if "npu" in str(one.message).lower() or "fall" in str(one.message).lower()]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda here, there: here + there,
        lambda here, there: there * here,
        lambda here, there: here @ there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.where(here > 0, here, there),
        lambda here, there: torch.add(here, here, out=there),
        lambda here, there: here.add_(there),
        lambda here, there: here.index_select(0, torch.tensor([0])),
        torch.nn.functional.linear,
        lambda here, there: torch.ops.npu.npu_rms_norm(here, there[0]),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mixed):
    """As on a card: it is one of the bugs that only show there."""
    here, there = torch.ones(2, 2, device="npu"), torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mixed(here, there)


def test_copies_indices_and_numbers_may_come_from_the_host():
    here = torch.arange(4.0, device="npu")
    here[torch.tensor([0, 1])] = torch.tensor(5.0)
    here.copy_(here.cpu() + 1)
    assert ((here + torch.tensor(1.0))[torch.tensor([0, 3])]).tolist() == [7.0, 5.0]
