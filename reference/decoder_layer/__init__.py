"""One decoder layer, over some steps: norms, attention through a paged cache, a mixture of experts."""

from __future__ import annotations

from reference.decoder_layer.inputs import (
    DecoderLayerInputs,
    ExpertWeights,
    GroupedQueryWeights,
    LatentWeights,
    LayerStep,
)
from reference.decoder_layer.layer import decoder_layer

__all__ = [
    "DecoderLayerInputs",
    "ExpertWeights",
    "GroupedQueryWeights",
    "LatentWeights",
    "LayerStep",
    "decoder_layer",
]
