"""The steps in the life of the requests of a server: what a trace is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Allocate:
    """A new request is admitted with a prompt of ``tokens`` tokens."""

    request: int
    tokens: int
    kind: Literal["allocate"] = "allocate"


@dataclass(frozen=True)
class Extend:
    """A request gets ``tokens`` more tokens at once: the next chunk of its prompt."""

    request: int
    tokens: int
    kind: Literal["extend"] = "extend"


@dataclass(frozen=True)
class Decode:
    """Each of some requests gets one more token, in one batch."""

    requests: tuple[int, ...]
    kind: Literal["decode"] = "decode"


@dataclass(frozen=True)
class Evict:
    """The sliding pool gives up the pages of some requests that left the window, in one batch."""

    requests: tuple[int, ...]
    kind: Literal["evict"] = "evict"


@dataclass(frozen=True)
class Free:
    """A request is finished."""

    request: int
    kind: Literal["free"] = "free"


@dataclass(frozen=True)
class Preempt:
    """A request loses its pages, and waits to be admitted again. The pools see a request that is freed."""

    request: int
    kind: Literal["preempt"] = "preempt"


@dataclass(frozen=True)
class Readmit:
    """A preempted request comes back. The pools see a new request whose prompt is the whole history."""

    request: int
    kind: Literal["readmit"] = "readmit"


@dataclass(frozen=True)
class Share:
    """A new request begins with the first ``pages`` whole pages of another, and ``tokens`` tokens of its own."""

    source: int
    request: int
    pages: int
    tokens: int
    kind: Literal["share"] = "share"


@dataclass(frozen=True)
class Fork:
    """A new request begins with all tokens of another."""

    source: int
    request: int
    kind: Literal["fork"] = "fork"


Step = Allocate | Extend | Decode | Evict | Free | Preempt | Readmit | Share | Fork

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def request_name(request: int) -> str:
    """Return what a request is called in words: a, b, ..., z, a1, b1, ..."""
    rounds, letter = divmod(request, len(_LETTERS))
    return _LETTERS[letter] + (str(rounds) if rounds else "")


def names(requests: tuple[int, ...]) -> str:
    """Return what some requests are called, with blanks between."""
    return " ".join(request_name(request) for request in requests)


def in_words(step: Step) -> str:
    """Return a step as a few words: ``allocate a 5``, ``share a 2 pages b 3``."""
    match step:
        case Allocate(request, tokens) | Extend(request, tokens):
            return f"{step.kind} {request_name(request)} {tokens}"
        case Decode(requests) | Evict(requests):
            return f"{step.kind} {names(requests)}"
        case Share(source, request, pages, tokens):
            counted = "1 page" if pages == 1 else f"{pages} pages"
            return f"share {counted} of {request_name(source)} with {request_name(request)} {tokens}"
        case Fork(source, request):
            return f"fork {request_name(source)} {request_name(request)}"
        case Free(request) | Preempt(request) | Readmit(request):
            return f"{step.kind} {request_name(request)}"


def new_tokens(step: Step) -> dict[int, int]:
    """Return how many tokens each request gets by a step that were never there before."""
    match step:
        case Allocate(request, tokens) | Extend(request, tokens) | Share(_, request, _, tokens):
            return {request: tokens}
        case Decode(requests):
            return dict.fromkeys(requests, 1)
    return {}
