from enum import Enum

from vllm.forward_context import get_forward_context


class MoECommType(Enum):
    ALLGATHER = 0
    MC2 = 1


class _Extra:
    """What vllm-ascend asks of a forward pass."""

    def __getattr__(self, name):
        return getattr(get_forward_context(), name)


_EXTRA_CTX = _Extra()
