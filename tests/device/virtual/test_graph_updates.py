"""A decode step in a graph: lengths come by task groups, all else by memory, and what nobody updates is stale."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

pytestmark = [
    pytest.mark.virtual,
    # torch_npu's empty_like says so, on hardware too
    pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format:UserWarning"),
]

HIDDEN, HEADS, HEAD_DIM, PAGE, PAGES, REQUESTS, EXPERTS, TOP_K = 64, 2, 64, 128, 6, 2, 4, 2


@pytest.fixture(autouse=True)
def nothing_waits_at_the_end(monkeypatch):
    """Let a test that fails amid a replay not hold up those after it."""
    import torch

    made, event = [], torch.npu.ExternalEvent
    monkeypatch.setattr(torch.npu, "ExternalEvent", lambda: made.append(event()) or made[-1])
    yield
    for _ in range(100):
        if torch.npu.current_stream().query():
            return
        for one in made:
            one.record(torch.npu.Stream())
    raise AssertionError("a stream waits for something that is no event of the test")


@dataclass
class Captured:
    """What has to be known of the attention of each layer to update it, as vllm-ascend keeps it."""

    events: list[Any] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class Layer:
    """RMSNorm, paged attention, RMSNorm and experts."""

    def __init__(self, seed: int, version: int) -> None:
        import torch

        drawn = torch.Generator().manual_seed(seed)

        def weight(*shape):
            return (torch.randn(*shape, generator=drawn) / shape[-2] ** 0.5).to(torch.bfloat16).to("npu")

        self.version = version
        self.projection, self.output = weight(HIDDEN, 3 * HEADS * HEAD_DIM), weight(HEADS * HEAD_DIM, HIDDEN)
        self.gate = weight(HIDDEN, EXPERTS)
        self.up, self.down = weight(EXPERTS, HIDDEN, 2 * HIDDEN), weight(EXPERTS, HIDDEN, HIDDEN)
        self.norm = torch.ones(HIDDEN, dtype=torch.bfloat16, device="npu")
        pages = torch.randn(2, PAGES, PAGE, HEADS * HEAD_DIM, generator=drawn).to(torch.bfloat16)
        self.keys, self.values = pages.to("npu").unbind()

    def forward(self, states, slots, table, lengths, captured=None):
        import torch_npu

        normed, _ = torch_npu.npu_rms_norm(states, self.norm)
        query, key, value = (normed @ self.projection).chunk(3, dim=-1)
        for cache, new in ((self.keys, key), (self.values, value)):
            torch_npu.npu_scatter_nd_update_(cache.view(-1, HEADS * HEAD_DIM), slots.view(-1, 1), new)
        states = states + self.attention(query.contiguous(), table, lengths, captured) @ self.output
        return states + self.experts(torch_npu.npu_rms_norm(states, self.norm)[0])

    def attention(self, query, table, lengths, captured):
        import torch
        import torch_npu

        args = (query.unsqueeze(1), self.keys, self.values)
        named = {
            "input_layout": "BSH", "block_table": table, "block_size": PAGE,
            **({"num_heads": HEADS, "scale": HEAD_DIM**-0.5, "actual_seq_lengths_kv": lengths} if self.version == 1 else
               {"num_query_heads": HEADS, "softmax_scale": HEAD_DIM**-0.5, "actual_seq_kvlen": lengths}),
        }  # fmt: skip
        operator = self.operator()
        if captured is None:
            return operator(*args, **named)[0].squeeze(1)
        stream, event = torch.npu.current_stream(), torch.npu.ExternalEvent()
        event.wait(stream)
        event.reset(stream)
        output = torch.empty(REQUESTS, 1, HEADS * HEAD_DIM, dtype=torch.bfloat16, device="npu")
        sums = torch.empty(1, dtype=torch.float32, device="npu")
        name = "npu_fused_infer_attention_score" + ("_v2" if self.version == 2 else "")
        named["workspace"] = getattr(torch_npu, f"_{name}_get_max_workspace")(*args, **named)
        torch.npu.graph_task_group_begin(stream)
        operator.out(*args, **named, out=[output, sums])
        captured.handles.append(torch.npu.graph_task_group_end(stream))
        captured.events.append(event)
        weak = torch_npu._C._weak_ref_tensor
        named["out"] = [weak(output), weak(sums)]
        captured.calls.append(((weak(args[0]), *args[1:]), named))
        return output.squeeze(1)

    def operator(self):
        import torch_npu

        names = torch_npu.npu_fused_infer_attention_score, torch_npu.npu_fused_infer_attention_score_v2
        return names[self.version - 1]

    def experts(self, states):
        import torch_npu

        weights, experts, _ = torch_npu.npu_moe_gating_top_k_softmax(states @ self.gate, k=TOP_K)
        rows, places, counts, _ = torch_npu.npu_moe_init_routing_v2(
            states, experts, active_num=REQUESTS * TOP_K, expert_num=EXPERTS, expert_tokens_num_type=1,
            expert_tokens_num_flag=True, active_expert_range=[0, EXPERTS], row_idx_type=0, quant_mode=-1,
        )  # fmt: skip
        options = {"group_list": counts, "split_item": 3, "group_type": 0, "group_list_type": 1}
        inner = torch_npu.npu_swiglu(torch_npu.npu_grouped_matmul([rows], [self.up], **options)[0])
        rows = torch_npu.npu_grouped_matmul([inner], [self.down], **options)[0]
        return torch_npu.npu_moe_finalize_routing(
            rows, skip1=None, skip2=None, bias=None, scales=weights.to(rows.dtype), expanded_src_to_dst_row=places,
            export_for_source_row=None, drop_pad_mode=2,
        )  # fmt: skip


class Decoder:
    """Some layers, twice with the same values: one for the graph, one that runs eagerly."""

    def __init__(self, version: int = 1, layers: int = 2) -> None:
        import torch

        self.layers = [Layer(seed, version) for seed in range(layers)]
        self.eager = [Layer(seed, version) for seed in range(layers)]
        self.states = torch.zeros(REQUESTS, HIDDEN, dtype=torch.bfloat16, device="npu")
        self.slots = torch.zeros(REQUESTS, dtype=torch.int64, device="npu")
        self.table = torch.tensor([[3, 1], [0, 4]], dtype=torch.int32).to("npu")
        self.captured = Captured()
        self.stream = torch.npu.Stream()

    def capture(self):
        import torch

        self.graph = torch.npu.NPUGraph()
        with torch.npu.graph(self.graph):
            self.result = self.run(self.layers, [1] * REQUESTS, self.captured)

    def run(self, layers, lengths, captured=None):
        states = self.states
        for layer in layers:
            states = layer.forward(states, self.slots, self.table, lengths, captured)
        return states

    def set(self, lengths):
        """Put the inputs of a step where the graph reads them; return what an eager step makes of them."""
        import torch

        drawn = torch.Generator().manual_seed(sum(lengths))
        table = self.table.cpu()
        slots = [int(table[row, (n - 1) // PAGE]) * PAGE + (n - 1) % PAGE for row, n in enumerate(lengths)]
        self.slots.copy_(torch.tensor(slots))
        self.states.copy_(torch.randn(REQUESTS, HIDDEN, generator=drawn))
        return self.run(self.eager, lengths).cpu()

    def update(self, lengths, layers=None):
        """Update the attention of all layers, or of some."""
        import torch

        with torch.npu.stream(self.stream):
            for place, (args, named) in enumerate(self.captured.calls):
                if layers is None or place in layers:
                    key = "actual_seq_lengths_kv" if "num_heads" in named else "actual_seq_kvlen"
                    torch.npu.graph_task_update_begin(self.stream, self.captured.handles[place])
                    self.layers[place].operator().out(*args, **{**named, key: lengths})
                    torch.npu.graph_task_update_end(self.stream)
                self.captured.events[place].record(self.stream)

    def same_caches(self):
        import torch

        return all(
            torch.equal(getattr(one, name).cpu(), getattr(other, name).cpu())
            for one, other in zip(self.layers, self.eager, strict=True)
            for name in ("keys", "values")
        )


STEPS = ([3, 200], [4, 201], [128, 7], [129, 256], [1, 1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["update, replay", "replay, update", "another thread"])
def test_a_step_with_updated_lengths_is_the_eager_step(version, order):
    import torch

    decoder = Decoder(version)
    decoder.capture()
    for lengths in STEPS:
        expected = decoder.set(lengths)
        if order == "update, replay":
            decoder.update(lengths)
            decoder.graph.replay()
        elif order == "replay, update":
            decoder.graph.replay()
            later = decoder.result + 1  # waits for its turn behind the replay
            decoder.update(lengths)
            assert torch.equal(later.cpu(), expected + 1)
        else:
            thread = threading.Thread(target=lambda lengths=lengths: (torch.npu.set_device(0), decoder.update(lengths)))
            decoder.graph.replay()
            thread.start()
            torch.npu.current_stream().synchronize()
            thread.join()
        assert torch.equal(decoder.result.cpu(), expected)
        assert decoder.same_caches()


def test_what_is_not_updated_is_stale():
    import torch

    decoder = Decoder()
    decoder.capture()
    expected = decoder.set([5, 130])
    decoder.update([5, 130])
    decoder.graph.replay()
    assert torch.equal(decoder.result.cpu(), expected)
    expected = decoder.set([6, 131])
    decoder.update(None, layers=())  # events only: the lengths are those of the step before
    decoder.graph.replay()
    stale = decoder.run(decoder.eager, [5, 130]).cpu()
    assert torch.equal(decoder.result.cpu(), stale)
    assert not torch.equal(stale, expected)
    decoder.update([6, 131], layers=(0,))  # one layer of two
    decoder.graph.replay()
    assert not torch.equal(decoder.result.cpu(), expected)
    decoder.update([6, 131])
    decoder.graph.replay()
    assert torch.equal(decoder.result.cpu(), expected)


def test_buffers_that_are_not_filled_again_are_stale():
    import torch

    decoder = Decoder()
    decoder.capture()
    decoder.set([5, 130])
    decoder.update([5, 130])
    decoder.graph.replay()
    slots = decoder.slots.clone()
    expected = decoder.set([6, 131])
    decoder.slots.copy_(slots)  # somebody forgot them
    decoder.update([6, 131])
    decoder.graph.replay()
    assert not torch.equal(decoder.result.cpu(), expected)
    assert not decoder.same_caches()


def test_a_tensor_that_takes_the_place_of_a_buffer_is_not_seen():
    import torch

    decoder = Decoder()
    decoder.capture()
    decoder.set([5, 130])
    decoder.update([5, 130])
    decoder.graph.replay()
    before = decoder.result.cpu()
    decoder.states = decoder.states + 1  # a new tensor, and the graph knows the old address
    decoder.update([5, 130])
    decoder.graph.replay()
    assert torch.equal(decoder.result.cpu(), before)


def test_a_replay_waits_for_an_update_of_every_group():
    import torch

    decoder = Decoder()
    decoder.capture()
    expected = decoder.set([3, 200])
    decoder.graph.replay()
    stream = torch.npu.current_stream()
    assert not stream.query()
    decoder.captured.events[0].record(decoder.stream)
    assert not stream.query(), "the second layer waits, too"
    assert not torch.equal(torch_bytes(decoder.result), expected)
    decoder.captured.events[1].record(decoder.stream)
    assert stream.query()
    decoder.update([3, 200])
    decoder.graph.replay()
    assert torch.equal(decoder.result.cpu(), expected)


def torch_bytes(tensor):
    """Look at a tensor's memory without waiting for anybody."""
    from npudiff.device.virtual.memory import same_bytes

    return same_bytes(tensor).clone()


