"""Captured graphs of sglang around one layer: its runner, which captures, and fills, updates and replays a graph.

``NPUGraphRunner`` is sglang's, given a layer in place of a model: ``execute``, capture, update and replay are its own.
What stands here are the static buffers that it makes for a model, and fills before a replay.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.hardware_backend.npu.graph_runner.npu_cudagraph_backend import NPUCudaGraphBackend
from sglang.srt.hardware_backend.npu.graph_runner.npu_graph_runner import NPUGraphRunner
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode, PPProxyTensors
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner, build_replay_fb_view

from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.attention_world import AttentionWorld, forward_batch
from npudiff.device.backends.sglang.latent_world import LatentWorld
from npudiff.device.backends.sglang.pool_world import DEVICE
from npudiff.device.backends.sglang.world import alone

_NPU: Any = torch.get_device_module("npu")

BUCKETS = (4, 8, 16, 32, 64, 128, 256)
"""Batches that are captured, as with ``--cuda-graph-bs 4 8 16 ...``."""


STATES = frozenset({"q", "k", "v", "q_rope", "k_rope"})
"""Arguments of a layer that the layers before it leave in the graph's memory."""


@dataclass(frozen=True)
class Recorded:
    """What is captured: a layer of a model, in a pass of one kind."""

    world: AttentionWorld | LatentWorld
    mode: ForwardMode
    width: int
    """Tokens of each request."""
    architecture: str
    """Of the model, by which the runner tells which argument of the operator holds the lengths."""
    early_stage: bool
    """Whether it is in an early stage of a pipeline, which hands hidden states on, and no logits."""

    @property
    def bucket(self) -> int:
        """Requests of the graph, some of which are padding."""
        return bucket_of(len(self.world.inputs.kv_lengths))


def bucket_of(requests: int) -> int:
    """Return how many requests a graph has that is replayed with these."""
    return min(bucket for bucket in BUCKETS if bucket >= requests)


