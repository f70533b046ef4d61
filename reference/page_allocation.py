"""Which slots new tokens get: pages are taken whole, from the head of a list of free ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from npudiff.reference.bounds import Expected, exactly


@dataclass(frozen=True)
class PageAllocationInputs:
    """Requests that grow, and the pages that are free."""

    prefix_lengths: torch.Tensor
    """int64 ``[batch]``: tokens that each request has already."""
    lengths: torch.Tensor
    """int64 ``[batch]``: tokens that it will have, at least one more. One more for all is a decode."""
    last_slots: torch.Tensor
    """int64 ``[batch]``: slot of each request's last token; -1 for a request without any."""
    free_pages: torch.Tensor
    """int64 ``[free]``: pages in the order in which they are taken. Page 0 is never among them."""
    page_size: int
    """Tokens per page."""

    def to(self, device: str | torch.device) -> PageAllocationInputs:
        """Return the same inputs on ``device``."""
        return replace(
            self,
            prefix_lengths=self.prefix_lengths.to(device),
            lengths=self.lengths.to(device),
            last_slots=self.last_slots.to(device),
            free_pages=self.free_pages.to(device),
        )


def page_allocation(inputs: PageAllocationInputs) -> dict[str, Expected]:
    """Return the slots of the new tokens.

    Token by token, request by request: a token at the start of a page takes the next free page, any other the slot
    after its predecessor's.

    Returns
    -------
    dict
        ``slots``: int32 ``[sum(lengths - prefix_lengths)]``, requests one after the other. ``pages_taken``: int64
        ``[1]``, how many free pages are used up.

    Raises
    ------
    ValueError
        If a request does not grow, its last slot does not stand where its prefix ends, or there are too few free pages.
    """
    free = iter(inputs.free_pages.tolist())
    slots: list[int] = []
    taken = 0
    for prefix, length, last in zip(
        inputs.prefix_lengths.tolist(), inputs.lengths.tolist(), inputs.last_slots.tolist(), strict=True
    ):
        if length <= prefix or last % inputs.page_size != (prefix - 1) % inputs.page_size:
            raise ValueError(f"prefix {prefix}, length {length} and last slot {last} contradict each other")
        slot = last
        for position in range(prefix, length):
            if position % inputs.page_size:
                slot += 1
            else:
                page = next(free, None)
                if page is None:
                    raise ValueError(f"{len(inputs.free_pages)} free pages are too few")
                slot, taken = page * inputs.page_size, taken + 1
            slots.append(slot)
    return {
        "slots": exactly(torch.tensor(slots, dtype=torch.int32)),
        "pages_taken": exactly(torch.tensor([taken], dtype=torch.int64)),
    }
