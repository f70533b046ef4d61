"""The stand-in for CANN by itself: what its functions do, called as torch_npu calls them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading

import pytest

from npudiff.device.virtual.build import FLAGS, SOURCES

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

CONTEXT_NULL, INVALID_DEVICE, OUT_OF_MEMORY, EXCEPTION = 107002, 107001, 207001, 507015


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "libruntime.so"
    sources = [str(source) for source in SOURCES.glob("*.c")]
    flags = [*FLAGS, "-Wpedantic"]
    subprocess.run([COMPILER, *flags, "-o", str(path), *sources, "-lpthread"], check=True)
    return path


@pytest.fixture
def runtime(library):
    """Load it, with a device that works, is chosen, and has memory; and leave it so."""
    runtime = ctypes.CDLL(str(library))
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    runtime.npudiff_set_memory.argtypes = [ctypes.c_uint64]
    runtime.aclrtMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_int]
    runtime.aclrtFree.argtypes = [ctypes.c_void_p]
    runtime.aclrtSetDevice(0)
    yield runtime
    runtime.npudiff_lose_device(0, b"")
    runtime.npudiff_set_memory(64 << 30)
    runtime.aclrtSetDevice(0)


def allocated(runtime, size):
    address = ctypes.c_void_p()
    return runtime.aclrtMalloc(ctypes.byref(address), size, 0), address.value


def figures(runtime):
    values = [ctypes.c_uint64() for _ in range(3)]
    runtime.npudiff_memory(*map(ctypes.byref, values))
    return [value.value for value in values]


@pytest.mark.slow
def test_there_is_one_device(runtime):
    count, device = ctypes.c_uint32(), ctypes.c_int32()
    assert runtime.aclrtGetDeviceCount(ctypes.byref(count)) == 0
    assert count.value == 1
    assert runtime.aclrtGetDevice(ctypes.byref(device)) == 0
    assert device.value == 0
    assert runtime.aclrtSetDevice(1) == INVALID_DEVICE
    assert runtime.aclGetRecentErrMsg() == b"the virtual NPU has one device, 0; asked for 1"


COUNT = """
import ctypes, sys
runtime, count = ctypes.CDLL(sys.argv[1]), ctypes.c_uint32()
runtime.aclrtGetDeviceCount(ctypes.byref(count))
print(count.value)
"""


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("there", "visible", "count"),
    [
        ("3", None, 3), ("3", "0,2", 2), ("3", "1", 1), ("3", "0,1,7", 2), ("3", "2,0", 0), ("3", "1,1", 0),
        ("3", "", 0), ("3", "x", 0), ("3", "0,x", 1), ("0", None, 1), ("100", None, 64),
    ],
)  # fmt: skip
def test_visible_devices_are_those_that_cann_sees(library, there, visible, count):
    """They are counted once in a process."""
    environment = {"NPUDIFF_VIRTUAL_DEVICES": there}
    if visible is not None:
        environment["ASCEND_RT_VISIBLE_DEVICES"] = visible
    command = [sys.executable, "-c", COUNT, str(library)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{count}\n"


DEVICE_OF_TASKS = """
import ctypes, sys
runtime, stream = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p()
word = (ctypes.c_uint64 * 1)()
seen = []

def look(_argument=None):
    device = ctypes.c_int32()
    runtime.aclrtGetDevice(ctypes.byref(device))
    seen.append(device.value)

