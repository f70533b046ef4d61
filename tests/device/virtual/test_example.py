"""The example of the documentation runs, trains, and decodes what the same program computes on the CPU."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "paged_decode.py"

pytestmark = pytest.mark.virtual


def test_it_runs_as_the_documentation_says():
    command = [sys.executable, "-m", "npudiff", "virtual", "--", sys.executable, str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    name, loss, tokens, memory = done.stdout.splitlines()
    assert name.startswith("Ascend910B3, torch_npu 2.")
    first, last = map(float, re.fullmatch(r"loss ([\d.]+) -> ([\d.]+)", loss).groups())
    assert last < first / 5
    assert re.fullmatch(r"tokens \[\[\d+(, \d+){5}\], \[\d+(, \d+){5}\]\], [\d.]+ ms", tokens)
    assert 0 < int(memory.split()[0]) < 10_000


def test_a_test_suite_with_npudiffs_own_plugin_has_the_device(tmp_path):
    (tmp_path / "test_x.py").write_text(
        "import torch\n\n\ndef test_x():\n    assert (torch.ones(3, device='npu') * 2).cpu().tolist() == [2.0] * 3\n"
    )
    command = [sys.executable, "-m", "npudiff", "virtual", "--", sys.executable, "-m", "pytest", "-q", "test_x.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_program_that_only_looks_whether_torch_npu_is_there_keeps_the_device():
    code = (
        "import importlib.util as u; u.find_spec('torch_npu'); import torch; print(torch.ones(2, device='npu').cpu())"
    )
    command = [sys.executable, "-m", "npudiff", "virtual", "--", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.stdout == "tensor([1., 1.])\n", done.stderr


def test_the_new_token_of_each_request_sees_all_tokens_of_its_pages():
    """Against attention over keys and values in one piece, in float32, on the CPU."""
    example = runpy.run_path(str(EXAMPLE))
    heads, dim, page_size = example["HEADS"], example["HEAD_DIM"], example["PAGE_SIZE"]
    attention = example["PagedAttention"]().to("npu", torch.bfloat16)
    states = torch.randn(2, 5, example["HIDDEN"], generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    table = torch.tensor([[4, 1], [2, 5]], dtype=torch.int32)
    with torch.no_grad():
        for step in range(5):
            slots = table[:, 0].long() * page_size + step
            arguments = (table.npu(), slots.npu(), [step + 1] * 2)
            seen = attention(states[:, step].npu(), *arguments)
        normed = torch.nn.functional.rms_norm(states.float(), states.shape[-1:], eps=1e-6)
        projected = normed @ attention.projection.weight.cpu().float().t()
        query, key, value = (part.view(2, 5, heads, dim).transpose(1, 2) for part in projected.chunk(3, dim=-1))
        whole = torch.nn.functional.scaled_dot_product_attention(query[:, :, -1:], key, value)
        expected = states[:, -1].float() + whole.flatten(1) @ attention.output.weight.cpu().float().t()
    torch.testing.assert_close(seen.cpu().float(), expected, atol=0.05, rtol=0.02)


def test_torch_npu_is_told_the_cann_and_the_chip_that_were_asked_for():
    code = (
        "import torch, torch_npu, npudiff.device.simulator as s\n"
        "print(torch.npu.get_device_name(0), torch_npu.npu.utils.get_cann_version(), s.active_profile().name)\n"
        "gte = torch_npu.npu.utils._is_gte_cann_version\n"
        "print(gte('9.0.0'), gte('9.1.0'), torch_npu.npu.utils.get_cann_version('hccl'))\n"
    )
    command = [sys.executable, "-m", "npudiff", "virtual", "--cann", "9.0", "--soc", "Ascend910_9391", "--"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert done.stdout == "Ascend910_9391 9.0.0 9.0\nTrue False 9.0.0\n", done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--cann", "7", "unknown CANN profile '7'"), ("--soc", "H100", "the name of a chip is like Ascend910B3")],
)
def test_another_cann_or_chip_is_refused(option, value, said):
    command = [sys.executable, "-m", "npudiff", "virtual", option, value, "--", sys.executable, "-c", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, said in done.stderr) == (4, True), done.stderr
