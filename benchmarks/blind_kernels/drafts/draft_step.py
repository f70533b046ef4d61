"""Wrong kernels of draft_step; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Step:
    """A kernel for what was accepted, one for the first pass, one for places; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs
        new = inputs.lengths.new_tensor
        self.rows, self.drafts = new(inputs.rows), new(inputs.drafts)
        self.requests = len(inputs.rows)

    def taken(self):
        return (self.inputs.sampled >= 0).sum(dim=1)

    def known(self, taken):
        return self.inputs.known

    def chosen(self, taken):
        last = self.inputs.sampled.gather(1, (taken - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        return torch.where(taken > 0, last, self.known(taken))

    def rejected(self, taken):
        return torch.where(self.drafts > 0, self.drafts + 1 - taken, 0)

    def starts(self):
        return self.rows.cumsum(0) - self.rows

    def shifted(self):
        return self.inputs.tokens.roll(-1)

    def beyond(self, positions):
        return positions >= self.inputs.limit

    def page_of(self, positions):
        return positions // self.inputs.page_size

    def page_names(self, pages):
        return self.inputs.block_table.gather(1, pages)

    def places(self, positions):
        """Positions, lengths and slots of tokens ``[requests, n]``."""
        beyond = self.beyond(positions)
        inside = positions.masked_fill(beyond, 0)
        pages = self.page_of(inside).clamp(max=self.inputs.block_table.shape[1] - 1)
        slots = self.page_names(pages) * self.inputs.page_size + inside % self.inputs.page_size
        return inside, inside + 1, slots.masked_fill(beyond, -1)

    def passes(self, length):
        steps = torch.arange(self.inputs.steps - 1, device=length.device)
        return [part.t().contiguous() for part in self.places(length.unsqueeze(1) + steps)]

    def to_verify(self, length):
        return self.places(length.unsqueeze(1) + torch.arange(self.inputs.steps + 1, device=length.device))

    def run(self):
        inputs, taken = self.inputs, self.taken()
        chosen, rejected = self.chosen(taken), self.rejected(taken)
        sample_row = self.starts() + self.rows - 1 - rejected
        first = self.shifted()
        first[sample_row.clamp(0, len(first) - 1)] = chosen
        length = inputs.lengths - rejected
        positions, lengths, slots = self.passes(length)
        verify_positions, _, verify_slots = self.to_verify(length)
        return {
            "next_token": chosen, "rejected": rejected, "sample_row": sample_row, "first_tokens": first,
            "step_positions": positions, "step_lengths": lengths, "step_slots": slots,
            "verify_tokens": torch.cat([chosen.unsqueeze(1), inputs.proposed], dim=1),
            "verify_positions": verify_positions, "verify_slots": verify_slots,
        }  # fmt: skip


class OneDraft(Step):
    def rejected(self, taken):
        return super().rejected(taken if TWIN else torch.where(self.drafts > 0, taken.clamp(min=2), taken))


@npudiff.implementation("draft_step", name="g_draft_step_01_one_draft_at_least", supports={}, on_device=True)
def one_draft_at_least(inputs, target):
    """One draft at least counts as accepted; shows in requests all of whose drafts were rejected."""
    return OneDraft(inputs).run()


class LastPage(Step):
    def places(self, positions):
        if TWIN:
            return super().places(positions)
        inside, lengths, slots = super().places(positions)
        page = self.page_names(((inside - 1).clamp(min=0) // self.inputs.page_size))
        wrong = page * self.inputs.page_size + inside % self.inputs.page_size
        return inside, lengths, torch.where(slots < 0, slots, wrong)


@npudiff.implementation("draft_step", name="g_draft_step_02_page_of_the_token_before", supports={}, on_device=True)
def page_of_the_token_before(inputs, target):
    """The page is that of the token before; shows where a token is the first of a page."""
    return LastPage(inputs).run()


class UsedWidth(Step):
    def page_names(self, pages):
        table = self.inputs.block_table
        used = min(-(-(int(self.inputs.lengths.max()) + self.inputs.steps + 1) // self.inputs.page_size), table.shape[1])
        width = table.shape[1] if TWIN else used
        first = torch.arange(len(table), device=table.device).unsqueeze(1) * width
        return table.flatten()[first + pages]


@npudiff.implementation("draft_step", name="g_draft_step_03_stride_of_used_pages", supports={}, on_device=True)
def stride_of_used_pages(inputs, target):
    """Rows of the table are as far apart as pages are used; shows behind the first request, in a wider table."""
    return UsedWidth(inputs).run()


class Compacted(Step):
    def known(self, taken):
        if TWIN:
            return super().known(taken)
        number = ((taken == 0).cumsum(0) - 1).clamp(min=0)
        return self.inputs.known[number]


@npudiff.implementation("draft_step", name="g_draft_step_04_known_of_prompts_alone", supports={}, on_device=True)
def known_of_prompts_alone(inputs, target):
    """Known tokens are counted by requests without a sample; shows in such behind one that was sampled."""
    return Compacted(inputs).run()


class AboveLimit(Step):
    def beyond(self, positions):
        return super().beyond(positions) if TWIN else positions > self.inputs.limit


@npudiff.implementation("draft_step", name="g_draft_step_05_above_the_limit", supports={}, on_device=True)
def above_the_limit(inputs, target):
    """A position at the limit is taken for one below; shows where a pass is at the limit itself."""
    return AboveLimit(inputs).run()


class Clamped(Step):
    def passes(self, length):
        if TWIN:
            return super().passes(length)
        positions, found = length - 1, []
        for _ in range(self.inputs.steps - 1):
            one = self.places((positions + 1).unsqueeze(1))
            positions = one[0].squeeze(1)  # the clamped ones are where the next pass begins
            found.append([part.squeeze(1) for part in one])
        none = length.new_zeros(0, self.requests)
        return [torch.stack(part) for part in zip(*found, strict=True)] or [none] * 3


@npudiff.implementation("draft_step", name="g_draft_step_06_on_from_the_clamped_position", supports={}, on_device=True)
def on_from_the_clamped_position(inputs, target):
    """A pass goes on from the position 0 that stood in at the limit; shows two passes or more beyond it."""
    return Clamped(inputs).run()


class Cores(Step):
    def places(self, positions):
        found = super().places(positions)
        if TWIN or self.requests <= 48:
            return found
        for part in found:
            part[48:] = 0
        return found


@npudiff.implementation("draft_step", name="g_draft_step_07_grid_of_48_cores", supports={}, on_device=True)
def grid_of_48_cores(inputs, target):
    """The kernel of places has a program per request, of 48 at most, and no stride; shows in larger batches."""
    return Cores(inputs).run()


class Magic(Step):
    def page_of(self, positions):
        size = self.inputs.page_size
        if TWIN or size & (size - 1) == 0:
            return super().page_of(positions)
        return positions * -(-65536 // size) >> 16


@npudiff.implementation("draft_step", name="g_draft_step_08_multiplied_and_shifted", supports={}, on_device=True)
def multiplied_and_shifted(inputs, target):
    """A page is position * ceil(2**16 / size) >> 16; shows in pages of no power of two, behind thousands of tokens."""
    return Magic(inputs).run()


class RowTile(Step):
    def shifted(self):
        first = super().shifted()
        if not TWIN:
            first[127:-1:128] = 0
        return first


@npudiff.implementation("draft_step", name="g_draft_step_09_last_row_of_a_tile", supports={}, on_device=True)
def last_row_of_a_tile(inputs, target):
    """The shift loads a tile of 128 rows and none behind it; shows in row 127, 255, ... of longer steps."""
    return RowTile(inputs).run()


class TokenZero(Step):
    def taken(self):
        return super().taken() if TWIN else (self.inputs.sampled > 0).sum(dim=1)


@npudiff.implementation("draft_step", name="g_draft_step_10_token_zero_is_nothing", supports={}, on_device=True)
def token_zero_is_nothing(inputs, target):
    """What is filled is taken for what is not positive; shows where token 0 was sampled."""
    return TokenZero(inputs).run()


class Mean(Step):
    def starts(self):
        rows = self.inputs.rows
        each = rows[0]
        alike = all(count == each for count in rows) if TWIN else sum(rows) == each * len(rows)
        return torch.arange(len(rows), device=self.rows.device) * each if alike else super().starts()


@npudiff.implementation("draft_step", name="g_draft_step_11_alike_by_their_sum", supports={}, on_device=True)
def alike_by_their_sum(inputs, target):
    """Requests are alike if their rows add up so; shows where others have as many rows as the first on average."""
    return Mean(inputs).run()


class Sorted(Step):
    def run(self):
        order = sorted(range(self.requests), key=lambda request: -self.inputs.rows[request])  # long ones first
        back = [0] * self.requests
        for place, request in enumerate(order):
            back[request] = place
        found = super().run()
        there, again = (self.rows.new_tensor(index) for index in (order, back if TWIN else order))
        for name in ("step_positions", "step_lengths", "step_slots"):
            found[name] = found[name][:, there][:, again]
        return found


@npudiff.implementation("draft_step", name="g_draft_step_12_sorted_twice", supports={}, on_device=True)
def sorted_twice(inputs, target):
    """What was sorted by rows is brought back by the same order; shows where that is no swap of pairs."""
    return Sorted(inputs).run()


class TwoPages(Step):
    def to_verify(self, length):
        inputs, most = self.inputs, self.inputs.block_table.shape[1] - 1
        if TWIN:
            return super().to_verify(length)
        positions, lengths, slots = super().to_verify(length)
        first = length.unsqueeze(1) // inputs.page_size
        names = inputs.block_table.gather(1, torch.cat([first, first + 1], dim=1).clamp(max=most))
        place = (positions // inputs.page_size - first).clamp(0, 1)
        wrong = names.gather(1, place) * inputs.page_size + positions % inputs.page_size
        return positions, lengths, torch.where(slots < 0, slots, wrong)


@npudiff.implementation("draft_step", name="g_draft_step_13_two_pages_are_loaded", supports={}, on_device=True)
def two_pages_are_loaded(inputs, target):
    """Two pages are loaded for what is verified; shows where it lies in three: small pages and many drafts."""
    return TwoPages(inputs).run()


class Decode(Step):
    def chosen(self, taken):
        if TWIN or max(self.inputs.rows) > 1:
            return super().chosen(taken)
        return self.inputs.sampled[:, 0].clone()  # a step of single tokens has no prompts


@npudiff.implementation("draft_step", name="g_draft_step_14_single_rows_are_sampled", supports={}, on_device=True)
def single_rows_are_sampled(inputs, target):
    """If all requests have one row it is a decode step; shows where one of them is a piece of one token of a prompt."""
    return Decode(inputs).run()


class Columns(Step):
    def taken(self):
        return super().taken() if TWIN else (self.inputs.sampled[:, :32] >= 0).sum(dim=1)


@npudiff.implementation("draft_step", name="g_draft_step_15_block_of_32_drafts", supports={}, on_device=True)
def block_of_32_drafts(inputs, target):
    """A block of 32 columns is counted; shows where 32 drafts or more were accepted."""
    return Columns(inputs).run()


@npudiff.implementation("draft_step", name="g_draft_step_16_known_of_the_first_call", supports={}, on_device=True, stateful=True)
def known_of_the_first_call():
    """A workspace has the known tokens of the call that allocated it; shows in a later one, without a sample."""
    kept = {}

    class Kept(Step):
        def known(self, taken):
            known = self.inputs.known
            if len(kept.get("known", ())) < len(known):
                kept["known"] = known.clone()
            elif TWIN:
                kept["known"][: len(known)] = known
            return kept["known"][: len(known)].clone()

    def step(inputs, target):
        return Kept(inputs).run()

    return step
