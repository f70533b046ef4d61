"""vllm-ascend's proposer of drafts, between the model runner that calls it and a draft model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm_ascend.attention.attention_v1 import AscendAttentionState
from vllm_ascend.attention.utils import AscendCommonAttentionMetadata
from vllm_ascend.spec_decode import llm_base_proposer
from vllm_ascend.spec_decode.eagle_proposer import AscendEagleProposer

from npudiff.device.backends.vllm_ascend.world import (
    ascend_configuration,
    engine,
    engine_config,
    options_of,
    patched,
)
from npudiff.reference.draft_step import DraftStepInputs

VOCABULARY = 2**18

PROMPT = {"prompt_left": ("1", "2")}
"""Tokens of a prompt behind a piece of it that is in the step."""

SCHEDULING = {"async_scheduling": ("0", "1")}
"""With it the host does not know lengths, and metadata has none that are said to be exact."""

READ = {"seq_lens": ("device", "host")}
"""Which lengths attention reads: ``sfa_v1`` those on the device, ``attention_v1`` and ``mla_v1`` those on the host."""

LAYER = "draft.layers.0"


@dataclass
class Buffer:
    """A tensor on the device and its copy on the host, as ``CpuGpuBuffer``."""

    size: int
    device: torch.device

    def __post_init__(self) -> None:
        self.cpu = torch.zeros(self.size, dtype=torch.int32)
        self.np, self.gpu = self.cpu.numpy(), self.cpu.to(self.device)

    def copy_to_gpu(self, count: int) -> torch.Tensor:
        """Copy the first elements to the device."""
        return self.gpu[:count].copy_(self.cpu[:count])


@dataclass
class Model:
    """A draft model that remembers what it is given, and drafts the tokens of a case."""

    proposed: torch.Tensor
    passes: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self, input_ids: torch.Tensor, positions: torch.Tensor, hidden_states: torch.Tensor, **_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note a pass, and return its states twice, as a model of Eagle does."""
        (metadata,) = llm_base_proposer.get_forward_context().attn_metadata.values()
        self.passes.append({"tokens": input_ids.clone(), "positions": positions.clone(), "metadata": metadata})
        return hidden_states, hidden_states

    def compute_logits(self, _: torch.Tensor) -> SimpleNamespace:
        """Return what the drafts of this pass are the largest of."""
        drafts = self.proposed[:, len(self.passes) - 1]
        return SimpleNamespace(argmax=lambda **_: drafts)


class _Common:
    """A builder of metadata that leaves them as they are: what it would read is in there."""

    def build(self, _: int, common: object, *__: object) -> object:
        """Return metadata of the first pass."""
        return common

    def build_for_drafting(self, common: object, _: int) -> object:
        """Return metadata of another pass."""
        return common