@dataclass(frozen=True)
class Static:
    """What a captured pass reads of a batch: memory that stays where it is."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    req_pool_indices: torch.Tensor
    seq_lens: torch.Tensor
    seq_lens_cpu: torch.Tensor
    out_cache_loc: torch.Tensor
    states: Mapping[str, torch.Tensor]
    """Arguments of the layer: queries, keys and values, a row per token."""
    encoder_lens: None = None
    mamba_track_indices: None = None


class _OfLayer(DecodeCudaGraphRunner):  # type: ignore[misc] # sglang's, which has no types
    """What a runner of sglang does around a model, around a layer."""

    def __init__(self, model_runner: Any, **unused: object) -> None:  # noqa: ANN401 - what ``run`` makes
        del unused
        recorded: Recorded = model_runner.recorded
        self.recorded, self.model_runner, self.attn_backend = recorded, model_runner, recorded.world.backend
        self.bs, self.captured_req_width = recorded.bucket, recorded.width
        self.capture_forward_mode = recorded.mode
        self.is_dllm = self.is_encoder_decoder = False
        self.attn_backend.init_cuda_graph_state(self.bs, self.bs * recorded.width)
        self.seq_len_fill_value = self.attn_backend.get_cuda_graph_seq_len_fill_value()
        self.buffers = self._static(recorded)
        self.backend = NPUCudaGraphBackend(
            SimpleNamespace(device_module=_NPU, enable_torch_compile=False, model_runner=model_runner)
        )
        self._capture_layer(recorded)

    def _static(self, recorded: Recorded) -> Static:
        """Make the buffers as they are at a capture: requests of no tokens."""
        tokens, lengths = self.bs * recorded.width, torch.full((self.bs,), self.seq_len_fill_value, dtype=torch.int64)
        zeros = torch.zeros(tokens, dtype=torch.int64, device=DEVICE)
        states = {
            name: states.new_zeros(tokens, *states.shape[1:])
            for name, states in recorded.world.arguments.items()
            if name in STATES and states is not None
        }
        requests = torch.zeros(self.bs, dtype=torch.int64, device=DEVICE)
        slots = zeros.to(self._cache_loc_dtype())
        return Static(zeros, zeros.clone(), requests, lengths.to(DEVICE), lengths, slots, states)

    def _capture_layer(self, recorded: Recorded) -> None:
        """Capture a pass over the buffers, after two that are not captured."""
        world, static = recorded.world, self.buffers
        batch = replace(
            world.batch, forward_mode=recorded.mode, batch_size=self.bs, input_ids=static.input_ids,
            positions=static.positions, req_pool_indices=static.req_pool_indices, seq_lens=static.seq_lens,
            seq_lens_cpu=static.seq_lens_cpu, out_cache_loc=static.out_cache_loc,
        )  # fmt: skip
        batch.global_num_token_non_padded_cpu = len(static.input_ids)
        batch.spec_algorithm = self.model_runner.spec_algorithm
        world.backend.init_forward_metadata_out_graph(batch, in_capture=True)
        pass_of = world.backend.forward_decode if recorded.mode == ForwardMode.DECODE else world.backend.forward_extend
        given = {**world.arguments, **static.states, "forward_batch": batch, "save_kv_cache": True}

        def once() -> LogitsProcessorOutput | PPProxyTensors:
            answer = pass_of(**given)
            return PPProxyTensors({"hidden_states": answer}) if recorded.early_stage else LogitsProcessorOutput(answer)

        with self.backend.capture_session(_NPU.Stream()):
            self.backend.capture_one(self._make_graph_key(self.bs), once)

    def load_batch(self, forward_batch: ForwardBatch, pp_proxy_tensors: object = None) -> None:
        """Fill the buffers, with padding behind the requests, and have the backend bring its metadata up to date."""
        del pp_proxy_tensors
        self.raw_bs, self.raw_num_token = forward_batch.batch_size, len(forward_batch.input_ids)
        static = self.buffers
        for buffer, now, rest in (
            (static.req_pool_indices, forward_batch.req_pool_indices, 0),
            (static.seq_lens, forward_batch.seq_lens, self.seq_len_fill_value),
            (static.seq_lens_cpu, forward_batch.seq_lens_cpu, self.seq_len_fill_value),
            (static.out_cache_loc, forward_batch.out_cache_loc, 0),
        ):
            buffer.fill_(rest)
            buffer[: len(now)].copy_(now)
        known = inspect.signature(build_replay_fb_view).parameters
        wanted = {
            "forward_batch": forward_batch, "buffers": static, "bs": self.bs, "raw_bs": self.raw_bs,
            "num_tokens": self.bs * self.captured_req_width, "global_num_tokens_cpu": None,
            "seq_len_fill_value": self.seq_len_fill_value, "capture_forward_mode": self.capture_forward_mode,
            "is_encoder_decoder": False,
        }  # fmt: skip
        view = build_replay_fb_view(**{name: value for name, value in wanted.items() if name in known})
        self.attn_backend.init_forward_metadata_out_graph(view)


class GraphRunner(NPUGraphRunner, _OfLayer):  # type: ignore[misc] # sglang's, which has no types
    """sglang's runner of graphs, of one layer."""

    def run(self, batch: ForwardBatch, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Replay the graph with a batch.

        Parameters
        ----------
        batch : ForwardBatch
            The real requests.
        states : mapping
            Queries, keys and values of their tokens, as the layers before would leave them in the graph's memory.

        Returns
        -------
        torch.Tensor
            What the layer returned, ``[tokens, columns]``, or fewer rows where the runner cuts them off.
        """
        for name, buffer in self.buffers.states.items():
            buffer.fill_(1)
            buffer[: len(states[name])].copy_(states[name])
        answer = self.execute(batch)
        said: torch.Tensor = answer.tensors["hidden_states"] if self.recorded.early_stage else answer.next_token_logits
        return said

    def run_before(self, poison: float) -> None:
        """Replay the graph with another batch than the one to come: more requests, all longer, whose tokens are poison.

        They have the pages of the first request, and page 0 beyond them, where padding is written and nobody reads.
        """
        world, width = self.recorded.world, self.recorded.width
        longest = max((*world.inputs.kv_lengths, 1)) + PAGE
        batch = forward_batch(
            self.recorded.mode, world.backend.req_to_token_pool, [width] * self.bs, [longest] * self.bs,
            drafts=width if self.recorded.mode == ForwardMode.TARGET_VERIFY else None, rows=[1] * self.bs,
        )  # fmt: skip
        batch.out_cache_loc.zero_()
        states = {name: torch.full_like(buffer, poison) for name, buffer in self.buffers.states.items()}
        self.run(batch, states)


def graph_runner(recorded: Recorded) -> GraphRunner:
    """Capture a layer."""
    group = alone()
    config = SimpleNamespace(
        hf_config=SimpleNamespace(architectures=[recorded.architecture]), attention_arch=None, is_encoder_decoder=False
    )
    return GraphRunner(
        SimpleNamespace(
            recorded=recorded, model_config=config, spec_algorithm=recorded.world.algorithm, tp_group=group,
            device="npu", gpu_id=0,
        )
    )  # fmt: skip
