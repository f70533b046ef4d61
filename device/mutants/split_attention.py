"""Mutants of attention in parts: one step of the parts, or of putting them together, is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from npudiff.device.ascend.sliding_attention import Outputs
from npudiff.device.ascend.split_attention import SPLITS, Part, SplitAttention, split_kv
from npudiff.device.mutants.class_mutant import class_mutant

_FLASHINFER = "flashinfer-ai/flashinfer"
_FLASH_NPU = "MinghuasLab/flash-attention-npu/issues"

HEAD_TILE = 6
"""Query heads of one KV head that a kernel takes at once."""

ROW_TILE = 128
"""Query rows that a kernel takes at once."""

SENTINEL = -5e4
"""A number that some kernel takes to be less than any score."""


def filled(parts: Sequence[Part]) -> list[bool]:
    """Which parts have a key that some row sees."""
    return [not bool(torch.isneginf(part.lse).all()) for part in parts]


@class_mutant(split_kv, "SWA-08 huggingface/transformers/pull/26792: a diagonal without +1")
class SplitWindowEdgeKept(SplitAttention):
    """The window begins at position - window, one key too early."""

    def oldest(self, positions: torch.Tensor) -> torch.Tensor:
        """Forget that the window counts the query's own key."""
        return positions * 0 if self.inputs.window is None else (positions - self.inputs.window).clamp(min=0)


@class_mutant(split_kv, f"SWA-17 {_FLASHINFER}/issues/4972: the first tile of rows begins at key 0")
class SplitFirstTileUnwindowed(SplitAttention):
    """The first 128 rows behind a prefix see everything left of their window."""

    def oldest(self, positions: torch.Tensor) -> torch.Tensor:
        """Begin at key 0 in the first tile."""
        oldest = super().oldest(positions)
        if int(positions[0]) > 0:
            oldest[:ROW_TILE] = 0
        return oldest


@class_mutant(split_kv, f"SWA-20 {_FLASH_NPU}/238: an end within a request minus a start within the batch")
class SplitClearByTwoOrigins(SplitAttention):
    """Rows that see nothing are cleared, as many as an unsigned difference of unlike coordinates says; GQA only."""

    def run(self) -> Outputs:
        """Clear rows once more."""
        outputs = super().run()
        start = 0
        for new, total in zip(self.inputs.query_lengths, self.inputs.kv_lengths, strict=True):
            blind = max(0, new - total)
            if blind and self.heads > self.kv_heads:
                outputs["output"][start : start + (blind - start) % 2**32] = 0
            start += new
        return outputs


@class_mutant(split_kv, f"SWA-21 {_FLASH_NPU}/235: keyed on the size of a head tile, not its remainder")
class SplitRemainderHeadCleared(SplitAttention):
    """A last tile of one head has its rows cleared up to the first that sees a key, and that one too."""

    def attend(self, request: int, query: torch.Tensor) -> Part:
        """Clear one row too many of the last head of each KV head."""
        part = super().attend(request, query)
        group = self.heads // self.kv_heads
        if self.inputs.window is not None and group > HEAD_TILE and group % HEAD_TILE == 1:
            blind = max(0, len(query) - self.inputs.kv_lengths[request])
            part.output[group - 1 :: group, : blind + 1] = 0
        return part


