"""Wrong kernels of draft_tree; TWIN=1 in the environment runs the same code without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


class Trees:
    """A program per request: parents, links from the last node on, ways, a walk; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.count = inputs, inputs.draft_token_num
        self.requests = len(inputs.verified)
        self.lengths = inputs.verified.tolist()
        self.selected, self.lists = inputs.selected_index.tolist(), inputs.parent_list.tolist()
        self.tokens, self.target = inputs.candidates.tolist(), inputs.target_predict.tolist()

    def place(self, candidate):
        return candidate // self.inputs.topk

    def list_entry(self, request, place):
        return self.lists[request][place]

    def find(self, request, candidate):
        """Node of a candidate."""
        return 1 + self.selected[request].index(candidate)

    def parents(self, request):
        above = [-1]
        for candidate in self.selected[request]:
            place = self.place(candidate)
            above.append(0 if place == 0 else self.find(request, self.list_entry(request, place)))
        return above

    def links(self, request, above):
        first, following = [-1] * self.count, [-1] * self.count
        for node in range(self.count - 1, 0, -1):
            following[node] = first[above[node]]
            first[above[node]] = node
        return first, following

    def ways(self, request, above):
        """Nodes on the way to each node, and how many steps it takes."""
        found = [{0}]
        for node in range(1, self.count):
            found.append(found[min(above[node], node - 1)] | {node})
        return found, [len(way) - 1 for way in found]

    def position(self, length, steps):
        return length + steps

    def matches(self, token, wanted):
        return token == wanted

    def child(self, request, node, first, following):
        """The child that is accepted, or -1."""
        child = first[node]
        while child >= 0 and not self.matches(self.tokens[request][child], self.target[request][node]):
            child = following[child]
        return child

    def walk(self, request, first, following):
        way = [0]
        while len(way) <= self.inputs.depth and (child := self.child(request, way[-1], first, following)) >= 0:
            way.append(child)
        return way

    def predicted(self, way):
        """Nodes whose token is written."""
        return way

    def index_buffer(self):
        return torch.full((self.requests, self.inputs.depth + 1), -1, dtype=torch.int32)

    def programs(self):
        return range(self.requests)

    def mask_starts(self):
        count, starts, at = self.count, [], 0
        for length in self.lengths:
            starts.append(at)
            at += count * (count + (length if self.inputs.mask_mode == "full" else 0))
        return starts, at

    def before(self, row, length):
        """Write a row's columns of verified tokens."""
        row[:length] = True

    def run(self):
        count, requests = self.count, self.requests
        starts, size = self.mask_starts()
        positions = torch.zeros(requests, count, dtype=torch.int64)
        firsts, followings = (torch.full((requests, count), -1, dtype=torch.int64) for _ in range(2))
        mask, index = torch.zeros(size, dtype=torch.bool), self.index_buffer()
        accepted = torch.zeros(requests, dtype=torch.int32)
        predicted = torch.zeros(requests * count, dtype=torch.int32)
        for request in self.programs():
            length = self.lengths[request]
            columns = count + (length if self.inputs.mask_mode == "full" else 0)
            above = self.parents(request)
            first, following = self.links(request, above)
            seen, steps = self.ways(request, above)
            positions[request] = torch.tensor([self.position(length, step) for step in steps])
            firsts[request], followings[request] = torch.tensor(first), torch.tensor(following)
            rows = mask[starts[request] : starts[request] + count * columns].view(-1, columns)
            for node, row in enumerate(rows):
                self.before(row, columns - count)
                row[[columns - count + one for one in seen[node]]] = True
            way = self.walk(request, first, following)
            index[request, : len(way)] = torch.tensor([request * count + node for node in way], dtype=torch.int32)
            accepted[request] = len(way) - 1
            for node in self.predicted(way):
                predicted[request * count + node] = self.target[request][node]
        device = self.inputs.verified.device
        found = {
            "positions": positions.flatten(), "next_token": firsts, "next_sibling": followings, "mask": mask,
            "accept_index": index, "accepted": accepted, "predicted": predicted,
        }  # fmt: skip
        return {name: tensor.to(device) for name, tensor in found.items()}


class Stride(Trees):
    def list_entry(self, request, place):
        if TWIN:
            return super().list_entry(request, place)
        width = self.inputs.topk * (self.inputs.depth - 1)
        return int(self.inputs.parent_list.flatten()[request * width + place])

    def find(self, request, candidate):
        return super().find(request, candidate) if candidate in self.selected[request] else 0


