"""Our calls of torch_npu's operators against what its versions list, without importing torch_npu.

``listing`` reads schemas from wheels, ``calls`` has the forms of the calls that the adapters make, ``acceptance`` says
whether a schema takes a call, ``versions`` what the wheels list, ``table`` puts it together for ``npudiff doctor
--contract``. ``shapes`` compares the simulator with torch_npu's own shape functions, and ``drawing`` runs adapters on
drawn cases; both are for the contract tests.
"""

from npudiff.device.contract.table import contract

__all__ = ["contract"]
