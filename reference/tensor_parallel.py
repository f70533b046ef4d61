"""Linear layers that are divided among ranks: by columns, by their inner axis, and one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, Expected, underflow_step, unit_roundoff
from npudiff.reference.expert_weights import ExpertProduct
from npudiff.reference.inexact import Inexact
from npudiff.reference.moe_experts import Gate, activated
from npudiff.reference.rms_norm import normalised
from npudiff.reference.sharded_linear import LinearCheckpoint, check_layer, of_columns, of_inner, own_inner
from npudiff.reference.views import moved_inputs

LAYERS = ("column", "row", "column_row", "row_norm_column")
"""column: columns are divided, each rank has its own of the output. row: the inner axis is divided, and ranks add up.
column_row: the first by columns, an activation perhaps, the second by its inner axis, as an MLP. row_norm_column: the
first by its inner axis, a residual and a norm, the second by columns, as from attention to MLP."""

FORMS = ("whole", "sequence", "own_tokens")
"""whole: between layers each rank has all tokens. sequence: between layers each rank has its part of the tokens, with
rows behind the last so that all parts are as long. own_tokens: each rank has whole rows of its own part of the tokens
before a layer whose inner axis is divided, and its part of the tokens behind it."""


@dataclass(frozen=True)
class TensorParallelInputs:
    """The inputs of all ranks."""

    layer: str
    """One of ``LAYERS``."""
    form: str
    """One of ``FORMS``; ``own_tokens`` is for ``row`` alone."""
    ranks: int
    """Among how many the layers are divided."""
    states: torch.Tensor
    """``[tokens, inner of first]``, bfloat16 or float16."""
    first: LinearCheckpoint
    second: LinearCheckpoint | None = None
    """Both layers; one of ``column`` and ``row`` alone."""
    gated: bool = False
    """Whether the first layer of ``column_row`` has gates and ups, which become ``silu(gate) * up``."""
    residual: torch.Tensor | None = None
    """``[tokens, hidden]`` of the same dtype, added before the norm."""
    norm_weight: torch.Tensor | None = None
    """``[hidden]`` of the same dtype."""
    epsilon: float = 1e-6
    """Of the norm."""
    padding: float = 0.0
    """What rows behind the last token hold where a rank is given them."""

    @property
    def share(self) -> int:
        """Rows of each rank where tokens are divided."""
        return -(-len(self.states) // self.ranks)

    def to(self, device: str | torch.device) -> TensorParallelInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


@dataclass(frozen=True)
class TensorParallelPart:
    """The inputs of one rank: its states, and checkpoints as a loader reads them."""

    layer: str
    """One of ``LAYERS``."""
    form: str
    """One of ``FORMS``."""
    rank: int
    ranks: int
    """Which of how many this is."""
    tokens: int
    """Tokens of all ranks, without rows behind the last."""
    states: torch.Tensor
    """``column`` and ``column_row``: ``[tokens, inner]``, in ``sequence`` the rows of this rank. ``row`` and
    ``row_norm_column``: ``[tokens, part of inner]``, in ``own_tokens`` the rows of this rank with all of inner."""
    first: LinearCheckpoint
    second: LinearCheckpoint | None
    """Both layers, whole."""
    gated: bool
    """Whether the first layer of ``column_row`` has gates and ups."""
    residual: torch.Tensor | None
    """``[tokens, hidden]``, all of it, also in ``sequence``: the embeddings of a model are not divided."""
    norm_weight: torch.Tensor | None
    """``[hidden]``."""
    epsilon: float
    """Of the norm."""

    @property
    def share(self) -> int:
        """Rows of each rank where tokens are divided."""
        return -(-self.tokens // self.ranks)

    def to(self, device: str | torch.device) -> TensorParallelPart:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def rank_part(inputs: TensorParallelInputs, rank: int) -> TensorParallelPart:
    """Return the inputs of one rank."""
    by_inner = inputs.layer in ("row", "row_norm_column")
    if inputs.form == "own_tokens" or (inputs.form == "sequence" and not by_inner):
        missing = inputs.share * inputs.ranks - len(inputs.states)
        padding = torch.full((missing, inputs.states.shape[1]), inputs.padding, dtype=inputs.states.dtype)
        states = torch.cat([inputs.states, padding])[rank * inputs.share : (rank + 1) * inputs.share]
    elif by_inner:
        states = inputs.states[:, own_inner(inputs.first, rank, inputs.ranks)].contiguous()
    else:
        states = inputs.states
    return TensorParallelPart(
        inputs.layer, inputs.form, rank, inputs.ranks, len(inputs.states), states, inputs.first, inputs.second,
        inputs.gated, inputs.residual, inputs.norm_weight, inputs.epsilon,
    )  # fmt: skip


def rows_of_ranks(inputs: TensorParallelInputs, output: str) -> tuple[int, ...]:
    """Return how many rows of an output each rank returns."""
    if output == "residual" and inputs.layer != "row_norm_column":
        return (0,) * inputs.ranks
    return (inputs.share if is_divided(inputs, output) else len(inputs.states),) * inputs.ranks


def is_divided(inputs: TensorParallelInputs, output: str) -> bool:
    """Return whether each rank returns its own tokens of an output."""
    return inputs.form != "whole" and (output == "residual" or inputs.layer in ("row", "column_row"))


def tensor_parallel(inputs: TensorParallelInputs) -> dict[str, Expected]:
    """Return what all ranks have, one after the other.

    ``x @ weight.T + bias`` of each layer, the sum over ranks standing where the inner axis is divided (Shoeybi et al.,
    "Megatron-LM", 2019, section 3), of parts of the tokens in ``sequence`` (Korthikanti et al., "Reducing activation
    recomputation in large transformer models", 2022, section 4.2.2). Where states are quantised by their largest
    element, each rank does so with what it has of a row: this is another number than one rank would have.

    Returns
    -------
    dict
        ``output``: ``[ranks * rows, columns]`` of the dtype of ``states``: ``rows_of_ranks`` rows of each rank, and its
        own columns where these are divided. ``residual``: ``[ranks * rows, hidden]``, what the norm was given;
        ``[0, 1]`` where there is none. Nothing is said of rows behind the last token.

    Raises
    ------
    ValueError
        If tensors contradict each other, or ranks cannot divide a layer.

    Notes
    -----
    A correct device rounds to the dtype of the states what each rank has of a sum, and after every addition
    (``reference.sharded_linear.added``), and wherever one rank alone does, as ``reference.moe_experts`` and
    ``reference.rms_norm`` say.
    """
    _validate(inputs)
    dtype, ranks = inputs.states.dtype, range(inputs.ranks)
    states = Inexact.exact(inputs.states)
    if inputs.layer == "column":
        return _outputs(inputs, output=[of_columns(states, inputs.first, rank, len(ranks), dtype) for rank in ranks])
    if inputs.layer == "row":
        return _outputs(inputs, output=[of_inner(_parts(states, inputs), inputs.first, dtype)])
    if inputs.second is None:
        raise ValueError(f"{inputs.layer} has two layers")
    if inputs.layer == "column_row":
        between = [of_columns(states, inputs.first, rank, len(ranks), dtype).representable(dtype) for rank in ranks]
        rows = [activated(part.inexact, Gate(), dtype) if inputs.gated else part.inexact for part in between]
        return _outputs(inputs, output=[of_inner(rows, inputs.second, dtype)])
    total = of_inner(_parts(states, inputs), inputs.first, dtype)
    normed, relative, residual = _normed(inputs, total)
    products = [of_columns(normed, inputs.second, rank, len(ranks), dtype) for rank in ranks]
    moved = [
        ExpertProduct(part.value, part.independent + part.value.abs() * relative, part.brought) for part in products
    ]
    return _outputs(inputs, output=moved, residual=[residual])


def _parts(states: Inexact, inputs: TensorParallelInputs) -> list[Inexact]:
    """What each rank has of rows whose columns are divided."""
    cuts = [own_inner(inputs.first, rank, inputs.ranks) for rank in range(inputs.ranks)]
    return [Inexact(states.value[:, cut], states.error[:, cut]) for cut in cuts]


def _normed(inputs: TensorParallelInputs, product: ExpertProduct) -> tuple[Inexact, torch.Tensor, ExpertProduct]:
    """The normalised sum of a product and the residual, the relative error that a row shares, and the sum.

    A row of which the dtype may not hold everything is not known behind the norm.
    """
    if inputs.residual is None or inputs.norm_weight is None:
        raise ValueError("a norm has a weight, and a residual is added before it")
    dtype = inputs.states.dtype
    total, error = product.value + inputs.residual.to(torch.float64), product.inexact.error
    stored = (total.abs() + error) * (unit_roundoff(dtype) + 2 * FLOAT32_ROUNDOFF) + underflow_step(dtype)
    unknown = (total.abs() + error + stored > torch.finfo(dtype).max).any(dim=1, keepdim=True) | ~error.isfinite().all(
        dim=1, keepdim=True
    )
    known = torch.where(unknown, 0.0, error + stored)
    weight = inputs.norm_weight.to(torch.float64)
    normed = normalised(total, known, weight, torch.zeros_like(weight), inputs.epsilon, dtype)
    # what errors of the rows before became is not independent of column to column: at worst all of it is along the row
    along = torch.where(unknown, 0.0, total.abs() * product.brought).sum(dim=1, keepdim=True)
    relative = normed.relative + along / total.square().sum(dim=1, keepdim=True).clamp(min=1e-300)
    own = normed.independent + normed.value.abs() * relative
    residual = ExpertProduct(total, product.independent + stored, product.brought)
    return Inexact(normed.value, torch.where(unknown, torch.inf, own)), relative, residual


def _outputs(inputs: TensorParallelInputs, **outputs: Sequence[ExpertProduct]) -> dict[str, Expected]:
    """Lay what ranks have one after the other; what is the same on all, or divided by tokens, is given once."""
    nothing = torch.zeros(0, 1, dtype=torch.float64)
    found = {"residual": Expected(nothing, nothing, inputs.states.dtype)}
    for name, parts in outputs.items():
        values, errors = (torch.cat(tensors) for tensors in zip(*((part.value, part.inexact.error) for part in parts),
                                                                strict=True))  # fmt: skip
        if len(parts) == 1 and not is_divided(inputs, name):
            values, errors = (tensor.repeat(inputs.ranks, 1) for tensor in (values, errors))
        missing = sum(rows_of_ranks(inputs, name)) - len(values)
        behind = torch.nn.functional.pad
        found[name] = Expected(
            behind(values, (0, 0, 0, missing)), behind(errors, (0, 0, 0, missing), value=torch.inf), inputs.states.dtype
        )
    return {name: found[name] for name in ("output", "residual")}


def _validate(inputs: TensorParallelInputs) -> None:
    misplaced = inputs.form == "own_tokens" and inputs.layer != "row"
    if inputs.layer not in LAYERS or inputs.form not in FORMS or misplaced:
        raise ValueError(f"there is no layer {inputs.layer} in the form {inputs.form}")
    by_inner = inputs.layer in ("row", "row_norm_column")
    check_layer(inputs.first, inputs.ranks, "inner" if by_inner else "columns")
    if inputs.states.shape[1] != inputs.first.inner:
        raise ValueError(f"states must have {inputs.first.inner} columns, got {inputs.states.shape[1]}")
    if inputs.second is not None:
        check_layer(inputs.second, inputs.ranks, "columns" if by_inner else "inner")
        columns = len(inputs.first.weight) // (2 if inputs.gated else 1)
        if inputs.second.inner != columns:
            raise ValueError(f"the second layer must have an inner axis of {columns}, got {inputs.second.inner}")
