_ASCEND_CONFIG = None


def get_ascend_config():
    return _ASCEND_CONFIG
