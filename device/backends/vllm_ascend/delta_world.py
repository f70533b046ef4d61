"""vllm-ascend's layer of linear attention as its model runner calls it: metadata of its own builder, pools, a batch."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn import QwenGatedDeltaNetAttention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm_ascend.ops import gdn, gdn_attn_builder

from npudiff.device.backends.vllm_ascend.world import (
    ascend_configuration,
    engine,
    engine_config,
    patched,
    triton_found,
)

LAYER = "model.layers.0.linear_attn"

MOST_DRAFT = 16
"""Tokens of a request that the operator for drafts takes."""

_CORES = 2
"""Cores that Triton kernels of prompts are told of: each is a program of the interpreter, and they share the work."""

_ALONE = SimpleNamespace(world_size=1, rank_in_group=0)


@dataclass(frozen=True)
class Requests:
    """The requests of one step, in the order of the batch."""

    lengths: Sequence[int]
    blocks: torch.Tensor
    """int32 ``[requests, blocks]``: their blocks of the pools; one, or one for each token of a draft."""
    computed: Sequence[int]
    """Tokens of each that earlier steps computed: 0 where there is no history."""
    prefilling: Sequence[bool]
    """Whether the tokens are of a prompt."""
    accepted: torch.Tensor | None = None
    """int32 ``[requests]``, where all have drafts: tokens of the step before that were accepted."""
    padding: tuple[int, int] | None = None
    """Requests and tokens that fill a graph, which has block 0 for them; None eagerly."""

    def filled(self) -> Requests:
        """Return those of a graph: behind them are others that have no tokens."""
        more, _ = self.padding or (0, 0)
        blocks = torch.cat([self.blocks, self.blocks.new_zeros(more, self.blocks.shape[1])])
        others = [0] * more
        accepted = None if self.accepted is None else torch.cat([self.accepted, self.accepted.new_ones(more)])
        return Requests(
            [*self.lengths, *others], blocks, [*self.computed, *others], [*self.prefilling, *[False] * more], accepted,
            self.padding,
        )  # fmt: skip


def metadata(requests: Requests, heads: int, drafts: int, device: torch.device) -> Any:  # noqa: ANN401 - vllm-ascend's
    """Return what vllm-ascend's builder makes of a batch, inside ``here``.

    Parameters
    ----------
    requests : Requests
        None of them without tokens.
    heads : int
        Of values.
    drafts : int
        How many tokens are drafted at most; 0 without a drafter.
    device : torch.device
        Where the pools are.
    """
    graph, real = requests.padding is not None, len(requests.lengths)
    requests = requests.filled()
    starts = torch.tensor([0, *requests.lengths]).cumsum(dim=0).to(torch.int32)
    rows = int(starts[-1]) + (requests.padding[1] if requests.padding else 0)
    known = torch.tensor(requests.computed, dtype=torch.int32) + torch.tensor(requests.lengths, dtype=torch.int32)
    common = CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=known.to(device),
        num_reqs=len(requests.lengths),
        num_actual_tokens=rows,
        max_query_len=max(requests.lengths),
        max_seq_len=int(known.max()),
        block_table_tensor=requests.blocks.to(device),
        slot_mapping=torch.zeros(rows, dtype=torch.int64, device=device),
        is_prefilling=torch.tensor(requests.prefilling),
    )
    spec = SimpleNamespace(block_size=1, num_speculative_blocks=drafts)
    config = _config(heads, drafts, graph=graph)
    builder = gdn_attn_builder.AscendGDNAttentionMetadataBuilder(spec, [LAYER], config, device)
    if requests.accepted is None:
        return builder.build(0, common)
    drafted = torch.tensor(requests.lengths, dtype=torch.int32) - 1
    drafted[real:] = -1
    return builder.build(0, common, requests.accepted.to(device), drafted)


def _config(heads: int, drafts: int, *, graph: bool) -> SimpleNamespace:
    config = engine_config(torch.bfloat16)
    config.compilation_config.cudagraph_mode = SimpleNamespace(has_full_cudagraphs=lambda: graph)
    config.compilation_config.max_cudagraph_capture_size = None
    config.scheduler_config = SimpleNamespace(max_num_seqs=4096)
    config.cache_config = SimpleNamespace(mamba_cache_mode="none")
    config.model_config.hf_text_config = SimpleNamespace(linear_num_value_heads=heads)
    if drafts:
        config.speculative_config = SimpleNamespace(
            num_speculative_tokens=drafts, parallel_drafting=False, method="mtp"
        )
    return config


@contextlib.contextmanager
def here(**values: object) -> Iterator[None]:
    """Be on the only rank, where modules of the layer find these under their names."""
    alone = {"get_pcp_group": lambda: _ALONE}
    with patched(gdn, {**alone, **values}), patched(gdn_attn_builder, alone):
        yield


@dataclass(frozen=True)
class Sizes:
    """Heads and dims of a layer, of one rank."""

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int


def layer(
    sizes: Sizes, weight: torch.Tensor, bias: torch.Tensor | None, pools: tuple[torch.Tensor, torch.Tensor], *,
    activation: bool,
) -> Any:  # fmt: skip  # noqa: ANN401 - vllm's
    """Return the layer that models have, with what its core reads.

    Parameters
    ----------
    sizes : Sizes
        Of the rank.
    weight : torch.Tensor
        ``[width, channels]``, of the convolution.
    bias : torch.Tensor or None
        ``[channels]``.
    pools : tuple
        Lines ``[blocks, rows, channels]``, and states ``[blocks, heads, value_dim, key_dim]``.
    activation : bool
        Whether SiLU follows the convolution.
    """
    made: Any = QwenGatedDeltaNetAttention.__new__(QwenGatedDeltaNetAttention)
    torch.nn.Module.__init__(made)
    device = weight.device
    made.prefix, made.tp_size, made.activation, made.kv_cache = LAYER, 1, "silu" if activation else "", pools
    made.head_k_dim, made.head_v_dim = sizes.key_dim, sizes.value_dim
    made.key_dim, made.value_dim = sizes.key_heads * sizes.key_dim, sizes.heads * sizes.value_dim
    made.conv1d = SimpleNamespace(weight=weight.t().contiguous().unsqueeze(1), bias=bias)
    made.A_log, made.dt_bias = torch.zeros(sizes.heads, device=device), torch.zeros(sizes.heads, device=device)
    return made


def run_core(made: Any, known: Any, mixed: torch.Tensor, beta: torch.Tensor, output: torch.Tensor) -> None:  # noqa: ANN401
    """Run the core of a layer as its custom operator does, inside ``here``."""
    with engine(engine_config(mixed.dtype), ascend_configuration(), attn_metadata={LAYER: known}):
        gdn.AscendGatedDeltaNetAttention._forward_core(made, mixed, beta, torch.zeros_like(beta), output)


class Convolved(Exception):
    """What a layer has made when it is left behind its convolution."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__("the convolution is done")
        self.rows = rows


