"""Building the stand-in for CANN: small shared libraries that torch_npu finds where it asks for CANN's.

All functions are in one library, compiled from the C files in ``runtime/``; the others depend on it, and whoever looks
a function up in one of them finds it there. What torch_npu needs to be loaded and the C files do not have is made
as functions that fail and say their name. Which those are is read from torch_npu's own libraries, so that another
version of it needs no change here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from npudiff.device.virtual import sealed
from npudiff.device.virtual.elf import NotSharedLibrary, SharedLibrary, read_shared_library
from npudiff.device.virtual.sealed import is_whole, own_folder, seal
from npudiff.files.writing import make_folder, write_file

SOURCES = Path(__file__).parent / "runtime"
RUNTIME = "libascendcl.so"
"""The library that has all functions; torch_npu knows it by this name."""

ASKED_FOR_LATER = ("libhcomm.so", "libopapi.so")
"""Libraries that torch_npu opens by name when it needs them, for collectives: it can be loaded without them."""

MACHINES = ("x86_64", "aarch64")
"""Machines for which torch_npu exists. The C files do not depend on them."""

COMPILING = ("-std=c11", "-O2", "-fPIC", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror")
FLAGS = (*COMPILING, "-shared", "-Wl,-Bsymbolic")
"""Flags of a shared library; -Bsymbolic lets its functions call each other, and not those of another of its name."""


class CannotBuild(RuntimeError):
    """The stand-in cannot be built here; the message says why in one line."""


@dataclass(frozen=True)
class Demand:
    """What a torch_npu asks of CANN."""

    libraries: tuple[str, ...]
    """Names of libraries that must be there to load it."""
    symbols: tuple[str, ...]
    """Symbols that these must define."""


def build(torch_npu: Path, torch: Path, version: str) -> Path:
    """Return the folder of the stand-in for a torch_npu; build it if it is not in the cache, or not as it was built.

    What is loaded from the cache runs in this process, so nobody else may have written it.

    Parameters
    ----------
    torch_npu, torch : Path
        Folders of the installed packages; they are read, never imported.
    version : str
        The version of torch_npu.

    Raises
    ------
    CannotBuild
        If there is no C compiler, or none of the machines that torch_npu is made for; or if the cache is not this
        user's own, or cannot be written.
    """
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        raise CannotBuild(
            f"the virtual NPU needs Linux on {' or '.join(MACHINES)}, where torch_npu exists; "
            f"this is {platform.system()} on {platform.machine()}"
        )
    folder = cache_folder() / f"{version}-{platform.machine()}-{_digest()}"
    try:
        own_folder(folder.parent.parent)
        own_folder(folder.parent)
        if not is_whole(folder):
            compiler = _compiler()
            demand = demand_of(torch_npu, torch)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as place:
                made = Path(place) / "libraries"
                make_folder(made, within=made)
                _compile(compiler, demand, made)
                seal(made)
                _move(made, folder, Path(place) / "before")
    except OSError as error:
        raise CannotBuild(f"the cache of the virtual NPU: {error}; XDG_CACHE_HOME names another one") from error
    return folder


def cache_folder() -> Path:
    """Return where stand-ins are kept: the user's cache directory, never the checkout.

    A path in ``XDG_CACHE_HOME`` that is not absolute is ignored, as the XDG Base Directory Specification asks for.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "npudiff" / "virtual"
    except RuntimeError as error:  # of a user without a home
        raise CannotBuild(f"no place for the virtual NPU: {error} Set XDG_CACHE_HOME") from None


def demand_of(torch_npu: Path, torch: Path) -> Demand:
    """Read what a torch_npu needs that neither torch nor this process has: what CANN would give.

    Raises
    ------
    CannotBuild
        If the package has no libraries that can be read.
    """
    try:
        own = [read_shared_library(path) for path in sorted((*torch_npu.glob("lib/*.so"), *torch_npu.glob("_C*.so")))]
        others = [read_shared_library(path) for path in sorted(torch.glob("lib/*.so"))]
    except NotSharedLibrary as error:
        raise CannotBuild(str(error)) from error
    if not own or not others:
        raise CannotBuild(f"no libraries in {torch_npu if not own else torch}: the package is not complete")
    process = ctypes.CDLL(None)
    wanted = _all(own, "wanted") - _all([*own, *others], "defined")
    given = {library.soname for library in (*own, *others)}
    asked = {name for library in own for name in library.needed if name.endswith(".so")}
    return Demand(
        libraries=tuple(sorted((asked - given) | {RUNTIME, *ASKED_FOR_LATER})),
        symbols=tuple(sorted(name for name in wanted if not hasattr(process, name))),
    )


def _all(libraries: list[SharedLibrary], what: str) -> set[str]:
    return {name for library in libraries for name in getattr(library, what)}


def _compiler() -> str:
    """Return the system's C compiler: ``CC`` if it is set, else ``cc`` or ``gcc`` or ``clang``."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        found = shutil.which(name)
        if found:
            return found
    raise CannotBuild("the virtual NPU needs a C compiler, and there is no cc, gcc or clang; install gcc, or set CC")


def _compile(compiler: str, demand: Demand, folder: Path) -> None:
    """Compile the runtime, add what is missing of the demand, and make the other libraries depend on it."""
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    objects, runtime = str(folder / "runtime.o"), folder / RUNTIME
    _run([compiler, *COMPILING, "-r", "-nostdlib", "-o", objects, *sources])
    link = [compiler, *FLAGS, f"-I{SOURCES}", f"-Wl,-soname,{RUNTIME}", "-o", str(runtime), objects]
    _run([*link, "-lpthread"])
    missing = sorted(set(demand.symbols) - read_shared_library(runtime).defined)
    generated = folder / "missing.c"
    write_file(generated, _failing(missing), within=folder)
    _run([*link, str(generated), "-lpthread"])
    empty = folder / "empty.c"
    write_file(empty, "typedef int nothing;\n", within=folder)
    for name in demand.libraries:
        if name != RUNTIME:
            target = str(folder / name)
            depend = ["-Wl,--no-as-needed", f"-L{folder}", f"-l:{RUNTIME}"]
            _run([compiler, *FLAGS, f"-Wl,-soname,{name}", "-o", target, str(empty), *depend])


def _failing(symbols: list[str]) -> str:
    """Return C code of functions that are not simulated: each remembers its name, and fails.

    Some of them return a handle, which nobody looks into; the result is as wide as one, so that it is not torn.
    """
    text = "not part of the virtual NPU"
    functions = (
        f'intptr_t {name}(void);\nintptr_t {name}(void) {{\n    remember("{name}: {text}");\n'
        "    return FEATURE_NOT_SUPPORTED;\n}\n"
        for name in symbols
    )
    return "\n".join(['#include "runtime.h"\n', *functions])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the system's compiler
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise CannotBuild(f"{command[0]} cannot build the virtual NPU: {said[0]} (exit code {done.returncode})")


def _digest() -> str:
    """A name for these sources: another version of npudiff never meets libraries of this one."""
    digest = hashlib.sha256()
    for path in (*sorted(SOURCES.iterdir()), Path(__file__), Path(sealed.__file__)):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _move(made: Path, folder: Path, before: Path) -> None:
    """Put a finished folder where it belongs; another process may have been faster, with the same libraries.

    What is there and is not whole goes away together with the place ``before``.
    """
    try:
        if folder.exists() and not is_whole(folder):
            folder.rename(before)
        made.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise
