from __future__ import annotations

from npudiff.device.backends.operators import operators_of


def test_operators_with_and_without_a_kernel_are_told_and_nothing_is_imported(tmp_path):
    (tmp_path / "a.py").write_text(
        "raise ImportError\ntorch_npu.npu_rms_norm(x, w)\n"
        "torch.ops.npu.npu_nobody_has(x)\ntorch.ops._C_ascend.theirs(x)\n"
    )
    share, other, missing, *rest = operators_of(tmp_path)
    assert share == "npu: 1 of 2 names, 1 of 2 places (50.0 %) have a kernel"
    assert other == "_C_ascend: 0 of 1 names, 0 of 1 places (0.0 %) have a kernel"
    assert missing == "no kernel, npu: npu_nobody_has 1"
    assert rest == ["no kernel, _C_ascend: theirs 1"]
