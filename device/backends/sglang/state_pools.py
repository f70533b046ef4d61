"""States of linear attention in sglang: ``HybridReqToTokenPool`` and its ``MambaPool``, and the backend that uses them.

Who has a slot is known to the scheduler and to its tree of prefixes, which do not run here: requests are what the pool
reads of them. All else is sglang's: slots are given, cleared, copied and brought to the host by the pool, the backend
of gated delta networks convolves, verifies and rolls back. What only its operators compute is handed in, in float32:
the rule of prompts, unless it is asked for, and that of single tokens, whose Triton kernel sgl-kernel-npu does not
have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from sglang.srt import runtime_context
from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateDType, Mamba2StateShape
from sglang.srt.hardware_backend.npu.attention import ascend_gdn_backend
from sglang.srt.hardware_backend.npu.attention.ascend_hybrid_linear_attn_backend import AscendHybridLinearAttnBackend
from sglang.srt.layers.attention.linear.utils import LinearAttnKernelBackend
from sglang.srt.layers.radix_linear_attention import RadixLinearAttention
from sglang.srt.managers.schedule_batch import ReqKvInfo, ScheduleBatch
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.model_runner import ModelRunner

from npudiff import Target, implementation
from npudiff.device.ascend import gated_delta
from npudiff.device.backends.sglang.attention_world import forward_batch
from npudiff.device.backends.sglang.delta_world import MOST_DRAFT, handed_in
from npudiff.device.backends.sglang.pool_world import DEVICE
from npudiff.device.backends.sglang.world import configured
from npudiff.model.constraints import Box
from npudiff.reference.gated_delta import GatedDeltaInputs
from npudiff.reference.state_pools import LayerTokens, StatePoolsInputs

Outputs = dict[str, torch.Tensor]

_CONTEXT = 2**12
"""Tokens of a request in the table of requests, which linear attention does not read."""

_PADDED = 4
"""Requests of padding that a graph has room for."""

_CHUNK = 64


class MambaStates:
    """The pool and the requests in it; the methods are those of ``npudiff.reference.state_pools.StatePools``.

    Parameters
    ----------
    inputs : StatePoolsInputs
        On the host.
    target : Target
        Where to run.
    """

    def __init__(self, inputs: StatePoolsInputs, target: Target) -> None:
        configured()
        self.inputs, self.target = inputs.to(DEVICE), target
        self.drafts = inputs.drafts if inputs.drafts > 1 else None
        with _drafting(self.drafts):
            self.pool: Any = _pool(inputs, self.drafts)
            self.backend: Any = ascend_gdn_backend.AscendGDNAttnBackend(_runner(self.pool))
        most = inputs.requests + _PADDED
        self.backend.init_cuda_graph_state(most, most * inputs.drafts)
        self.layer: Any = RadixLinearAttention(
            0, inputs.key_heads, inputs.key_heads, inputs.heads, inputs.key_dim, inputs.key_dim, inputs.value_dim,
            conv_weights=self.inputs.weight.t().contiguous(), bias=self.inputs.bias,
        )  # fmt: skip
        self.held: dict[int, Any] = {}
        self.tokens: dict[int, int] = {}
        self.host: dict[int, tuple[Any, int]] = {}
        self.verified: tuple[int, ...] = ()

    def extend(self, requests: Sequence[int], lengths: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Prompts, chunks and tokens in one batch."""
        fresh = [request for request in requests if request not in self.held]
        self._admit(fresh)
        for request, count in zip(requests, lengths, strict=True):
            self.tokens[request] += count
        batch = self._batch(ForwardMode.EXTEND, requests, lengths)
        batch.extend_start_loc = batch.extend_seq_lens.cumsum(dim=0).to(torch.int32) - batch.extend_seq_lens
        return self._run(batch, tokens, self.backend.forward_extend)

    def decode(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """One token of each request, with metadata of a graph where there is padding."""
        for request in requests:
            self.tokens[request] += 1
        padding = len(tokens.mixed) - len(requests)
        batch = self._batch(ForwardMode.DECODE, requests, [1] * len(requests), padding)
        return self._run(batch, tokens, self.backend.forward_decode, padding)

    def verify(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Drafts of each request, with metadata of a graph where there is padding."""
        drafts, self.verified = self.inputs.drafts, tuple(requests)
        padding = len(tokens.mixed) // drafts - len(requests)
        batch = self._batch(ForwardMode.TARGET_VERIFY, requests, [drafts] * len(requests), padding)
        return self._run(batch, tokens, self.backend.forward_extend, padding)

    def accept(self, accepted: Sequence[int]) -> None:
        """Move states behind the last accepted tokens into the pool, and roll lines back."""
        last = torch.tensor(accepted, dtype=torch.int64, device=DEVICE) - 1
        hybrid: Any = SimpleNamespace(linear_attn_backend=self.backend)
        AscendHybridLinearAttnBackend.update_mamba_state_after_mtp_verify(hybrid, last, None, None, None)
        for request, count in zip(self.verified, accepted, strict=True):
            self.tokens[request] += count

    def fork(self, source: int, request: int) -> None:
        """Keep a copy of the states of a request, as its tree does with a prefix, and begin another one with it."""
        kept = self.pool.mamba_allocator.alloc(1)
        self.pool.mamba_pool.copy_from(self.held[source].kv.mamba_pool_idx.unsqueeze(0), kept)
        self._admit([request], kept)
        self.pool.mamba_allocator.free(kept)
        self.tokens[request] = self.tokens[source]

    def free(self, request: int) -> None:
        """Give the slot and the row of a request back."""
        req = self.held.pop(request)
        self.pool.free_mamba_cache(req)
        self.pool.free(req)
        del self.tokens[request]

    def evict(self, request: int) -> None:
        """Bring the states of a request to the host, as those of one that is retracted."""
        slot = self.held[request].kv.mamba_pool_idx.unsqueeze(0)
        self.host[request] = self.pool.mamba_pool.get_cpu_copy(slot), self.tokens[request]
        self.free(request)

    def restore(self, request: int) -> None:
        """Bring them back; such a request goes on with single tokens, and no batch clears its slot."""
        states, tokens = self.host.pop(request)
        (req,) = self._given_slots([request])
        self.pool.mamba_pool.load_cpu_copy(states, req.kv.mamba_pool_idx.unsqueeze(0))
        req.kv.mamba_needs_clear = False
        self.tokens[request] = tokens

    def states(self, requests: Sequence[int]) -> Outputs:
        """What requests have: histories end their lines."""
        slots = self._slots(requests)
        cache = self.pool.mamba_pool.mamba_cache
        return {"lines": cache.conv[0][0][slots, 1 - self.inputs.width :], "states": cache.temporal[0][slots]}

    def _slots(self, requests: Sequence[int]) -> torch.Tensor:
        return torch.stack([self.held[request].kv.mamba_pool_idx for request in requests]).long()

    def _given_slots(self, requests: Sequence[int]) -> list[Any]:
        """Give requests a row of the table and a slot each."""
        reqs = [SimpleNamespace(kv=ReqKvInfo()) for _ in requests]
        if reqs and self.pool.alloc(reqs) is None:
            raise ValueError("no row of the table of requests is free")
        for request, req in zip(requests, reqs, strict=True):
            self.held[request], self.tokens[request] = req, 0
        return reqs

    def _admit(self, requests: Sequence[int], kept: torch.Tensor | None = None) -> None:
        """Give requests slots, and clear them as the runner does, or copy what was kept of another."""
        reqs = self._given_slots(requests)
        if kept is not None:
            reqs[0].kv.mamba_cow_src_index, reqs[0].kv.mamba_needs_clear = kept, False
        batch: Any = SimpleNamespace(forward_mode=ForwardMode.EXTEND)
        ScheduleBatch._collect_deferred_mamba_cow_and_clear(batch, reqs)
        runner: Any = SimpleNamespace(req_to_token_pool=self.pool, is_draft_worker=False)
        ModelRunner._maybe_execute_deferred_mamba_cow_and_clear(runner, batch)

    def _batch(self, mode: ForwardMode, requests: Sequence[int], new: Sequence[int], padding: int = 0) -> Any:  # noqa: ANN401
        """Return a batch as sglang's runner makes it; requests of padding have row 0 and no tokens."""
        drafts = self.drafts if mode == ForwardMode.TARGET_VERIFY else None
        known = [self.tokens[request] + (drafts or 0) for request in requests]
        rows = [self.held[request].kv.req_pool_idx for request in requests]
        each = drafts or 1
        return forward_batch(
            mode, self.pool, [*new, *[each] * padding], [*known, *[drafts or 0] * padding], drafts=drafts,
            rows=[*rows, *[0] * padding],
        )  # fmt: skip

    def _run(self, batch: Any, tokens: LayerTokens, forward: Callable[..., torch.Tensor], padding: int = 0) -> Outputs:  # noqa: ANN401
        """Run the layer; return what came out of its convolution, and its answer."""
        tokens, inputs = tokens.to(DEVICE), self.inputs
        if padding:
            self.backend.init_forward_metadata_out_graph(batch)
        else:
            self.backend.init_forward_metadata(batch)
        gate = torch.zeros_like(tokens.beta, dtype=torch.float32) if tokens.gate is None else tokens.gate
        unused = tokens.mixed.new_zeros(tokens.beta.shape)
        with _seen() as seen, handed_in(gate, tokens.beta), self._rules(tokens, gate, padding):
            answer = forward(self.layer, batch, tokens.mixed, unused, unused)
        output = tokens.mixed.new_zeros(len(tokens.mixed), inputs.heads, inputs.value_dim)
        rows = answer.reshape(-1, inputs.heads, inputs.value_dim)
        output[: len(rows)] = rows
        return {"convolved": _rows_of(seen[0], tokens.mixed), "output": output}

    @contextlib.contextmanager
    def _rules(self, tokens: LayerTokens, gate: torch.Tensor, padding: int) -> Iterator[None]:
        """Hand in what has no operator: the rule of single tokens, and that of prompts in chunks of float32."""
        before, rule = self.backend.kernel_dispatcher, _Rule(self.inputs, tokens.beta, gate, padding)
        self.backend.kernel_dispatcher = SimpleNamespace(decode=rule.of_tokens)
        if not self.inputs.chunked:
            self.backend.chunk_gdn = rule.of_prompts
        try:
            yield
        finally:
            self.backend.kernel_dispatcher = before


class _Rule(NamedTuple):
    """The rule in float32, with what a layer makes of its rows before it."""

    inputs: StatePoolsInputs
    beta: torch.Tensor
    gate: torch.Tensor
    padding: int

    def given(
        self, rows: Sequence[torch.Tensor], states: torch.Tensor, lengths: Sequence[int], initial: torch.Tensor,
        slots: torch.Tensor,
    ) -> GatedDeltaInputs:  # fmt: skip
        """What it is called with: queries, keys and values, and slots of the states before and behind."""
        count, inputs = sum(lengths), self.inputs
        query, key, value = (one.reshape(-1, *one.shape[-2:])[:count] for one in rows)
        return GatedDeltaInputs(
            query, key, value, self.beta[:count], states, tuple(lengths), initial, slots, inputs.scale,
            self.gate[:count], raw=inputs.raw,
        )  # fmt: skip

    def of_prompts(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _gate: object, _beta: object,
        states: torch.Tensor, starts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:  # fmt: skip
        """In place of ``chunk_gdn``: outputs, and the last state of each request."""
        initial = torch.arange(len(states), dtype=torch.int32, device=query.device)
        slots = torch.full((len(query),), -1, dtype=torch.int32, device=query.device)
        slots[starts[1:].long() - 1] = initial
        rows = (query, key, value)
        found = gated_delta.chunks(self.given(rows, states, starts.diff().tolist(), initial, slots), _CHUNK)
        return found["output"], found["states"], None

    def of_tokens(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, ssm_states: torch.Tensor,
        cache_indices: torch.Tensor, **_: object,
    ) -> torch.Tensor:  # fmt: skip
        """In place of the kernel of a decode, which writes states where they are."""
        slots = cache_indices[: len(cache_indices) - self.padding].to(torch.int32)
        found = gated_delta.recurrence(self.given((q, k, v), ssm_states.clone(), [1] * len(slots), slots, slots))
        ssm_states.copy_(found["states"])
        output = torch.zeros_like(v)
        output.view(-1, *v.shape[-2:])[: len(slots)] = found["output"]
        return output


def _rows_of(convolved: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """As many rows as there were, where those of padding were left out."""
    rows = torch.zeros_like(mixed)
    rows[: len(convolved)] = convolved
    return rows


@contextlib.contextmanager
def _seen() -> Iterator[list[torch.Tensor]]:
    """Note what the convolution returns."""
    found: list[torch.Tensor] = []
    operator = torch.ops.npu.causal_conv1d

    def noted(*given: object, **named: object) -> torch.Tensor:
        answer: torch.Tensor = operator(*given, **named)
        found.append(answer.clone())
        return answer

    with mock.patch.object(torch.ops.npu, "causal_conv1d", noted):
        yield found


@contextlib.contextmanager
def _drafting(drafts: int | None) -> Iterator[None]:
    """Tell sglang for a moment how many tokens are drafted."""
    context = runtime_context.get_context()
    context.override("npudiff", speculative_num_draft_tokens=drafts)
    try:
        yield
    finally:
        context.override("npudiff", speculative_num_draft_tokens=None)


def _pool(inputs: StatePoolsInputs, drafts: int | None) -> Any:  # noqa: ANN401 - sglang's
    """Return the pool of a model with one such layer, full of poison; a slot more keeps what is copied."""
    shape = Mamba2StateShape.create(
        tp_world_size=1, intermediate_size=inputs.heads * inputs.value_dim, n_groups=inputs.key_heads,
        num_heads=inputs.heads, head_dim=inputs.value_dim, state_size=inputs.key_dim, conv_kernel=inputs.width,
    )  # fmt: skip
    dtype = Mamba2StateDType(conv=inputs.weight.dtype, temporal=inputs.state_dtype)
    pool = HybridReqToTokenPool(
        size=inputs.requests,
        mamba_size=inputs.requests + 1,
        mamba_spec_state_size=inputs.requests + _PADDED,
        max_context_len=_CONTEXT,
        device=DEVICE,
        enable_memory_saver=False,
        cache_params=Mamba2CacheParams(shape=shape, dtype=dtype, layers=[0]),
        mamba_layer_ids=[0],
        enable_mamba_extra_buffer=False,
        speculative_num_draft_tokens=drafts,
    )
    cache = pool.mamba_pool.mamba_cache
    for tensor in (*cache.conv, cache.temporal, *([] if drafts is None else [cache.intermediate_ssm])):
        tensor.fill_(inputs.poison)
    return pool


def _runner(pool: Any) -> SimpleNamespace:  # noqa: ANN401 - sglang's
    """Return what the backend's constructor reads of the runner of a model."""
    triton = LinearAttnKernelBackend.TRITON
    return SimpleNamespace(
        server_args=SimpleNamespace(enable_mis=False),
        device=DEVICE,
        is_draft_worker=False,
        req_to_token_pool=pool,
        token_to_kv_pool=None,
        linear_attn_backends=SimpleNamespace(decode=triton, prefill=triton),
    )


_HERE: Box = {
    "state_dtype": ("bfloat16",), "width": (4,), "rounding": ("stages",), "activation": (True,),
    "nothing_accepted": (False,), "gates": ("head", "none"),
}  # fmt: skip
_PROMPTS: Box = {
    **_HERE, "raw": (False,), "chunked": (True,), "step": ("fork", "free", "evict", "restore"),
    "key_dim": range(16, 129, 16), "value_dim": range(16, 129, 16), "key_heads": range(1, 65), "group": (1, 2, 3),
}  # fmt: skip
_STEPS: Box = {
    **_HERE, "raw": (False, True), "chunked": (False,), "step": ("decode", "fork", "free", "evict", "restore"),
    "drafts": (1,), "key_dim": range(16, 129, 16), "value_dim": range(16, 129, 16),
}  # fmt: skip
_DRAFTS: Box = {
    **_HERE, "raw": (True,), "chunked": (False,), "step": ("verify", "fork", "free", "evict", "restore"),
    "drafts": range(2, MOST_DRAFT + 1), "key_dim": (128,), "value_dim": range(16, 129, 16),
}  # fmt: skip


@implementation("state_pools", name="HybridReqToTokenPool", supports=_STEPS)
def hybrid_pool(inputs: StatePoolsInputs, target: Target) -> MambaStates:
    """Prompts, single tokens, forks, and copies on the host: slots, their clearing and copying, convolutions."""
    return MambaStates(inputs, target)


@implementation("state_pools", name="HybridReqToTokenPool_prompts", supports=_PROMPTS)
def hybrid_pool_of_prompts(inputs: StatePoolsInputs, target: Target) -> MambaStates:
    """The same of prompts alone, with the operator for them."""
    return MambaStates(inputs, target)


@implementation("state_pools", name="HybridReqToTokenPool_drafts", supports=_DRAFTS)
def hybrid_pool_of_drafts(inputs: StatePoolsInputs, target: Target) -> MambaStates:
    """Drafts: target verify, and ``update_mamba_state_after_mtp_verify`` with its Triton kernels."""
    return MambaStates(inputs, target)
