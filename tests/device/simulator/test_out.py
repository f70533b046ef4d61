"""The forms that graph capture uses: ``.out``, workspace and output inference."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npudiff.device.simulator import OperatorRejected

NAME = {1: "npu_fused_infer_attention_score", 2: "npu_fused_infer_attention_score_v2"}


def split(arguments):
    rest = dict(arguments)
    return [rest.pop(name) for name in ("query", "key", "value")], rest


@pytest.fixture(params=[1, 2])
def version(request):
    return request.param


@pytest.fixture
def arguments(lab, version):
    return lab.pack(lab.ragged([2, 3], [4, 150]), "TND", version=version, block_size=128, fill=9.0)


def out_operator(version):
    return getattr(torch.ops.npu, NAME[version]).out


def workspace(version, arguments):
    tensors, rest = split(arguments)
    return getattr(torch.ops.npu, f"_{NAME[version]}_get_max_workspace")(*tensors, **rest)


@pytest.mark.parametrize("with_workspace", [False, True])
def test_out_writes_into_the_list_and_returns_it(lab, version, arguments, with_workspace):
    expected = lab.call(arguments, version=version)
    tensors, rest = split(arguments)
    out = [torch.full_like(expected[0], 7.0), torch.full_like(expected[1], 7.0)]
    flag = {lab.names[version]["lse"]: True}
    scratch = workspace(version, arguments) if with_workspace else None
    returned = out_operator(version)(*tensors, **rest, **flag, workspace=scratch, out=out)
    for given, back, right in zip(out, returned, expected, strict=True):
        assert back.data_ptr() == given.data_ptr()
        assert torch.equal(given, right)


def test_out_overload_is_found_by_the_argument(lab, version, arguments):
    expected, _ = lab.call(arguments, version=version)
    tensors, rest = split(arguments)
    out = [torch.empty_like(expected), torch.empty(0)]
    getattr(torch.ops.npu, NAME[version])(*tensors, **rest, out=out)
    assert torch.equal(out[0], expected)


def test_any_lse_will_do_when_it_is_not_wanted(lab, version, arguments):
    """vllm-ascend passes [num_tokens] in the query's dtype; nothing looks at it and nothing writes it."""
    expected, _ = lab.call(arguments, version=version)
    tensors, rest = split(arguments)
    dummy = torch.full((5,), 3.0, dtype=torch.bfloat16)
    returned = out_operator(version)(*tensors, **rest, out=[torch.empty_like(expected), dummy])
    assert torch.equal(returned[0], expected)
    assert returned[1].tolist() == [3.0] * 5


@pytest.mark.parametrize(
    ("position", "spoil"),
    [
        (0, lambda t: t[:-1]),
        (0, lambda t: t.float()),
        (1, lambda t: t[..., 0]),
        (1, lambda t: t.bfloat16()),
    ],
)
def test_wrong_outputs_are_refused(lab, version, arguments, position, spoil):
    out = [t.clone() for t in lab.call(arguments, version=version)]
    out[position] = spoil(out[position])
    tensors, rest = split(arguments)
    with pytest.raises(OperatorRejected, match=rf"out\[{position}\] was"):
        out_operator(version)(*tensors, **rest, **{lab.names[version]["lse"]: True}, out=out)


def test_out_wants_two_tensors(version, arguments):
    tensors, rest = split(arguments)
    with pytest.raises(OperatorRejected, match="out was a list of 1"):
        out_operator(version)(*tensors, **rest, out=[torch.empty(5, 4, 64)])


def test_workspace_is_bytes_and_the_call_is_checked(version, arguments):
    scratch = workspace(version, arguments)
    assert scratch.dtype == torch.uint8
    assert scratch.dim() == 1
    with pytest.raises(OperatorRejected, match="sparse_mode"):
        workspace(version, arguments | {"sparse_mode": 6})


@pytest.mark.parametrize("lse", [False, True])
def test_infer_output_has_the_shapes_of_the_call(lab, version, arguments, lse):
    expected = lab.call(arguments, version=version, lse=lse)
    tensors, rest = split(arguments)
    names = {"input_layout", "block_table", "num_key_value_heads", lab.names[version]["heads"]}
    inferred = getattr(torch.ops.npu, f"_{NAME[version]}_infer_output")(
        tensors[0],
        tensors[2],
        **{n: v for n, v in rest.items() if n in names},
        **{lab.names[version]["lse"]: lse},
    )
    assert [(t.shape, t.dtype) for t in inferred] == [(t.shape, t.dtype) for t in expected]


def test_every_form_under_fake_tensors(lab, version, arguments):
    eager = lab.call(arguments, version=version)
    with FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for n, a in arguments.items()}
        tensors, rest = split(fake)
        scratch = getattr(torch.ops.npu, f"_{NAME[version]}_get_max_workspace")(*tensors, **rest)
        out = [torch.empty_like(mode.from_tensor(t)) for t in eager]
        returned = out_operator(version)(*tensors, **rest, workspace=scratch, out=out)
    assert scratch.shape == workspace(version, arguments).shape
    assert [tuple(t.shape) for t in returned] == [tuple(t.shape) for t in eager]
