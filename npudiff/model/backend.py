"""A backend: shipping code of somebody else, unmodified, whose functions are implementations here.

An installed package offers one through an entry point of the group ``npudiff.backends``, which names a ``Backend``.
A run names it by ``--backend sglang``, or ``--backend sglang=CHECKOUT``. Inside npudiff such a wish is a selector of
implementations as a file is one, ``backend:sglang=CHECKOUT``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from npudiff.errors import UsageError

EVERY = "*"
"""In place of the name of an implementation: all of a module of adapters."""


class BackendUnavailable(UsageError):
    """A backend cannot be imported here; the message says why and what to do."""


@dataclass(frozen=True)
class Booted:
    """A backend that this process has imported."""

    version: str
    """As the backend says it."""
    origin: Path
    """The folder of its package."""
    stubs: Callable[[], Mapping[str, int]] = field(default=dict)
    """Packages that are not here and that something stands in for, and how many of its names were touched."""
    operators: Callable[[], Sequence[str]] = field(default=tuple)
    """Says which operators of a device its sources call, and which of them have no kernel where there is none."""
    notes: tuple[str, ...] = ()
    """What a reader of its results has to know, a line each."""


@dataclass(frozen=True)
class Backend:
    """Shipping code, how it is imported, and where its implementations are."""

    name: str
    """As ``--backend`` is told it."""
    summary: str
    """One line for listings."""
    boot: Callable[[Path | None], Booted]
    """Imports the installed package, or that of a checkout; raises ``BackendUnavailable``. It is called once in a
    process, which has its device by then."""
    implementations: str
    """Package whose modules define the implementations, named as their components; imported after the boot."""
    absent: tuple[type[BaseException], ...] = ()
    """What is raised where a case comes to something that is not here and only stood in for; it is counted as not
    applicable, since the backend is not to blame."""
    target: str = "virtual"
    """Target that it runs on where there is no device."""


_PREFIX = "backend:"


@dataclass(frozen=True)
class Wish:
    """A backend, and the checkout that it is imported from if that is not the installed package."""

    name: str
    checkout: Path | None = None

    @property
    def selector(self) -> str:
        """The wish as a selector of implementations."""
        return _PREFIX + self.option

    @property
    def option(self) -> str:
        """The wish as the value of ``--backend``."""
        return self.name if self.checkout is None else f"{self.name}={self.checkout}"


def wish_of(text: str) -> Wish:
    """Read the value of ``--backend``: a name, or ``NAME=CHECKOUT``.

    Raises
    ------
    UsageError
        If it has no name.
    """
    name, equals, folder = text.partition("=")
    if not name or (equals and not folder):
        raise UsageError(f"--backend {text}: expected NAME or NAME=CHECKOUT, such as sglang or sglang=../sglang")
    return Wish(name, Path(folder).expanduser() if equals else None)


def wished(selectors: Sequence[str]) -> list[Wish]:
    """Return the backends that selectors of implementations name."""
    return [wish_of(one.removeprefix(_PREFIX)) for one in selectors if one.startswith(_PREFIX)]


def option_of(selector: str) -> str:
    """Return the option of a command line by which a selector of implementations is given."""
    if is_backend(selector):
        return f"--backend {shlex.quote(selector.removeprefix(_PREFIX))}"
    return f"--impl {shlex.quote(selector)}"


def is_backend(selector: str) -> bool:
    """Whether a selector names a backend."""
    return selector.startswith(_PREFIX)
