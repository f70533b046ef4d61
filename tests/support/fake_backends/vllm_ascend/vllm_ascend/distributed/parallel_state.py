"""Groups of ranks that share a layer of a kind alone."""

_MLP_TP = _OTP = None