def test_events_of_a_stream_that_waits_are_not_over():
    import torch

    x = torch.ones(3, device="npu")
    external, graph = torch.npu.ExternalEvent(), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        external.wait(torch.npu.current_stream())
        x.add_(1)
    graph.replay()
    behind, other = torch.npu.Event(), torch.npu.Stream()
    behind.record()
    assert not behind.query()
    with torch.npu.stream(other):
        other.wait_event(behind)
        y = x * 10  # another stream, behind the one that waits
    assert not other.query()
    external.record(torch.npu.Stream())
    assert behind.query()
    assert other.query()
    behind.synchronize()
    assert y.tolist() == [20, 20, 20]


def groups():
    """A graph with a group of two kernels."""
    import torch

    x = torch.ones(3, device="npu")
    y, graph = torch.zeros(3, device="npu"), torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        torch.npu.graph_task_group_begin(stream)
        torch.add(x, 1, out=y)
        y.mul_(2)
        handle = torch.npu.graph_task_group_end(stream)
        total = y + 100
    return graph, handle, x, y, total


def test_an_update_replaces_tasks_one_by_one():
    import torch

    graph, handle, x, y, total = groups()
    graph.replay()
    assert total.tolist() == [104] * 3
    stream = torch.npu.Stream()
    with torch.npu.stream(stream):
        torch.npu.graph_task_update_begin(stream, handle)
        torch.add(x, 5, out=y)
        y.mul_(3)
        torch.npu.graph_task_update_end(stream)
    assert y.tolist() == [4] * 3, "an update runs nothing"
    graph.replay()
    assert total.tolist() == [118] * 3


