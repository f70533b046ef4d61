"""One decoder layer, over some steps: norms, attention through a paged cache, a mixture of experts."""

from __future__ import annotations

from npudiff.reference.decoder_layer.inputs import (
    DecoderLayerInputs,
    GroupedQueryWeights,
    LatentWeights,
    LayerStep,
    Mixture,
)
from npudiff.reference.decoder_layer.layer import decoder_layer

__all__ = [
    "DecoderLayerInputs",
    "GroupedQueryWeights",
    "LatentWeights",
    "LayerStep",
    "Mixture",
    "decoder_layer",
]
