"""What could not be written, on a full disk or in a folder of somebody else: told once, and no reason to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from npudiff.errors import ExitCode
from npudiff.files.writing import reason
from npudiff.text import complain, counted


class Unwritten:
    """Collects what could not be written.

    Attributes
    ----------
    asked : bool
        Whether a file is missing that was asked for.
    """

    def __init__(self) -> None:
        self._by_reason: dict[str, list[str]] = {}
        self.asked = False

    @contextlib.contextmanager
    def trying(self, what: str, *, asked: bool = False) -> Iterator[None]:
        """Do without what the block cannot write.

        Parameters
        ----------
        what : str
            What it writes, in the words of the message.
        asked : bool
            Whether the user asked for it.
        """
        try:
            yield
        except OSError as error:
            self.note(what, reason(error))
            self.asked = self.asked or asked

    def note(self, what: str, why: str) -> None:
        """Remember that something could not be written, and why."""
        self._by_reason.setdefault(why, []).append(what)

    def note_findings(self, count: int, why: str) -> None:
        """Remember that findings could not be written."""
        if count:
            self.note(counted(count, "finding"), why)

    @property
    def lines(self) -> list[str]:
        """What could not be written, and why, a line for each reason."""
        return [f"{', '.join(what)}: {why}" for why, what in self._by_reason.items()]

    def tell(self) -> None:
        """Say it, if there is anything to say."""
        if self._by_reason:
            complain(f"could not be written: {'; '.join(self.lines)}")

    def code(self, code: int) -> int:
        """Return the exit code of a run that would end with ``code``; what lacks what was asked for is not clean."""
        return ExitCode.USAGE if self.asked and code == ExitCode.CLEAN else code
