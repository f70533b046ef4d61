"""Products of matrices, and layers of networks; their weights may be leaves that get gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from npu_programs.choices import Act, Choices, Side, both, filled, floating, inexact, ranked, single
from npu_programs.operations import named, operation

Weights = Callable[..., Tensor]


def _weights(s: Side, like: Tensor, salt: int, learned: bool, made: list[Tensor]) -> Weights:
    """A maker of weights, which are results of the operation too."""

    def weight(*sizes: int) -> Tensor:
        made.append((s.new(sizes, like.dtype, salt // 8 * 8 + len(made) % 3) / 4).requires_grad_(learned))
        return made[-1]

    return weight


def _layer(name: str, act: Callable[[Tensor, Weights], Any], wanted: Callable[[Tensor], bool]) -> None:
    def choose(c: Choices) -> Act:
        i = c.place(wanted)
        salt, learned = c.below(256), c.flag()

        def call(s: Side) -> Any:
            made: list[Tensor] = []
            result = act(s[i], _weights(s, s[i], salt, learned, made))
            return [result, made]

        return call

    choose.__module__ = __name__
    named(name, choose)


def _last(x: Tensor) -> int:
    return x.size(-1)


def _recurrent(x: Tensor, w: Weights, gates: int, two_layers: bool = False) -> tuple[Tensor, Sequence[Tensor]]:
    weights = [w(gates * 2, _last(x)), w(gates * 2, 2), w(gates * 2), w(gates * 2)]
    if two_layers:
        weights += [w(gates * 2, 2), w(gates * 2, 2), w(gates * 2), w(gates * 2)]
    return x.new_zeros((2 if two_layers else 1, x.size(1), 2)), weights


def _lstm(x: Tensor, w: Weights) -> Any:
    state, weights = _recurrent(x, w, 4, two_layers=True)
    return torch.lstm(x, (state, state + 0.5), weights, True, 2, 0.0, False, False, False)


def _gru(x: Tensor, w: Weights) -> Any:
    state, weights = _recurrent(x, w, 3)
    return torch.gru(x, state, weights, True, 1, 0.0, False, False, True)


def _rnn(x: Tensor, w: Weights) -> Any:
    state, weights = _recurrent(x, w, 1)
    return torch.rnn_tanh(x, state, weights, True, 1, 0.0, False, False, False)


_MATRIX, _VECTOR = both(ranked(2, 4), inexact), both(ranked(1, 4), inexact)
_LAYERS: dict[str, tuple[Callable[[Tensor, Weights], Any], Callable[[Tensor], bool]]] = {
    "matmul": (lambda x, w: x @ w(_last(x), 3), _VECTOR),
    "matmul_vector": (lambda x, w: torch.matmul(x, w(_last(x))), _VECTOR),
    "matmul_batched": (lambda x, w: torch.matmul(x, w(2, _last(x), 2)), _VECTOR),
    "matmul_self": (lambda x, w: x @ x.mT, _MATRIX),
    "mm": (lambda x, w: torch.mm(x, w(_last(x), 2)), both(ranked(2, 2), inexact)),
    "bmm": (lambda x, w: torch.bmm(x, w(x.size(0), _last(x), 2)), both(ranked(3, 3), inexact)),
    "mv_dot": (lambda x, w: (torch.mv(x, w(_last(x))), torch.dot(x[0], w(_last(x)))), both(ranked(2, 2), inexact, filled)),
    "addmm": (lambda x, w: torch.addmm(w(3), x, w(_last(x), 3), beta=0.5), both(ranked(2, 2), inexact)),
    "baddbmm": (lambda x, w: torch.baddbmm(w(2), x, w(x.size(0), _last(x), 2)), both(ranked(3, 3), inexact)),
    "einsum": (lambda x, w: torch.einsum("ij,kj->ik", x, w(2, _last(x))), both(ranked(2, 2), inexact)),
    "tensordot": (lambda x, w: torch.tensordot(x, w(_last(x), 2), dims=1), _VECTOR),
    "linear": (lambda x, w: functional.linear(x, w(3, _last(x)), w(3)), _VECTOR),
    "linear_plain": (lambda x, w: functional.linear(x, w(3, _last(x))), _VECTOR),
    "bilinear": (lambda x, w: functional.bilinear(x, x, w(2, _last(x), _last(x))), both(ranked(1, 3), single)),
    "conv1d": (lambda x, w: functional.conv1d(x, w(2, x.size(-2), 2), w(2), padding=1), both(ranked(2, 3), floating)),
    "conv2d": (lambda x, w: functional.conv2d(x, w(2, x.size(-3), 2, 1), w(2), padding=1, stride=2), both(ranked(3, 4), floating)),
    "conv_transpose": (lambda x, w: functional.conv_transpose1d(x, w(x.size(-2), 2, 2)), both(ranked(2, 3), single)),
    "layer_norm": (lambda x, w: functional.layer_norm(x, x.shape[-1:], w(_last(x)), w(_last(x))), both(ranked(1), floating)),
    "layer_norm_plain": (lambda x, w: functional.layer_norm(x, x.shape[-2:]), both(ranked(2), floating)),
    "rms_norm": (lambda x, w: functional.rms_norm(x, x.shape[-1:], w(_last(x))), both(ranked(1), floating)),
    "group_norm": (lambda x, w: functional.group_norm(x, 1, w(x.size(1)), w(x.size(1))), both(ranked(2, 4), floating)),
    "batch_norm": (lambda x, w: functional.batch_norm(x, None, None, w(x.size(1)), w(x.size(1)), training=True), both(ranked(2, 4), floating)),
    "instance_norm": (lambda x, w: functional.instance_norm(x), both(ranked(3, 4), single)),
    "embedding": (lambda x, w: functional.embedding((x.detach().nan_to_num(0, 0, 0).abs() % 5).long(), w(5, 3)), floating),
    "embedding_bag": (lambda x, w: functional.embedding_bag((x.detach().nan_to_num(0, 0, 0).abs() % 5).long(), w(5, 3)), both(ranked(2, 2), single)),
    "cross_entropy": (lambda x, w: functional.cross_entropy(x, torch.zeros(x.size(0), dtype=torch.int64, device=x.device), w(_last(x))), both(ranked(2, 2), floating)),
    "cross_entropy_smooth": (lambda x, w: functional.cross_entropy(x, x.detach().softmax(-1), label_smoothing=0.1), both(ranked(2, 2), floating)),
    "nll_loss": (lambda x, w: functional.nll_loss(x, torch.zeros(x.size(0), dtype=torch.int64, device=x.device), reduction="none"), both(ranked(2, 2), floating, filled)),
    "mse_loss": (lambda x, w: functional.mse_loss(x, w(*x.shape)), floating),
    "l1_loss": (lambda x, w: functional.smooth_l1_loss(x, w(*x.shape)), floating),
    "bce_logits": (lambda x, w: functional.binary_cross_entropy_with_logits(x, w(*x.shape)), floating),
    "kl_div": (lambda x, w: functional.kl_div(x, w(*x.shape), reduction="batchmean"), both(ranked(1), floating)),
    "cosine": (lambda x, w: functional.cosine_similarity(x, w(*x.shape), -1), both(ranked(1), floating)),
    "attention": (lambda x, w: functional.scaled_dot_product_attention(x, w(*x.shape), w(*x.shape)), both(ranked(3, 4), floating)),
    "attention_causal": (lambda x, w: functional.scaled_dot_product_attention(x, x, w(*x.shape), is_causal=True), both(ranked(4, 4), floating)),
    "attention_masked": (lambda x, w: functional.scaled_dot_product_attention(x, x, x, attn_mask=w(x.size(-2), x.size(-2))), both(ranked(3, 4), floating)),
    "lstm": (_lstm, both(ranked(3, 3), single, filled)),
    "gru": (_gru, both(ranked(3, 3), single, filled)),
    "rnn": (_rnn, both(ranked(3, 3), single, filled)),
    "glu": (lambda x, w: functional.glu(x) if _last(x) % 2 == 0 else x, both(ranked(1), floating)),
    "prelu": (lambda x, w: functional.prelu(x, w(1)), floating),
    "max_pool": (lambda x, w: functional.max_pool1d(x, 2), both(ranked(2, 3), single)),
    "max_pool2d": (lambda x, w: functional.max_pool2d(x, 2, return_indices=True), both(ranked(3, 4), single)),
    "avg_pool": (lambda x, w: functional.avg_pool2d(x, 2, padding=1), both(ranked(3, 4), single)),
    "adaptive_pool": (lambda x, w: functional.adaptive_avg_pool2d(x, 1), both(ranked(3, 4), single)),
    "pad": (lambda x, w: functional.pad(x, (1, 2)), ranked(1)),
    "pad_reflect": (lambda x, w: functional.pad(x, (1, 1), mode="replicate"), both(ranked(2, 3), single)),
    "interpolate": (lambda x, w: functional.interpolate(x, scale_factor=2, mode="nearest"), both(ranked(3, 4), single)),
    "interpolate_linear": (lambda x, w: functional.interpolate(x, size=3, mode="linear"), both(ranked(3, 3), single)),
    "pixel_shuffle": (lambda x, w: functional.pixel_unshuffle(x, 1), ranked(3, 4)),
    "one_hot": (lambda x, w: functional.one_hot(x.long() % 5, 5), lambda x: x.dtype in {torch.int64, torch.uint8}),
    "dropout_off": (lambda x, w: functional.dropout(x, 0.5, training=False), floating),
    "cholesky": (lambda x, w: torch.linalg.cholesky(x[0:1].mT @ x[0:1] + 9 * torch.eye(_last(x), dtype=x.dtype, device=x.device)), both(ranked(2, 2), single, filled)),
    "inverse": (lambda x, w: torch.linalg.inv(torch.eye(2, dtype=x.dtype, device=x.device) + w(2, 2) / 9), single),
    "triangular": (lambda x, w: torch.linalg.solve_triangular(torch.eye(x.size(0), dtype=x.dtype, device=x.device) * 2, x, upper=True), both(ranked(2, 2), single)),
    "svd": (lambda x, w: torch.linalg.svdvals(x.detach().nan_to_num(0, 0, 0)), both(ranked(2, 2), single, filled)),
    "qr": (lambda x, w: torch.linalg.qr(x.detach().nan_to_num(0, 0, 0)), both(ranked(2, 3), single, filled)),
    "determinant": (lambda x, w: torch.linalg.det(x.detach() @ x.detach().mT), both(ranked(2, 3), single)),
    "fft": (lambda x, w: torch.fft.fft(x), both(ranked(1), single, filled)),
    "rfft": (lambda x, w: torch.fft.irfft(torch.fft.rfft(x), n=_last(x)), both(ranked(1), single, filled)),
    "cdist": (lambda x, w: torch.cdist(x, w(2, _last(x))), both(ranked(2, 2), single)),
}  # fmt: skip

for _name, (_act, _wanted) in _LAYERS.items():
    _layer(_name, _act, _wanted)


@operation
def module(c: Choices) -> Act:
    """Modules of torch, moved to the device."""
    i = c.place(both(ranked(2, 3), lambda x: x.dtype == torch.float32))
    how, salt = c.below(3), c.below(256)

    def act(s: Side) -> Any:
        width = s[i].size(-1)
        layers = (torch.nn.Linear(width, 2), torch.nn.LayerNorm(width), torch.nn.Linear(width, 3, bias=False))
        layer = layers[how]
        with torch.no_grad():
            for weight in layer.parameters():
                weight.copy_(s.new(weight.shape, weight.dtype, salt).cpu())
        layer = layer.to(s.device)
        return [layer(s[i]), list(layer.parameters())]

    return act
