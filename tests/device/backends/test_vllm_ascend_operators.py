"""Stand-ins for vllm-ascend's operators in C++: where their schemas come from, what they compute, what they refuse."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.backends import NOT_HERE
from npudiff.device.backends.vllm_ascend import operators
from npudiff.device.simulator.errors import NotSimulated, OperatorMissing
from npudiff.device.simulator.library import install
from npudiff.device.virtual.operators import _missing

SOURCES = r"""
#ifdef ASCEND_PLATFORM_310P
    ops.def("of_another_chip(Tensor x) -> Tensor");
#else
    ops.def(
        "npudiff_test_only(Tensor x, "
        "                  str layout=\"BSND\") -> Tensor");
    ops.impl("npudiff_test_only", torch::kPrivateUse1, &f);
    ops.def("npudiff_test_other(Tensor! x) -> ()");
#endif
"""


@pytest.fixture
def sim():
    """Operators of torch_npu on the CPU."""
    install()


@pytest.fixture
def package(tmp_path):
    """The folder of a package, with sources beside it."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "torch_binding.cpp").write_text(SOURCES)
    (tmp_path / "vllm_ascend").mkdir()
    return tmp_path / "vllm_ascend"


def test_schemas_are_those_of_the_sources_without_other_chips(package):
    found, where = operators.schemas_of(package)
    assert where == "csrc/torch_binding.cpp"
    assert [schema.split() for schema in found] == [
        ["npudiff_test_only(Tensor", "x,", "str", 'layout="BSND")', "->", "Tensor"],
        ["npudiff_test_other(Tensor!", "x)", "->", "()"],
    ]


def test_a_wheel_has_them_in_its_library(package):
    (package.parent / "csrc" / "torch_binding.cpp").unlink()
    lines = [
        b"moe_gating_top_k(Tensor x, int k, Tensor? bias_opt=None)-> (Tensor y ,Tensor expert_idx, Tensor out)",
        b"bgmv_shrink(Tensor! x, float scale) -> ()",
        b"at::Tensor f(Tensor const&)",
    ]
    (package / "vllm_ascend_C.cpython-311.so").write_bytes(b"\0\x7f".join([b"ELF", *lines, b"end"]))
    found, where = operators.schemas_of(package)
    assert where == "vllm_ascend_C.cpython-311.so"
    assert [schema.partition("(")[0] for schema in found] == ["moe_gating_top_k", "bgmv_shrink"]
    for schema in found:
        torch._C.parse_schema(schema)


def test_without_either_there_are_none_and_it_says_so(tmp_path):
    calls, notes = operators.stand_in(tmp_path)
    assert not calls
    assert "torch_npu's are taken" in notes[0]


def test_they_are_defined_counted_and_raise_their_name(package):
    calls, notes = operators.stand_in(package)
    with pytest.raises(OperatorMissing, match="_C_ascend::npudiff_test_only"):
        torch.ops._C_ascend.npudiff_test_only(torch.zeros(1))
    assert calls == {"_C_ascend::npudiff_test_only": 1}
    assert "2 operators as csrc/torch_binding.cpp defines them" in notes[0]
    with pytest.raises(RuntimeError, match=r"(?i)unknown"):
        torch.ops._C_ascend.npudiff_test_only(torch.zeros(1), none_of_its_own=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gating_of_a_softmax_is_divided_by_the_sum_of_the_chosen(sim, dtype):
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    gating = operators.COMPOSED["moe_gating_top_k"]
    y, experts, _ = gating(logits, 3, 1, 1, 1, 1, 0, False, 2.5, 1e-20)
    values, wanted = torch.softmax(logits.double(), -1).topk(3, -1)
    assert y.dtype == dtype
    assert torch.equal(experts.long(), wanted)
    torch.testing.assert_close(
        y.double(), values / values.sum(-1, keepdim=True) * 2.5, rtol=2 * torch.finfo(dtype).eps, atol=0
    )


def test_gating_of_a_softmax_stays_as_it_is_where_nothing_else_is_asked_for(sim):
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    y, _, _ = operators.COMPOSED["moe_gating_top_k"](logits, 3, 1, 1, 1, 0, 0, False, 1.0, 1e-20)
    torch.testing.assert_close(y, torch.softmax(logits, -1).topk(3, -1).values)


def test_a_norm_has_its_bias_at_the_end(sim):
    x, gamma, beta = torch.randn(3, 16), torch.rand(16), torch.randn(16)
    norm = operators.COMPOSED["npu_add_rms_norm_bias"]
    y, _, total = norm(x, x, gamma, beta, 1e-6)
    root = (total.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y.double(), 2 * x.double() / root * gamma.double() + beta.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(x, x, gamma, None, 1e-6)[0] + beta, y)


def test_rotation_of_a_part_leaves_the_rest(sim):
    x = torch.randn(1, 3, 2, 8)
    before, angle = x.clone(), torch.randn(1, 3, 1, 2)
    cos, sin = angle.cos().repeat(1, 1, 1, 2), angle.sin().repeat(1, 1, 1, 2)
    operators.COMPOSED["inplace_partial_rotary_mul"](x, cos, sin, "half", [4, 8])
    first, second = before[..., 4:6], before[..., 6:]
    wanted = torch.cat((first * cos[..., :2] - second * sin[..., :2], second * cos[..., 2:] + first * sin[..., 2:]), -1)
    torch.testing.assert_close(x[..., 4:], wanted)
    assert torch.equal(x[..., :4], before[..., :4])


def test_a_mode_that_is_none_is_not_simulated():
    rows = torch.zeros(2, 16, dtype=torch.int32)
    with pytest.raises(NotSimulated, match="swiglu_mode was 2"):
        operators.COMPOSED["npu_dequant_swiglu_quant"](rows, swiglu_mode=2)


def test_a_limit_comes_before_the_activation(sim):
    made = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(-100, 100, shape, generator=made).to(torch.int8) for shape in ((5, 32), (2, 32, 64)))
    scale, x_scale = torch.full((2, 64), 2.0**-10), torch.full((5,), 2.0**-4)
    rows, scales, _ = operators.COMPOSED["grouped_matmul_swiglu_quant_weight_nz"](
        x, weight, scale, x_scale, torch.tensor([2, 5]), swiglu_limit=1.5
    )
    which = torch.tensor([0, 0, 1, 1, 1])
    states = torch.einsum("tk,tkn->tn", x.double(), weight.double()[which]) * 2.0**-14
    gate, up = states.chunk(2, dim=-1)
    gate, up = gate.clamp(max=1.5), up.clamp(-1.5, 1.5)
    wanted = gate * torch.sigmoid(gate) * up
    torch.testing.assert_close(rows.double() * scales.double().unsqueeze(-1), wanted, rtol=0.02, atol=0.02)
    assert float(states.abs().max()) > 3  # the limit matters


def test_an_operator_of_torch_npu_without_a_kernel_is_not_here_either():
    with pytest.raises(NOT_HERE, match="atb::npu_paged_cache_load has no kernel"):
        _missing("atb::npu_paged_cache_load")()
