"""A corpus that campaigns have in common: cases that brought something new, or fail, in a folder or behind a URL.

An object holds cases of one job. Its name ends with the digest of what it holds, so it is written once, two campaigns
that write the same write one object, and one that is not whole is seen. Nothing refers to an object: what lies there is
the corpus. The log of a campaign comes first: what is in it and not in the corpus, because somebody ended the campaign
or the network was away, is written with the next cases, or at the next start.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from npudiff.campaign.known import Knowledge
from npudiff.campaign.store import Store
from npudiff.files.writing import file_name, reason
from npudiff.findings.finding import Finding
from npudiff.model.version import VERSION

FORMAT = 1

MOST_FIRST = 200
"""Cases of others that a round begins with."""

LARGEST, MOST_OBJECTS, MOST_OF_CASES = 2**20, 10_000, 2**24
"""Bytes of an object, objects that are read at a time, and characters of all cases of others; what is more is left."""

READ_EVERY, WRITTEN_EVERY, MOST_OF_THE_TIME = 60.0, 5.0, 0.02
"""Seconds after which it is read or written again, and the part of the time that this may take."""

_DIGITS = 32


class Corpus:
    """The corpus of a campaign that runs.

    Parameters
    ----------
    store : Store
        Where it lies.
    jobs : iterable of str
        Jobs of the campaign; cases of others are left where they are.
    knowledge : Knowledge
        What the campaign knows.
    findings : callable
        Returns what it has found.
    """

    def __init__(
        self, store: Store, jobs: Iterable[str], knowledge: Knowledge, findings: Callable[[], Iterable[Finding]]
    ) -> None:
        self._store, self._knowledge, self._findings = store, knowledge, findings
        self._jobs = {file_name(job, 150): job for job in jobs}
        self._seen: set[str] = set()
        self._there: dict[str, set[str]] = {job: set() for job in self._jobs.values()}
        """Digests of the cases of each job that lie there."""
        self._waiting: dict[str, dict[str, None]] = {}
        self._room = MOST_OF_CASES
        self._next_read = self._next_write = 0.0
        self._written: dict[str, tuple[object, ...]] = {}
        """What was known of each job when all of its cases lay there."""
        self.taken = self.added = self.unread = 0
        """Cases of others that were run, cases that were written, and objects that were no corpus, in this session."""
        self.problem = ""
        """Why it could not be read or written when that was last tried; empty if it could."""

    @property
    def where(self) -> str:
        """The place."""
        return self._store.where

    @property
    def waiting(self) -> int:
        """Cases of others that nobody has run here."""
        return sum(map(len, self._waiting.values()))

    def waits(self, job: str) -> bool:
        """Whether there are cases of others for a job."""
        return bool(self._waiting.get(job))

    def first(self, job: str) -> tuple[str, ...]:
        """Return cases of others as JSON that the next round of a job begins with."""
        waiting = self._waiting.get(job, {})
        some = tuple(waiting)[:MOST_FIRST]
        for text in some:
            del waiting[text]
        return some

    def give_back(self, job: str, texts: Iterable[str]) -> None:
        """Let another round run cases that one was given."""
        self._waiting.setdefault(job, {}).update(dict.fromkeys(texts))

    def read(self) -> None:
        """Look for what others have written; raises ``OSError`` if that cannot be done."""
        sizes = self._store.sizes()
        new = {name: size for name, size in sorted(sizes.items()) if name not in self._seen and _job_part(name)}
        new = {name: size for name, size in new.items() if _job_part(name) in self._jobs}
        large = {name for name, size in new.items() if size > LARGEST}
        self.unread += len(large)
        self._seen |= large
        small = dict(itertools.islice(((name, new[name]) for name in new if name not in large), MOST_OBJECTS))
        own = {job: set(self._own(job)) for job in {self._jobs[_job_part(name)] for name in small}}
        for name, data in self._store.read(small):
            if data is not None:  # else another time
                self._seen.add(name)
                self._take(name, data, own)
        self._next_read = time.monotonic() + READ_EVERY

    def _take(self, name: str, data: bytes, own: Mapping[str, set[str]]) -> None:
        job = self._jobs[_job_part(name)]
        cases = _cases_of(name, data, job)
        if cases is None:
            self.unread += 1
            return
        there, known = self._there[job], self._knowledge.of(job)
        for text in cases:
            key = digest(text)
            if key not in there and key not in known.taken and text not in own[job] and self._room > 0:
                self._room -= len(text)
                self._waiting.setdefault(job, {})[text] = None
            there.add(key)

    def write(self) -> None:
        """Write the cases of this campaign that are not there; raises ``OSError`` if that cannot be done."""
        findings = list(self._findings())
        for job in self._there:
            known = self._knowledge.of(job)
            state = len(known.corpus), len(known.guides), known.worst_case, [one.key for one in findings]
            if self._written.get(job) == state:
                continue
            new = [text for text in self._own(job) if digest(text) not in self._there[job]]
            for some in _pieces(new):
                content = {"format": FORMAT, "npudiff": VERSION, "job": job, "cases": some}
                data = json.dumps(content, separators=(",", ":")).encode()
                name = f"{file_name(job, 150)}.{_digest_of(data)}.json"
                self._store.write(name, data)
                self._seen.add(name)
                self._there[job].update(map(digest, some))
                self.added += len(some)
            self._written[job] = state

    def keep(self, *, now: bool = False) -> None:
        """Write, and read, now and then; what cannot be done now is done later, and told if it never was."""
        began = time.monotonic()
        if not now and began < min(self._next_read, self._next_write):
            return
        reads = began >= self._next_read
        try:
            self.write()
            if reads:
                self.read()
            self.problem = ""
        except OSError as error:
            self.problem = reason(error)
        ended = time.monotonic()
        rest = (ended - began) / MOST_OF_THE_TIME
        self._next_write = ended + max(WRITTEN_EVERY, rest)
        if reads:
            self._next_read = ended + max(READ_EVERY, rest)

    def _own(self, job: str) -> list[str]:
        """Cases of a job that brought something new here, or fail."""
        known = self._knowledge.of(job)
        texts = [json.dumps(dict(one.case), separators=(",", ":")) for one in self._findings() if one.job == job]
        texts += [*known.corpus.values(), *known.guides, *filter(None, [known.worst_case])]
        return list(dict.fromkeys(texts))


def digest(text: str) -> str:
    """Return what stands for a case in a log."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def _digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def _job_part(name: str) -> str:
    """Return the part of an object's name that says of which job it is; empty if the name is none of ours."""
    job, _, rest = name.removesuffix(".json").rpartition(".")
    return job if name.endswith(".json") and len(rest) == _DIGITS else ""


def _pieces(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield cases in parts, none of which becomes an object that is too large to be read."""
    part: list[str] = []
    size = 0
    for text in texts:
        length = len(json.dumps(text)) + 1
        if part and size + length > LARGEST // 2:
            yield part
            part, size = [], 0
        if length < LARGEST // 2:
            part.append(text)
            size += length
    if part:
        yield part


def _cases_of(name: str, data: bytes, job: str) -> list[str] | None:
    """Return the cases of an object; None if it is not whole, or none of ours."""
    if not name.endswith(f".{_digest_of(data)}.json"):
        return None
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("job") != job:
        return None
    cases = content.get("cases")
    return cases if isinstance(cases, list) and all(isinstance(one, str) for one in cases) else None