def leave_behind_convolution(made: Any) -> None:  # noqa: ANN401 - vllm's
    """Let a layer raise what its convolution made, where it would split it into queries, keys and values."""

    def split(rows: torch.Tensor | None) -> tuple[None, None, None]:
        if rows is not None:
            raise Convolved(rows)
        return None, None, None

    made.rearrange_mixed_qkv = split


@contextlib.contextmanager
def handed_in(gate: torch.Tensor, beta: torch.Tensor) -> Iterator[None]:
    """Let the layer find decays ``[1, tokens, heads]`` and betas that a case has, and rows that are normalised."""
    device_op = importlib.import_module("vllm_ascend.device.device_op").DeviceOperator
    given: Callable[..., tuple[torch.Tensor, torch.Tensor]] = lambda *_: (gate, beta)  # noqa: E731
    with mock.patch.object(device_op, "fused_gdn_gating", staticmethod(given)), here(l2norm_fwd=lambda rows: rows):
        yield


@contextlib.contextmanager
def triton_pipeline() -> Iterator[None]:
    """Let the layer find no operator for prompts, and its Triton kernels, whose rows are normalised.

    Raises
    ------
    StubCalled
        If Triton is not here.
    """
    with triton_found():
        chunk = importlib.import_module("vllm_ascend.ops.triton.fla.chunk")
        utils = importlib.import_module("vllm_ascend.ops.triton.triton_utils")
        with _without_operator(chunk), patched(utils, {"_NUM_AICORE": _CORES, "_NUM_VECTORCORE": _CORES}):
            yield


@contextlib.contextmanager
def _without_operator(chunk: ModuleType) -> Iterator[None]:
    values = {"l2norm_fwd": lambda rows: rows, "get_pcp_group": lambda: _ALONE}
    probed = mock.patch.object(gdn.AscendGatedDeltaNetAttention, "_fused_chunk_available", new=False)
    with probed, patched(chunk, values):
        yield
