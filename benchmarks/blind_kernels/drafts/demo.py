"""Each kernel is off on inputs by hand with its mistake, and right on ordinary ones; with TWIN=1 right on all of them.

Graphs are recorded by a small mode of this file: what reads numbers on the host while it is captured is refused.
"""

import contextlib
import importlib
import os
import pathlib
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.model.implementation import Implementation, Target
from npudiff.reference.cache_gather import CacheGatherInputs, cache_gather
from npudiff.reference.draft_step import DraftStepInputs, draft_step
from npudiff.reference.draft_tree import DraftTreeInputs, draft_tree
from npudiff.reference.moe_gating import MoeGatingInputs, moe_gating
from npudiff.reference.paged_cache import PagedCacheInputs, paged_cache
from npudiff.reference.rms_norm import RmsNormInputs, rms_norm
from npudiff.reference.rotary import RotaryInputs, rotary
from npudiff.reference.swa_mask import SwaMaskInputs, swa_mask

TARGET = Target("sim", "cpu", "none", contextlib.nullcontext)
TWIN = bool(os.environ.get("TWIN"))
torch.set_num_threads(1)
sys.path.insert(0, str(pathlib.Path(__file__).parent))
G = torch.Generator().manual_seed(int(os.environ.get("SEED", "7")))


def ints(low, high, *shape):
    return torch.randint(low, high, shape, generator=G)


