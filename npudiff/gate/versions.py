"""The versions of CANN and torch_npu, and the SoC, for which a known issue is accepted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from npudiff.errors import UsageError

_VERSION = re.compile(r"v?(?P<release>\d+(?:\.\d+){0,4})(?:[._-]?(?:RC|post)(?P<extra>\d+))?", re.IGNORECASE)
"""``8.5``, ``8.2.RC1``, ``8.0.RC3.alpha002``, ``2.6.0.post3+cpu``: what follows the release candidate is left out."""


MOST_CHARACTERS = 400
"""Characters of a range of versions."""


@dataclass(frozen=True)
class Range:
    """A range of versions such as ``>=8.3,<8.5``; empty for all."""

    text: str = ""

    @classmethod
    def parsed(cls, text: str, place: str) -> Range:
        """Return the range that a text says; raises ``UsageError`` for other texts."""
        if len(text) > MOST_CHARACTERS:
            raise UsageError(f"{place}: a range of versions has at most {MOST_CHARACTERS} characters")
        try:
            SpecifierSet(_plain(text))
        except InvalidSpecifier:
            raise UsageError(f"{place}: expected a range of versions such as '>=8.3,<8.5', got {text!r}") from None
        return cls(text)

    def has(self, version: str | None) -> bool:
        """Whether a version lies within; one that is not known lies within everything only if nothing is asked."""
        if not self.text:
            return True
        known = version_of(version or "")
        return known is not None and SpecifierSet(_plain(self.text)).contains(known, prereleases=True)


@dataclass(frozen=True)
class Versions:
    """Versions with which an issue is known."""

    cann: Range = field(default_factory=Range)
    torch_npu: Range = field(default_factory=Range)
    """Ranges of versions."""
    soc: str = ""
    """Name of the chip, with ``*`` and ``?`` as in file names: ``Ascend910B*``; empty for all."""

    def reason_against(self, here: Machine) -> str | None:
        """Return why the issue is not known here, or None if it is."""
        if not self.cann.has(here.cann):
            return f"CANN {here.cann or 'is not known'}, the issue is of {self.cann.text}"
        if not self.torch_npu.has(here.torch_npu):
            return f"torch_npu {here.torch_npu or 'is not there'}, the issue is of {self.torch_npu.text}"
        if self.soc and not fnmatchcase(here.soc.lower(), self.soc.lower()):
            return f"SoC {here.soc or 'is not known'}, the issue is of {self.soc}"
        return None


@dataclass(frozen=True)
class Machine:
    """What a run runs on."""

    target: str
    """Name of the target."""
    cann: str = ""
    """CANN version, or the simulator's profile."""
    torch_npu: str = ""
    """Version of the package, empty where it is not installed."""
    soc: str = ""
    """Name of the chip; empty where there is none."""


def version_of(text: str) -> Version | None:
    """Return the version that a text begins with, or None."""
    match = _VERSION.match(text.strip())
    return None if match is None else Version(_joined(match))


def _joined(match: re.Match[str]) -> str:
    if match["extra"] is None:
        return match["release"]
    kind = "post" if "post" in match[0].lower() else "rc"
    return f"{match['release']}{kind}{match['extra']}"


def _plain(text: str) -> str:
    """A range with each version as ``packaging`` writes it."""
    pattern = rf"(?<=[=<>~!])\s*{_VERSION.pattern}(?P<any>\.\*)?[^,]*"
    return re.sub(pattern, lambda match: _joined(match) + (match["any"] or ""), text, flags=re.IGNORECASE)
