"""What a call dispatches, and why an implementation may not be what it says."""

from __future__ import annotations

import contextlib
import json
import textwrap
from dataclasses import replace

import pytest
import torch

from npudiff.device.ascend import rms_norm
from npudiff.model.implementation import Target
from npudiff.model.operators import OperatorWatch, doubts

CPU = Target("sim", "cpu", "8.5", contextlib.nullcontext)
DEVICE = Target("npu", "npu:0", "8.5", contextlib.nullcontext)
MINE = replace(rms_norm.npu_rms_norm, origin="mine.py")

KERNELS = """
import npudiff, torch

@npudiff.implementation("rms_norm", supports={"kind": ("plain",), "residual": (False,)}, on_device=True)
def operator(inputs, target):
    return torch.ops.npu.npu_rms_norm(inputs.hidden, inputs.weight, inputs.epsilon)[0]

@npudiff.implementation("rms_norm", supports={"kind": ("plain",), "residual": (False,)}, on_device=True)
def plain(inputs, target):
    wide = inputs.hidden.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + inputs.epsilon)
    return wide.to(inputs.hidden.dtype) * inputs.weight
"""


def test_operators_are_counted_by_name():
    with OperatorWatch(CPU) as watch:
        (torch.ones(3) * 2).sum()
    assert watch.operators == {"aten::ones": 1, "aten::mul": 1, "aten::sum": 1}
    with OperatorWatch(DEVICE) as watch:
        torch.ones(3)
    assert watch.operators == {"aten::ones (host)": 1}


def test_nothing_is_said_where_nobody_has_looked_or_an_operator_of_a_device_ran():
    assert doubts(MINE, None) == []
    assert doubts(MINE, {"aten::mul": 3, "npu::npu_rms_norm": 1}) == []
    assert doubts(MINE, {"mine::kernel": 1}) == []
    assert doubts(replace(MINE, on_device=False), {"aten::mul": 3}) == []


def test_what_claims_a_device_and_has_none_is_doubted():
    (line,) = doubts(MINE, {"aten::mul": 3, "aten::add": 1})
    assert line == "says on_device=True, and runs no operator of a device: aten::mul, aten::add"
    (line,) = doubts(MINE, {})
    assert "none of torch at all" in line
    (line,) = doubts(replace(MINE, on_device=False), {"aten::mul (host)": 3})
    assert line.startswith("computes on the host")
    (line,) = doubts(MINE, dict.fromkeys((f"aten::f{number}" for number in range(9)), 1))
    assert line.endswith("and 5 others")


@pytest.mark.few(1)
@pytest.mark.parametrize("how", ["--isolate", "--no-isolate", "--untrusted"])
def test_a_run_says_so(cli, tmp_path, how):
    (tmp_path / "mine.py").write_text(textwrap.dedent(KERNELS))
    said = ("rms_norm", "--impl", "mine.py", "--examples", "3", "--workers", "1", "--json", "said.json")
    result = cli("check", *said, "--target", "sim", how)
    assert "rms_norm.plain says on_device=True, and runs no operator of a device: " in result.out
    assert "rms_norm.operator says" not in result.out
    items = {one["implementation"]: one for one in json.loads((tmp_path / "said.json").read_text())["implementations"]}
    assert items["operator"]["operators"]["npu::npu_rms_norm"] == 1
    assert (items["operator"]["doubts"], len(items["plain"]["doubts"])) == ([], 1)
