"""Shipping backends, unmodified, behind the same door as all other implementations: one package each.

``boot.py`` imports the backend beside the device, ``world.py`` builds the backend's own objects as it builds them
itself, and a module per component, named as in the other rooms, calls its functions.
"""

from __future__ import annotations

from npudiff.device.backends.stubs import StubCalled
from npudiff.device.simulator.errors import KernelMissing, NotSimulated, OperatorMissing


class NoSuchCheckpoint(Exception):
    """A case has numbers that no checkpoint of this format can have."""


NOT_HERE = (StubCalled, NotSimulated, OperatorMissing, KernelMissing, NoSuchCheckpoint)
"""What a case of a backend raises where something is not here: a package, an operator of the backend's own library, an
operator of torch_npu that the simulator lacks, a form of one, or a checkpoint."""