@class_mutant(split_kv, f"SWA-24 {_FLASH_NPU}/168: 0 / 0 in a tile that is empty for some rows; LSE is finite")
class SplitTileWithoutKeys(SplitAttention):
    """Sums of values are divided by sums of weights, also where these are 0."""

    def normalised(self, summed: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """Divide."""
        return summed / mass


@class_mutant(split_kv, "SWA-32 sgl-project/sglang/pull/29374: as many rows as keys")
class SplitQueryPaddedToWindow(SplitAttention):
    """The buffer of the query has as many rows as there are keys in the window."""

    def attend(self, request: int, query: torch.Tensor) -> Part:
        """Attend as many rows as there are keys."""
        total = self.inputs.kv_lengths[request]
        keys = total - self.first_key(self.oldest(torch.arange(total - len(query), total, device=self.device)))
        return super().attend(request, torch.nn.functional.pad(query, (0, 0, 0, 0, 0, keys - len(query))))


@class_mutant(
    split_kv, f"NAN-01 {_FLASHINFER}/pull/4401: the running maximum begins at -50,000", name="split_sentinel_of_50000"
)
class SplitSentinelOf50000(SplitAttention):
    """No score is taken to be below a finite sentinel."""

    def largest(self, scores: torch.Tensor) -> torch.Tensor:
        """Begin at the sentinel."""
        return super().largest(scores).clamp(min=SENTINEL)


@class_mutant(split_kv, f"NAN-02 {_FLASHINFER}/pull/4401: minus infinity minus minus infinity")
class SplitMinusInfinityUnguarded(SplitAttention):
    """A row without a key in some part gets the difference of two infinities."""

    def finite(self, logarithm: torch.Tensor) -> torch.Tensor:
        """Do not look."""
        return logarithm


@class_mutant(split_kv, "NAN-04 huggingface/transformers/pull/27114: both masks are finite")
class SplitTwoMasksAdded(SplitAttention):
    """Hidden keys and rows before the first token have finite masks, which need no guard; their sum overflows."""

    lowest = torch.finfo(torch.float32).min

    def masked(self, scores: torch.Tensor, keys: torch.Tensor, oldest: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Add one mask to the other."""
        band, padding = self.hidden(keys, oldest, own), own.unsqueeze(1) < 0
        return scores + (torch.where(band, self.lowest, 0.0) + torch.where(padding, self.lowest, 0.0))

    def finite(self, logarithm: torch.Tensor) -> torch.Tensor:
        """Trust in finite masks."""
        return logarithm

    def empty(self, query: torch.Tensor) -> Part:
        """A part without keys, by the finite number too."""
        nothing = super().empty(query)
        return Part(nothing.output, torch.full_like(nothing.lse, self.lowest))

    def merged(self, parts: Sequence[Part]) -> Part:
        """Clear rows that saw nothing."""
        merged = super().merged(parts)
        nothing = merged.lse < self.lowest / 2
        output = torch.where(nothing.unsqueeze(-1), 0.0, merged.output)
        return Part(output, merged.lse.masked_fill(nothing, -torch.inf))


@class_mutant(
    split_kv,
    "NAN-07 vllm-project/vllm/pull/53628: all pages are read, and scores masked",
    supports={"poison": ("nan",)},
)
class SplitReadsStalePages(SplitAttention):
    """Pages that left the window are multiplied by weights of 0."""

    def first_key(self, oldest: torch.Tensor) -> int:
        """Read from key 0."""
        del oldest
        return 0


@class_mutant(
    split_kv,
    "NAN-08 vllm-project/vllm-ascend/pull/10276: lanes behind the last key hold what memory held",
    supports={"poison": ("nan",)},
)
class SplitTailNotCleared(SplitAttention):
    """Whole pages are read, and what stands behind the last key is multiplied by weights of 0."""

    def spans(self, total: int) -> list[tuple[int, int]]:
        """End at the end of a page."""
        return [(first, -(-last // self.page_size) * self.page_size) for first, last in super().spans(total)]


@class_mutant(
    split_kv,
    "SNK-01 ROCm/rocm-libraries/issues/12227: an empty part leaves the next one to be first as well",
    supports={"sinks": (True,)},
)
class SplitSinkSeededAgain(SplitAttention):
    """Every part counts the sink that no part with keys precedes."""

    def with_sink(self, parts: Sequence[Part], query: torch.Tensor) -> list[Part]:
        """Add one for each empty part at the beginning, and one for the part behind them."""
        sink, *rest = super().with_sink(parts, query)
        count = filled(parts)
        return [sink] * (count.index(True) + 1 if any(count) else 1) + rest


@class_mutant(
    split_kv, "SNK-02 kekzl/imp/pull/1346: only the path without parts knows of sinks", supports={"sinks": (True,)}
)
class SplitSinkDroppedInMerge(SplitAttention):
    """Histories that are long enough to be split have no sinks."""

    def attend(self, request: int, query: torch.Tensor) -> Part:
        """Leave sinks to histories of one page."""
        if self.inputs.kv_lengths[request] <= self.page_size:
            return super().attend(request, query)
        return SplitAttention(replace(self.inputs, sinks=None), self.target).attend(request, query)


@class_mutant(split_kv, "SNK-04 vllm-project/flash-attention/pull/87: LSE of a decode with GQA as [heads, batch]")
class SplitLseInOtherOrder(SplitAttention):
    """The merge of a decode with grouped heads writes LSEs head by head, and its caller reads them row by row."""

    def run(self) -> Outputs:
        """Write in one order, read in the other."""
        outputs = super().run()
        batch, rows = len(self.inputs.query_lengths), set(self.inputs.query_lengths)
        if rows == {1} and self.heads > self.kv_heads and max(self.inputs.kv_lengths) > self.page_size:
            outputs["lse"][:batch] = outputs["lse"][:batch].T.contiguous().view(batch, -1)
        return outputs


@class_mutant(
    split_kv,
    "SNK-05 sgl-project/sgl-kernel-xpu/pull/487: with one part of keys nothing is merged, and all "
    "parts write to one place",
)
class SplitIdlePartWritesLse(SplitAttention):
    """Where one part has all keys, every part writes the result's LSE, the empty last one too."""

    def merged(self, parts: Sequence[Part]) -> Part:
        """Keep what was written last."""
        merged = super().merged(parts)
        return Part(merged.output, parts[-1].lse) if sum(filled(parts[-SPLITS:])) == 1 else merged
