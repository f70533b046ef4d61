"""Findings as folders: what failed, on which case, with which evidence, and how to replay it.

A folder holds ``finding.json`` and ``tensors.safetensors``, and the calls as a script for people without npudiff.
Nothing in a folder is ever executed, the script included, and no path in it is followed: folders come from other
people's pull requests.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from npudiff.errors import UsageError
from npudiff.files.names import file_name
from npudiff.files.reading import read_plain_file
from npudiff.files.writing import remove_file, write_file
from npudiff.model.codec import dumps
from npudiff.model.comparison import Comparison
from npudiff.model.outcome import Failure

SCHEMA_VERSION = 1
FINDING_FILE = "finding.json"
TENSOR_FILE = "tensors.safetensors"
SCRIPT_FILE = "reproduce.py"
REPRODUCE_TENSORS = "reproduce.safetensors"

MAX_FINDING_BYTES = 2**20
MAX_TENSOR_BYTES = 2**26
MAX_TENSORS_KEPT = 2**25
"""Bytes of tensors that a finding keeps; larger outputs are left out, since the case rebuilds them."""

MAX_REPRODUCE_TENSORS = 2**25
"""Bytes of tensors that a script is given, inputs and expected outputs; with more there is no script."""

MAX_SCRIPT_BYTES = 2**22

MOST_OF_A_NAME = 60
"""Characters of each name in the name of a folder."""


@dataclass(frozen=True)
class Script:
    """The calls of a finding as a program that needs torch and torch_npu only, or why there is none."""

    text: str = ""
    """The program; empty if there is none."""
    tensors: bytes = b""
    """A safetensors file with what it loads; empty if it loads nothing."""
    why_not: str = ""
    """Why there is none, as the end of a sentence."""


@dataclass(frozen=True)
class Finding:
    """A shrunk case on which a property fails."""

    component: str
    implementation: str
    target: str
    cann: str
    property_name: str
    """What failed where."""
    verdict: str
    """``wrong value``, ``exception``, or what the case did to the process or the device."""
    case: Mapping[str, Any]
    """The case, as plain JSON."""
    detail: Mapping[str, Any]
    """What was seen: worst ratio, place, pattern, published criteria, error text."""
    environment: Mapping[str, str]
    """Versions."""
    options: str = ""
    """What a replay needs besides the folder: ``--impl FILE`` for an implementation that is not built in."""
    command: str = ""
    """The line that replays the finding. Text for people: nothing reads it."""

    def replay_command(self, folder: Path) -> str:
        """The line that replays the finding from a folder, with the file that the implementation comes from."""
        return f"npudiff replay {shlex.quote(str(folder))}" + (f" {self.options}" if self.options else "")

    @property
    def subject(self) -> tuple[str, str]:
        """Component and implementation, as ``Subject.names``."""
        return self.component, self.implementation

    @property
    def job(self) -> str:
        """Name of the job that found it."""
        return f"{self.component}.{self.implementation}.{self.property_name}"

    @property
    def key(self) -> str:
        """A name that the same finding always has: what failed, and a digest of the case."""
        text = "\n".join(
            (
                self.component,
                self.implementation,
                self.target,
                self.cann,
                self.property_name,
                dumps(dict(self.case)),
            )
        )
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        names = (self.component, self.implementation, self.property_name)
        return "-".join((*(file_name(name, MOST_OF_A_NAME) for name in names), digest))

    @property
    def symptom(self) -> tuple[object, ...]:
        """What the findings of several properties share when they show one bug: the exception, or the smallest case."""
        seen = self.detail.get("error") or self.detail.get("line")
        return (self.component, self.implementation, self.target, self.cann, self.verdict, seen)


def write_finding(finding: Finding, failure: Failure | None, root: Path, script: Script | None = None) -> Path:
    """Write a finding as a folder below ``root``, and return the folder.

    Tensors are kept as far as the size cap allows; the checksums of all files are part of ``finding.json``.

    Raises
    ------
    OSError
        If one of its files cannot be written.
    """
    folder = root / finding.key
    tensors = _packed(None if failure is None else failure.comparison)
    files = {TENSOR_FILE: ("tensors_sha256", tensors), **_of_script(script or Script())}
    for name, (_, data) in files.items():
        if data:
            write_file(folder / name, data, within=root)
        else:  # that of an earlier run
            remove_file(folder / name, within=root)
    content = {
        "schema_version": SCHEMA_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **{name: getattr(finding, name) for name in Finding.__dataclass_fields__},
        "command": finding.replay_command(folder),
        **{field: hashlib.sha256(data).hexdigest() if data else None for field, data in files.values()},
    }
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    write_file(folder / FINDING_FILE, text, within=root)
    return folder


def plain_finding(finding: Finding) -> dict[str, Any]:
    """Return a finding as plain values, from which ``finding_of_plain`` makes it again, in whichever process."""
    content = {name: getattr(finding, name) for name in Finding.__dataclass_fields__}
    plain: dict[str, Any] = json.loads(json.dumps(_finite(content), allow_nan=False))
    return plain


def _finite(value: object) -> object:
    """The same plain value with non-finite numbers as text: JSON has none."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _packed(comparison: Comparison | None) -> bytes:
    """Return the tensors of a comparison as a safetensors file; nothing if there are none."""
    kept: dict[str, torch.Tensor] = {}
    size = 0
    for output in comparison.outputs if comparison is not None else ():
        for kind in ("actual", "value", "bound"):
            tensor = getattr(output, kind)
            if tensor is not None and size + tensor.nbytes <= MAX_TENSORS_KEPT:
                size += tensor.nbytes
                kept[f"{output.name}.{kind}"] = tensor.detach().cpu().contiguous().clone()
    return save(kept) if kept else b""


