_current_vllm_config = None


def get_current_vllm_config():
    return _current_vllm_config