def step(rows, drafts, taken, lengths, *, steps=None, page=16, limit=None, spare=0, tokens=None):
    """``taken``: how many tokens were sampled of each request."""
    steps = steps or max(1, *drafts)
    limit = limit or max(lengths) + steps + 1
    width = -(-min(limit, max(lengths) + steps + 1) // page) + spare
    n = len(rows)
    sampled = torch.full((n, steps + 1), -1)
    for row, count in zip(sampled, taken):
        row[:count] = ints(1, 32000, count)
    if tokens:
        for (r, c), t in tokens.items():
            sampled[r, c] = t
    positions = torch.cat([torch.arange(l - r, l) for r, l in zip(rows, lengths)])
    table = torch.randperm(n * width, generator=G).view(n, width) + 1
    return DraftStepInputs(ints(1, 32000, sum(rows)), positions, sampled, ints(1, 32000, n), ints(1, 32000, n, steps),
        torch.tensor(lengths), table, tuple(rows), tuple(drafts), page, limit)  # fmt: skip


STEPS = {
    1: lambda: step([4, 4], [3, 3], [2, 1], [20, 30]),
    2: lambda: step([4, 4], [3, 3], [4, 2], [32, 30]),
    3: lambda: step([4, 4], [3, 3], [4, 2], [32, 30], spare=3),
    4: lambda: step([4, 5, 3], [3, 0, 2], [4, 0, 2], [32, 30, 9]),
    5: lambda: step([4], [3], [4], [32], limit=33),
    6: lambda: step([4, 1], [3, 0], [4, 1], [32, 6], limit=32),
    7: lambda: step([2] * 50, [1] * 50, [2] * 50, list(range(2, 52))),
    8: lambda: step([4, 2], [3, 1], [4, 2], [4800, 48 * 100 - 1], page=48),
    9: lambda: step([100, 60, 3], [0, 0, 2], [1, 0, 2], [100, 90, 9]),
    10: lambda: step([4, 3], [3, 2], [3, 3], [30, 20], tokens={(0, 1): 0}),
    11: lambda: step([2, 1, 3], [1, 0, 2], [2, 1, 2], [30, 20, 9]),
    12: lambda: step([1, 3, 2], [0, 2, 1], [1, 2, 2], [30, 20, 9], steps=3),
    13: lambda: step([9, 3], [8, 2], [9, 3], [31, 20], page=4),
    14: lambda: step([1, 1], [0, 0], [1, 0], [31, 20], steps=3),
    15: lambda: step([34, 41], [33, 40], [34, 20], [90, 80]),
}
ORDINARY_STEPS = [
    lambda: step([3, 3, 2], [2, 2, 1], [3, 2, 2], [19, 25, 40], steps=4, spare=0, page=64),
    lambda: step([5, 1, 3], [0, 0, 2], [1, 1, 3], [19, 25, 40], page=64),
    lambda: step([5], [4], [3], [100], page=128, limit=4096),
]


def tree(requests=2, nodes=8, topk=2, depth=3, verified=None, mode="full", shuffle=False, vocab=50, way="random", sels=None, lists=None):
    """Trees of random candidates; of ``way`` all, first children have the target's token."""
    selected, parent_lists = [], []
    for request in range(requests):
        entries, below = [-1], []
        level = list(range(topk))
        for d in range(depth - 1):
            chosen = [level[i] for i in torch.randperm(len(level), generator=G)[:topk].sort().values.tolist()]
            base = topk + d * topk * topk
            entries += chosen
            level = list(range(base, base + topk * topk))
        if lists is not None:
            entries = lists[request]
        picked = sels[request] if sels is not None else None
        if picked is None:
            picked, most = [], topk + (depth - 1) * topk * topk

            def parent(c):
                return None if c < topk else entries[c // topk]

            if way == "all":
                picked = [most - 1]
                while (above := parent(picked[0])) is not None:
                    picked.insert(0, above)
            while len(picked) < nodes - 1:
                options = [c for c in range(most) if c not in picked and (parent(c) is None or parent(c) in picked)]
                picked.append(options[int(ints(0, len(options), 1))])
            if not shuffle:
                picked.sort()
        selected.append(picked)
        parent_lists.append(entries if depth > 1 else [])
    nodes = len(selected[0]) + 1
    verified = torch.tensor(verified if verified is not None else [5 + 3 * r for r in range(requests)])
    inputs = DraftTreeInputs(torch.tensor(parent_lists, dtype=torch.int64).view(requests, -1), torch.tensor(selected), verified,
        ints(0, vocab, requests, nodes), ints(0, vocab, requests, nodes), topk, depth, nodes, mode)  # fmt: skip
    if way == "all":
        follow(inputs)
    return inputs


def follow(inputs):
    """Let the target say the token of some child of each node, deepest ways first."""
    from npudiff.reference.draft_tree import Tree, _parents
    for request in range(len(inputs.verified)):
        t = Tree(_parents(inputs, request))
        deepest = max(range(inputs.draft_token_num), key=lambda n: len(t.way(n)))
        inputs.candidates[request] = torch.arange(inputs.draft_token_num) + 3000
        way = t.way(deepest)
        for one, other in zip(way, way[1:]):
            inputs.target_predict[request, one] = inputs.candidates[request, other]


def equal_siblings():
    inputs = tree(2, 6, 3, 2, sels=[[0, 1, 2, 3, 4]] * 2, lists=[[-1, 0, 1, 2]] * 2)
    inputs.candidates[:, 1:3] = 9
    inputs.target_predict[:, 0] = 9
    return inputs


def near_tokens():
    inputs = tree(2, 4, 3, 1, sels=[[0, 1, 2]] * 2)
    inputs.candidates[:] = torch.tensor([5, 4096, 4097, 4098])
    inputs.target_predict[:, 0] = 4097
    return inputs


TREES = {
    1: lambda: tree(3, 8, 2, 3),
    2: lambda: tree(2, 10, 3, 3),
    3: lambda: tree(2, verified=[200, 5]),
    4: lambda: tree(2, 7, 2, 3, way="all"),
    5: equal_siblings,
    6: lambda: tree(3, 14, 3, 4, shuffle=True),
    7: lambda: tree(2, 4, 4, 1),
    8: lambda: tree(3, verified=[4, 0, 2]),
    9: lambda: tree(26, 4),
    10: lambda: tree(1, 80, 8, 4),
    11: lambda: tree(2, sels=[[0, 1, 4], [0, 1, 4]], lists=[[-1, 0, 1], [-1, 1, 0]], topk=2, depth=2),
    13: lambda: tree(1, topk=20, depth=2, sels=[[0, *range(20, 38), 1]], lists=[[-1, *range(20)]]),
    14: near_tokens,
    15: lambda: tree(2, verified=[32766, 70000], mode="qlen_only"),
    16: lambda: tree(40, 4),
}


ORDINARY_TREES = [
    lambda: tree(1, mode="full", sels=[[0, 1, 2, 3, 4]], lists=[[-1, 0, 1, 2, 3]]),
    lambda: tree(3, 2, 4, 1, vocab=10**9),
    lambda: tree(1, 4, 1, 4, mode="qlen_only"),
    lambda: tree(1, 12, 4, 3, verified=[100]),
]


class Captured(TorchDispatchMode):
    """Records operators, and runs them again into the tensors that they gave."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero", "item")

    def __init__(self):
        super().__init__()
        self.tasks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in self.REFUSED or (name in ("index", "index_put", "index_put_") and any(t is not None and t.dtype == torch.bool for t in args[1])):
            raise RuntimeError(f"{func} reads numbers on the host in a capture")
        found = func(*args, **kwargs)
        self.tasks.append((func, args, kwargs, found))
        return found

    def replay(self):
        for func, args, kwargs, found in self.tasks:
            again = func(*args, **kwargs)
            for old, new in zip(*([x] if isinstance(x, torch.Tensor) else list(x or []) for x in (found, again))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors(inputs):
    return {name: value for name, value in vars(inputs).items() if isinstance(value, torch.Tensor)}


def wrong(reference, inputs, outputs):
    """Names of outputs that are off."""
    if isinstance(outputs, torch.Tensor):
        outputs = {next(iter(reference(inputs))): outputs}
    found = []
    for name, expected in reference(inputs).items():
        if name not in outputs:
            continue
        actual = outputs[name]
        if actual.shape != expected.value.shape or actual.dtype != expected.dtype:
            found.append(f"{name} {tuple(actual.shape)} {actual.dtype}")
        else:
            a, v = actual.to(torch.float64), expected.value.to(torch.float64)
            off = ~(((a - v).abs() <= expected.bound) | (a == v) | (a.isnan() & v.isnan()) | expected.bound.isinf())
            if bool(off.any()):
                found.append(name)
    return found


def fresh(inputs):
    import dataclasses
    return dataclasses.replace(inputs, **{name: value.clone() for name, value in tensors(inputs).items()})


def function(implementation):
    """A fresh function."""
    impl = implementation
    return impl.factory() if impl.factory else impl.function


def mask(lengths, window=20, capacity=300):
    return SwaMaskInputs(torch.tensor(lengths, dtype=torch.int32), capacity, window)


def cache(slots, layout="PA_BSND", size=16, pages=8, heads=2, dim=8):
    shape = (pages, size, heads, dim) if layout == "PA_BSND" else (pages, heads, size, dim)
    n = lambda *s: torch.randn(*s, generator=G).to(torch.bfloat16)
    t = len(slots)
    return PagedCacheInputs(n(t, heads, dim), n(t, heads, dim), n(*shape), n(*shape), torch.tensor(slots, dtype=torch.int32), size, layout)


def turned(positions, sections=(4, 6, 6), dim=40):
    n = lambda *s: torch.randn(*s, generator=G).to(torch.bfloat16)
    p = torch.tensor(positions)
    return RotaryInputs(n(p.shape[-1], 4, dim), n(p.shape[-1], 2, dim), p, n(64, 2 * sum(sections) or 32), "half", sections if p.dim() > 1 else ())


def norm(tokens=5, hidden=5000, residual=True):
    n = lambda *s: torch.randn(*s, generator=G).to(torch.bfloat16)
    return RmsNormInputs(n(tokens, hidden), n(tokens, hidden) if residual else None, n(hidden), 1e-6, "plain", "once")


def gate(tokens=6, experts=32, k=4):
    return MoeGatingInputs(torch.randn(tokens, experts, generator=G), None, k, renormalise=True)


def gather(lengths, starts=None, size=16, width=30, rows=700, layout="PA_BSND"):
    pages, heads, dim = 64, 2, 8
    n = lambda *s: torch.randn(*s, generator=G).to(torch.bfloat16)
    shape = (pages, size, heads, dim) if layout == "PA_BSND" else (pages, heads, size, dim)
    table = ints(1, pages, len(lengths), width).to(torch.int32)
    i = lambda x: None if x is None else torch.tensor(x, dtype=torch.int32)
    return CacheGatherInputs(n(*shape), n(*shape), table, i(lengths), i(starts), n(rows, heads, dim), n(rows, heads, dim), size, layout)


GRAPHS = {  # what is captured, and what is replayed
    "g_swa_mask_01": (swa_mask, lambda: [mask([1, 1, 1]), mask([200, 30, 0]), mask([40, 31, 300])]),
    "g_swa_mask_02": (swa_mask, lambda: [mask([1, 1, 1]), mask([200, 30, 0]), mask([40, 31, 300])]),
    "g_paged_cache_01": (paged_cache, lambda: [cache([0] * 5), cache([17, 18, 40, -1, -1]), cache([99, 100, 101, 102, -1])]),
    "g_paged_cache_02": (paged_cache, lambda: [cache([0] * 5), cache([17, 18, 40, 41, 42]), cache([99, 100, 101, 102, -1])]),
    "g_rotary_01": (rotary, lambda: [turned([[0] * 5] * 3), turned([[3, 4, 5, 6, 7], [1, 1, 1, 2, 2], [9, 8, 7, 6, 5]])]),
    "g_rms_norm_01": (rms_norm, lambda: [norm(), norm(), norm()]),
    "g_moe_gating_01": (moe_gating, lambda: [gate(), gate(), gate()]),
    "g_cache_gather_01": (cache_gather, lambda: [gather([1, 1]), gather([200, 300]), gather([129, 5])]),
}  # fmt: skip


def graph(call, reference, cases):
    """How replays go: names that are off in each, or why the capture was refused."""
    static = fresh(cases[0])
    call(static, TARGET)
    mode = Captured()
    try:
        with mode:
            outputs = call(static, TARGET)
    except RuntimeError as error:
        return [str(error)]
    found = []
    for case in cases[1:]:
        for name, value in tensors(case).items():
            getattr(static, name).copy_(value)
        before = fresh(static)
        mode.replay()
        found += wrong(reference, before, outputs)
    return found


def main():
    bad = 0
    for component, reference, special, ordinary in (("draft_step", draft_step, STEPS, ORDINARY_STEPS), ("draft_tree", draft_tree, TREES, ORDINARY_TREES)):
        module = importlib.import_module(component)
        made = [value for value in vars(module).values() if isinstance(value, Implementation)]
        assert len(made) == 16, len(made)
        for impl in made:
            number = int(impl.name.split("_")[3])
            right = [wrong(reference, case, function(impl)(fresh(case), TARGET)) for case in (make() for make in ordinary)]
            if component == "draft_step" and number == 16:
                call = function(impl)
                call(step([2, 3, 1], [1, 0, 0], [2, 0, 0], [30, 20, 9]), TARGET)
                cases = [step([2, 3], [1, 0], [2, 0], [30, 20])]
            elif component == "draft_tree" and number == 12:
                call = function(impl)
                call(tree(2, 7, 2, 3, way="all"), TARGET)
                cases = [tree(2, 7, 2, 3)]
            else:
                call = function(impl)
                cases = [special[number]()]
            off = [wrong(reference, case, call(fresh(case), TARGET)) for case in cases]
            everything = [] if not TWIN else [(n, o) for n, make in special.items() for case in [make()] if (o := wrong(reference, case, function(impl)(fresh(case), TARGET)))]
            ok = not any(right) and (not off[0] and not everything if TWIN else bool(off[0]))
            bad += not ok
            print("ok " if ok else "BAD", impl.name, "ordinary:", right if any(right) else "right", "special:", off[0], everything)
    for name, (reference, make) in GRAPHS.items():
        component = name[2:-3]
        impl = next(v for v in vars(importlib.import_module(component)).values() if isinstance(v, Implementation) and v.name.startswith(name))
        call = function(impl)
        plain = [wrong(reference, case, call(fresh(case), TARGET)) for _ in range(2) for case in make()]
        replays = graph(function(impl), reference, make())
        ok = not any(plain) and bool(replays) != TWIN
        bad += not ok
        print("ok " if ok else "BAD", impl.name, "plain:", plain if any(plain) else "right", "replays:", replays)
    return bad


if __name__ == "__main__":
    sys.exit(main())
