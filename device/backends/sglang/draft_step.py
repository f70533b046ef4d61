"""Steps of drafts on sglang: ``EagleDraftWorker`` between its scheduler and a draft model, on chains of drafts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from sglang.kernels.ops.speculative.cache_locs import assign_extend_cache_locs_uniform_func
from sglang.kernels.ops.speculative.spec_tree import TreeMaskMode
from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from npudiff import Target, implementation
from npudiff.device.backends.sglang.world import alone, configured
from npudiff.model.constraints import Box
from npudiff.reference.draft_step import DraftStepInputs

Outputs = dict[str, torch.Tensor]

VOCABULARY = 2**17 + 1

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
        """Note a pass, and return logits."""
        self.passes.append({
            "tokens": batch.input_ids.clone(),
            "positions": batch.positions.clone(),
            "slots": batch.out_cache_loc.clone(),
        })  # fmt: skip
        drafts = self.proposed[:, self.first + len(self.passes) - 1]
        logits = torch.zeros(len(drafts), VOCABULARY, device=drafts.device)
        logits.scatter_(1, drafts.unsqueeze(1), 1.0)
        states = torch.zeros(len(drafts), 1, device=drafts.device)
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
            ngram_embedding_manager=SimpleNamespace(enabled=False),
        )  # fmt: skip

    def batch(self, lengths: torch.Tensor, spec_info: object) -> Batch:
        """Return a batch of the scheduler."""
        return Batch(
            forward_mode=ForwardMode.DECODE, seq_lens=lengths, seq_lens_cpu=lengths.cpu(), seq_lens_sum=int(lengths.sum()),
            req_pool_indices=self.rows, req_to_token_pool=SimpleNamespace(req_to_token=self.table), device=self.device,
            token_to_kv_pool_allocator=SimpleNamespace(page_size=self.inputs.page_size), spec_info=spec_info, reqs=[],
            model_config=self.runner.model_config, spec_algorithm=SpeculativeAlgorithm.EAGLE, multimodal_inputs=[None],
        )  # fmt: skip

    def worker(self) -> EagleDraftWorker:
        """Build a worker with the fields that its constructor sets."""
        steps, count = self.inputs.steps, len(self.lengths)
        made = EagleDraftWorker.__new__(EagleDraftWorker)
        own = SimpleNamespace(attn_backend=SimpleNamespace(verify_mask=None, max_context_len=self.table.shape[1]),
                              kv_index_translator=self.runner.kv_index_translator, model_config=self.runner.model_config)  # fmt: skip
        vars(made).update(
            req_to_token_pool=SimpleNamespace(req_to_token=self.table), cuda_graph_runner=None,
            draft_runner=self.runner, topk=1, speculative_num_steps=steps, speculative_num_draft_tokens=steps + 1,
            target_worker=SimpleNamespace(model_runner=own), seed_dsa_topk_from_draft_extend=False,
            index_share_for_mtp_iteration=False, hot_token_id=None, tree_mask_mode=TreeMaskMode.FULL_MASK,
            device=self.device, draft_attn_backend=SimpleNamespace(
                init_forward_metadata=lambda _: None, attn_backends=[None] * steps
            ),
            _topk1_parents_prealloc=torch.arange(-1, steps - 1 if steps > 1 else -1, device=self.device).repeat(count, 1),
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


@implementation("draft_step", name="EagleDraftWorker.draft", supports=CHAINS, on_device=True)
def drafted(inputs: DraftStepInputs, target: Target) -> Outputs:
    """``EagleDraftWorker.draft``: passes behind the first, and the tokens and positions that the target verifies."""
    configured()
    alone()
    drafts, each = Drafts(inputs), inputs.steps + 1
    verified, passes = drafts.draft()
    count = len(inputs.rows)
    none = inputs.lengths.new_zeros(0, count)
    found = {f"step_{name}": torch.stack([one[name].long() for one in passes]) if passes else none
             for name in ("positions", "slots")}  # fmt: skip
    return {
        **found,
        "verify_tokens": verified.draft_token.view(count, each).long(),
        "verify_positions": verified.positions.view(count, each).long(),
        "verify_slots": verified.prepared_out_cache_loc.view(count, each).long(),
    }
