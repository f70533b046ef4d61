_CUSTOM_OP_ENABLED = None


def enable_custom_op():
    """Whether operators in C++ are here; asked once."""
    return bool(_CUSTOM_OP_ENABLED)
