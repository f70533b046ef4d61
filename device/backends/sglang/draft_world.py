"""Drafting of tokens on sglang: the steps of a draft model around one layer, in one captured graph.

``AscendAttnMultiStepDraftBackend`` and ``EAGLEDraftNpuGraphRunner`` are sglang's: metadata of each step, and what an
update of the graph hands over, are their own. What stands here are static buffers, and a layer in place of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt import runtime_context
from sglang.srt.hardware_backend.npu.attention.ascend_backend import AscendAttnMultiStepDraftBackend
from sglang.srt.hardware_backend.npu.graph_runner.eagle_draft_npu_graph_runner import EAGLEDraftNpuGraphRunner
from sglang.srt.hardware_backend.npu.graph_runner.npu_cudagraph_backend import NPUCudaGraphBackend
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_utils import per_step_draft_out_cache_loc

from npudiff.device.backends.sglang.attention_world import AttentionWorld, forward_batch, model_runner
from npudiff.device.backends.sglang.graph_world import STATES, bucket_of
from npudiff.device.backends.sglang.latent_world import LatentWorld
from npudiff.device.backends.sglang.pool_world import DEVICE
from npudiff.device.backends.sglang.world import alone

_NPU: Any = torch.get_device_module("npu")


@dataclass(frozen=True)
class Drafted:
    """A layer of a model that drafts: the last of its passes is what a case is about.

    The pass before the last draft is the last: what it draws is not passed on.
    """

    world: AttentionWorld | LatentWorld
    steps: int
    """``speculative_num_steps``."""
    layers: int
    """Of the draft model: all of them are the same here, over the same pages."""

    @property
    def passes(self) -> int:
        """How often the model runs."""
        return self.steps - 1

    @property
    def bucket(self) -> int:
        """Requests of the graph, some of which are padding."""
        return bucket_of(len(self.world.inputs.kv_lengths))

    def backend(self) -> AscendAttnMultiStepDraftBackend:
        """Build the backend of all steps, as the worker of drafts does."""
        own, context = self.world.backend, runtime_context.get_context()
        context.override("npudiff", speculative_num_draft_tokens=self.steps + 1)
        try:
            runner = model_runner(own.token_to_kv_pool, own.req_to_token_pool, self.world.model, drafting=True)
            return AscendAttnMultiStepDraftBackend(runner, 1, self.steps)
        finally:
            context.override("npudiff", speculative_num_draft_tokens=None)


class DraftRunner(EAGLEDraftNpuGraphRunner):  # type: ignore[misc] # sglang's, which has no types
    """sglang's runner of graphs of drafts, of one layer.

    Parameters
    ----------
    drafted : Drafted
        What is captured.
    """

    def __init__(self, drafted: Drafted) -> None:
        group = alone()
        self._init_arch_map()
        self.drafted, self.bs, self.speculative_num_steps = drafted, drafted.bucket, drafted.steps
        config = SimpleNamespace(hf_config=SimpleNamespace(architectures=["LlamaForCausalLMEagle3"]))
        self.model_runner = SimpleNamespace(model_config=config, tp_group=group, device=DEVICE, gpu_id=0)
        self.draft_attn_backend = drafted.backend()
        self.draft_attn_backend.init_cuda_graph_state(self.bs, self.bs)
        self.fill = self.draft_attn_backend.attn_backends[0].get_cuda_graph_seq_len_fill_value()
        lengths = torch.full((self.bs,), self.fill, dtype=torch.int64)
        requests = torch.zeros(self.bs, dtype=torch.int64, device=DEVICE)
        self.slots = torch.zeros(self.bs * drafted.steps, dtype=self._cache_loc_dtype(), device=DEVICE)
        self.states = [
            {
                name: states.new_zeros(self.bs, *states.shape[1:])
                for name, states in drafted.world.arguments.items()
                if name in STATES and states is not None
            }
            for _ in range(drafted.passes)
        ]
        self.batch = _batch(drafted, requests, lengths, self.slots)
        self.backend = NPUCudaGraphBackend(
            SimpleNamespace(device_module=_NPU, enable_torch_compile=False, model_runner=self.model_runner)
        )
        self.draft_attn_backend.init_forward_metadata_out_graph(self.batch, in_capture=True)
        with self.backend.capture_session(_NPU.Stream()):
            self.backend.capture_one(self._make_graph_key(self.bs), self._once)

    def _once(self) -> torch.Tensor:
        """Run all passes, each over its own rows and slots; the last one's answer is returned."""
        slots = per_step_draft_out_cache_loc(self.slots, self.bs, 1, self.drafted.steps)
        answer = self.slots
        for step, states in enumerate(self.states):
            batch = replace(self.batch, out_cache_loc=slots[step])
            given = {**self.drafted.world.arguments, **states, "forward_batch": batch, "save_kv_cache": True}
            for _ in range(self.drafted.layers):
                answer = self.draft_attn_backend.attn_backends[step].forward_decode(**given)
        return answer

    def run(self, slots: torch.Tensor, states: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """Replay the graph with the requests of the case.

        Parameters
        ----------
        slots : torch.Tensor
            int64 ``[requests, steps]``, where the tokens of each request go.
        states : sequence of mapping
            Queries, keys and values of each pass, a row per request.
        """
        inputs, requests = self.drafted.world.inputs, len(slots)
        self.slots.zero_()
        self.slots[: slots.numel()].copy_(slots.flatten())
        for buffers, given in zip(self.states, states, strict=True):
            for name, buffer in buffers.items():
                buffer.fill_(1)
                buffer[:requests].copy_(given[name])
        lengths = torch.full((self.bs,), self.fill, dtype=torch.int64)
        lengths[:requests] = torch.tensor(inputs.kv_lengths) - self.drafted.passes
        self.batch.req_pool_indices[:requests] = torch.arange(1, requests + 1, device=DEVICE)
        self.batch.seq_lens.copy_(lengths)
        self.batch.seq_lens_cpu = lengths
        self.raw_bs = requests
        self.draft_attn_backend.init_forward_metadata_out_graph(self.batch)
        key = self._make_graph_key(self.bs)
        try:
            answer: torch.Tensor = self._replay_graph(key, self.batch)
        except BaseException:
            self._release(key)
            raise
        return answer[:requests]

    def _release(self, key: object) -> None:
        """Let a replay go on whose lengths were refused: it would wait for them for ever."""
        updates = _NPU.Stream()
        for record in self.backend._graphs[key].graph_dispatch_mode.graph_dispatch_records:
            record.event.record(updates)
        _NPU.synchronize()


def _batch(drafted: Drafted, requests: torch.Tensor, lengths: torch.Tensor, slots: torch.Tensor) -> ForwardBatch:
    """Return the batch of a graph, whose requests have no tokens yet."""
    count = len(requests)
    pool = drafted.world.backend.req_to_token_pool
    made = forward_batch(ForwardMode.DECODE, pool, [0] * count, [0] * count, rows=[0] * count)
    made.req_pool_indices, made.seq_lens, made.seq_lens_cpu = requests, lengths.to(DEVICE), lengths
    made.input_ids, made.out_cache_loc = torch.zeros(count, dtype=torch.int64, device=DEVICE), slots
    made.spec_info = EagleDraftInput()
    made.global_num_token_non_padded_cpu = count
    return made


def drafted_rows(drafted: Drafted, poison: float) -> torch.Tensor:
    """Capture the passes of a draft model, replay them with a case, and return what the last one answered.

    Every pass has the query of the case, and the keys and values of the token at its place, which were taken out of the
    pool before.
    """
    world, inputs = drafted.world, drafted.world.inputs
    table = world.backend.req_to_token_pool.req_to_token
    first = [kv - drafted.passes for kv in inputs.kv_lengths]
    rows = [table[row, start : start + drafted.passes] for row, start in enumerate(first, 1)]
    slots = torch.stack(rows).long()
    query = {name: states for name, states in world.arguments.items() if name in ("q", "q_rope") and states is not None}
    states = [{**query, **world.taken_out(poison, slots[:, step])} for step in range(drafted.passes)]
    return DraftRunner(drafted).run(torch.nn.functional.pad(slots, (0, 1)), states)
