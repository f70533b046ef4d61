"""The choice of keys in sglang's layer for DeepSeek-V3.2 on an NPU: ``DSANPUIndexerMixin.forward_npu``."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from sglang.srt.hardware_backend.npu.memory_pool_npu import NPUMLATokenToKVPool
from sglang.srt.layers.attention.dsa.dsa_npu_indexer import DSANPUIndexerMixin
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from npudiff import Target, implementation
from npudiff.device.ascend.sparse_indexer import as_sets, of_all_rows
from npudiff.device.backends.paged_attention import PAGE
from npudiff.device.backends.sglang.attention_world import Model, attention_backend, forward_batch
from npudiff.device.backends.sglang.pool_world import DEVICE
from npudiff.device.backends.sglang.world import configured
from npudiff.model.constraints import Box
from npudiff.reference.sparse_indexer import SparseIndexerInputs

Outputs = dict[str, torch.Tensor]

LATENT, ROPE, DIM = 512, 64, 128

_HERE: Box = {
    "form": ("16 bits",), "weights": ("as queries",), "dtype": ("bfloat16",), "page_size": (PAGE,),
    "padded_rows": (0,), "rows": ("contiguous",), "query_length": range(1, 2**20),
    "count": (*range(1, 2049), *range(3072, 8193, 1024)),
}  # fmt: skip
"""Weights of heads become bfloat16 whatever they are, and models are."""


class _Indexer:
    """The world of one call of the indexer: projections that give what a case has, without a rotation."""

    def __init__(self, inputs: SparseIndexerInputs, mode: ForwardMode, drafts: int | None) -> None:
        configured()
        self.inputs = inputs
        pages, table = inputs.key, inputs.block_table
        dims = {"kv_lora_rank": LATENT, "qk_rope_head_dim": ROPE, "qk_nope_head_dim": DIM}
        self.pool = NPUMLATokenToKVPool(
            size=(len(pages) - 1) * PAGE, page_size=PAGE, dtype=pages.dtype, kv_lora_rank=LATENT, qk_rope_head_dim=ROPE,
            index_head_dim=DIM, layer_num=1, device=DEVICE, enable_memory_saver=False,
        )  # fmt: skip
        length = max((*inputs.kv_lengths, 1))
        requests = ReqToTokenPool(len(inputs.kv_lengths), length + PAGE, DEVICE, False)
        tokens = torch.arange(length, device=table.device)
        slots = table.long()[:, tokens // PAGE] * PAGE + tokens % PAGE
        requests.req_to_token[1 : len(table) + 1, :length] = slots.to(requests.req_to_token.dtype)
        model = Model(pages.dtype, inputs.query.shape[1], latent=dims)
        self.backend = attention_backend(self.pool, requests, model, drafts=drafts)
        self.batch = forward_batch(mode, requests, inputs.query_lengths, inputs.kv_lengths, drafts=drafts)
        self.backend.init_forward_metadata(self.batch)
        self.new = self._taken_out()

    def _taken_out(self) -> torch.Tensor:
        """Fill the pool with the keys of the case but for those of new tokens, and return these."""
        keys = self.pool.get_index_k_buffer(0)
        keys.copy_(self.inputs.key.view_as(keys))
        flat, slots = keys.view(-1, DIM), self.batch.out_cache_loc
        new: torch.Tensor = flat[slots].clone()
        flat[slots] = 1e4
        return new

    def layer(self) -> DSANPUIndexerMixin:
        """Return the layer."""
        inputs, rows = self.inputs, len(self.inputs.query)
        made = DSANPUIndexerMixin()
        still = torch.cat([torch.ones(rows, ROPE // 2), torch.zeros(rows, ROPE // 2)], dim=1)
        vars(made).update(
            rotary_emb=SimpleNamespace(is_neox_style=True, cos_sin_cache=still.to(inputs.query)),
            alt_stream=None, n_heads=inputs.query.shape[1], head_dim=DIM, rope_head_dim=ROPE, hidden_size=1,
            index_topk=inputs.count, dsa_enable_prefill_cp=False, k_norm=lambda keys: keys,
            wq_b=lambda _: (inputs.query.flatten(1),), weights_proj=lambda _: (inputs.weights.float(),),
            wk=lambda _: (self.new,),
        )  # fmt: skip
        return made

    def chosen(self) -> torch.Tensor:
        """Return int32 ``[tokens, count]``."""
        rows = len(self.inputs.query)
        x = self.inputs.query.new_zeros(rows, 1)
        with forward_context(ForwardContext(attn_backend=self.backend), forward_batch=self.batch):
            answer: torch.Tensor = self.layer().forward_npu(x, x, torch.arange(rows, device=x.device), self.batch, 0)
        return answer


def _indexed(inputs: SparseIndexerInputs, mode: ForwardMode, drafts: int | None = None) -> Outputs:
    return as_sets(inputs, of_all_rows(inputs, _Indexer(inputs, mode, drafts).chosen()))


@implementation("sparse_indexer", name="forward_npu_extend", supports=_HERE, on_device=True)
def extended(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """The indexer of prompts, and their pieces."""
    return _indexed(inputs, ForwardMode.EXTEND)


@implementation("sparse_indexer", name="forward_npu_decode", supports={**_HERE, "query_length": (1,)}, on_device=True)
def decoded(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """The indexer of steps."""
    return _indexed(inputs, ForwardMode.DECODE)


@implementation(
    "sparse_indexer",
    name="forward_npu_verify",
    supports=tuple({**_HERE, "query_length": (count,)} for count in range(2, 7)),
    on_device=True,
)
def verified(inputs: SparseIndexerInputs, target: Target) -> Outputs:
    """The indexer where drafts are verified."""
    return _indexed(inputs, ForwardMode.TARGET_VERIFY, inputs.query_lengths[0])
