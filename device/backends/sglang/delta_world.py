"""sglang's backend of gated delta networks as its model runner calls it: pools of states, a layer, a batch.

Slot 0 of a pool belongs to rows that pad a graph. What kernels of sgl-kernel-npu in Triton make of a layer's rows
before the operators, decays, betas and normalised rows, is handed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from sglang.srt.hardware_backend.npu.attention import ascend_gdn_backend
from sglang.srt.layers.attention.linear.utils import LinearAttnKernelBackend
from sglang.srt.layers.radix_linear_attention import RadixLinearAttention
from sglang.srt.mem_cache.memory_pool import MambaPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from npudiff.device.backends.sglang.attention_world import forward_batch
from npudiff.device.backends.sglang.world import configured

MOST_DRAFT = 8
"""Tokens of a request that the operator for drafts takes."""

Rows = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Heads and dims of a layer, of one rank."""

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int


class Convolved(Exception):
    """What a layer has made when it is left behind its convolution: ``[tokens, channels]``."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__("the convolution is done")
        self.rows = rows


@dataclass(frozen=True)
class DeltaWorld:
    """What a pass of one layer needs."""

    backend: Any
    layer: RadixLinearAttention
    batch: ForwardBatch
    in_graph: bool = False
    """Whether metadata are those of a graph, whose buffers are of the batch's size."""

    def run(self, mixed: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of rows, ``[1, tokens, heads, value_dim]`` or without the first axis."""
        decodes = self.batch.forward_mode == ForwardMode.DECODE
        forward = self.backend.forward_decode if decodes else self.backend.forward_extend
        empty = mixed.new_zeros(len(mixed), self.layer.num_v_heads)
        if self.in_graph:
            self.backend.init_cuda_graph_state(self.batch.batch_size, len(mixed))
            self.backend.init_forward_metadata_out_graph(self.batch)
        else:
            self.backend.init_forward_metadata(self.batch)
        answer: torch.Tensor = forward(self.layer, self.batch, mixed, empty, empty)
        return answer

    def convolved(self, mixed: torch.Tensor) -> torch.Tensor:
        """Leave the layer where its convolution is done, and return what came out."""
        self.backend.kernel_dispatcher = SimpleNamespace(decode=lambda q, k, v, **_: leave(q, k, v))
        self.backend.chunk_gdn = lambda q, k, v, *_: leave(q, k, v)
        self.backend.fused_recurrent_gated_delta_rule_update = lambda rows, *_, **__: leave(rows)
        nothing = mixed.new_zeros(len(mixed), self.layer.num_v_heads)
        with handed_in(nothing, nothing):
            try:
                self.run(mixed)
            except Convolved as done:
                return done.rows
        raise ValueError("the layer did not come to what is behind its convolution")


def leave(*parts: torch.Tensor) -> None:
    """Leave a layer with rows that are one, or queries, keys and values."""
    raise Convolved(torch.cat([part.flatten(0, -2) if len(parts) == 1 else _by_token(part) for part in parts], dim=-1))


def _by_token(part: torch.Tensor) -> torch.Tensor:
    """From ``[..., tokens, heads, dim]`` to ``[tokens, heads * dim]``."""
    return part.reshape(-1, part.shape[-2] * part.shape[-1])


def delta_world(
    mode: ForwardMode, sizes: Sizes, weight: torch.Tensor, bias: torch.Tensor | None, pools: Sequence[torch.Tensor],
    requests: Sequence[tuple[int, int, int]], *, drafts: int | None = None, padding: int | None = None,
    of: Callable[[SimpleNamespace], Any] | None = None,
) -> DeltaWorld:  # fmt: skip
    """Build the world of a pass.

    Parameters
    ----------
    mode : ForwardMode
        Extend, decode or target verify.
    sizes : Sizes
        Of the layer.
    weight : torch.Tensor
        ``[width, channels]``, of the convolution.
    bias : torch.Tensor or None
        ``[channels]``.
    pools : sequence of torch.Tensor
        Lines ``[slots, rows, channels]`` and states ``[slots, heads, value_dim, key_dim]``; where drafts are verified,
        states behind each of their tokens besides, ``[requests, drafts, heads, value_dim, key_dim]``.
    requests : sequence of tuple
        Tokens of each, tokens that were there before, and its slot.
    drafts : int, optional
        Draft tokens of each request.
    padding : int, optional
        Requests that fill a graph, in slot 0; eagerly where nothing is said.
    of : callable, optional
        Which backend; that of gated delta networks where nothing is said.
    """
    configured()
    added = padding or 0
    rows = [*range(1, len(requests) + 1), *[0] * added]
    requests = [*requests, *[(drafts or 1, 0 if drafts else -1, 0)] * added]  # none of their tokens was there before
    lengths, before, slots = ([one[place] for one in requests] for place in range(3))
    table = ReqToTokenPool(len(lengths), max(map(sum, zip(lengths, before, strict=True))) + 1, weight.device, False)
    known = [new + old for new, old in zip(lengths, before, strict=True)]
    batch = forward_batch(mode, table, lengths, known, drafts=drafts, rows=rows)
    if mode == ForwardMode.EXTEND:
        batch.extend_start_loc = batch.extend_seq_lens.cumsum(dim=0).to(torch.int32) - batch.extend_seq_lens
    backend = (of or ascend_gdn_backend.AscendGDNAttnBackend)(_runner(pools, slots))
    layer = RadixLinearAttention(
        0, sizes.key_heads, sizes.key_heads, sizes.heads, sizes.key_dim, sizes.key_dim, sizes.value_dim,
        conv_weights=weight.t().contiguous(), bias=bias,
    )  # fmt: skip
    return DeltaWorld(backend, layer, batch, padding is not None)


def _runner(pools: Sequence[torch.Tensor], slots: Sequence[int]) -> SimpleNamespace:
    """Return what the backend's constructor reads of the runner of a model, with pools of one layer."""
    lines, states, *each = pools
    cache = MambaPool.State(conv=[lines], temporal=states)
    if each:
        cache = MambaPool.SpeculativeState(
            conv=[lines], temporal=states, intermediate_ssm=each[0], intermediate_conv_window=[lines]
        )
    whole = SimpleNamespace(conv=[lines.unsqueeze(0)])
    of_rows = torch.tensor([0, *slots], dtype=torch.int32, device=lines.device)
    pool = SimpleNamespace(
        size=len(slots),
        mamba_pool=SimpleNamespace(mamba_cache=whole, replayssm_write_pos=None, enable_linear_replayssm=False),
        get_mamba_indices=lambda rows: of_rows[rows],
        translate_mamba_indices=lambda indices: indices,
        mamba2_layer_cache=lambda _layer: cache,
    )
    triton = LinearAttnKernelBackend.TRITON
    return SimpleNamespace(
        server_args=SimpleNamespace(enable_mis=False),
        device=lines.device,
        is_draft_worker=False,
        req_to_token_pool=pool,
        token_to_kv_pool=None,
        linear_attn_backends=SimpleNamespace(decode=triton, prefill=triton, verify=triton),
    )


@contextlib.contextmanager
def handed_in(gate: torch.Tensor, beta: torch.Tensor) -> Iterator[None]:
    """Let a layer find decays and betas, ``[tokens, heads]``, and rows that are normalised."""
    gating: Callable[..., Rows] = lambda *_: (gate, beta)  # noqa: E731
    with mock.patch.multiple(
        ascend_gdn_backend,
        fused_gdn_gating=gating,
        fused_gdn_gating_kernel_without_sigmoid=gating,
        l2norm_fwd=lambda rows: rows,
        prepare_chunk_indices=_chunks,
    ):
        yield


def _chunks(ends: torch.Tensor, size: int) -> torch.Tensor:
    """As many rows as there are chunks: the layer asks for no more."""
    return ends.new_zeros(int(((ends.diff() + size - 1) // size).sum()), 2)


@contextlib.contextmanager
def convolved_already() -> Iterator[None]:
    """Let the convolution return its rows: SiLU is always behind it there, which no rows make a case's."""
    with mock.patch.object(torch.ops.npu, "causal_conv1d", lambda rows, *_, **__: rows):
        yield
