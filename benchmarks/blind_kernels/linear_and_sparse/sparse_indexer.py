"""Wrong kernels of sparse_indexer; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


def as_sets(inputs, indices):
    """What indices list: how often each key, and how many entries there are."""
    there = indices >= 0
    place = torch.where(there, indices.clamp(max=inputs.longest), inputs.longest).long()
    chosen = torch.zeros(len(indices), inputs.longest + 1, dtype=torch.int8)
    chosen.scatter_add_(1, place, there.to(torch.int8))
    leading = (~there).cumsum(dim=1).eq(0).sum(dim=1)
    return {"chosen": chosen, "listed": torch.stack([leading, there.sum(dim=1)], dim=1).to(torch.int32)}


class Indexer:
    """Scores in float32, and the best; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def scales(self, pages, offsets):
        return self.inputs.key_scale[pages, offsets]

    def keys(self, request):
        inputs, position = self.inputs, torch.arange(self.inputs.kv_lengths[request])
        size = inputs.key.shape[1]
        pages, offsets = inputs.block_table[request].long()[position // size], position % size
        keys = inputs.key[pages, offsets].squeeze(1).float()
        return keys if inputs.key_scale is None else keys * self.scales(pages, offsets).float()

    def weighted(self, weights, products):
        return weights @ products.relu()

    def scores(self, row, keys):
        inputs = self.inputs
        weights = inputs.weights[row].float()
        if inputs.query_scale is not None:
            weights = weights * inputs.query_scale[row].float()
        return self.weighted(weights, inputs.query[row].float() @ keys.t())

    def masked(self, request, scores):
        return scores

    def visible(self, place, new, total):
        return total - new + place + 1

    def best(self, scores):
        return scores.topk(min(self.inputs.count, len(scores))).indices

    def run(self):
        inputs, row = self.inputs, 0
        indices = torch.full((len(inputs.query), inputs.count), -1, dtype=torch.int32)
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
            keys = self.keys(request) if new else None
            for place in range(new):
                scores = self.scores(row, keys[: self.visible(place, new, total)])
                best = self.best(self.masked(request, scores))[: inputs.count]
                indices[row, : len(best)] = best.to(torch.int32)
                row += 1
        return as_sets(inputs, indices)


class Outside(Indexer):
    def weighted(self, weights, products):
        return super().weighted(weights, products) if TWIN else (weights.unsqueeze(1) * products).relu().sum(dim=0)


@npudiff.implementation("sparse_indexer", name="f_sparse_indexer_01_rectified_after_weight", supports={}, on_device=True)
def rectified_after_weight(inputs, target):
    """Products are rectified after they were weighted; shows where weights are negative and more keys than chosen."""
    return Outside(inputs).run()


class OneMore(Indexer):
    def best(self, scores):
        if not TWIN and len(scores) == self.inputs.count + 1:
            return torch.arange(self.inputs.count)
        return super().best(scores)


@npudiff.implementation("sparse_indexer", name="f_sparse_indexer_02_shortcut_one_too_far", supports={}, on_device=True)
def shortcut_one_too_far(inputs, target):
    """The shortcut that lists all keys is also taken for one key too many; shows in rows that see count + 1 keys."""
    return OneMore(inputs).run()


class Blocks(Indexer):
    def best(self, scores):
        most = self.inputs.count if TWIN else min(self.inputs.count, 512)
        if len(scores) <= 1024:
            return super().best(scores)
        parts = []
        for first in range(0, len(scores), 1024):
            block = scores[first : first + 1024]
            parts.append(first + block.topk(min(most, len(block))).indices)
        places = torch.cat(parts)
        return places[super().best(scores[places])]


@npudiff.implementation("sparse_indexer", name="f_sparse_indexer_03_half_of_a_block", supports={}, on_device=True)
def half_of_a_block(inputs, target):
    """A block of 1,024 keys hands on 512 at most; shows where over 512 of over 1,024 keys are chosen."""
    return Blocks(inputs).run()


class RowTile(Indexer):
    def visible(self, place, new, total):
        return super().visible(place if TWIN else min(place // 4 * 4 + 3, new - 1), new, total)


@npudiff.implementation("sparse_indexer", name="f_sparse_indexer_04_limit_of_row_tile", supports={}, on_device=True)
def limit_of_row_tile(inputs, target):
    """Four rows share the causal limit of the last; shows in requests with several new tokens."""
    return RowTile(inputs).run()


class ScaleTile(Indexer):
    def scales(self, pages, offsets):
        return super().scales(pages, offsets if TWIN else offsets % 128)


@npudiff.implementation("sparse_indexer", name="f_sparse_indexer_05_scales_of_128", supports={}, on_device=True)
def scales_of_128(inputs, target):
    """Keys behind the first 128 of a page take the scales of those; shows with int8 in pages of more than 128."""
    return ScaleTile(inputs).run()


class Threshold(Indexer):
    def best(self, scores):
        count = self.inputs.count
        if len(scores) <= count:
            return torch.arange(len(scores))
        limit = scores.topk(count).values[-1]
        above = (scores > limit).nonzero().flatten()
        equal = (scores == limit).nonzero().flatten()
        if not TWIN and len(equal) > 1:
            equal = (scores >= limit).nonzero().flatten()
        return torch.cat([above, equal[: count - len(above)]])


@npudiff.implementation("sparse_indexer", name="f_sparse_indexer_06_ties_filled_from_all", supports={}, on_device=True)
def ties_filled_from_all(inputs, target):
    """Where several keys tie at the limit, places are filled from all that reach it, some of them a second time."""
    return Threshold(inputs).run()


class WholePage(Indexer):
    def masked(self, request, scores):
        size, total = self.inputs.key.shape[1], self.inputs.kv_lengths[request]
        if not TWIN and total > size and total % size == 0:
            scores = scores.clone()
            scores[total - size :] = -torch.inf
        return scores


@npudiff.implementation("sparse_indexer", name="f_sparse_indexer_07_whole_last_page_masked", supports={}, on_device=True)
def whole_last_page_masked(inputs, target):
    """The last page has length % page_size tokens, none if it is full; shows for such lengths, above one page."""
    return WholePage(inputs).run()