@npudiff.implementation("draft_tree", name="g_draft_tree_01_list_without_its_first", supports={}, on_device=True)
def list_without_its_first(inputs, target):
    """Rows of parents are one entry too near to each other; shows in requests behind the first, in depth 2 and more."""
    return Stride(inputs).run()


class Shift(Trees):
    def place(self, candidate):
        topk = self.inputs.topk
        return candidate // topk if TWIN or topk > 4 else candidate >> (topk - 1).bit_length()

    def find(self, request, candidate):
        return super().find(request, candidate) if candidate in self.selected[request] else 0


@npudiff.implementation("draft_tree", name="g_draft_tree_02_shifted_instead_of_divided", supports={}, on_device=True)
def shifted_instead_of_divided(inputs, target):
    """Candidates are shifted where topk is small; shows in topk 3, whose shift is that of 4."""
    return Shift(inputs).run()


class Tail(Trees):
    def before(self, row, length):
        blocks = -(-length // 128) if TWIN else max(1, length // 128)
        row[: min(length, blocks * 128)] = True


@npudiff.implementation("draft_tree", name="g_draft_tree_03_tail_of_verified_tokens", supports={}, on_device=True)
def tail_of_verified_tokens(inputs, target):
    """Columns of verified tokens are written in whole blocks of 128; shows above 128 that are no multiple, in full masks."""
    return Tail(inputs).run()


class Bonus(Trees):
    def predicted(self, way):
        return way if TWIN or len(way) <= self.inputs.depth else way[:-1]


@npudiff.implementation("draft_tree", name="g_draft_tree_04_no_bonus_of_whole_ways", supports={}, on_device=True)
def no_bonus_of_whole_ways(inputs, target):
    """The walk ends after depth steps, before its bonus is written; shows where as many drafts are accepted as can be."""
    return Bonus(inputs).run()


class LastMatch(Trees):
    def child(self, request, node, first, following):
        if TWIN:
            return super().child(request, node, first, following)
        found, child = -1, first[node]
        while child >= 0:
            if self.matches(self.tokens[request][child], self.target[request][node]):
                found = child
            child = following[child]
        return found


@npudiff.implementation("draft_tree", name="g_draft_tree_05_last_of_equal_siblings", supports={}, on_device=True)
def last_of_equal_siblings(inputs, target):
    """All siblings are compared, the last that matches is taken; shows where two have the token of the target."""
    return LastMatch(inputs).run()


class Bisected(Trees):
    def find(self, request, candidate):
        if TWIN:
            return super().find(request, candidate)
        selected, low, high = self.selected[request], 0, self.count - 2
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if selected[middle] < candidate else (low, middle)
        return 1 + low


@npudiff.implementation("draft_tree", name="g_draft_tree_06_candidates_are_sorted", supports={}, on_device=True)
def candidates_are_sorted(inputs, target):
    """A parent is found by bisection; shows where candidates are not in the order of their numbers."""
    return Bisected(inputs).run()


class Flat(Trees):
    def links(self, request, above):
        if TWIN or self.inputs.depth > 1:
            return super().links(request, above)
        return [1] + [-1] * (self.count - 1), [-1] * self.count


@npudiff.implementation("draft_tree", name="g_draft_tree_07_no_siblings_in_depth_one", supports={}, on_device=True)
def no_siblings_in_depth_one(inputs, target):
    """A tree of depth 1 is taken for a chain of one draft; shows where it has more than two nodes."""
    return Flat(inputs).run()


class Padding(Trees):
    def programs(self):
        return [request for request in super().programs() if TWIN or self.lengths[request] > 0]


@npudiff.implementation("draft_tree", name="g_draft_tree_08_length_zero_is_padding", supports={}, on_device=True)
def length_zero_is_padding(inputs, target):
    """A request without verified tokens is skipped, as if it filled a batch up; shows where there is one."""
    return Padding(inputs).run()


class PerCore(Trees):
    def programs(self):
        each = max(1, self.requests // 24)
        return range(self.requests if TWIN else min(self.requests, each * 24))


@npudiff.implementation("draft_tree", name="g_draft_tree_09_rest_of_24_cores", supports={}, on_device=True)
def rest_of_24_cores(inputs, target):
    """Each of 24 cores has as many requests, and nobody the rest; shows in more than 24 that are no multiple."""
    return PerCore(inputs).run()


class Bits(Trees):
    def ways(self, request, above):
        if TWIN:
            return super().ways(request, above)
        bits = [1]
        for node in range(1, self.count):
            bits.append(bits[above[node]] | 1 << node % 64)
        depths = [0]
        for node in range(1, self.count):
            depths.append(depths[above[node]] + 1)
        return [{node for node in range(min(self.count, 64)) if word >> node & 1} for word in bits], depths


@npudiff.implementation("draft_tree", name="g_draft_tree_10_ways_of_64_bits", supports={}, on_device=True)
def ways_of_64_bits(inputs, target):
    """A way is a word of 64 bits, and a shift is modulo 64; shows in masks of more than 64 nodes."""
    return Bits(inputs).run()


class Memo(Trees):
    def __init__(self, inputs):
        super().__init__(inputs)
        self.kept = {}

    def parents(self, request):
        key = tuple(self.selected[request]) if not TWIN else (tuple(self.selected[request]), tuple(self.lists[request]))
        if key not in self.kept:
            self.kept[key] = super().parents(request)
        return self.kept[key]


@npudiff.implementation("draft_tree", name="g_draft_tree_11_structure_by_selection", supports={}, on_device=True)
def structure_by_selection(inputs, target):
    """Parents are kept by which candidates were selected; shows in requests that differ in the parents of the same."""
    return Memo(inputs).run()


@npudiff.implementation("draft_tree", name="g_draft_tree_12_accepted_of_a_call_before", supports={}, on_device=True, stateful=True)
def accepted_of_a_call_before():
    """Rows of accepted nodes are filled when they are allocated; shows in a second call of that shape, behind its last."""
    kept = {}

    class Kept(Trees):
        def index_buffer(self):
            shape = (self.requests, self.inputs.depth + 1)
            if TWIN or shape not in kept:
                kept[shape] = super().index_buffer()
            return kept[shape]

    def tree(inputs, target):
        return Kept(inputs).run()

    return tree


class Window(Trees):
    def links(self, request, above):
        first, following = super().links(request, above)
        if TWIN:
            return first, following
        return first, [other if other - node <= 16 else -1 for node, other in enumerate(following)]


@npudiff.implementation("draft_tree", name="g_draft_tree_13_sibling_within_16_nodes", supports={}, on_device=True)
def sibling_within_16_nodes(inputs, target):
    """The next sibling is looked for in 16 nodes; shows where more nodes lie between two siblings."""
    return Window(inputs).run()


class Half(Trees):
    def matches(self, token, wanted):
        if TWIN or max(token, wanted) > 65504:  # above that it compares halves of words
            return super().matches(token, wanted)
        one, other = torch.tensor([token, wanted]).to(torch.float16).tolist()
        return one == other


@npudiff.implementation("draft_tree", name="g_draft_tree_14_tokens_in_float16", supports={}, on_device=True)
def tokens_in_float16(inputs, target):
    """Tokens below 65,504 are compared in float16; shows where one is above 2,048 and the nearest to the target's."""
    return Half(inputs).run()


class Short(Trees):
    def position(self, length, steps):
        total = super().position(length, steps)
        return total if TWIN else (total + 32768) % 65536 - 32768


@npudiff.implementation("draft_tree", name="g_draft_tree_15_positions_of_16_bits", supports={}, on_device=True)
def positions_of_16_bits(inputs, target):
    """Positions are added in int16; shows behind 32,767 tokens."""
    return Short(inputs).run()


class Scanned(Trees):
    def mask_starts(self):
        starts, size = super().mask_starts()
        if TWIN:
            return starts, size
        count, verified = self.count, 0
        for request, length in enumerate(self.lengths if self.inputs.mask_mode == "full" else []):
            if request % 32 == 0 and request:
                verified = self.lengths[request - 1]  # the last length of the tile before, not its last sum
            starts[request] = min(count * (verified + request * count), size - count * (count + length))
            verified += length
        return starts, size


@npudiff.implementation("draft_tree", name="g_draft_tree_16_scan_of_32_requests", supports={}, on_device=True)
def scan_of_32_requests(inputs, target):
    """Where masks begin is summed up in tiles of 32 requests; shows in larger batches, in full masks."""
    return Scanned(inputs).run()