def test_task_groups_are_refused_as_on_a_card():
    import torch

    graph, handle, x, y, _ = groups()
    stream, other = torch.npu.Stream(), torch.npu.Stream()
    begin, end = torch.npu.graph_task_update_begin, torch.npu.graph_task_update_end
    with pytest.raises(RuntimeError, match="107029"):
        torch.npu.graph_task_group_begin(stream)  # which is not captured
    with pytest.raises(RuntimeError, match="107033"):
        end(stream)
    with torch.npu.stream(stream):
        begin(stream, handle)
        with pytest.raises(RuntimeError, match="107033"):
            begin(other, handle)
        torch.add(x, 5, out=y)
        with pytest.raises(RuntimeError, match="507000"):
            end(stream)  # one of two
        begin(stream, handle)
        with pytest.raises(RuntimeError, match="507009"):
            torch.npu.ExternalEvent().record(stream)  # no operator
        torch.add(x, 1, out=y)
        y.mul_(2)
        with pytest.raises(RuntimeError, match="507000"):
            y.mul_(2)  # a third
        end(stream)
    graph.replay()
    assert y.tolist() == [4] * 3

    def captured(body):
        with torch.npu.graph(torch.npu.NPUGraph()):
            body(torch.npu.current_stream())

    group = torch.npu.graph_task_group_begin
    with pytest.raises(RuntimeError, match="107033"):
        captured(group)  # which stays open
    with pytest.raises(RuntimeError, match="107033"):
        captured(lambda stream: (group(stream), group(stream)))
    with pytest.raises(RuntimeError, match="107027"):
        captured(lambda stream: begin(stream, handle))

    def no_operator(stream):
        event = torch.npu.ExternalEvent()
        group(stream)
        with pytest.raises(RuntimeError, match="507009"):
            event.record(stream)
        torch.npu.graph_task_group_end(stream)

    captured(no_operator)
    graph.reset()
    with pytest.raises(RuntimeError, match="107000"):
        begin(stream, handle)
    assert (x + 1).tolist() == [2] * 3


