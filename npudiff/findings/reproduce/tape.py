"""What a recording is written on: a line for each thing that happens, and beside it the bytes of tensors.

Both are files without a name. What was written is there even if the process that wrote it is gone, so that a call is
written down before it is made, and one that kills its process is the last.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

Event = dict[str, Any]

MOST_BYTES = 2**27
"""Bytes of tensors on a tape. A script has fewer: what only judges a result on the way there is taken out."""

MOST_EVENTS = 20_000


class Tape:
    """A recording that is being made, or has been made.

    Attributes
    ----------
    refusal : str
        Why nothing more is recorded; empty if all is well.
    """

    def __init__(self) -> None:
        self._lines = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the tape is
        self._bytes = tempfile.TemporaryFile()  # noqa: SIM115
        self._size = self._count = 0
        self.refusal = ""

    def close(self) -> None:
        """Let go of the files."""
        self._lines.close()
        self._bytes.close()

    @property
    def written(self) -> int:
        """Bytes of lines that were written, by whichever process."""
        return os.fstat(self._lines.fileno()).st_size

    def note(self, kind: str, **said: Any) -> None:  # noqa: ANN401 - plain values of any event
        """Write a line; it is with the system when this returns."""
        if self.refusal:
            return
        self._count += 1
        if self._count > MOST_EVENTS:
            self.refuse(f"it makes more than {MOST_EVENTS:,} calls")
            return
        self._line({"kind": kind, **said})

    def refuse(self, why: str) -> None:
        """Say why there is no recording; nothing is written after it."""
        if not self.refusal:
            self.refusal = why
            self._line({"kind": "refused", "why": why})

    def keep(self, content: memoryview) -> int:
        """Write bytes, and return where they begin; 0 once there are too many."""
        start = self._size
        if start + content.nbytes > MOST_BYTES:
            self.refuse(f"the tensors of its calls have more than {MOST_BYTES >> 20} MiB")
            return 0
        self._size += content.nbytes
        self._bytes.write(content)
        self._bytes.flush()
        return start

    def _line(self, event: Event) -> None:
        self._lines.write(json.dumps(event).encode() + b"\n")
        self._lines.flush()

    def events(self) -> list[Event]:
        """Return all that was written; of a process that was killed while it wrote, all but the last line."""
        self._lines.seek(0)
        lines = self._lines.read().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def content(self, start: int, count: int) -> bytes:
        """Return bytes that were kept."""
        self._bytes.seek(start)
        return self._bytes.read(count)
