"""Wrong kernels of sparse_indexer; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff
from npudiff.device.ascend.sparse_indexer import as_sets, of_all_rows

TWIN = bool(os.environ.get("TWIN"))
BLOCK, KEPT = 128, 64


class Indexer:
    """Scores of all keys of a row, and the best of them; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs = inputs

    def summed(self, weights, products):
        """Scores of ``[heads, keys]``."""
        return weights @ products.relu()

    def weights(self, weights):
        """Of all heads."""
        return weights

    def scale_pages(self, pages, logical):
        """Pages out of which the scales of keys are taken."""
        return pages

    def best(self, scores):
        return scores.topk(min(self.inputs.count, len(scores))).indices

    def run(self):
        inputs, size, row = self.inputs, self.inputs.key.shape[1], 0
        indices = torch.full((sum(inputs.query_lengths), inputs.count), -1, dtype=torch.int32)
        for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths)):
            token = torch.arange(total if new else 0)
            pages = inputs.block_table[request].long()[token // size]
            keys = inputs.key[pages, token % size].squeeze(1).float()
            for position in range(total - new, total):
                weights = inputs.weights[row].float()
                if inputs.query_scale is not None:
                    weights = weights * inputs.query_scale[row].float()
                products = inputs.query[row].float() @ keys[: position + 1].t()
                scores = self.summed(self.weights(weights), products)
                if inputs.key_scale is not None:
                    seen = slice(position + 1)
                    where = self.scale_pages(pages[seen], token[seen] // size)
                    scores = scores * inputs.key_scale[where, token[seen] % size].flatten().float()
                best = self.best(scores)
                indices[row, : len(best)] = best.to(torch.int32)
                row += 1
        return as_sets(inputs, of_all_rows(inputs, indices))


class WeighedFirst(Indexer):
    def summed(self, weights, products):
        return super().summed(weights, products) if TWIN else (weights.unsqueeze(-1) * products).relu().sum(dim=0)


@npudiff.implementation("sparse_indexer", name="i_sparse_indexer_01_weights_inside_the_rectifier", supports={}, on_device=True)
def weights_inside_the_rectifier(inputs, target):
    """Weights are multiplied into queries, in front of the rectifier; shows where one is negative."""
    return WeighedFirst(inputs).run()


class WeightsOf32(Indexer):
    def weights(self, weights):
        return weights if TWIN else weights[torch.arange(len(weights)) % 32]


@npudiff.implementation("sparse_indexer", name="i_sparse_indexer_02_weights_of_the_first_32_heads", supports={}, on_device=True)
def weights_of_the_first_32_heads(inputs, target):
    """The second tile of 32 heads has the weights of the first; shows of more than 32 heads."""
    return WeightsOf32(inputs).run()


class LogicalPages(Indexer):
    def scale_pages(self, pages, logical):
        return pages if TWIN else logical


@npudiff.implementation("sparse_indexer", name="i_sparse_indexer_03_scales_without_the_table", supports={}, on_device=True)
def scales_without_the_table(inputs, target):
    """Scales of keys are taken as if pages lay in order, without the block table; shows in int8."""
    return LogicalPages(inputs).run()


class Candidates(Indexer):
    def best(self, scores):
        if TWIN or len(scores) <= BLOCK:
            return super().best(scores)
        found = [first + part.topk(min(KEPT, len(part))).indices for first, part in zip(range(0, len(scores), BLOCK), scores.split(BLOCK))]
        found = torch.cat(found)
        return found[scores[found].topk(min(self.inputs.count, len(found))).indices]


@npudiff.implementation("sparse_indexer", name="i_sparse_indexer_04_half_a_block_of_candidates", supports={}, on_device=True)
def half_a_block_of_candidates(inputs, target):
    """Of more than 128 keys each block of 128 brings its best 64; shows where more of one block are among the best."""
    return Candidates(inputs).run()