@dataclass(frozen=True)
class Drafter:
    """A proposer beside the runner of a step of the target."""

    inputs: DraftStepInputs

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.inputs.tokens.device

    def on_device(self, values: object) -> torch.Tensor:
        """Return int32 numbers on the device."""
        return torch.as_tensor(values, dtype=torch.int32).to(self.device)

    @cached_property
    def starts(self) -> torch.Tensor:
        """Where rows of each request start, and where all end; int32 on the host."""
        return torch.tensor([0, *self.inputs.rows], dtype=torch.int32).cumsum(0).to(torch.int32)

    @cached_property
    def proposer(self) -> AscendEagleProposer:
        """Build the proposer with the fields that its constructor sets, for one layer."""
        inputs, rows = self.inputs, len(self.inputs.tokens)
        made = AscendEagleProposer.__new__(AscendEagleProposer)
        numbers: dict[str, Any] = {"dtype": torch.int32, "device": self.device}
        group = SimpleNamespace(layer_names=[LAYER], kv_cache_spec=SimpleNamespace(block_size=inputs.page_size),
                                get_metadata_builder=_Common)  # fmt: skip
        config = SimpleNamespace(model_config=SimpleNamespace(
            max_model_len=inputs.limit, use_mla=False, uses_mrope=False))  # fmt: skip
        length = max(rows, len(inputs.rows)) + 1
        vars(made).update(
            runner=self.runner, vllm_config=config, device=self.device, method="eagle", max_model_len=inputs.limit,
            num_speculative_tokens=inputs.steps, parallel_drafting=False, needs_extra_input_slots=False,
            pass_hidden_states_to_model=True, use_cuda_graph=False, supports_mm_inputs=False, uses_mrope=False,
            uses_xdrope_dim=0, draft_uses_xdrope_dim=0, dcp_size=1, draft_window_size=None, enable_enpu=False,
            use_compress=False, has_gdn=False, block_size=inputs.page_size, _share_mtp_indices=False,
            use_sequence_parallel_moe=False, hidden_size=1, draft_attn_groups=[group], attn_layer_names=[LAYER],
            model=Model(inputs.proposed), _runnable=made._run_merged_draft,
            backup_next_token_ids=Buffer(len(inputs.rows), self.device),
            arange=torch.arange(length, **numbers), token_arange_np=torch.arange(length, dtype=torch.int32).numpy(),
            input_ids=torch.zeros(length, **numbers), positions=torch.zeros(length, **numbers),
            hidden_states=torch.zeros(length, 1, device=self.device),
            token_indices_to_sample=torch.zeros(length, **numbers),
            **{name: [torch.zeros(length, **numbers) for _ in range(inputs.steps)]
               for name in ("slot_mapping_group", "seq_lens_group", "query_start_loc_group")},
        )  # fmt: skip
        return made

    @cached_property
    def runner(self) -> SimpleNamespace:
        """What a proposer reads of its runner."""
        drafted = all(self.inputs.drafts)
        return SimpleNamespace(
            actual_seq_lengths_q=self.starts[1:].tolist(),
            attn_state=AscendAttentionState.SpecDecoding if drafted else AscendAttentionState.ChunkedPrefill,
            decode_token_per_req=self.inputs.steps + 1,
            dcp_manager=None,
            input_batch=SimpleNamespace(lora_id_to_lora_request={}),
            get_model=lambda: None,
            dynamic_eplb=False,
            sparse_kv_offload_enabled=False,
            _sync_metadata_across_dp=lambda tokens, **_: (tokens, None, None),
        )

    def metadata(self) -> AscendCommonAttentionMetadata:
        """Return the metadata of the target's step, as ``_build_attention_metadata`` of the runner makes them."""
        inputs, lengths = self.inputs, self.inputs.lengths.cpu().to(torch.int32)
        known = options_of(inputs).get("async_scheduling") != "1"
        positions = inputs.positions
        table = inputs.block_table.to(torch.int32)
        pages = table.repeat_interleave(torch.tensor(inputs.rows, device=self.device), dim=0)
        slots = pages.gather(1, (positions // inputs.page_size).unsqueeze(1)).squeeze(1) * inputs.page_size
        wanted = {
            "query_start_loc": self.starts.to(self.device),
            "query_start_loc_cpu": self.starts,
            "seq_lens": lengths.to(self.device),
            "_seq_lens_cpu": lengths.clone(),
            "seq_lens_cpu_upper_bound": lengths.clone(),
            "seq_lens_cpu": lengths.clone() if known else None,
            "num_computed_tokens_cpu": lengths - torch.tensor(inputs.rows) if known else None,
            "num_reqs": len(inputs.rows),
            "num_actual_tokens": len(positions),
            "num_input_tokens": len(positions),
            "max_query_len": max(inputs.rows),
            "max_seq_len": int(lengths.max()),
            "block_table_tensor": table,
            "slot_mapping": (slots + positions % inputs.page_size).to(torch.int32),
            "causal": True,
            "positions": torch.cat([positions, positions.new_zeros(len(inputs.rows))]),
            "attn_state": self.runner.attn_state,
            "actual_seq_lengths_q": self.runner.actual_seq_lengths_q,
            "decode_token_per_req": self.runner.decode_token_per_req,
        }
        names = {one.name for one in fields(AscendCommonAttentionMetadata)}
        return AscendCommonAttentionMetadata(**{name: one for name, one in wanted.items() if name in names})

    def sampled(self) -> torch.Tensor:
        """Return int32 ``[requests, n]``: tokens as samplers leave them, also of a piece of a prompt."""
        width = max(self.inputs.drafts) + 1
        tokens = self.inputs.sampled[:, :width].to(torch.int32)
        return torch.where(
            (tokens < 0).all(dim=1, keepdim=True) & (torch.arange(width, device=self.device) == 0), 0, tokens
        )

    @cached_property
    def requests(self) -> dict[str, Request]:
        """Requests by their names, as the runner keeps them."""
        inputs = self.inputs
        each = zip(inputs.lengths.tolist(), inputs.rows, inputs.known.tolist(), strict=True)
        return {
            str(number): Request(length - rows, length, following)
            for number, (length, rows, following) in enumerate(each)
        }

    def batch(self, pieces: Sequence[int]) -> SimpleNamespace:
        """Return what a proposer reads of a batch; ``pieces`` are numbers of requests whose prompts go on."""
        left = int(options_of(self.inputs).get("prompt_left", "1"))
        ends = self.inputs.lengths.cpu().clone().numpy()
        ends[list(pieces)] += left
        return SimpleNamespace(
            num_reqs=len(ends), req_ids=list(self.requests), num_tokens_no_spec=ends, vocab_size=VOCABULARY
        )

    def next_tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token behind each request, and how many were sampled for it."""
        pieces = [number for number, row in enumerate(self.inputs.sampled.tolist()) if row[0] < 0]
        discarded = torch.zeros(len(self.requests), dtype=torch.int64)
        discarded[: len(pieces)] = torch.tensor(pieces)
        answer: tuple[torch.Tensor, torch.Tensor] = self.proposer.prepare_next_token_ids_padded(
            self.sampled(), self.requests, self.batch(pieces), discarded.to(self.device), len(pieces)
        )
        return answer

    def padded(self, counts: torch.Tensor) -> tuple[Any, torch.Tensor | None, torch.Tensor | None]:
        """Return metadata, and of a step with drafts rows of last tokens, and how many drafts were rejected."""
        if not any(self.inputs.drafts):
            return self.metadata(), None, None
        drafts = SimpleNamespace(cu_num_draft_tokens=self.on_device(self.inputs.drafts).cumsum(0).to(torch.int32))
        metadata, _, rows, rejected = self.proposer.prepare_inputs_padded(self.metadata(), drafts, counts)
        return metadata, rows, rejected

    def propose(self, following: torch.Tensor, kept: torch.Tensor, **given: object) -> list[dict[str, Any]]:
        """Draft tokens, and return what the model was given in each pass; ``kept`` are rows of the step."""
        with _forward():
            self.proposer._propose(
                num_speculative_tokens=self.inputs.steps, target_token_ids=self.inputs.tokens.to(torch.int32)[kept],
                target_positions=self.inputs.positions[kept], next_token_ids=following,
                target_hidden_states=torch.zeros(len(kept), 1, device=self.device),
                target_model_batch_desc=SimpleNamespace(uniform=all(self.inputs.drafts)), sampling_metadata=None,
                **given,
            )  # fmt: skip
        passes: list[dict[str, Any]] = self.proposer.model.passes
        return passes

    def passes(self) -> list[dict[str, Any]]:
        """Draft tokens with all rows of the step, as padding where they were rejected."""
        following, counts = self.next_tokens()
        metadata, rows, rejected = self.padded(counts)
        return self.propose(
            following, torch.arange(len(self.inputs.tokens), device=self.device), common_attn_metadata=metadata,
            token_indices_to_sample=rows, num_rejected_tokens_gpu=rejected,
        )  # fmt: skip

    def passes_without_padding(self) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, Any]]]:
        """Draft tokens with rows that count; return tokens behind requests, these rows, and passes."""
        sampled = [[token for token in row if token >= 0] for row in self.inputs.sampled.tolist()]
        pieces = [number for number, row in enumerate(sampled) if not row]
        scheduled = dict(zip(self.requests, self.inputs.rows, strict=True))
        following = self.proposer.prepare_next_token_ids_cpu(sampled, self.requests, self.batch(pieces), scheduled)
        metadata, kept = self.metadata(), torch.arange(len(self.inputs.tokens), device=self.device)
        if any(self.inputs.drafts):
            metadata, kept = self.proposer.prepare_inputs(metadata, sampled, list(self.inputs.drafts))
        return (
            following,
            kept,
            self.propose(following, kept, common_attn_metadata=metadata, token_indices_to_sample=None),
        )


@dataclass(frozen=True)
class Request:
    """A request as the runner keeps it, whose prompt goes on behind a piece."""

    num_computed_tokens: int
    length: int
    following: int

    def get_token_id(self, index: int) -> int:
        """Return the token at a place: the one that follows, and others behind it."""
        return (self.following + index - self.length) % VOCABULARY


@contextlib.contextmanager
def _forward() -> Iterator[None]:
    """Let the proposer set contexts of forward passes for a model that reads nothing of them but its metadata."""
    context = SimpleNamespace(attn_metadata=None, cudagraph_runtime_mode=CUDAGraphMode.NONE)

    @contextlib.contextmanager
    def forward(metadata: Mapping[str, object], *_: object, **__: object) -> Iterator[None]:
        context.attn_metadata = metadata
        yield

    here = {
        "set_ascend_forward_context": forward,
        "get_forward_context": lambda: context,
        "_EXTRA_CTX": SimpleNamespace(),
        "lmhead_tp_enable": lambda: False,
        "enable_sp": lambda *_: False,
    }
    ascend = ascend_configuration(enable_reduce_sample=False)
    with patched(llm_base_proposer, here), engine(engine_config(torch.float32), ascend):
        yield
