"""The steps in the life of requests with linear attention, and who is there: what a trace is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Extend:
    """Some requests get tokens in one batch; those that are not live are new."""

    requests: tuple[int, ...]
    tokens: tuple[int, ...]
    kind: Literal["extend"] = "extend"


@dataclass(frozen=True)
class Decode:
    """Each of some requests gets a token; there may be none, as in the run of a rank that only keeps others company."""

    requests: tuple[int, ...]
    padded: int = 0
    """Further rows, of nobody."""
    kind: Literal["decode"] = "decode"


@dataclass(frozen=True)
class Verify:
    """Drafts of some requests are verified, and the first ``accepted`` tokens of each are kept."""

    requests: tuple[int, ...]
    accepted: tuple[int, ...]
    padded: int = 0
    """Further requests of nobody, with as many rows as the others."""
    kind: Literal["verify"] = "verify"


@dataclass(frozen=True)
class Fork:
    """A new request begins as another is now."""

    source: int
    request: int
    kind: Literal["fork"] = "fork"


@dataclass(frozen=True)
class Free:
    """A request is finished."""

    request: int
    kind: Literal["free"] = "free"


@dataclass(frozen=True)
class Evict:
    """The states of a request go to the host, and its slot to others."""

    request: int
    kind: Literal["evict"] = "evict"


@dataclass(frozen=True)
class Restore:
    """A request that was evicted comes back."""

    request: int
    kind: Literal["restore"] = "restore"


Step = Extend | Decode | Verify | Fork | Free | Evict | Restore

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def request_name(request: int) -> str:
    """Return what a request is called in words: a, b, ..., z, a1, b1, ..."""
    rounds, letter = divmod(request, len(_LETTERS))
    return _LETTERS[letter] + (str(rounds) if rounds else "")


def in_words(step: Step) -> str:
    """Return a step as a few words: ``extend a 5 b 1``, ``verify a 2 + 1 padded``."""
    match step:
        case Extend(requests, counts) | Verify(requests, counts):
            pairs = zip(requests, counts, strict=False)
            said = " ".join(f"{request_name(request)} {count}" for request, count in pairs)
        case Decode(requests):
            said = " ".join(request_name(request) for request in requests)
        case Fork(source, request):
            said = f"{request_name(source)} {request_name(request)}"
        case Free(request) | Evict(request) | Restore(request):
            said = request_name(request)
    padded = f"+ {step.padded} padded" if isinstance(step, Decode | Verify) and step.padded else ""
    return " ".join(part for part in (step.kind, said, padded) if part)


def new_rows(step: Step, drafts: int) -> int:
    """Return how many rows a step brings, with ``drafts`` tokens of each request in a verification."""
    match step:
        case Extend(_, tokens):
            return sum(tokens)
        case Decode(requests, padded):
            return len(requests) + padded
        case Verify(requests, _, padded):
            return (len(requests) + padded) * drafts
    return 0


class Roster:
    """Who is live and who was evicted, step after step.

    Parameters
    ----------
    most : int
        Requests that are live at a time, at most.
    drafts : int
        Tokens of a request in a verification.

    Attributes
    ----------
    live : dict
        Request to its tokens, in the order in which they came.
    evicted : dict
        Request to its tokens.
    slots_used : int
        Requests that came to be live, again or for the first time.
    """

    def __init__(self, most: int, drafts: int) -> None:
        self.most, self.drafts = most, drafts
        self.live: dict[int, int] = {}
        self.evicted: dict[int, int] = {}
        self.slots_used = 0

    def reason_against(self, step: Step) -> str | None:
        """Return why a step makes no sense now, or None."""
        match step:
            case Extend():
                reason = self._no_extension(step)
            case Decode(requests, padded):
                reason = self._not_live(requests) or _no_rows(requests, padded)
            case Verify(requests, accepted, padded):
                counted = len(accepted) == len(requests) and all(0 <= one <= self.drafts for one in accepted)
                reason = None if counted else f"of {self.drafts} tokens each as many are accepted, or fewer"
                reason = reason or self._not_live(requests) or _no_rows(requests, padded)
            case Free(request) | Evict(request):
                reason = self._not_live((request,))
            case Restore(request):
                waits = None if request in self.evicted else f"{request_name(request)} was not evicted"
                reason = waits or self._no_room(1)
            case Fork(source, request):
                reason = self._not_live((source,)) or self._known(request) or self._no_room(1)
        return reason

    def take(self, step: Step) -> None:
        """Take a step that makes sense."""
        before = set(self.live)
        match step:
            case Extend(requests, tokens) | Verify(requests, tokens):
                for request, count in zip(requests, tokens, strict=True):
                    self.live[request] = self.live.get(request, 0) + count
            case Decode(requests):
                for request in requests:
                    self.live[request] += 1
            case Fork(source, request):
                self.live[request] = self.live[source]
            case Evict(request):
                self.evicted[request] = self.live.pop(request)
            case Restore(request):
                self.live[request] = self.evicted.pop(request)
            case Free(request):
                del self.live[request]
        self.slots_used += len(set(self.live) - before)

    def _no_extension(self, step: Extend) -> str | None:
        requests, tokens = step.requests, step.tokens
        gone = any(request < 0 or request in self.evicted for request in requests)
        if gone or not requests or not _each_once(requests):
            return "tokens are for requests that are not evicted, each once"
        if len(tokens) != len(requests) or min(tokens) < 1:
            return "each request gets at least one token"
        return self._no_room(sum(request not in self.live for request in requests))

    def _not_live(self, requests: tuple[int, ...]) -> str | None:
        gone = [request_name(request) for request in requests if request not in self.live]
        if gone:
            return f"not live: {' '.join(gone)}"
        return None if _each_once(requests) else "a request stands there twice"

    def _known(self, request: int) -> str | None:
        known = request < 0 or request in self.live or request in self.evicted
        return f"request {request} is there already, or is no request" if known else None

    def _no_room(self, newcomers: int) -> str | None:
        return f"more than {self.most} requests" if len(self.live) + newcomers > self.most else None


def _each_once(requests: Iterable[int]) -> bool:
    requests = tuple(requests)
    return len(set(requests)) == len(requests)


def _no_rows(requests: tuple[int, ...], padded: int) -> str | None:
    return None if padded >= 0 and len(requests) + padded > 0 else "a batch has at least one row, padded or not"
