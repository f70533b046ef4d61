"""What is asked of the environment before MLA; the operators in front of it are not here."""

import functools
import os


@functools.lru_cache
def is_fia_nz():
    return os.environ.get("SGLANG_USE_FIA_NZ", "0") == "1"


@functools.lru_cache
def is_mla_preprocess_enabled():
    return os.environ.get("SGLANG_NPU_USE_MLAPO", "0") == "1"
