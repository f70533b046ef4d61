"""Steps of drafts on sglang: ``EagleDraftWorker`` between its scheduler and a draft model, on chains of drafts."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from sglang.kernels.ops.speculative.cache_locs import assign_extend_cache_locs_uniform_func
from sglang.kernels.ops.speculative.spec_tree import TreeMaskMode
from sglang.srt import runtime_context
from sglang.srt.hardware_backend.npu.attention.ascend_backend import AscendAttnMultiStepDraftBackend
from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from npudiff import Target, implementation
from npudiff.device.backends.sglang.attention_world import Model as AttentionModel
from npudiff.device.backends.sglang.attention_world import model_runner
from npudiff.device.backends.sglang.pool_world import mha_pool
from npudiff.device.backends.sglang.world import alone, environment, flags_of, options_of
from npudiff.model.constraints import Box
from npudiff.reference.draft_step import DraftStepInputs

Outputs = dict[str, torch.Tensor]

VOCABULARY = 2**17 + 1

MIRROR = "SGLANG_NPU_ATTN_BACKEND_NEEDS_CPU_SEQ_LENS"
"""Whether lengths have a copy on the host."""

CHAINS: Box = {"kind": ("draft",), "uniform": (True,), "room_left": (None,), "steps": range(1, 16)}
"""A request has as many drafts as there are steps, and its table has room for them: prompts are other batches, and
requests end before their limit."""


class Batch(SimpleNamespace):
    """A batch of the scheduler: what is not said is not there."""

    def __getattr__(self, name: str) -> None:
        """Return None."""
        if name.startswith("__"):
            raise AttributeError(name)


@dataclass
class Model:
    """The runner of a draft model, which remembers what it is given and drafts the tokens of a case."""

    proposed: torch.Tensor
    first: int
    """Column of the drafts that is drafted first."""
    passes: list[dict[str, Any]] = field(default_factory=list)

    def forward(self, batch: Any) -> SimpleNamespace:  # noqa: ANN401 - sglang's
        """Note a pass, and return logits, and the number of each row as its state."""
        self.passes.append({
            "tokens": batch.input_ids.clone(),
            "positions": batch.positions.clone(),
            "slots": batch.out_cache_loc.clone(),
        })  # fmt: skip
        drafts = self.proposed[:, self.first + len(self.passes) - 1]
        logits = torch.zeros(len(drafts), VOCABULARY, device=drafts.device)
        logits.scatter_(1, drafts.unsqueeze(1), 1.0)
        states = torch.arange(len(drafts), device=drafts.device, dtype=torch.float32).unsqueeze(1)
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=logits, hidden_states=states))


@dataclass(frozen=True)
class Drafts:
    """A worker of drafts beside a table of requests."""

    inputs: DraftStepInputs

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.inputs.tokens.device

    @cached_property
    def table(self) -> torch.Tensor:
        """``req_to_token``: a slot for each token of each request, of which there is none at row 0."""
        inputs = self.inputs
        offsets = torch.arange(inputs.page_size, device=self.device)
        slots = (inputs.block_table.unsqueeze(-1) * inputs.page_size + offsets).flatten(1).to(torch.int32)
        return torch.nn.functional.pad(slots, (0, 0, 1, 0))

    @property
    def mirrored(self) -> bool:
        """Whether the host knows lengths."""
        return options_of(self.inputs)[MIRROR] == "1"

    def attended(self) -> torch.Tensor:
        """Keys that attention is told of in each pass, behind ``draft``; int64 ``[steps - 1, requests]``."""
        said = [one.forward_metadata for one in self.attention.attn_backends[: self.inputs.steps - 1]]
        found = [one.seq_lens_cpu_int if self.mirrored else one.seq_lens for one in said]
        return torch.stack([one.to(self.device).long() for one in found]) if found else self.none

    @property
    def none(self) -> torch.Tensor:
        """What is said of no pass."""
        return self.inputs.lengths.new_zeros(0, len(self.inputs.rows))

    @property
    def taken(self) -> torch.Tensor:
        """Tokens that were sampled for each request: accepted drafts, and the one behind."""
        return (self.inputs.sampled >= 0).sum(dim=1)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Tokens of each request whose keys and values are there: all that count."""
        return self.inputs.lengths - self.inputs.steps - 1 + self.taken

    @property
    def rows(self) -> torch.Tensor:
        """Rows of the requests in the table."""
        return torch.arange(1, len(self.lengths) + 1, device=self.device)

    @cached_property
    def runner(self) -> Any:  # noqa: ANN401 - what sglang reads of a runner
        """Return the runner of the draft model."""
        translator = KVIndexTranslator(
            req_to_token=self.table, token_to_kv_pool_allocator=None, token_to_kv_pool=None,
            page_size=self.inputs.page_size, device=str(self.device), is_draft_worker=True,
        )  # fmt: skip
        model = Model(self.inputs.proposed, 1)
        config = Batch(vocab_size=VOCABULARY, hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]))
        return Batch(
            device=self.device, is_draft_worker=True, kv_index_translator=translator, model_config=config,
            spec_algorithm=SpeculativeAlgorithm.EAGLE, forward=model.forward, model=model,
            attn_backend=SimpleNamespace(init_forward_metadata=lambda _: None), prefill_attention_backend_str="ascend",
            ngram_embedding_manager=SimpleNamespace(enabled=False),
        )  # fmt: skip

    def batch(self, lengths: torch.Tensor, spec_info: object) -> Batch:
        """Return a batch of the scheduler."""
        return Batch(
            forward_mode=ForwardMode.DECODE, seq_lens=lengths, seq_lens_cpu=lengths.cpu() if self.mirrored else None,
            req_pool_indices=self.rows, req_to_token_pool=SimpleNamespace(req_to_token=self.table), device=self.device,
            token_to_kv_pool_allocator=SimpleNamespace(page_size=self.inputs.page_size), spec_info=spec_info, reqs=[],
            model_config=self.runner.model_config, spec_algorithm=SpeculativeAlgorithm.EAGLE, multimodal_inputs=[None],
        )  # fmt: skip

    @cached_property
    def attention(self) -> AscendAttnMultiStepDraftBackend:
        """Build the attention of all passes, over a pool of one page."""
        page = torch.zeros(2, self.inputs.page_size, 1, 64, dtype=torch.bfloat16, device=self.device)
        model = AttentionModel(torch.bfloat16, 1, page_size=self.inputs.page_size)
        context = runtime_context.get_context()
        context.override("npudiff", speculative_num_draft_tokens=self.inputs.steps + 1)
        try:
            requests = SimpleNamespace(req_to_token=self.table)
            runner = model_runner(mha_pool(page, page), requests, model, drafting=True)
            return AscendAttnMultiStepDraftBackend(runner, 1, self.inputs.steps)
        finally:
            context.override("npudiff", speculative_num_draft_tokens=None)

    def worker(self) -> EagleDraftWorker:
        """Build a worker with the fields that its constructor sets."""
        steps, count = self.inputs.steps, len(self.lengths)
        made = EagleDraftWorker.__new__(EagleDraftWorker)
        attention = SimpleNamespace(verify_mask=None, max_context_len=self.table.shape[1])
        own = SimpleNamespace(
            attn_backend=attention,
            kv_index_translator=self.runner.kv_index_translator,
            model_config=self.runner.model_config,
        )
        parents = torch.arange(-1, steps - 1 if steps > 1 else -1, device=self.device)
        vars(made).update(
            req_to_token_pool=SimpleNamespace(req_to_token=self.table), cuda_graph_runner=None,
            draft_runner=self.runner, topk=1, speculative_num_steps=steps, speculative_num_draft_tokens=steps + 1,
            target_worker=SimpleNamespace(model_runner=own), seed_dsa_topk_from_draft_extend=False,
            index_share_for_mtp_iteration=False, hot_token_id=None, tree_mask_mode=TreeMaskMode.FULL_MASK,
            device=self.device, draft_attn_backend=self.attention,
            _topk1_parents_prealloc=parents.repeat(count, 1),
            _topk1_score_indices_prealloc=torch.arange(steps, device=self.device).repeat(count, 1),
            plan_stream=None, plan_stream_ctx=nullcontext(), cuda_graph_runner_for_draft_extend=None,
        )  # fmt: skip
        return made

    def draft(self) -> tuple[Any, list[dict[str, Any]]]:
        """Draft tokens behind the first; return what is verified next, and what the model was given in each pass."""
        last = self.inputs.sampled.gather(1, self.taken.unsqueeze(1) - 1).squeeze(1)
        first = self.inputs.proposed[:, :1].contiguous()
        drafted = EagleDraftInput(
            topk_p=torch.ones(first.shape, device=self.device), topk_index=first, bonus_tokens=last,
            hidden_states=torch.zeros(len(first), 1, device=self.device),
        )  # fmt: skip
        verified = self.worker().draft(self.batch(self.lengths, drafted))
        return verified, self.runner.model.passes

    def extend(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Have the model go through the rows that were verified; return its tokens, and rows of last tokens."""
        shape = len(self.inputs.rows), self.inputs.steps + 1
        self.runner.model.proposed = self.inputs.proposed.repeat_interleave(shape[1], dim=0)
        self.runner.model.first = 0
        predicted = self.inputs.sampled.clamp(min=0).to(torch.int32).flatten()
        following = SimpleNamespace()
        answer = SimpleNamespace(
            prepared_draft_extend_inputs=None, accept_lens=self.taken.to(torch.int32), next_token_ids=predicted,
            logits_output=SimpleNamespace(hidden_states=torch.zeros(len(predicted), 1, device=self.device)),
            next_draft_input=following,
        )  # fmt: skip
        batch = self.batch(self.inputs.lengths - shape[1], None)
        slots = self.table[self.rows].gather(1, self.inputs.positions.view(shape))
        batch.out_cache_loc = slots.flatten().long()
        self.worker()._draft_extend_for_decode(batch, answer)
        (only,) = self.runner.model.passes
        return only["tokens"], following.hidden_states.flatten().long()


@implementation(
    "draft_step", name="EagleDraftWorker.draft", supports=CHAINS, options={MIRROR: ("1", "0")}, on_device=True
)
def drafted(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``EagleDraftWorker.draft``: passes behind the first, and the tokens and positions that the target verifies."""
    alone()
    drafts, shape = Drafts(inputs), (len(inputs.rows), inputs.steps + 1)
    with environment(flags_of(inputs)):
        verified, passes = drafts.draft()
    places = {name: torch.stack([one[name].long() for one in passes]) if passes else drafts.none
              for name in ("positions", "slots")}  # fmt: skip
    return {
        "step_positions": places["positions"],
        "step_slots": places["slots"],
        "step_lengths": drafts.attended(),
        "verify_tokens": verified.draft_token.view(shape).long(),
        "verify_positions": verified.positions.view(shape).long(),
        "verify_slots": verified.prepared_out_cache_loc.view(shape).long(),
    }


@implementation(
    "draft_step", name="_draft_extend_for_decode", supports=CHAINS, options={MIRROR: ("1", "0")}, on_device=True
)
def extended(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``EagleDraftWorker._draft_extend_for_decode``: the first pass, over rows that were verified."""
    alone()
    with environment(flags_of(inputs)):
        tokens, rows = Drafts(inputs).extend()
    return {"first_tokens": tokens.long(), "sample_row": rows}


@implementation(
    "draft_step",
    name="assign_extend_cache_locs_uniform_func",
    supports=CHAINS,
    options={MIRROR: ("1",)},
    on_device=True,
)
def assigned(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``assign_extend_cache_locs_uniform_func``, which plans what multi-layer workers verify: ``cache_loc_update``."""
    drafts, each = Drafts(inputs), inputs.steps + 1
    slots = assign_extend_cache_locs_uniform_func(
        drafts.rows, drafts.table, drafts.lengths, len(inputs.rows), each, drafts.device
    )
    return {"verify_slots": slots.view(-1, each).long()}
