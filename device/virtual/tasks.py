"""Tasks that do not run when they are launched: a graph captures them, or they wait for their turn on a stream.

The runtime keeps the order of tasks, captures and replays; this module gives it kernels, which are Python functions,
and runs them when it asks for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import weakref
from collections.abc import Callable
from typing import Any

from npudiff.device.virtual import devices, faults

FAILED = 507015
"""Status of a kernel that fails on a device: an exception of a core."""

_Run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_uint64)
_Told = ctypes.CFUNCTYPE(None, ctypes.c_uint32)


class _State:
    """The runtime, and the kernels that it may ask for."""

    def __init__(self) -> None:
        self.runtime: Any = None
        self.busy: Any = ctypes.c_int32()
        self.frees: Any = ctypes.c_uint64()
        self.kernels: dict[int, Callable[[], None]] = {}
        self.names: dict[int, str] = {}
        self.identities = itertools.count(1)
        self.graphs: weakref.WeakValueDictionary[int, Graph] = weakref.WeakValueDictionary()
        self.current_stream: Callable[[int], int] = lambda _: 0


_state = _State()


class Graph:
    """What kernels of one graph have in common. It is told when the capture ends, and before each replay."""

    def __init__(self) -> None:
        self.ends: list[Callable[[], None]] = []
        self.starts: list[Callable[[], None]] = []


def connect(runtime: ctypes.CDLL) -> None:
    """Let a runtime run kernels that are given to :func:`launch`."""
    import torch_npu  # noqa: PLC0415 - imported already

    _state.runtime = runtime
    devices.connect(runtime.npudiff_device_count())
    _state.busy = ctypes.c_int32.in_dll(runtime, "npudiff_busy")
    _state.frees = ctypes.c_uint64.in_dll(runtime, "npudiff_frees")
    _state.current_stream = torch_npu._C._npu_getCurrentRawStream
    runtime.npudiff_records.argtypes = [ctypes.c_void_p]
    runtime.npudiff_launch.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p]
    runtime.npudiff_captured_by.argtypes = [ctypes.c_void_p]
    runtime.npudiff_captured_by.restype = ctypes.c_uint32
    runtime.npudiff_unseen.argtypes = [ctypes.c_char_p]
    runtime.npudiff_dropped_kernel.restype = ctypes.c_uint64
    runtime.npudiff_is_allocated.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    runtime.npudiff_remember.argtypes = [ctypes.c_char_p]
    called = _Run(_run), _Told(_capture_ends), _Told(_graph_starts)
    for function in called:  # graphs may outlive all modules, at the end of a process
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(function))
    runtime.npudiff_set_run_kernel(called[0])
    runtime.npudiff_set_graph_hooks(called[1], called[2])


def recording() -> bool:
    """Whether a kernel that is launched now does not run now."""
    return bool(_state.busy.value and _state.runtime.npudiff_records(_state.current_stream(devices.current())))


def capturing() -> Graph | None:
    """Return the graph that captures the current stream, if one does."""
    identity = _state.runtime.npudiff_captured_by(_state.current_stream(devices.current()))
    if not identity:
        return None
    graph = _state.graphs.get(identity)
    if graph is None:
        graph = _state.graphs[identity] = Graph()
    return graph


def launch(name: str, run: Callable[[], None]) -> None:
    """Launch a kernel on the current stream, where it does not run now.

    Raises
    ------
    RuntimeError
        If the stream cannot take it.
    """
    runtime = _state.runtime
    while dropped := runtime.npudiff_dropped_kernel():
        _state.kernels.pop(dropped, None)
        _state.names.pop(dropped, None)
    identity = next(_state.identities)
    _state.kernels[identity], _state.names[identity] = run, name
    _raise(name, runtime.npudiff_launch(_state.current_stream(devices.current()), identity, name.encode()))


def wait() -> None:
    """Let the host wait for the current stream, as it does before it looks at the device's memory.

    Raises
    ------
    RuntimeError
        As torch_npu raises it: the stream is captured; or another one is, in a mode that forbids what it does not see.
    """
    if not _state.busy.value:
        return
    import torch  # noqa: PLC0415 - loaded long since

    torch.get_device_module("npu").current_stream().synchronize()
    _raise("a copy between host and device", _state.runtime.npudiff_unseen(b"a copy between host and device"))


def waits_for_ranks() -> bool:
    """Whether something on this process's devices waits for another rank."""
    return bool(_state.runtime.calls_wait())


def frees() -> int:
    """Return how often device memory was freed."""
    count: int = _state.frees.value
    return count


def is_allocated(address: int, size: int) -> bool:
    """Whether some bytes are the device's."""
    return not size or bool(_state.runtime.npudiff_is_allocated(address, size))


def _raise(what: str, status: int) -> None:
    if status:
        message = _state.runtime.aclGetRecentErrMsg
        message.restype = ctypes.c_char_p
        raise RuntimeError(f"{what}: {message().decode()} (error code is {status})")


def _run(identity: int) -> int:
    """Run a kernel, and return a status."""
    name = _state.names.get(identity, "a kernel")
    try:
        faults.before(name)
        _state.kernels[identity]()
    except BaseException as error:  # noqa: BLE001 - nothing may pass through C
        if not faults.lost():  # who loses the device says why
            _state.runtime.npudiff_remember(f"{name}: {type(error).__name__}: {error}".encode())
        return faults.lost() or FAILED
    return 0


def _capture_ends(identity: int) -> None:
    _tell(identity, "ends")


def _graph_starts(identity: int) -> None:
    _tell(identity, "starts")


def _tell(identity: int, what: str) -> None:
    graph = _state.graphs.get(identity)
    if graph is not None:
        with contextlib.suppress(RuntimeError):
            for function in getattr(graph, what):
                function()
