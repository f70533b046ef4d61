"""Traces by hand of hybrid pools, walked beside the reference."""

import importlib

import torch
from demo_cases import BF16, randn

from npudiff.judge.compare import compare
from npudiff.reference.hybrid_pools import (
    Allocate, Decode, Evict, Extend, Fork, Free, HybridPoolsInputs, HybridPoolsReference, PoolStorage, Share,
    Tokens, TokenStates, new_tokens,
)  # fmt: skip
from npudiff.run.discovery import implementations_in


def _inputs(*, pages=8, sliding=8, size=16, window=16, sharing=False):
    def storage(count):
        return PoolStorage(*(torch.full((1 + count, size, 2, 32), 999.0, dtype=BF16) for _ in range(2)))

    return HybridPoolsInputs(storage(pages), storage(sliding), 4, window, 32**-0.5, 4, sharing)


def _tokens(count, seed):
    states = TokenStates(*(randn(count, 2, 32, seed=seed + index) for index in range(1, 5)))
    return Tokens(randn(count, 4, 32, seed=seed), states)


def _taken(pools, step, states):
    match step:
        case Allocate(request, _):
            return pools.allocate(request, states)
        case Extend(request, _):
            return pools.extend(request, states)
        case Decode(requests):
            return pools.decode(requests, states)
        case Evict(requests):
            return pools.evict(requests) or True
        case Free(request):
            return pools.free(request) or True
        case Share(source, request, count, _):
            return pools.share(source, request, count, states)
        case Fork(source, request):
            return pools.fork(source, request)


def walk(kernel, target, inputs, steps):
    """The largest error over bound; infinity where an answer or a place is wrong."""
    reference, worst = HybridPoolsReference(inputs), 0.0
    with target.activate():
        pools = kernel(inputs, target)
        for number, step in enumerate(steps):
            new = _tokens(sum(new_tokens(step).values()), 100 * number)
            right = reference.take(step, new)
            if _taken(pools, step, new.states) != right or reference.violations(pools.snapshot()):
                return float("inf")
            rows = reference.rows
            if rows:
                memory = reference.memory.live
                query = torch.cat([memory[request].query[len(memory[request]) - count :] for request, count in rows.items()])
                result = pools.attend(list(rows), list(rows.values()), query)
                worst = max(worst, compare(reference.attention(), result).worst)
    return worst


H = "c_hybrid_pools_"
TRACES = {
    H + "01_frees_page_zero": (
        _inputs(), [Allocate(0, 50), Decode((0,)), Evict((0,)), Decode((0,)), Free(0), Allocate(1, 20), Decode((1,))]
    ),
    H + "02_decodes_one_by_one": (_inputs(pages=3, sliding=4), [Allocate(0, 16), Allocate(1, 16), Decode((0, 1)), Free(0)]),
    "extra": (
        _inputs(pages=12, sliding=10, window=24, sharing=True),
        [Allocate(0, 40), Share(0, 1, 2, 5), Fork(1, 2), Decode((0, 1, 2)), Extend(0, 30), Evict((0, 2)), Free(1),
         Decode((2, 0)), Free(0), Free(2)],
    ),
}  # fmt: skip


def results(target):
    """What ``demo.py`` prints of each kernel."""
    found = {}
    for kernel in implementations_in(importlib.import_module("hybrid_pools")):
        ratios = {name: walk(kernel, target, *trace) for name, trace in TRACES.items()}
        found[kernel.name] = {
            "last": ratios[kernel.name], "before": 0.0, "all": max(ratios.values()),
            "wrong_in": sum(ratio > 1 for ratio in ratios.values()), "of": len(ratios),
        }  # fmt: skip
    return found