def test_the_function_that_updates_attention_in_one_call_does():
    import torch
    import torch_npu

    query, keys = (torch.randn(1, 4, length, 64, dtype=torch.float16, device="npu") for length in (1, 96))
    named = {"num_heads": 4, "input_layout": "BNSD", "scale": 0.125}
    out = [torch.empty_like(query), torch.empty(1, dtype=torch.float32, device="npu")]
    event, graph = torch.npu.ExternalEvent(), torch.npu.NPUGraph()
    operator = torch_npu.npu_fused_infer_attention_score
    with torch.npu.graph(graph):
        stream = torch.npu.current_stream()
        event.wait(stream)
        torch.npu.graph_task_group_begin(stream)
        operator.out(query, keys, keys, actual_seq_lengths_kv=[96], **named, out=out)
        handle = torch.npu.graph_task_group_end(stream)
    stream = torch.npu.Stream()
    with torch.npu.stream(stream):
        result = torch_npu._C._npu_fused_infer_attention_score_out_graph(
            stream, handle, event, query, keys, keys, actual_seq_lengths_kv=[7], **named, out=out
        )
    assert result[0].data_ptr() == out[0].data_ptr()
    graph.replay()
    assert torch.equal(out[0].cpu(), operator(query, keys, keys, actual_seq_lengths_kv=[7], **named)[0].cpu())


def test_the_dispatch_mode_of_torch_npu_updates_by_names():
    import torch
    import torch_npu

    query, keys = (torch.randn(1, 4, length, 64, dtype=torch.float16, device="npu") for length in (1, 96))
    named = {"num_heads": 4, "input_layout": "BNSD", "scale": 0.125}

    def attention(length):
        return torch_npu.npu_fused_infer_attention_score(query, keys, keys, actual_seq_lengths_kv=[length], **named)[0]

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        output = attention(96)
    for length in (5, 70):
        graph.update(cpu_update_input=[{"actual_seq_lengths_kv": [length]}])
        graph.replay()
        assert torch.equal(output.cpu(), attention(length).cpu())
    graph.update(cpu_update_input=[{"actual_seq_kvlen": [3]}])  # a key of another version: nobody says anything
    graph.replay()
    assert torch.equal(output.cpu(), attention(70).cpu())


def test_a_mask_may_be_made_by_the_graph_that_uses_it():
    import torch
    import torch_npu

    heads, tokens = 2, 4
    query = torch.randn(tokens, heads, HEAD_DIM, dtype=torch.bfloat16).to("npu")
    pages = torch.randn(2, PAGE, heads * HEAD_DIM, dtype=torch.bfloat16).to("npu")
    table = torch.tensor([[1]], dtype=torch.int32, device="npu")
    upper = torch.triu(torch.ones(2048, 2048, dtype=torch.bool), diagonal=1).to("npu")

    def attention():
        return torch_npu.npu_fused_infer_attention_score_v2(
            query, pages, pages, num_query_heads=heads, num_key_value_heads=heads, input_layout="TND", sparse_mode=3,
            atten_mask=upper.to(torch.int8), block_table=table, block_size=PAGE, actual_seq_qlen=[tokens],
            actual_seq_kvlen=[9],
        )[0]  # fmt: skip

    eager = attention().cpu()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        captured = attention()
    graph.replay()
    torch.npu.synchronize()
    assert torch.equal(captured.cpu(), eager)