function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(look)
runtime.aclrtSetDevice(1)
runtime.aclrtCreateStreamWithConfig(ctypes.byref(stream), 0, 0)
runtime.aclrtSetDevice(0)
runtime.aclrtLaunchHostFunc(stream, function, None)
look()
runtime.aclrtValueWait(word, ctypes.c_uint64(1), 1, stream)
runtime.aclrtLaunchHostFunc(stream, function, None)
runtime.aclrtValueWrite(word, ctypes.c_uint64(1), 0, None)
look()
print(*seen)
"""


def test_a_task_has_the_device_of_its_stream_whether_it_waits_or_not(library):
    command = [sys.executable, "-c", DEVICE_OF_TASKS, str(library)]
    environment = {"NPUDIFF_VIRTUAL_DEVICES": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 0 1 0\n"


def test_a_thread_that_chose_no_device_has_no_context(runtime):
    context = ctypes.c_void_p()
    assert runtime.aclrtGetCurrentContext(ctypes.byref(context)) == 0
    assert context.value
    runtime.aclrtResetDevice(0)
    assert runtime.aclrtGetDevice(ctypes.byref(ctypes.c_int32())) == CONTEXT_NULL
    assert runtime.aclrtGetCurrentContext(ctypes.byref(context)) == CONTEXT_NULL


def test_memory_is_aligned_counted_and_freed(runtime):
    before = figures(runtime)
    blocks = [allocated(runtime, size) for size in (1, 511, 512, 100_000)]
    assert all(status == 0 and address % 512 == 0 for status, address in blocks)
    total, used, count = figures(runtime)
    assert (used - before[1], count - before[2]) == (1 + 511 + 512 + 100_000, 4)
    left, whole = ctypes.c_size_t(), ctypes.c_size_t()
    runtime.aclrtGetMemInfo(0, ctypes.byref(left), ctypes.byref(whole))
    assert (whole.value, left.value) == (total, total - used)
    for _, address in blocks:
        assert runtime.aclrtFree(address) == 0
    assert figures(runtime) == before


def test_memory_ends(runtime):
    runtime.npudiff_set_memory(figures(runtime)[1] + 1000)
    assert allocated(runtime, 1001) == (OUT_OF_MEMORY, None)
    assert runtime.aclGetRecentErrMsg() == b"the virtual NPU is out of memory: 1001 bytes asked for, 1000 left"
    status, address = allocated(runtime, 1000)
    assert status == 0
    assert allocated(runtime, 1)[0] == OUT_OF_MEMORY
    runtime.aclrtFree(address)
    assert allocated(runtime, 2**64 - 1)[0] == OUT_OF_MEMORY
    assert allocated(runtime, 0)[0] != 0


def test_copies_stay_within_their_room(runtime):
    target = ctypes.create_string_buffer(b"........", 8)
    assert runtime.aclrtMemcpy(target, 4, b"abcdef", 4, 1) == 0
    assert target.raw == b"abcd...."
    assert runtime.aclrtMemcpyAsync(target, 4, b"abcdef", 5, 1, None) != 0
    assert runtime.aclrtMemset(target, 8, ord("x"), 2) == 0
    assert target.raw == b"xxcd...."
    assert runtime.aclrtMemset(target, 1, 0, 2) != 0


def test_events_tell_time(runtime):
    first, last, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    assert runtime.aclrtCreateStreamWithConfig(ctypes.byref(stream), 0, 0) == 0
    for event in (first, last):
        assert runtime.aclrtCreateEventExWithFlag(ctypes.byref(event), 0) == 0
    status, milliseconds = ctypes.c_int32(7), ctypes.c_float(-1)
    assert runtime.aclrtQueryEventStatus(first, ctypes.byref(status)) == 0
    assert status.value == 0  # not recorded
    assert runtime.aclrtEventElapsedTime(ctypes.byref(milliseconds), first, last) == 107006
    for event in (first, last):
        assert runtime.aclrtRecordEvent(event, stream) == 0
    runtime.aclrtQueryEventStatus(first, ctypes.byref(status))
    assert status.value == 1
    assert runtime.aclrtEventElapsedTime(ctypes.byref(milliseconds), first, last) == 0
    assert 0 <= milliseconds.value < 1000
    assert runtime.aclrtSynchronizeStream(stream) == runtime.aclrtStreamQuery(stream, ctypes.byref(status)) == 0
    for event in (first, last):
        runtime.aclrtDestroyEvent(event)
    runtime.aclrtDestroyStream(stream)


def test_host_functions_run_at_once(runtime):
    called = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(called.append)
    assert runtime.aclrtLaunchHostFunc(None, function, ctypes.c_void_p(5)) == 0
    assert called == [5]


@pytest.fixture
def stream(runtime):
    """A stream of its own, so that no other test finds what waits on it."""
    made = ctypes.c_void_p()
    assert runtime.aclrtCreateStreamWithConfig(ctypes.byref(made), 0, 0) == 0
    return made


def test_what_a_task_launches_on_its_own_stream_runs_after_it(runtime, stream):
    """As memory that is freed while a graph runs, for instance by a collection of garbage: its events are recorded."""
    event, status = ctypes.c_void_p(), ctypes.c_int32()
    assert runtime.aclrtCreateEventExWithFlag(ctypes.byref(event), 0) == 0
    seen = []

    def record(_argument):
        seen.append(runtime.aclrtRecordEvent(event, stream))
        runtime.aclrtQueryEventStatus(event, ctypes.byref(status))
        seen.append(status.value)

    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(record)
    assert runtime.aclrtLaunchHostFunc(stream, function, None) == 0
    assert seen == [0, 0]
    assert runtime.aclrtSynchronizeStreamWithTimeout(stream, 100) == 0
    runtime.aclrtQueryEventStatus(event, ctypes.byref(status))
    assert status.value == 1
    assert runtime.aclrtDestroyEvent(event) == runtime.aclrtDestroyStream(stream) == 0


def test_what_another_thread_launches_while_a_task_runs_runs_after_it(runtime, stream):
    started, launched, called = threading.Event(), threading.Event(), []

    def first(_argument):
        started.set()
        assert launched.wait(10)
        called.append("first")

    functions = [ctypes.CFUNCTYPE(None, ctypes.c_void_p)(one) for one in (first, lambda _: called.append("second"))]
    thread = threading.Thread(target=runtime.aclrtLaunchHostFunc, args=(stream, functions[0], None))
    thread.start()
    assert started.wait(10)
    assert runtime.aclrtLaunchHostFunc(stream, functions[1], None) == 0
    assert called == []
    launched.set()
    thread.join()
    assert runtime.aclrtSynchronizeStreamWithTimeout(stream, 100) == 0
    assert called == ["first", "second"]
    assert runtime.aclrtDestroyStream(stream) == 0


def test_a_lost_device_fails_everywhere_until_it_is_healed(runtime):
    runtime.npudiff_lose_device(EXCEPTION, b"the reason")
    assert runtime.aclGetRecentErrMsg() == b"the reason"
    status, event = ctypes.c_int32(), ctypes.c_void_p()
    runtime.aclrtCreateEvent(ctypes.byref(event))
    buffer = ctypes.create_string_buffer(8)
    answers = {
        "device": runtime.aclrtSynchronizeDevice(),
        "device, with patience": runtime.aclrtSynchronizeDeviceWithTimeout(5),
        "stream": runtime.aclrtSynchronizeStream(None),
        "stream, with patience": runtime.aclrtSynchronizeStreamWithTimeout(None, 5),
        "query": runtime.aclrtStreamQuery(None, ctypes.byref(status)),
        "event": runtime.aclrtSynchronizeEvent(event),
        "record": runtime.aclrtRecordEvent(event, None),
        "wait": runtime.aclrtStreamWaitEvent(None, event),
        "copy": runtime.aclrtMemcpy(buffer, 8, b"abc", 3, 1),
        "set": runtime.aclrtMemset(buffer, 8, 1, 8),
        "allocate": allocated(runtime, 8)[0],
    }
    assert answers == dict.fromkeys(answers, EXCEPTION)
    assert buffer.raw == bytes(8)
    runtime.npudiff_lose_device(0, b"")
    assert runtime.aclrtSynchronizeDevice() == 0
    runtime.aclrtDestroyEvent(event)
