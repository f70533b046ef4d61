"""Flags of sglang's Ascend backend that choose the path of a layer, and which of them go together.

Source: sglang 0.5.23, ``environ.py``; where each is read is said beside its reason.
"""

from __future__ import annotations

import itertools

from npudiff.model.constraints import Box
from npudiff.reference.decoder_layer import DecoderLayerInputs

FLAGS = {
    "use_fia": "ASCEND_USE_FIA",
    "fia_nz": "SGLANG_USE_FIA_NZ",
    "mlapo": "SGLANG_NPU_USE_MLAPO",
    "native_norm": "SGLANG_NPU_FORWARD_NATIVE_GEMMA_RMS_NORM",
}


class FlagsRefused(ValueError):
    """The backend has no path for these flags and this layer; the message is the reason."""


def reason_against(*, latent: bool, window: bool, use_fia: bool, fia_nz: bool, mlapo: bool, native_norm: bool) -> str:
    """Return why there is no path for a layer with these flags; empty if there is one.

    Parameters
    ----------
    latent : bool
        Whether the layer caches latents.
    window : bool
        Whether it has a window.
    """
    if not latent and fia_nz:
        return f"{FLAGS['fia_nz']} lays out pages of latents, and this layer caches keys and values of heads"
    if not latent and mlapo:
        return f"{FLAGS['mlapo']} prepares queries and keys from latents, and this layer has none"
    if latent and native_norm:
        return f"{FLAGS['native_norm']} is for Gemma norms, and the norms of this layer are plain"
    if window and not use_fia:
        return (
            f"without {FLAGS['use_fia']} a layer with a window reads the block table of the full pool, and sees every "
            "key (ascend_backend.py 3300-3326)"
        )
    if fia_nz and not use_fia:
        return f"{FLAGS['fia_nz']} without {FLAGS['use_fia']}: paged attention reads ND pages (ascend_backend.py 3450)"
    return ""


def check_flags(inputs: DecoderLayerInputs) -> None:
    """Raise ``FlagsRefused`` if there is no path for a layer with its flags."""
    flags = {name: bool(getattr(inputs, name)) for name in FLAGS}
    reason = reason_against(latent=inputs.latent, window=inputs.window is not None, **flags)
    if reason:
        raise FlagsRefused(reason)


def boxes(kind: str, more: Box) -> list[Box]:
    """Return a box for every choice of flags for which layers of a kind have a path."""
    latent = kind == "deepseek"
    result: list[Box] = []
    for choice in itertools.product((True, False), *[(False, True)] * (len(FLAGS) - 1)):
        flags = dict(zip(FLAGS, choice, strict=True))
        windows = [window for window in (False, True) if not reason_against(latent=latent, window=window, **flags)]
        if not windows:
            continue
        box: Box = {"kind": (kind,), **more, **{name: (value,) for name, value in flags.items()}}
        result.append(box if len(windows) > 1 and not latent else {**box, "window": (None,)})
    return result
