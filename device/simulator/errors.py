"""What a simulated operator raises.

Three things are kept apart, because they mean different things to a test: the operator refuses the call
(:class:`OperatorRejected`), the call is beyond the contract and hardware would do something nobody can rely
on (:class:`UndefinedBehaviour`, :class:`DeviceFault`), and the call is legal but this simulator cannot do
it (:class:`NotSimulated`).
"""

from __future__ import annotations

from enum import Enum


class ErrorCode(str, Enum):
    """Codes as hardware reports them.

    The wrapper's code is the one of torch_npu's ``ErrCode.VALUE`` for the operator sub-module. aclnn
    documents 161002 for a parameter whose dtype, rank or shape is wrong, and field reports of fused
    attention show 561002 for what its tiling stage refuses (vllm-ascend #15503, sglang #25455). Which of
    the two a given check reports is not documented argument by argument: do not assert it of hardware.
    """

    WRAPPER = "ERR01003"
    PARAMETER = "aclnn 161002"
    TILING = "aclnn 561002"


class OperatorRejected(RuntimeError):
    """The real operator refuses this call before it computes anything.

    Parameters
    ----------
    operator : str
        Name of the operator, without the namespace.
    argument : str
        The argument that is refused, by the name it has in the operator's schema.
    given : object
        What was passed.
    allowed : str
        What would have been accepted.
    code : ErrorCode
        The layer that refuses.
    words : str
        What torch_npu says, where tests of other people look for it.
    """

    def __init__(
        self, operator: str, argument: str, given: object, allowed: str, code: ErrorCode, words: str = ""
    ) -> None:
        message = f"{operator}: {argument} was {given}; allowed: {allowed} [{code.value}]"
        super().__init__(f"{message}: {words}" if words else message)
        self.operator = operator
        self.argument = argument
        self.code = code


class NotSimulated(RuntimeError):
    """The call may be legal on hardware, but the simulator does not implement it.

    Parameters
    ----------
    operator : str
        Name of the operator, without the namespace.
    argument : str
        The argument that asks for what is missing.
    given : object
        What was passed.
    simulated : str
        What the simulator does implement.
    """

    def __init__(self, operator: str, argument: str, given: object, simulated: str) -> None:
        super().__init__(f"{operator}: {argument} was {given}, which is not simulated; simulated: {simulated}")
        self.operator = operator
        self.argument = argument


class KernelMissing(RuntimeError):
    """An operator of torch_npu was called that the simulator does not have."""


class OperatorMissing(AttributeError):
    """Nobody has defined an operator: who asks ``hasattr`` is told so, who calls it learns its name.

    Parameters
    ----------
    operator : str
        ``namespace::name``.
    why : str
        What that means.
    """

    def __init__(self, operator: str, why: str) -> None:
        super().__init__(f"{operator} is not simulated: {why}")
        self.operator = operator


class UndefinedBehaviour(RuntimeError):
    """Hardware accepts this call and then computes something that its contract does not say."""


class DeviceFault(UndefinedBehaviour):
    """An access outside a tensor: memory corruption or an AI-core exception on hardware, an error here.

    Parameters
    ----------
    message : str
        Which element points where.
    code : int, default 507035
        The runtime error with which hardware reports an AI-core exception, when it notices.
    """

    def __init__(self, message: str, code: int = 507035) -> None:
        super().__init__(f"{message} [error {code}]")
        self.code = code
