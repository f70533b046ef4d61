"""What is right after any steps: the account of pages and the memory of tokens, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from npudiff.reference.bounds import Expected
from npudiff.reference.hybrid_pools.contract import HybridPoolsInputs, PoolsSnapshot
from npudiff.reference.hybrid_pools.invariants import violations
from npudiff.reference.hybrid_pools.ledger import PageLedger, PoolSizes
from npudiff.reference.hybrid_pools.memory import TokenMemory, Tokens
from npudiff.reference.hybrid_pools.steps import Step, in_words, new_tokens


@dataclass(frozen=True)
class HybridPoolsHistory:
    """Pools, and the steps that were taken on them."""

    pools: HybridPoolsInputs
    """What the pools are opened with."""
    steps: tuple[tuple[Step, Tokens], ...]
    """Pairs of a step and the tokens that it brings."""


class HybridPoolsReference:
    """What a pair of pools holds and answers, step by step.

    Parameters
    ----------
    inputs : HybridPoolsInputs
        What the pools are opened with.

    Attributes
    ----------
    ledger : PageLedger
        Who has which pages.
    memory : TokenMemory
        Every token.
    """

    def __init__(self, inputs: HybridPoolsInputs) -> None:
        sizes = PoolSizes(
            page_size=inputs.page_size,
            full_pages=inputs.full.pages,
            sliding_pages=inputs.sliding.pages,
            window=inputs.window,
            requests=inputs.requests,
            prefix_sharing=inputs.prefix_sharing,
        )
        self.ledger = PageLedger(sizes)
        self.memory = TokenMemory(inputs)
        self._fresh: dict[int, int] = {}

    def take(self, step: Step, new: Tokens) -> bool:
        """Take a step.

        Parameters
        ----------
        step : Step
            The step.
        new : Tokens
            The tokens that it brings; none where it brings none.

        Returns
        -------
        bool
            Whether there were enough pages; if not, nothing has changed.

        Raises
        ------
        ValueError
            If the step makes no sense now.
        """
        reason = self.ledger.reason_against(step)
        if reason is not None:
            raise ValueError(f"{in_words(step)}: {reason}")
        fresh = new_tokens(step)
        taken = self.ledger.take(step)
        self._fresh = fresh if taken else {}
        if taken:
            self.memory.take(step, new)
        return taken

    @property
    def rows(self) -> dict[int, int]:
        """Live request to the rows that attend now: those of its new tokens, as in a prefill, else its last token."""
        return {request: self._fresh.get(request, 1) for request in self.ledger.tables}

    def attention(self) -> dict[str, Expected]:
        """Return attention of the rows that attend now, in both kinds of layer."""
        return self.memory.attention(self.rows)

    def violations(self, snapshot: PoolsSnapshot) -> list[str]:
        """Return what is wrong with where everything lies, in words; empty if nothing is."""
        return violations(self.ledger, snapshot)


def hybrid_pools(history: HybridPoolsHistory) -> dict[str, Expected]:
    """Return attention over both pools after some steps.

    Every live request attends: with the tokens that the last step brought, or with its last one.

    Returns
    -------
    dict
        ``full`` and ``sliding``: ``[rows, heads, value_head_dim]`` in the dtype of the storage, requests in the order
        in which they were admitted.

    Raises
    ------
    ValueError
        If a step makes no sense where it stands.

    Notes
    -----
    Composed of ``sliding_attention`` on the remembered tokens, with its bounds. Rules of pages: sglang 0.5.23,
    ``mem_cache/allocator/swa.py`` and ``mem_cache/common.py`` 75-140. There, the tree of the prefix cache protects what
    requests share; that an eviction leaves a page which several requests have is how ``PageLedger.leaving`` says it.
    """
    reference = HybridPoolsReference(history.pools)
    for step, new in history.steps:
        reference.take(step, new)
    return reference.attention()
