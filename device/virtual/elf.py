"""What shared libraries ask for and give: the dynamic section of ELF files, read without any tool.

Only what the stand-in needs is read: the libraries that one names, the symbols that it defines, and those that somebody
else must define. Source: the System V ABI, chapters 4 (object files) and 5 (dynamic linking); the symbol versions are
from the Linux Standard Base.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_Buffer: TypeAlias = "bytes | mmap.mmap"

_MAGIC = b"\x7fELF"
_CLASS_64, _LITTLE_ENDIAN = 2, 1
_DYNAMIC, _DYNAMIC_SYMBOLS, _SYMBOL_VERSIONS = 6, 11, 0x6FFFFFFF
_NEEDED, _SONAME = 1, 14
_WEAK = 2
_UNDEFINED_SECTION = 0
_GLOBAL_VERSION = 1
"""Symbols whose version has this number or a smaller one have none; those of the C library have one."""

_HEADER = struct.Struct("<16xHH I QQQ I HHHHHH")
_SECTION = struct.Struct("<II QQQQ II QQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_ENTRY = struct.Struct("<qQ")
_VERSION = struct.Struct("<H")


@dataclass(frozen=True)
class SharedLibrary:
    """The dynamic section of a shared library."""

    soname: str
    """The name by which others ask for it; empty if it has none."""
    needed: tuple[str, ...]
    """The libraries that it asks for, by their names."""
    defined: frozenset[str]
    """Symbols that it gives."""
    wanted: frozenset[str]
    """Symbols that somebody else must give. Weak ones, which may be missing, and those with a version, which are of the
    C library or a compiler's, are left out."""


class NotSharedLibrary(ValueError):
    """The file is not a little-endian 64-bit ELF library, or is damaged."""


def read_shared_library(path: Path) -> SharedLibrary:
    """Read a library.

    Raises
    ------
    NotSharedLibrary
        If the file is anything else.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
        except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
            raise NotSharedLibrary(f"{path} is not a 64-bit little-endian shared library: {error}") from error


def _read(data: _Buffer) -> SharedLibrary:
    if data[:4] != _MAGIC or data[4] != _CLASS_64 or data[5] != _LITTLE_ENDIAN:
        raise ValueError("no such ELF header")
    sections = _sections(data)
    by_type = {section[1]: section for section in sections}
    names = _text(data, sections, by_type[_DYNAMIC]) if _DYNAMIC in by_type else b""
    entries = list(_rows(data, by_type.get(_DYNAMIC), _ENTRY))
    symbols = by_type.get(_DYNAMIC_SYMBOLS)
    strings = _text(data, sections, symbols) if symbols else b""
    versions = [version for (version,) in _rows(data, by_type.get(_SYMBOL_VERSIONS), _VERSION)]
    defined, wanted = set(), set()
    for number, (name, info, _, section, _, _) in enumerate(_rows(data, symbols, _SYMBOL)):
        if not name:
            continue
        if section != _UNDEFINED_SECTION:
            defined.add(_string(strings, name))
        elif info >> 4 != _WEAK and (not versions or versions[number] & 0x7FFF <= _GLOBAL_VERSION):
            wanted.add(_string(strings, name))
    return SharedLibrary(
        soname=next((_string(names, value) for tag, value in entries if tag == _SONAME), ""),
        needed=tuple(_string(names, value) for tag, value in entries if tag == _NEEDED),
        defined=frozenset(defined),
        wanted=frozenset(wanted),
    )


_Section: TypeAlias = "tuple[int, ...]"
"""Name, type, flags, address, offset, size, link, information, alignment, size of an entry."""


def _sections(data: _Buffer) -> list[_Section]:
    *_, offset, _, _, _, _, size, count, _ = _HEADER.unpack_from(data)
    return [_SECTION.unpack_from(data, offset + number * size) for number in range(count)]


def _rows(data: _Buffer, section: _Section | None, form: struct.Struct) -> list[tuple[int, ...]]:
    if section is None:
        return []
    start, size = section[4], section[5]
    return list(form.iter_unpack(data[start : start + size // form.size * form.size]))


def _text(data: _Buffer, sections: list[_Section], section: _Section) -> bytes:
    """Return the strings that a section's names are in."""
    linked = sections[section[6]]
    return data[linked[4] : linked[4] + linked[5]]


def _string(strings: bytes, start: int) -> str:
    return strings[start : strings.index(b"\0", start)].decode()
