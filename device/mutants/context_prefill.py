"""Mutants of prefill in head and tail chunks: a chunk, its keys, its padding or the order of rows is wrong."""

from __future__ import annotations

import torch

from npudiff.device.ascend.context_parallel import Partial
from npudiff.device.ascend.context_prefill import (
    HeadTail,
    Ring,
    Span,
    TwoMasks,
    fia_head_tail,
    fia_two_masks,
    ring_head_tail,
)
from npudiff.device.mutants.class_mutant import class_mutant

_ASCEND = "vllm-project/vllm-ascend"
_SGLANG = "sgl-project/sglang"


@class_mutant(fia_head_tail, "THUDM/slime/issues/1871: chunks are those of another way of sharing them out")
class PrefillTailMirrored(HeadTail):
    """The keys of a tail are counted as if ranks had the chunks after each other."""

    def kv_lengths(self, *, tail: bool) -> list[int]:
        """Count chunks from the middle."""
        if not tail:
            return super().kv_lengths(tail=False)
        spans = [self.span(new, self.ranks + self.rank) for new in self.new]
        return [prefix + span.stop for prefix, span in zip(self.prefixes(), spans, strict=True)]


@class_mutant(fia_head_tail, "zigzag.py 200: head and tail have lengths of their own")
class PrefillTailSeesHead(HeadTail):
    """The tail sees as many keys as the head."""

    def kv_lengths(self, *, tail: bool) -> list[int]:
        """Forget which half it is."""
        del tail
        return super().kv_lengths(tail=False)


@class_mutant(fia_head_tail, f"{_ASCEND}/pull/9479: what fills chunks up is a key like any other")
class PrefillPaddingIsSeen(HeadTail):
    """Lengths of keys are whole chunks: behind a short last one the pool has what it had."""

    def kv_lengths(self, *, tail: bool) -> list[int]:
        """Count whole chunks."""
        chunk = self.chunks_of(self.rank)[tail] + 1
        pages = self.inputs.block_table.shape[1] * self.inputs.page_size
        whole = [prefix + chunk * self.chunk(new) for prefix, new in zip(self.prefixes(), self.new, strict=True)]
        return [min(length, pages) for length in whole]


@class_mutant(ring_head_tail, f"{_ASCEND}/pull/9479: rows that fill chunks up are not told from others")
class PrefillZeroKeysAreSeen(Ring):
    """Keys of zeros, which fill chunks up, are seen by rows behind them."""

    def hidden(self, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Hide what lies behind, which -1 does not."""
        return theirs > mine.unsqueeze(1)


@class_mutant(fia_head_tail, f"{_SGLANG}/pull/23269: chunks are those of the whole batch, not of each request")
class PrefillRestoredAsOneRequest(HeadTail):
    """Rows of all ranks are brought back as if the batch were one long request."""

    def restored(self, received: torch.Tensor) -> torch.Tensor:
        """Take chunks of equal length, of the whole batch, one after the other."""
        parts = received.tensor_split(2 * self.ranks)
        order = [place for rank in range(self.ranks) for place in self.chunks_of(rank)]
        whole = torch.cat([parts[order.index(chunk)] for chunk in range(2 * self.ranks)])
        found = received.new_zeros(self.starts[-1], *received.shape[1:])
        found[: len(whole)] = whole[: len(found)]
        return found


@class_mutant(
    fia_head_tail, "modelscope/ms-swift/pull/10071: shards come back in the order of another way of sharing them out"
)
class PrefillTailsInOrder(HeadTail):
    """Rows come back as if the tails of ranks followed each other as their heads do."""

    def restored(self, received: torch.Tensor) -> torch.Tensor:
        """Take rank r for the owner of chunk ranks + r."""
        size = len(received) // self.ranks
        parts = received.view(self.ranks, size, *received.shape[1:])
        swapped = torch.cat([parts[:, : size // 2], parts[:, size // 2 :].flip(0)], dim=1)
        return super().restored(swapped.flatten(0, 1))


@class_mutant(fia_head_tail, f"{_SGLANG}/pull/23415: the prefix is a total without padding minus new tokens with it")
class PrefillPrefixLessPadding(HeadTail):
    """The prefix is short by as many tokens as fill chunks up."""

    def kv_lengths(self, *, tail: bool) -> list[int]:
        """Take the padding from the prefix, of which at least nothing is left."""
        filled = [self.chunk(new) * 2 * self.ranks - new for new in self.new]
        spans = self.spans(tail=tail)
        prefixes = [max(0, prefix - more) for prefix, more in zip(self.prefixes(), filled, strict=True)]
        return [prefix + span.stop for prefix, span in zip(prefixes, spans, strict=True)]


@class_mutant(fia_head_tail, f"{_ASCEND}/pull/16775: slots of gathered rows are cut to the number of local ones")
class PrefillSlotsCutToLocal(HeadTail):
    """Of all gathered keys, as many are written as this rank has rows."""

    def slots(self) -> torch.Tensor:
        """Leave the others out."""
        found = super().slots()
        found[len(self.rows_of(self.rank)) :] = -1
        return found


@class_mutant(fia_head_tail, f"{_ASCEND}/pull/5444: a request of one new token among prefills is taken for a decode")
class PrefillShortOneIsDecoded(HeadTail):
    """A request with one new token does not see it."""

    def slots(self) -> torch.Tensor:
        """Do not write it."""
        single = torch.tensor([new == 1 for new in self.new for _ in range(new)], device=self.device)
        return super().slots().masked_fill(single, -1)


@class_mutant(fia_head_tail, f"{_ASCEND}/pull/11807: segments are numbered without empty ones, and looked up with them")
class PrefillEmptyChunksShiftOthers(HeadTail):
    """A chunk has the length of keys that belongs to as many chunks further as there are empty ones before it."""

    def kv_lengths(self, *, tail: bool) -> list[int]:
        """Look lengths up by the number among chunks that are not empty."""
        lengths, spans = super().kv_lengths(tail=tail), self.spans(tail=tail)
        compact = iter(lengths)
        return [next(compact) if span.tokens else length for span, length in zip(spans, lengths, strict=True)]


@class_mutant(
    fia_two_masks, "vllm-project/vllm-ascend/pull/4361: of the two parts before and in a chunk one has a mask"
)
class PrefillNoMaskIsMasked(TwoMasks):
    """The keys before a chunk are causal, too."""

    def part(self, query: torch.Tensor, rows: list[Span], keys: list[Span], *, masked: bool) -> Partial:
        """Mask both."""
        del masked
        return super().part(query, rows, keys, masked=True)


@class_mutant(ring_head_tail, "zhuzilin/ring-flash-attention/issues/20: sums are added as if they were log-sum-exps")
class PrefillRingAddsLogarithms(Ring):
    """The log-sum-exp of two parts is that of the larger one."""

    def added(self, before: Partial, found: Partial) -> Partial:
        """Take the larger one as the total of what is handed on."""
        output, _ = super().added(before, found)
        return output, torch.maximum(before[1], found[1])


@class_mutant(ring_head_tail, "zhuzilin/ring-flash-attention/issues/15: keys that came round are not causal")
class PrefillRingSeesAhead(Ring):
    """A row sees all of what another rank's head has."""

    def hidden(self, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Hide nothing of heads of others."""
        hidden = super().hidden(mine, theirs)
        if not torch.equal(mine, theirs):
            half = len(theirs) // 2
            hidden[:, :half] = theirs[:half] < 0
        return hidden
