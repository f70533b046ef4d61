"""Calls in somebody's sources, which are read and never imported."""

from __future__ import annotations

import textwrap

import pytest

from npudiff.device.contract.__main__ import main
from npudiff.device.contract.trees import partly_simulated, report, sites

SOURCE = """
    import torch
    import torch_npu

    raise RuntimeError("nobody imports this")

    def forward(x, scale, layout, more):
        torch_npu.npu_dequant_swiglu_quant(x, round_mode=1)
        torch.ops.npu.npu_fused_infer_attention_score.default(x, x, x, input_layout="TND", sparse_mode=3)
        torch.ops.npu.npu_rms_norm(x, scale, nonsense=1)
        torch_npu._npu_reshape_and_cache(x, x, x, x, slot_indices=x)
        torch.ops.npu.npu_of_the_year_3000(**more)
        torch.ops._C_ascend.mla_preprocess(x)
        torch_npu.npu.current_device(), torch_npu.profiler.profile(), torch.ops.aten.add(x, x)
        return map(torch_npu.npu_quantize, torch_npu.npu_swiglu(x)[0].T)
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "model.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "broken.py").write_text("def (")
    return tmp_path


def test_places_are_found_by_the_dotted_name_that_stands_there(tree):
    assert sorted((site.line, site.space, site.name, site.overload) for site in sites(tree)) == [
        (8, "npu", "npu_dequant_swiglu_quant", ""),
        (9, "npu", "npu_fused_infer_attention_score", "default"),
        (10, "npu", "npu_rms_norm", ""),
        (11, "atb", "_npu_reshape_and_cache", ""),
        (12, "npu", "npu_of_the_year_3000", ""),
        (13, "_C_ascend", "mla_preprocess", ""),
        (15, "npu", "npu_quantize", ""),
        (15, "npu", "npu_swiglu", ""),
    ]


def test_the_report_counts_kernels_and_names_what_is_missing_or_does_not_bind(tree):
    lines = list(report(tree))
    assert lines[0].endswith("8 places name an NPU operator")
    assert "npu: 5 of 6 names, 5 of 6 places (83.3 %) have a kernel" in lines
    assert "npu and atb: 6 of 7 names, 6 of 7 places (85.7 %) have a kernel" in lines
    assert "no kernel, npu: npu_of_the_year_3000 1" in lines
    assert "no kernel, _C_ascend: mla_preprocess 1" in lines
    assert "does not bind: model.py:10 npu::npu_rms_norm: no argument 'nonsense'" in lines
    assert "not every value is simulated: npu_dequant_swiglu_quant(round_mode=): 1 1" in lines


def test_what_is_simulated_in_part_is_read_from_the_simulators_own_checks():
    assert ("activation", "round_mode") in partly_simulated()
    assert ("norms", "epsilon") not in partly_simulated()


def test_the_command_prints_it(tree, capsys):
    assert main(["--calls", str(tree)]) == 0
    assert "places name an NPU operator" in capsys.readouterr().out
