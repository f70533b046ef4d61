"""Mutants of decode over a history that is split over ranks: a length, a place, a mask or a merge is wrong."""

from __future__ import annotations

import torch

from npudiff.device.ascend.context_parallel import (
    GatheredLse,
    MaskedDecode,
    PackedDecode,
    Partial,
    ShardedDecode,
    fia_flattened_drafts,
    fia_masked_drafts,
    fia_packed_decode,
    lse_gathered,
)
from npudiff.device.mutants.class_mutant import class_mutant

_VLLM = "vllm-project/vllm"
_ASCEND = "vllm-project/vllm-ascend"


@class_mutant(fia_packed_decode, f"{_VLLM}/pull/26696: stretches of several tokens; a begun one is counted whole")
class ContextStretchCountedWhole(PackedDecode):
    """The last stretch of a request counts as if it were full, and what lies behind the last token is read."""

    def local_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Round up."""
        found = super().local_lengths(lengths)
        return -(-found // self.interleave) * self.interleave


@class_mutant(
    fia_packed_decode, f"{_ASCEND}/pull/14876: the stretches of the cache and those of the lengths are set apart"
)
class ContextLengthsOfStretchOne(PackedDecode):
    """Lengths are those of tokens dealt one by one."""

    def local_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Deal one by one."""
        return lengths // self.ranks + (lengths % self.ranks > self.rank).long()


@class_mutant(fia_packed_decode, f"{_VLLM}/pull/27518: where tokens divide evenly among ranks, each counts one more")
class ContextEvenLengthsOneMore(PackedDecode):
    """The last round over the ranks counts as begun where it has ended."""

    def local_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Add one where nothing is left over."""
        even = (lengths > 0) & (lengths % (self.interleave * self.ranks) == 0)
        return super().local_lengths(lengths) + even.long()


@class_mutant(fia_flattened_drafts, f"{_ASCEND}/pull/12841: lengths of padded requests are less than nothing")
class ContextPaddedBelowZero(ShardedDecode):
    """Rows of a padded request stand at positions before the first token."""

    def positions(self) -> torch.Tensor:
        """Count back from the length."""
        lengths = zip(self.inputs.query_lengths, self.inputs.kv_lengths, strict=True)
        return torch.cat([torch.arange(total - new, total) for new, total in lengths]).to(self.device)


@class_mutant(
    fia_flattened_drafts, f"{_VLLM}/pull/46076: what drafts see is counted back from the last one's keys here"
)
class ContextDraftsCountedLocally(ShardedDecode):
    """A row sees as many keys less than the last one as it stands before it, whoever has the tokens between."""

    def visible(self) -> torch.Tensor:
        """Count back in the shard."""
        totals = self.local_lengths(torch.tensor(self.inputs.kv_lengths, device=self.device))
        behind = torch.cat([torch.arange(new - 1, -1, -1) for new in self.inputs.query_lengths]).to(self.device)
        return (totals[self.request_of_row()] - behind).clamp(min=0)


@class_mutant(fia_masked_drafts, "lightseekorg/tokenspeed/pull/364: a bound is divided by ranks, whichever rank it is")
class ContextBoundOfFirstRank(MaskedDecode):
    """The mask of every rank is that of the first."""

    def visible(self) -> torch.Tensor:
        """Forget the rank."""
        rank, self.rank = self.rank, 0
        found = super().visible()
        self.rank = rank
        return found


@class_mutant(fia_packed_decode, f"{_ASCEND}/pull/5565: without prefill ranks, lengths are those of the whole history")
class ContextGlobalLengths(PackedDecode):
    """Every rank attends to as many keys as the request has, as far as its pages go."""

    def local_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Take lengths as they are."""
        return lengths.clamp(max=self.inputs.block_table.shape[1] * self.inputs.page_size)


