"""Autograd: leaves, backward, gradients of gradients, blocks without gradients, hooks, checkpoints, optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from npu_programs.choices import (
    Act,
    Choices,
    NotPossible,
    Side,
    both,
    floating,
    inexact,
    is_leaf,
    laid_out_alike,
    ranked,
    single,
)
from npu_programs.operations import operation


def _joined(tensor: Tensor) -> bool:
    return tensor.requires_grad and is_leaf(tensor) is False


@operation
def leaf(c: Choices) -> Act:
    i = c.place(inexact)
    return lambda s: s[i].detach().clone().requires_grad_()


@operation
def leaf_shared(c: Choices) -> Act:
    i = c.place(both(inexact, is_leaf))
    return lambda s: s[i].requires_grad_()


@operation
def leaf_and_views(c: Choices) -> Act:
    """A leaf, a value of it, and views of that: what is written later through one is seen by the gradients of all."""
    i = c.place(both(floating, ranked(1)))

    def act(s: Side) -> Any:
        start = s[i].detach().clone().requires_grad_()
        value = start * 2
        return start, value, value[..., ::2], value.transpose(0, -1)

    return act


@operation
def backward(c: Choices) -> Act:
    i = c.place(_joined)
    salt, keep = c.below(256), not c.rarely()

    def act(s: Side) -> Any:
        return s[i].backward(s.new(s[i].shape, s[i].dtype, salt // 8 * 8), retain_graph=keep)

    return act


@operation
def backward_sum(c: Choices) -> Act:
    i = c.place(_joined)
    return lambda s: s[i].abs().sum().backward(retain_graph=True)


@operation
def gradients(c: Choices) -> Act:
    i, leaves = c.place(_joined), c.leaves()
    again, known = c.flag(), not c.rarely()
    return lambda s: [
        found
        for found in torch.autograd.grad(
            s[i].sum(), [s[j] for j in leaves], create_graph=again, retain_graph=True, allow_unused=known
        )
        if found is not None
    ]


_FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x * x + x.sin(),
    lambda x: x.softmax(-1) * x,
    lambda x: (x.transpose(0, -1) if x.dim() else x).contiguous().exp(),
    lambda x: torch.cat([x.reshape(-1), x.reshape(-1)[:1]]).tanh(),
    lambda x: torch.where(x > 0, x, x * 0.1),
    lambda x: (x.clone().mul_(3).add_(x) if x.numel() else x).pow(2),
    lambda x: x.reshape(-1)[::2].cumsum(0),
    lambda x: x.reshape(-1).index_select(0, torch.zeros(2, dtype=torch.int64, device=x.device)) if x.numel() else x,
    lambda x: torch.nn.functional.gelu(x).mean(),
    lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]) if x.dim() else x,
    lambda x: x @ x.mT if x.dim() > 1 else x.square(),
    lambda x: x.expand(2, *x.shape).sum(0),
    lambda x: x.as_strided((x.numel(),), (1,)) if x.is_contiguous() else x.flatten(),
    lambda x: x.abs().add(1).log().sum().expand(3),
    lambda x: x.reshape(-1).sort()[0].unbind()[0] if x.numel() else x,
    lambda x: x.to(torch.bfloat16).std() if x.numel() > 1 else x,
)


@operation
def gradient_of_function(c: Choices) -> Act:
    i = c.place(both(single, lambda x: x.dim() < 5))
    function, more = c.of(_FUNCTIONS), c.flag()

    def act(s: Side) -> Any:
        start = s[i].detach().clone().requires_grad_()
        (first,) = torch.autograd.grad(function(start).sum(), start, create_graph=more)
        if more and first.requires_grad:
            (second,) = torch.autograd.grad(first.sum(), start, allow_unused=True)
            # Torch has tensors of zeros without memory, for the CPU: where they become real ones on a device, zeros lose
            # their sign, and what is computed of them has the strides of real zeros.
            return [
                start,
                first,
                *([] if second is None else [(second + 0).clone(memory_format=torch.contiguous_format)]),
            ]
        return [start, first]

    return act


@operation
def without_gradients(c: Choices) -> Act:
    i = c.place(inexact)
    how = c.below(3)

    def act(s: Side) -> Any:
        with (torch.no_grad, torch.enable_grad, lambda: torch.set_grad_enabled(False))[how]():
            return s[i] * 2, s[i].reshape(-1)

    return act


@operation
def inference(c: Choices) -> Act:
    i = c.place()

    def act(s: Side) -> Any:
        with torch.inference_mode():
            made = s[i].clone()
            return made, made.reshape(-1)[:1], s[i].reshape(-1), made.add_(1)

    return act


@operation
def hooks(c: Choices) -> Act:
    i = c.place(_joined)
    leaves = c.leaves()

    def act(s: Side) -> Any:
        seen: list[Tensor] = []
        value = s[i] * 1
        value.register_hook(lambda gradient: seen.append(gradient.detach().clone()) or gradient * 2)
        value.retain_grad()
        value.sum().backward(inputs=[s[j] for j in leaves], retain_graph=True)
        return [*seen, value.grad]

    return act


@operation
def retained(c: Choices) -> Act:
    i = c.place(_joined)
    return lambda s: s[i].retain_grad()


@operation
def checkpointed(c: Choices) -> Act:
    i = c.place(single)
    function, reentrant = c.of(_FUNCTIONS[:6]), c.flag()

    def act(s: Side) -> Any:
        start = s[i].detach().clone().requires_grad_()
        result = checkpoint(function, start, use_reentrant=reentrant, preserve_rng_state=False)
        result.sum().backward()
        return start, start.grad

    return act


@operation
def forgotten(c: Choices) -> Act:
    leaves = c.leaves()
    if not leaves:
        raise NotPossible
    place = c.of(leaves)

    def act(s: Side) -> None:
        s[place].grad = None

    return act


@operation
def optimizer(c: Choices) -> Act:
    i = c.place(both(single, laid_out_alike))
    how, salt = c.below(5), c.below(256)

    def act(s: Side) -> Any:
        weights = [s[i].detach().clone().requires_grad_(), s.new((3, 2), s[i].dtype, salt // 8 * 8).requires_grad_()]
        chosen: torch.optim.Optimizer = (
            lambda: torch.optim.SGD(weights, lr=0.1, momentum=0.9, foreach=True),
            lambda: torch.optim.Adam(weights, lr=0.1, foreach=True),
            lambda: torch.optim.AdamW(weights, lr=0.1),
            lambda: torch.optim.SGD(weights, lr=0.1, weight_decay=0.1),
            lambda: torch.optim.RMSprop(weights, lr=0.1),
        )[how]()
        for _ in range(2):
            chosen.zero_grad()
            loss = sum((weight * weight).sum() for weight in weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            chosen.step()
        return [*weights, [value for state in chosen.state.values() for value in state.values() if value.dim()]]

    return act
