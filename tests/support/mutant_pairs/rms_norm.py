from __future__ import annotations

from device import ascend
from mutant_pairs.pair import Pair
from properties.rms_norm import RmsNormCase

PAIRS = {
    "residual_dropped": Pair(
        ascend.native_rms_norm, RmsNormCase(3, residual=True), [RmsNormCase(3)], "1 x 64 · bfloat16 · residual"
    ),
    "variance_halved": Pair(
        ascend.native_rms_norm, RmsNormCase(3, 192), [RmsNormCase(3, 64), RmsNormCase(3, 4096)], "1 x 192 · bfloat16"
    ),
}
