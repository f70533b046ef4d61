"""CPU kernels for ``torch.ops.npu.*``: torch_npu's schemas, the real operators' contract and rejections.

``install()`` makes the operators callable on CPU tensors; ``use_profile`` chooses the CANN version whose
documented behaviours and quirks they show. The kernels follow the operators' contract and share no code with
``reference``.
"""

from npudiff.device.simulator.errors import (
    DeviceFault,
    NotSimulated,
    OperatorMissing,
    OperatorRejected,
    UndefinedBehaviour,
)
from npudiff.device.simulator.library import install
from npudiff.device.simulator.profiles import DEFAULT_PROFILE, PROFILES, CannProfile, active_profile, use_profile
from npudiff.device.simulator.quirks import Quirk

__all__ = [
    "DEFAULT_PROFILE",
    "PROFILES",
    "CannProfile",
    "DeviceFault",
    "NotSimulated",
    "OperatorMissing",
    "OperatorRejected",
    "Quirk",
    "UndefinedBehaviour",
    "active_profile",
    "install",
    "use_profile",
]
