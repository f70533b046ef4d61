"""What a torch_npu lists: its operators' schemas, read from a wheel or a folder without importing anything of it."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "torch_npu"
LISTING = "csrc/aten/npu_native_functions_by_codegen.yaml"
"""Where every wheel from 2.9.0 to 2.14.0 has its listing, below the package."""

_VERSION = re.compile(r"^__version__ *= *['\"]([^'\"]+)['\"]", re.MULTILINE)
_ENTRY = re.compile(r"^\s*(?:- )?func: *(.+?)\s*$")
_LISTED_OUT = "Tensor(a!) attention_out, Tensor(b!) softmax_lse) -> (Tensor(a!), Tensor(b!))"
_REGISTERED_OUT = "Tensor[] out) -> (Tensor, Tensor)"


class ListingError(ValueError):
    """There is no listing to read; the message says where it was looked for, or what is wrong with it."""


@dataclass(frozen=True)
class Listing:
    """The operators that one torch_npu lists."""

    version: str
    """Version of the package, such as ``2.9.0.post2``."""
    source: str
    """File name of the wheel, or the folder."""
    schemas: Mapping[str, str]
    """Schema by ``name`` or ``name.overload``, as the library registers it."""


def read_file(path: Path, name: str) -> bytes:
    """Read one file of a torch_npu, without importing anything of it.

    Parameters
    ----------
    path : pathlib.Path
        A ``.whl`` file, an unpacked wheel, or an installed package's folder.
    name : str
        The file's path below the package.

    Raises
    ------
    ListingError
        If there is no such package, or no such file in it.
    """
    if not path.exists():
        raise ListingError(f"{path}: no such file or folder")
    try:
        if path.is_dir():
            folder = path / PACKAGE if (path / PACKAGE).is_dir() else path
            return (folder / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{PACKAGE}/{name}")
    except zipfile.BadZipFile:
        raise ListingError(f"{path}: neither a wheel nor a folder") from None
    except (KeyError, OSError):
        raise ListingError(f"{path}: no {PACKAGE} with a file {name} in it") from None


def read_listing(path: Path) -> Listing:
    """Read the listing of a ``.whl`` file, of an unpacked wheel, or of an installed package's folder.

    Raises
    ------
    ListingError
        If there is none, or it cannot be read.
    """
    listing, module = (read_file(path, name).decode(errors="replace") for name in (LISTING, "version.py"))
    version = _VERSION.search(module)
    if version is None:
        raise ListingError(f"{path}: version.py does not say __version__")
    try:
        return Listing(version[1], path.name, listed_schemas(listing.splitlines()))
    except ListingError as error:
        raise ListingError(f"{path}: {error}") from None


def installed_folder() -> Path | None:
    """Return where torch_npu is installed, without importing it; None if it is not."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def listed_schemas(lines: Iterable[str]) -> dict[str, str]:
    """Return the schemas of a listing by ``name`` or ``name.overload``, as the library registers them.

    Some are listed twice, among the functions with a gradient and among the others; both must say the same.

    Raises
    ------
    ListingError
        If an entry is not a schema on one line, or one name has two schemas.
    """
    schemas: dict[str, str] = {}
    for line in lines:
        entry = _ENTRY.match(line)
        if entry is None:
            continue
        schema = registered(entry[1].strip("'\"") if entry[1][0] in "'\"" else entry[1])
        name = schema.partition("(")[0]
        if name == schema:
            continue  # one of torch's own operators, by its name
        if not re.fullmatch(r"[\w.]+\(.*\) -> .+", schema):
            raise ListingError(f"{LISTING} has an entry that is no schema: {entry[1][:60]}")
        if schemas.setdefault(name, schema) != schema:
            raise ListingError(f"{LISTING} has two schemas of {name}")
    if not schemas:
        raise ListingError(f"{LISTING} lists no function")
    return schemas


def registered(listed: str) -> str:
    """Return the schema as the library registers it.

    The listing writes two things in another way: it calls an argument ``self`` that is registered as ``input``, and it
    names the two outputs of the fused attention's ``.out``, which are registered as one list without aliasing.
    """
    return re.sub(r"(Tensor(?:\(\w+!?\))?\??) self\b", r"\1 input", listed, count=1).replace(
        _LISTED_OUT, _REGISTERED_OUT
    )
