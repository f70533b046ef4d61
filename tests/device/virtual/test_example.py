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
