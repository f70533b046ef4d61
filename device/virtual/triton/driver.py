"""The driver by which Triton, and kernels that ask for the number of cores, know the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from triton.backends import Backend, backends
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver as drivers

NAME = "npu"


class Driver(DriverBase):
    """Triton's view of ``npu:0``. Nothing is compiled for it."""

    def __init__(self) -> None:
        super().__init__()
        self.utils = SimpleNamespace(get_device_properties=self._properties)

    @classmethod
    def is_active(cls) -> bool:
        """Whether there is such a device: who asked for this driver has one."""
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the name of a type for code that starts a compiled kernel, which there is none of."""
        return ty

    def get_current_target(self) -> GPUTarget:
        """Return what kernels would be compiled for: the chip's name, as torch_npu knows it."""
        return GPUTarget(NAME, _npu().get_device_name(0), 0)

    def get_active_torch_device(self) -> Any:  # noqa: ANN401 - torch.device
        """Return the device of tensors."""
        import torch  # noqa: PLC0415 - Triton does without it

        return torch.device(f"{NAME}:0")

    def get_device_interface(self) -> Any:  # noqa: ANN401 - the module torch.npu
        """Return the module with streams and events of the device."""
        return _npu()

    def get_current_device(self) -> int:
        """Return the number of the device."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Choose the only device."""

    def get_current_stream(self, device: int | None = None) -> int:
        """Return the address of the stream on which kernels are launched."""
        import torch_npu  # noqa: PLC0415 - imported already

        address: int = torch_npu._C._npu_getCurrentRawStream(device or 0)
        return address

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        """Return a function that gives all kernels one time, and runs none: the first of some choices is taken."""

        def benchmark(_: Callable[[], object], *, quantiles: Sequence[float] = (0.5,), **__: object) -> list[float]:
            return [0.0] * len(quantiles)

        return benchmark

    @staticmethod
    def _properties(device: int) -> dict[str, int]:
        """Cores of a device, which stays as it is: modules ask while they are imported, and processes fork later."""
        import torch_npu  # noqa: PLC0415 - imported already

        known = torch_npu._C._npu_getDeviceProperties(device)
        return {"num_aicore": known.cube_core_num, "num_vectorcore": known.vector_core_num}


def _npu() -> Any:  # noqa: ANN401 - the module torch.npu
    import torch  # noqa: PLC0415 - Triton does without it

    return torch.get_device_module(NAME)


def install() -> None:
    """Make it the driver that is active, and the one that programs find which look for such."""
    backends[NAME] = Backend(compiler=BaseBackend, driver=Driver)
    drivers.set_active(Driver())
