"""One layer of Step-3.5 or DeepSeek, through the path that the backend's flags choose."""

from __future__ import annotations

from npudiff import Target, implementation
from npudiff.device.ascend.layer_composed import ComposedGroupedQueryLayer, ComposedLatentLayer
from npudiff.device.ascend.layer_flags import boxes
from npudiff.device.ascend.layer_grouped_query import GroupedQueryLayer
from npudiff.device.ascend.layer_latent import LatentLayer
from npudiff.device.ascend.layer_steps import AscendLayer, Outputs
from npudiff.model.constraints import Box
from npudiff.reference.decoder_layer import DecoderLayerInputs

STEP: Box = {"page_size": range(16, 1025, 16), "group": range(1, 65)}
"""Pages and groups of queries that fused attention takes."""

GROUPED_QUERY = boxes("step-3.5", STEP)

LATENT = boxes("deepseek", {"page_size": range(16, 1025, 16), "group": range(1, 129)})


def layer_of(inputs: DecoderLayerInputs, target: Target) -> AscendLayer:
    """Return the layer of the kind that the inputs are of."""
    return LatentLayer(inputs, target) if inputs.latent else GroupedQueryLayer(inputs, target)


@implementation("decoder_layer", supports=[*GROUPED_QUERY, *LATENT])
def layer_by_flags(inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """The operators that the flags choose; flags that do not go together are refused."""
    return layer_of(inputs, target).run()


@implementation("decoder_layer")
def composed_layer(inputs: DecoderLayerInputs, target: Target) -> Outputs:
    """Composed of plain torch operators; no flag changes anything."""
    kind = ComposedLatentLayer if inputs.latent else ComposedGroupedQueryLayer
    return kind(inputs, target).run()
