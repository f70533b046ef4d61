"""A layer as a model file has it: norm, attention and experts of every step, with the sum handed on separately."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from npudiff import Target
from npudiff.device.ascend import rms_norm
from npudiff.device.ascend.layer_experts import AscendExperts
from npudiff.device.ascend.layer_flags import check_flags
from npudiff.reference.decoder_layer import DecoderLayerInputs, LayerStep
from npudiff.reference.rms_norm import RmsNormInputs

Outputs = dict[str, torch.Tensor]


class AscendLayer(ABC):
    """One layer and its cache; what a kind of layer does differently is in the methods.

    Parameters
    ----------
    inputs : DecoderLayerInputs
        On the host.
    target : Target
        Where to run.

    Raises
    ------
    FlagsRefused
        If the backend has no path for the flags.
    """

    kind = "gemma"

    def __init__(self, inputs: DecoderLayerInputs, target: Target) -> None:
        self.check(inputs)
        self.inputs, self.target = inputs.to(target.device), target
        self.key_cache, self.value_cache = self.inputs.key_cache, self.inputs.value_cache
        self.experts = self.mixture()

    def check(self, inputs: DecoderLayerInputs) -> None:
        """Refuse flags for which there is no path."""
        check_flags(inputs)

    def mixture(self) -> AscendExperts:
        """The layer's experts."""
        return AscendExperts(self.inputs.experts, self.target, scaled_by_operator=self.inputs.latent)

    def run(self) -> Outputs:
        """Take every step."""
        results, start = [], 0
        for step in self.inputs.steps:
            rows = slice(start, start + step.tokens)
            results.append(self.step(step, rows))
            start = rows.stop
        hidden, residual = (torch.cat(part) for part in zip(*results, strict=True))
        keys, values = self.cached(self.inputs.own_slots)
        return {"keys": keys, "values": values, "residual": residual, "hidden": hidden}

    def step(self, step: LayerStep, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and residual after one step."""
        states, residual = self.norm(self.inputs.hidden[rows], self.inputs.residual[rows], self.inputs.input_norm)
        attended = self.attention(step, rows, states)
        states, residual = self.norm(attended, residual, self.inputs.post_norm)
        return self.experts(states), residual

    def norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, normalised; and the sum, which is the next residual."""
        result = self.norm_adapter(RmsNormInputs(hidden, residual, weight, self.inputs.epsilon, self.kind), self.target)
        return result["output"], result["sum"]

    def norm_adapter(self, inputs: RmsNormInputs, target: Target) -> Outputs:
        """The norm that the flags choose."""
        if self.inputs.native_norm:
            return rms_norm.native_rms_norm(inputs, target)
        if inputs.residual is None:
            alone = rms_norm.npu_gemma_rms_norm if self.kind == "gemma" else rms_norm.npu_rms_norm
            return alone(inputs, target)
        added = rms_norm.gemma_add_rms_norm if self.kind == "gemma" else rms_norm.npu_add_rms_norm
        return added(inputs, target)

    @abstractmethod
    def attention(self, step: LayerStep, rows: slice, states: torch.Tensor) -> torch.Tensor:
        """Write the step's keys and values, and return projected attention ``[tokens of the step, hidden_size]``."""

    @abstractmethod
    def cached(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the pool of this layer holds at some slots, ``[tokens, kv_heads, dim]`` each."""
