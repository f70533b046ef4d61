"""The stand-in is built from what torch_npu asks for, once, outside the checkout; and says why where it cannot be."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from npudiff.device.virtual import build as module
from npudiff.device.virtual.build import ASKED_FOR_LATER, RUNTIME, CannotBuild, Demand, build, cache_folder, demand_of
from npudiff.device.virtual.sealed import SEAL

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
    assert demand == Demand(
        (RUNTIME, "libhccl.so", "libhcomm.so", "libopapi.so"), ("_ZN3atb7MadeUpTEv", "aclMadeUp", "aclrtMalloc")
    )


def test_a_package_without_libraries_is_refused(packages, tmp_path):
    with pytest.raises(CannotBuild, match=r"no libraries in .*: the package is not complete"):
        demand_of(tmp_path, packages[1])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_npu.so").write_text("not yet downloaded")
    with pytest.raises(CannotBuild, match="is not a 64-bit little-endian shared library"):
        demand_of(tmp_path, packages[1])


@pytest.mark.slow
def test_a_library_for_each_name_and_a_function_for_each_symbol(packages, cache):
    folder = build(*packages, "2.13.0")
    assert folder.parent == cache / "npudiff" / "virtual" == cache_folder()
    assert {path.name for path in folder.glob("*.so")} == {RUNTIME, "libhccl.so", *ASKED_FOR_LATER}
    runtime = ctypes.CDLL(str(folder / RUNTIME))
    assert hasattr(runtime, "aclMadeUp")
    assert hasattr(runtime, "_ZN3atb7MadeUpTEv")
    through_another = ctypes.CDLL(str(folder / "libhccl.so"))
    assert through_another.aclrtGetSocName  # dlsym follows dependencies


@pytest.mark.slow
def test_a_function_that_is_not_simulated_fails_and_says_its_name(packages):
    runtime = ctypes.CDLL(str(build(*packages, "2.13.0") / RUNTIME))
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    assert runtime.aclMadeUp() == 207000
    assert runtime.aclGetRecentErrMsg() == b"aclMadeUp: not part of the virtual NPU"
    assert runtime.aclGetRecentErrMsg() == b""


@pytest.mark.slow
def test_it_is_built_once_for_a_version(packages, monkeypatch):
    first = build(*packages, "2.13.0")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert build(*packages, "2.13.0") == first
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        build(*packages, "2.14.0")


@pytest.mark.slow
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


@pytest.mark.slow
def test_each_machine_has_its_own_folder(packages, monkeypatch):
    here = build(*packages, "2.13.0").name
    machine = module.platform.machine()
    other = next(name for name in module.MACHINES if name != machine)
    monkeypatch.setattr(module.platform, "machine", lambda: other)
    assert build(*packages, "2.13.0").name == here.replace(machine, other)


@pytest.mark.few(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["empty", "one is missing", "one is cut", "one more", "a link", "no seal", "no folder"]
)
def test_a_cache_that_is_not_as_it_was_built_is_built_again(packages, tmp_path, damage):
    folder = build(*packages, "2.13.0")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    if damage == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif damage == "one is missing":
        (folder / RUNTIME).unlink()
    elif damage == "one is cut":
        (folder / RUNTIME).write_bytes(whole[RUNTIME][:100])
    elif damage == "one more":
        (folder / "libextra.so").write_bytes(b"loaded with all others")
    elif damage == "a link":
        (folder / "libhccl.so").rename(tmp_path / "libhccl.so")
        (folder / "libhccl.so").symlink_to(tmp_path / "libhccl.so")
    elif damage == "no seal":
        (folder / SEAL).unlink()
    else:
        shutil.rmtree(folder)
        folder.write_text("a file")
    assert build(*packages, "2.13.0") == folder
    assert {path.name for path in folder.iterdir()} == set(whole)
    assert all(not path.is_symlink() for path in folder.iterdir())
    assert ctypes.CDLL(str(folder / RUNTIME)).aclrtGetSocName
    assert [path.name for path in cache_folder().iterdir()] == [folder.name]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["npudiff", "virtual", "folder", "library"])
def test_a_cache_of_somebody_else_is_not_loaded(packages, monkeypatch, what):
    folder = build(*packages, "2.13.0")
    theirs = {
        "npudiff": folder.parent.parent, "virtual": folder.parent, "folder": folder, "library": folder / "libhccl.so",
    }[what]  # fmt: skip
    lstat = Path.lstat

    def of_another(path):
        status = lstat(path)
        return SimpleNamespace(st_uid=status.st_uid + (path == theirs), st_mode=status.st_mode, st_size=status.st_size)

    monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.raises(
        CannotBuild, match=r"the cache of the virtual NPU: .*; XDG_CACHE_HOME names another one"
    ) as told:
        build(*packages, "2.13.0")
    assert str(theirs) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [".", "libhccl.so"])
def test_a_library_that_others_may_have_written_is_not_loaded(packages, name):
    folder = build(*packages, "2.13.0")
    (folder / name).chmod(0o777)
    with pytest.raises(CannotBuild, match="others may have written it: remove it"):
        build(*packages, "2.13.0")


@pytest.mark.slow
def test_nobody_else_can_write_what_is_built(packages):
    before = os.umask(0)
    try:
        (cache_folder().parent.parent).mkdir(mode=0o777)
        folder = build(*packages, "2.13.0")
    finally:
        os.umask(before)
    for path in (folder.parent.parent, folder.parent, folder, *folder.iterdir()):
        assert not path.stat().st_mode & 0o022, path


@pytest.mark.slow
def test_a_folder_of_an_earlier_version_is_closed_for_others(packages):
    cache_folder().mkdir(parents=True)
    cache_folder().chmod(0o775)
    build(*packages, "2.13.0")
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o755


@pytest.mark.parametrize("place", ["npudiff", "npudiff/virtual"])
def test_a_link_in_the_place_of_the_cache_is_not_followed(packages, cache, tmp_path, place):
    (tmp_path / "elsewhere").mkdir()
    (cache / place).parent.mkdir(parents=True)
    (cache / place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotBuild, match="a link, or no folder"):
        build(*packages, "2.13.0")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_cache_that_cannot_be_written_is_one_line(packages, cache):
    cache.write_text("a file")
    with pytest.raises(CannotBuild, match="the cache of the virtual NPU: ") as told:
        build(*packages, "2.13.0")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("given", ["", "relative", "./here", "../up"])
def test_a_cache_folder_that_is_no_absolute_path_is_ignored(monkeypatch, given):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_folder() == Path.home() / ".cache" / "npudiff" / "virtual"


def test_nobody_without_a_home_gets_a_traceback(packages, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(CannotBuild, match=r"no place for the virtual NPU: Could not .* directory\. Set XDG_CACHE_HOME"):
        build(*packages, "2.13.0")
