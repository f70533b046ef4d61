"""Attention of ATB gives the simulator's bits on the virtual NPU, with lengths on the host or on the device."""

from __future__ import annotations

import pytest
import torch

from atb_forms import HOST, forms
from npudiff.run.discovery import load_target

pytestmark = pytest.mark.virtual

CALLS = forms()


@pytest.fixture(scope="module")
def targets():
    return [load_target(name, None) for name in ("virtual", "sim")]


def moved(call, device, host=()):
    """Return a call on a device, with tensors of its own, and some arguments left on the host."""
    return {
        name: value.clone().to("cpu" if name in host else device) if isinstance(value, torch.Tensor) else value
        for name, value in call.items()
    }


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("host", [(), HOST], ids=["device", "host"])
def test_the_same_bits(targets, name, host):
    operator, call = CALLS[name]
    outputs = []
    for target in targets:
        with target.activate():
            given = moved(call, target.device, host)
            assert getattr(torch.ops.atb, operator)(**given) is None
        outputs.append(given["out"].cpu())
    assert torch.equal(*outputs)
    assert outputs[0].isfinite().all()
    assert outputs[0].count_nonzero()


def test_other_tensors_of_the_host_are_refused():
    operator, call = CALLS["decode torch.bfloat16"]
    for name in ("query", "key_cache", "block_table"):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            getattr(torch.ops.atb, operator)(**moved(call, "npu", (name,)))


def test_a_graph_has_the_lengths_of_its_capture_until_it_is_updated():
    import torch_npu

    operator, call = CALLS["decode torch.bfloat16"]
    decode = getattr(torch.ops.atb, operator)
    wanted = {}
    for lengths in ((5, 20), (17, 2)):
        given = moved(call, "npu", HOST) | {"context_lens": torch.tensor(lengths, dtype=torch.int32)}
        decode(**given)
        wanted[lengths] = given["out"].cpu()
    given = moved(call, "npu", HOST)
    workspace = torch_npu._npu_paged_attention_get_workspace(**given)
    assert workspace.device.type == "npu"
    graph, side = torch.npu.NPUGraph(), torch.npu.Stream()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        torch.npu.graph_task_group_begin(stream)
        torch_npu._npu_paged_attention(**given, workspace=workspace)
        handle = torch.npu.graph_task_group_end(stream)
    given["context_lens"].fill_(1)  # the host's memory is not read again
    graph.replay()
    assert torch.equal(given["out"].cpu(), wanted[5, 20])
    with torch.npu.stream(side):
        torch.npu.graph_task_update_begin(side, handle)
        others = given | {"context_lens": torch.tensor((17, 2), dtype=torch.int32)}
        torch_npu._npu_paged_attention(**others, workspace=workspace)
        torch.npu.graph_task_update_end(side)
    graph.replay()
    torch.npu.synchronize()
    assert torch.equal(given["out"].cpu(), wanted[17, 2])
