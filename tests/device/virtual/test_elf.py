"""Shared libraries are read as the system's own tools read them, and damaged ones are refused."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import astuple

import pytest

from npudiff.device.virtual.elf import NotSharedLibrary, read_shared_library

COMPILER = shutil.which("cc")
SOURCE = """
extern int wanted(int);
extern int maybe(int) __attribute__((weak));
extern int puts(const char *);
int given(int x) { puts("x"); return maybe ? maybe(x) : wanted(x); }
int data_too = 3;
static int hidden(void) { return 1; }
int (*keep)(void) = hidden;
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elf")
    (folder / "other.c").write_text("int other;\n")
    (folder / "this.c").write_text(SOURCE)
    flags = ["-shared", "-fPIC", "-Wl,-soname,libthis.so.7", "-Wl,--no-as-needed", f"-L{folder}", "-l:libother.so"]
    compiled("-shared", "-fPIC", "-Wl,-soname,libother.so", "-o", folder / "libother.so", folder / "other.c")
    compiled("-o", folder / "libthis.so", folder / "this.c", *flags)
    return folder / "libthis.so"


def compiled(*arguments):
    subprocess.run([COMPILER, *map(str, arguments)], check=True)


def test_what_a_library_says_of_itself(library):
    read = read_shared_library(library)
    assert read.soname == "libthis.so.7"
    assert read.needed[0] == "libother.so"
    assert {"given", "data_too", "keep"} <= read.defined
    assert "hidden" not in read.defined


def test_what_somebody_else_must_define(library):
    """Not what may be missing, and not what the C library gives, whose symbols have versions."""
    assert read_shared_library(library).wanted == {"wanted"}


def test_nothing_is_read_of_other_files(tmp_path):
    for name, content in {"empty": b"", "text": b"int main;\n" * 99, "script": b"#!/bin/sh\n"}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(NotSharedLibrary, match=f"{name} is not a 64-bit little-endian shared library"):
            read_shared_library(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_shared_library(tmp_path / "nowhere.so")


@pytest.mark.parametrize("what", ["32 bit", "big endian"])
def test_other_machines_are_refused(library, tmp_path, what):
    content = bytearray(library.read_bytes())
    content[4 if what == "32 bit" else 5] = 1 if what == "32 bit" else 2
    path = tmp_path / "other.so"
    path.write_bytes(content)
    with pytest.raises(NotSharedLibrary, match="no such ELF header"):
        read_shared_library(path)


def test_a_truncated_library_is_refused_and_never_misread(library, tmp_path):
    content, whole = library.read_bytes(), read_shared_library(library)
    path = tmp_path / "short.so"
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(NotSharedLibrary):
            read_shared_library(path)
    path.write_bytes(content)
    assert read_shared_library(path) == whole


def test_flipped_bytes_end_in_an_answer_or_a_refusal(library, tmp_path):
    content, path = library.read_bytes(), tmp_path / "flipped.so"
    for place in range(0, len(content), 61):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(NotSharedLibrary):
            assert all(part is not None for part in astuple(read_shared_library(path)))
