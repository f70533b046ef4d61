"""Names: which ones a component, an implementation, a property, an output or an axis may have."""

from __future__ import annotations

import re

from npudiff.errors import UsageError

MOST_CHARACTERS = 100
"""Characters of a name; three of them, joined, are still the name of a file."""

_WORD = re.compile(r"\w(?:[\w -]*\w)?")
_TITLE = re.compile(r"\w(?:[\w .,:=+@()\[\]-]*[\w)\]])?")


def check_word(kind: str, name: object) -> None:
    """Refuse a name that cannot be a part of ``component.implementation.property`` or of ``axis=values``.

    Raises
    ------
    UsageError
        If it has other characters than letters, digits, underscores, blanks and hyphens, begins or ends with one of
        the last two, or is longer than ``MOST_CHARACTERS``.
    """
    if not isinstance(name, str) or len(name) > MOST_CHARACTERS or not _WORD.fullmatch(name):
        raise _refused(kind, name, "letters, digits, blanks, _ and -")


def check_title(kind: str, name: object) -> None:
    """Refuse a name that cannot stand in tables, in commands and in ``component.implementation.property``.

    Raises
    ------
    UsageError
        If it has other characters than a word, blanks and ``.,:=+@()[]``, begins with anything but a letter, a digit or
        an underscore, ends like the name of a Python file, or is longer than ``MOST_CHARACTERS``.
    """
    legal = isinstance(name, str) and len(name) <= MOST_CHARACTERS and _TITLE.fullmatch(name)
    if not legal or str(name).endswith(".py"):
        raise _refused(kind, name, "letters, digits, blanks and _-.,:=+@()[], and must not look like a file")


def _refused(kind: str, name: object, legal: str) -> UsageError:
    given = ascii(name)
    given = given if len(given) <= 60 else f"{given[:60]} ..."
    return UsageError(f"{given} cannot be the name of {kind}: it may have up to {MOST_CHARACTERS} characters, {legal}")
