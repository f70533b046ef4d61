"""Steps by hand of pools of states, walked beside the reference."""

import importlib

import torch

from npudiff.judge.compare import compare
from npudiff.reference.state_pools import (
    Decode, Evict, Extend, Fork, Free, LayerTokens, Restore, StatePoolsInputs, StatePoolsReference, Verify, new_rows,
)  # fmt: skip
from npudiff.run.discovery import implementations_in

BF16 = torch.bfloat16


def _pools(*, requests=2, drafts=3, width=4, key_heads=1, heads=2, dtype=BF16, raw=False, gates="head", small=False):
    random = torch.Generator().manual_seed(5)
    channels = 2 * key_heads * 16 + heads * 16
    weight = torch.randn(width, channels, generator=random).to(BF16)
    if small:
        weight *= 1e-4
    bias = None if small else torch.randn(channels, generator=random).to(BF16)
    return gates, StatePoolsInputs(weight, bias, not small, "once", key_heads, heads, 16, 16, 0.25, dtype, raw, False,
                                   requests, drafts, 999.0)  # fmt: skip


def _tokens(pools, gates, count, seed):
    random = torch.Generator().manual_seed(seed)
    mixed = (torch.randn(count, pools.weight.shape[1], generator=random) * 0.3).to(BF16)
    beta = torch.rand(count, pools.heads, generator=random).to(BF16)
    gate = -torch.rand(count, pools.heads, generator=random) * 0.2
    channel = -torch.rand(count, pools.heads, pools.key_dim, generator=random) * 0.2
    return LayerTokens(mixed, beta, gate if gates == "head" else None, channel if gates == "channel" else None)


TRACES = {
    "g_state_pools_01_cleared_when_freed": (_pools(requests=1), [Extend((0,), (5,)), Evict(0), Extend((1,), (2,))]),
    "g_state_pools_02_extend_writes_shared": (_pools(), [Extend((0,), (5,)), Fork(0, 1), Extend((1,), (2,))]),
    "g_state_pools_03_line_of_draft_alone": (_pools(), [Extend((0,), (5,)), Verify((0,), (2,)), Decode((0,))]),
    "g_state_pools_04_one_is_certain": (_pools(), [Extend((0,), (5,)), Verify((0,), (0,), 1)]),
    "g_state_pools_05_pending_of_slot": (
        _pools(requests=1), [Extend((0,), (5,)), Verify((0,), (2,)), Free(0), Extend((0,), (2,))]),
    "g_state_pools_06_padding_in_last_slot": (_pools(), [Extend((0, 1), (5, 2)), Decode((0,), 1)]),
    "g_state_pools_07_outputs_sorted": (_pools(), [Extend((0, 1), (5, 1))]),
    "g_state_pools_08_narrow_between_chunks": (_pools(dtype=torch.float32), [Extend((0,), (70,))]),
    "g_state_pools_09_views_on_host": (
        _pools(requests=1), [Extend((0,), (5,)), Evict(0), Extend((1,), (2,)), Free(1), Restore(0)]),
    "g_state_pools_10_narrow_host": (_pools(dtype=torch.float32), [Extend((0,), (5,)), Evict(0), Restore(0)]),
    "g_state_pools_11_seen_before": (_pools(requests=1), [Extend((0,), (5,)), Free(0), Extend((0,), (3,))]),
    "g_state_pools_12_norm_at_least": (_pools(raw=True, small=True), [Extend((0,), (3,))]),
    "g_state_pools_13_gate_of_key_head": (_pools(gates="channel", key_heads=2, heads=4), [Extend((0,), (5,))]),
    "g_state_pools_14_stale_slots": (
        _pools(requests=3), [Extend((0, 1), (5, 2)), Decode((0, 1)), Decode((0,), 2)]),
    "g_state_pools_15_ring_without_pointer": (_pools(), [Extend((0,), (5,)), Fork(0, 1)]),
    "g_state_pools_16_bias_of_prompts": (_pools(), [Extend((0,), (5,)), Decode((0,))]),
}  # fmt: skip


def _walk(kernel, gates, pools, steps, target):
    """The worst ratio of each step."""
    device, reference, ratios = kernel(pools, target), StatePoolsReference(pools), []
    for seed, step in enumerate(steps):
        new = _tokens(pools, gates, new_rows(step, pools.drafts), seed)
        expected, found = reference.begin(step, new), {}
        match step:
            case Extend(requests, lengths):
                found = device.extend(requests, lengths, new.copy())
            case Decode(requests):
                found = device.decode(requests, new.copy())
            case Verify(requests, accepted):
                found = device.verify(requests, new.copy())
                device.accept(accepted)
            case Fork(source, request):
                device.fork(source, request)
            case Evict(request):
                device.evict(request)
            case Restore(request):
                device.restore(request)
            case Free(request):
                device.free(request)
        rows = sum(count for _, count in reference.batch(step))
        whole = found.get("convolved", new.mixed)
        output = reference.finish(step, new, whole)
        states = device.states(list(reference.roster.live))
        ratios.append(compare(reference.states(), states).worst if reference.roster.live else 0.0)
        if rows:
            pairs = {"convolved": expected, "output": output}
            wanted = {name: type(one)(one.value[:rows], one.bound[:rows], one.dtype) for name, one in pairs.items()}
            ratios[-1] = max(ratios[-1], compare(wanted, {name: found[name][:rows] for name in wanted}).worst)
        reference.observe(states["states"])
    return ratios


def results(target):
    """What ``demo.py`` prints of each implementation."""
    found = {}
    for kernel in implementations_in(importlib.import_module("state_pools")):
        with target.activate():
            ratios = {name: _walk(kernel, *given, steps, target) for name, (given, steps) in TRACES.items()}
        own = ratios[kernel.name]
        worst = [max(one) for one in ratios.values()]
        found[kernel.name] = {"last": max(own), "before": 0.0, "all": max(worst),
                              "wrong_in": sum(one > 1 for one in worst), "of": len(worst)}  # fmt: skip
    return found
