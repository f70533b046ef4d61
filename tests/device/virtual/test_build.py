"""The stand-in is built from what torch_npu asks for, once, outside the checkout; and says why where it cannot be."""

from __future__ import annotations

import ctypes
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from npudiff.device.virtual import build as module
from npudiff.device.virtual.build import RUNTIME, CannotBuild, Demand, build, cache_folder, demand_of

COMPILER = shutil.which("cc")
PACKAGE = """
extern int aclrtMalloc(void **, unsigned long, int);
extern int aclMadeUp(int);
extern long _ZN3atb7MadeUpTEv(void);
extern int of_torch(void);
extern void *malloc(unsigned long);
int use(void **p) { return aclrtMalloc(p, 1, 0) + aclMadeUp(1) + (int)_ZN3atb7MadeUpTEv() + of_torch() + !malloc(1); }
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Make small packages: a torch_npu that needs a library of CANN and one of torch's symbols."""
    root = tmp_path_factory.mktemp("packages")
    for name in ("torch_npu", "torch", "cann"):
        (root / name / "lib").mkdir(parents=True)
    shared = [COMPILER, "-shared", "-fPIC", "-Wl,--no-as-needed"]
    (root / "empty.c").write_text("int of_cann;\n")
    (root / "torch.c").write_text("int of_torch(void) { return 0; }\n")
    (root / "npu.c").write_text(PACKAGE)
    cann, torch = root / "cann" / "libhccl.so", root / "torch" / "lib" / "libc10.so"
    npu = root / "torch_npu" / "lib" / "libtorch_npu.so"
    for target, source, soname, depends in (
        (cann, "empty.c", "libhccl.so", []),
        (torch, "torch.c", "libc10.so", []),
        (npu, "npu.c", "libtorch_npu.so", [cann, torch]),
    ):
        options = [option for path in depends for option in (f"-L{path.parent}", f"-l:{path.name}")]
        command = [*shared, f"-Wl,-soname,{soname}", "-o", str(target), str(root / source), *options]
        subprocess.run(command, check=True)
    return root / "torch_npu", root / "torch"


def test_the_demand_is_what_neither_torch_nor_the_process_has(packages):
    demand = demand_of(*packages)
    assert demand == Demand((RUNTIME, "libhccl.so"), ("_ZN3atb7MadeUpTEv", "aclMadeUp", "aclrtMalloc"))


def test_a_package_without_libraries_is_refused(packages, tmp_path):
    with pytest.raises(CannotBuild, match=r"no libraries in .*: the package is not complete"):
        demand_of(tmp_path, packages[1])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_npu.so").write_text("not yet downloaded")
    with pytest.raises(CannotBuild, match="is not a 64-bit little-endian shared library"):
        demand_of(tmp_path, packages[1])


def test_a_library_for_each_name_and_a_function_for_each_symbol(packages, cache):
    folder = build(*packages, "2.13.0")
    assert folder.parent == cache / "npudiff" / "virtual" == cache_folder()
    assert {path.name for path in folder.glob("*.so")} == {RUNTIME, "libhccl.so"}
    runtime = ctypes.CDLL(str(folder / RUNTIME))
    assert hasattr(runtime, "aclMadeUp")
    assert hasattr(runtime, "_ZN3atb7MadeUpTEv")
    through_another = ctypes.CDLL(str(folder / "libhccl.so"))
    assert through_another.aclrtGetSocName  # dlsym follows dependencies


def test_a_function_that_is_not_simulated_fails_and_says_its_name(packages):
    runtime = ctypes.CDLL(str(build(*packages, "2.13.0") / RUNTIME))
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    assert runtime.aclMadeUp() == 207000
    assert runtime.aclGetRecentErrMsg() == b"aclMadeUp: not part of the virtual NPU"
    assert runtime.aclGetRecentErrMsg() == b""


def test_it_is_built_once_for_a_version(packages, monkeypatch):
    first = build(*packages, "2.13.0")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert build(*packages, "2.13.0") == first
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        build(*packages, "2.14.0")


def test_several_processes_may_build_at_once(packages):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: build(*packages, "2.13.0"), range(4)))
    assert len(folders) == 1
    assert [path.name for path in cache_folder().iterdir()] == [folders.pop().name]


def test_the_cache_is_the_users_own_and_not_the_checkout(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "npudiff" / "virtual"


def test_no_compiler_is_one_line(packages, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotBuild) as raised:
        build(*packages, "2.13.0")
    assert str(raised.value) == (
        "the virtual NPU needs a C compiler, and there is no cc, gcc or clang; install gcc, or set CC"
    )


def test_a_compiler_that_fails_is_one_line(packages, monkeypatch, tmp_path):
    broken = tmp_path / "mycc"
    broken.write_text("#!/bin/sh\necho 'no licence' >&2\necho more >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(CannotBuild) as raised:
        build(*packages, "2.13.0")
    assert str(raised.value) == f"{broken} cannot build the virtual NPU: no licence (exit code 3)"
    assert list(cache_folder().iterdir()) == []


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "riscv64"), ("Darwin", "arm64"), ("Windows", "AMD64"), ("Darwin", "x86_64")]
)
def test_another_machine_is_one_line(packages, monkeypatch, system, machine):
    monkeypatch.setattr(module.platform, "system", lambda: system)
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    with pytest.raises(CannotBuild) as raised:
        build(*packages, "2.13.0")
    assert str(raised.value) == (
        f"the virtual NPU needs Linux on x86_64 or aarch64, where torch_npu exists; this is {system} on {machine}"
    )


def test_each_machine_has_its_own_folder(packages, monkeypatch):
    here = build(*packages, "2.13.0").name
    machine = module.platform.machine()
    other = next(name for name in module.MACHINES if name != machine)
    monkeypatch.setattr(module.platform, "machine", lambda: other)
    assert build(*packages, "2.13.0").name == here.replace(machine, other)
