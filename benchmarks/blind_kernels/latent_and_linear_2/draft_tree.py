"""Wrong kernels of draft_tree; TWIN=1 in the environment runs the same code without the mistakes."""

import bisect
import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Forest:
    """Tree after tree by lists of children; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.count = inputs, inputs.draft_token_num

    def place(self, selected, candidate):
        """Number of a candidate among those that are selected."""
        return selected.index(candidate)

    def parents(self, request):
        selected, above = self.inputs.selected_index[request].tolist(), [-1]
        for candidate in selected:
            row = candidate // self.inputs.topk
            above.append(1 + self.place(selected, int(self.inputs.parent_list[request, row])) if row else 0)
        return above

    def examined(self, children):
        """Children of which one may be accepted."""
        return children

    def entry(self, request, node):
        """An accepted node in the batch."""
        return request * self.count + node

    def way(self, request, children):
        tokens, target, way = self.inputs.candidates[request].tolist(), self.inputs.target_predict[request].tolist(), [0]
        while len(way) <= self.inputs.depth:
            found = [child for child in self.examined(children[way[-1]]) if tokens[child] == target[way[-1]]]
            if not found:
                break
            way.append(found[0])
        return way

    def run(self):
        inputs, count, requests = self.inputs, self.count, len(self.inputs.verified)
        positions = torch.zeros(requests, count, dtype=torch.int64)
        first, following = (torch.full((requests, count), -1, dtype=torch.int64) for _ in range(2))
        index = torch.full((requests, inputs.depth + 1), -1, dtype=torch.int32)
        accepted, predicted = torch.zeros(requests, dtype=torch.int32), torch.zeros(requests, count, dtype=torch.int32)
        masks = []
        for request, length in enumerate(inputs.verified.tolist()):
            above, sees = self.parents(request), torch.zeros(count, count, dtype=torch.bool)
            children = [[other for other in range(count) if above[other] == node] for node in range(count)]
            for node in range(count):
                if node and 0 <= above[node] < node:
                    sees[node] = sees[above[node]]
                sees[node, node] = True
                for one, other in zip([None, *children[node]], [*children[node], None]):
                    if one is None:
                        first[request, node] = -1 if other is None else other
                    else:
                        following[request, one] = -1 if other is None else other
            positions[request] = length + sees.sum(dim=1) - 1
            before = torch.ones(count, length if inputs.mask_mode == "full" else 0, dtype=torch.bool)
            masks.append(torch.cat([before, sees], dim=1).flatten())
            way = self.way(request, children)
            index[request, : len(way)] = torch.tensor([self.entry(request, node) for node in way], dtype=torch.int32)
            accepted[request] = len(way) - 1
            predicted[request, way] = inputs.target_predict[request, way].int()
        return {
            "positions": positions.flatten(), "next_token": first, "next_sibling": following, "mask": torch.cat(masks),
            "accept_index": index, "accepted": accepted, "predicted": predicted.flatten(),
        }  # fmt: skip


class OwnNumbers(Forest):
    def entry(self, request, node):
        return super().entry(request, node) if TWIN else node


@npudiff.implementation("draft_tree", name="i_draft_tree_01_accepted_nodes_of_the_request", supports={}, on_device=True)
def accepted_nodes_of_the_request(inputs, target):
    """Accepted nodes are counted in their own tree, not through the batch; shows behind the first request."""
    return OwnNumbers(inputs).run()


class Bisected(Forest):
    def place(self, selected, candidate):
        if TWIN:
            return super().place(selected, candidate)
        return min(bisect.bisect_left(selected, candidate), len(selected) - 1)


@npudiff.implementation("draft_tree", name="i_draft_tree_02_parents_by_bisection", supports={}, on_device=True)
def parents_by_bisection(inputs, target):
    """A parent is looked for by bisection, as if candidates were sorted; shows where nodes are numbered in another order."""
    return Bisected(inputs).run()


class OneChildLess(Forest):
    def examined(self, children):
        return children if TWIN else children[: max(1, self.inputs.topk - 1)]


@npudiff.implementation("draft_tree", name="i_draft_tree_03_last_of_all_children_not_examined", supports={}, on_device=True)
def last_of_all_children_not_examined(inputs, target):
    """Of a node that has all its children the last one is not examined; shows where it alone has the target's token."""
    return OneChildLess(inputs).run()
