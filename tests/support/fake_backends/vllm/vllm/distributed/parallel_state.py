"""Groups of ranks, by name, and that of tensor-parallel ones."""

_groups = {}
_TP = None


def get_tp_group():
    return _TP