_OF_SCRIPT = {
    SCRIPT_FILE: ("script_sha256", MAX_SCRIPT_BYTES),
    REPRODUCE_TENSORS: ("reproduce_sha256", MAX_REPRODUCE_TENSORS + 2**20),
}
"""Files of a script: where their checksums stand, and how large they may be."""


def _of_script(script: Script) -> dict[str, tuple[str, bytes]]:
    """The files of a script: where the checksum of each stands, and what it holds."""
    contents = {SCRIPT_FILE: script.text.encode(), REPRODUCE_TENSORS: script.tensors}
    return {name: (_OF_SCRIPT[name][0], data) for name, data in contents.items()}


def read_finding(folder: Path, *, tensors: bool = True) -> Finding:
    """Read a finding folder, trusting nothing in it.

    Parameters
    ----------
    folder : pathlib.Path
        The folder.
    tensors : bool
        Whether what its case can make again is compared with its checksums.

    Raises
    ------
    UsageError
        If the folder is not a finding, is damaged, is of a newer version, or is larger than a finding may be.
    """
    content = _read_json(folder)
    version = content.get("schema_version")
    if type(version) is not int or version < 1:
        raise UsageError(f"{folder}: {FINDING_FILE} has no schema_version: not a finding")
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{folder}: written by a newer npudiff (schema {version}, this one reads up to {SCHEMA_VERSION}): upgrade"
        )
    if tensors:
        _check_file(folder / TENSOR_FILE, "tensors_sha256", content, MAX_TENSOR_BYTES)
    for name, (field, limit) in _OF_SCRIPT.items() if tensors else ():
        if (folder / name).exists() or (folder / name).is_symlink():  # what makes the script is not needed to replay it
            _check_file(folder / name, field, content, limit)
    return finding_of_plain(content, f"{folder}: {FINDING_FILE}")


def finding_of_plain(content: Mapping[str, Any], place: str = "a finding") -> Finding:
    """Return the finding that plain values say; raises ``UsageError``, naming the place, if they are no finding."""
    fields: dict[str, Any] = {}
    for name in Finding.__dataclass_fields__:
        wanted = dict if name in ("case", "detail", "environment") else str
        value = content.get(name)
        if not isinstance(value, wanted):
            raise UsageError(f"{place}: {name} must be {wanted.__name__}, got {type(value).__name__}")
        fields[name] = value
    return Finding(**fields)


def _read_json(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a finding folder" if folder.exists() else f"{folder}: no such folder")
    text = read_plain_file(folder / FINDING_FILE, MAX_FINDING_BYTES).decode("utf-8", errors="replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{folder}: {FINDING_FILE} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{folder}: {FINDING_FILE} is damaged: expected an object")
    return content


def _check_file(path: Path, field: str, content: Mapping[str, Any], limit: int) -> None:
    checksum = content.get(field)
    if checksum is None:
        return
    if not isinstance(checksum, str):
        raise UsageError(f"{path.parent}: {field} must be text")
    if hashlib.sha256(read_plain_file(path, limit)).hexdigest() != checksum:
        raise UsageError(f"{path.parent}: {path.name} does not match its checksum: damaged or changed")