@class_mutant(fia_packed_decode, f"{_ASCEND}/pull/14126: an empty shard is not the identity of the merge")
class ContextEmptyShardWeighs(PackedDecode):
    """A rank without keys says that the sum of its exponentials is 1."""

    def present(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Take infinity for 0."""
        output, lse = super().present(output, lse)
        return output, torch.where(lse.isneginf(), 0.0, lse)


@class_mutant(lse_gathered, f"{_VLLM}/pull/38416: an empty shard's plus infinity goes into the merge")
class ContextEmptyShardInfinite(GatheredLse):
    """Plus infinity is a log-sum-exp like any other."""

    def present(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Leave what an operator says."""
        return output.float(), torch.where(lse.isneginf(), torch.inf, lse)


@class_mutant(lse_gathered, "zhuzilin/ring-flash-attention/pull/30: exponentials of log-sum-exps overflow")
class ContextMergeWithoutMaximum(GatheredLse):
    """Exponentials are summed as they are."""

    def total(self, logs: torch.Tensor) -> torch.Tensor:
        """Subtract nothing."""
        return logs.exp().sum(dim=0).log()


@class_mutant(lse_gathered, "sgl-project/sglang/pull/33926: a kernel's log-sum-exps are natural, the merge's to base 2")
class ContextMergeToBaseTwo(GatheredLse):
    """Natural logarithms are taken for those to base 2."""

    def total(self, logs: torch.Tensor) -> torch.Tensor:
        """Sum powers of two."""
        return super().total(logs * 0.6931471805599453) / 0.6931471805599453

    def weights(self, lse: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Weigh by powers of two."""
        return torch.exp2(lse - total.masked_fill(total.isneginf(), 0.0))


@class_mutant(fia_packed_decode, f"{_VLLM}/pull/57260: sharded caches and those that every rank has are mixed up")
class ContextWrittenEverywhere(PackedDecode):
    """Every rank writes each new token to where it would lie if it were this rank's."""

    def is_mine(self, positions: torch.Tensor) -> torch.Tensor:
        """Take all but padded ones."""
        return positions >= 0


@class_mutant(
    fia_flattened_drafts, f"{_ASCEND}/pull/10442: slots are computed with a block size that is not the interleave's"
)
class ContextSlotsDealtByOne(ShardedDecode):
    """Within a round over the ranks a token goes where it would if tokens were dealt one by one."""

    def local_index(self, positions: torch.Tensor) -> torch.Tensor:
        """Divide by the ranks."""
        return positions // self.ranks


@class_mutant(fia_masked_drafts, f"{_ASCEND}/pull/6491: drafts have one mask, which is that of the last of them")
class ContextDraftsSeeAlike(MaskedDecode):
    """Each draft sees what the last one of its request sees."""

    def visible(self) -> torch.Tensor:
        """Take the whole length for all rows."""
        totals = torch.tensor(self.inputs.kv_lengths, device=self.device)
        return self.local_lengths(totals)[self.request_of_row()]


@class_mutant(
    fia_masked_drafts, "vllm_ascend/worker/dcp_utils.py 684: a row hides keys only where it sees one, 182b75ea"
)
class ContextDraftsBeforeTheFirstKey(MaskedDecode):
    """A draft that sees no key on a rank has no mask there, and sees those of later drafts."""

    def mask(self, batch: int) -> torch.Tensor:
        """Hide nothing of rows that see nothing."""
        return super().mask(batch) & (self.visible() > 0).view(batch, -1, 1)


@class_mutant(fia_masked_drafts, f"{_ASCEND}/pull/14126: rows without a key are averages of values")
class ContextHiddenRowsPresent(MaskedDecode):
    """A row of which the mask hides every key is an average over all of them, with the largest of log-sum-exps."""

    def present(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Take what is absent as a score of 0."""
        output, lse = super().present(output, lse)
        drafts = len(output) > len(self.inputs.query_lengths)
        return output, torch.where(lse.isneginf() & drafts, 0.0, lse)


@class_mutant(fia_flattened_drafts, "sgl-project/sglang/pull/32858: ranks of a group have KV heads of their own order")
class ContextHeadsInAnotherOrder(ShardedDecode):
    """Queries of all ranks are gathered head by head, as if a rank had every so-manieth head."""

    def all_heads(self, query: torch.Tensor) -> torch.Tensor:
        """Put the first heads of all ranks first."""
        tokens, _, dim = query.shape
        gathered = super().all_heads(query).view(tokens, self.ranks, self.own_heads, dim)
        return gathered.transpose(1, 2).reshape(tokens, -1, dim)


@class_mutant(fia_packed_decode, "sgl-project/sglang/pull/34161: local query heads are shared out among all KV heads")
class ContextHeadsNotGathered(PackedDecode):
    """A rank asks with its own heads as often as there are ranks, and not with those of all."""

    def all_heads(self, query: torch.Tensor) -> torch.Tensor:
        """Repeat the own heads."""
        return query.repeat(1, self.ranks, 1)


@class_mutant(fia_packed_decode, "local-inference-lab/vllm/pull/56: who has no log-sum-exp has nothing to merge by")
class ContextOwnShardOnly(PackedDecode):
    """Nothing is merged."""

    def merged(self, output: torch.Tensor, lse: torch.Tensor) -> Partial:
        """Cut the own heads out."""
        own = slice(self.rank * self.own_heads, (self.rank + 1) * self.own_heads)
        return output[:, own], lse[:, own]
