"""npudiff as functions, for notebooks, tests and programs: ``check``, ``replay`` and ``components``.

They run what the commands of the same names run. ``import npudiff`` has them; it imports neither torch nor Hypothesis
until one of them is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from npudiff.errors import UsageError
from npudiff.files.writing import EXAMPLES, FINDINGS, begin_output
from npudiff.findings.finding import read_finding
from npudiff.findings.log import LoggedFinding, RunLog
from npudiff.findings.replay import Replay, finding_folders
from npudiff.findings.replay import replay as replay_one
from npudiff.model.constraints import Box
from npudiff.model.implementation import Implementation, implementation_of
from npudiff.model.job import TIMEOUT, Isolation
from npudiff.run.discovery import load_components, select_implementations
from npudiff.run.plan import Request, make_plan
from npudiff.run.run import Run
from npudiff.run.timing import timed_apart
from npudiff.show.document import document
from npudiff.show.finding import PAGE_FILE, keeper
from npudiff.show.listing import ListedComponent, listed
from npudiff.show.rendering import escaped, render
from npudiff.show.run_content import finding_text, run_content
from npudiff.show.run_page.write import summary_of
from npudiff.text import counted

What = Callable[..., Any] | Implementation | str | PathLike[str]
"""A function ``f(inputs, target)``, an implementation, or what ``--impl`` takes: a name, a module or a file."""

MOST_PAGES = 8
"""Findings that a notebook shows with their pages."""


@dataclass(frozen=True)
class Result:
    """What a check has seen. It is true if every property held and was judged.

    In a notebook it shows itself as a table with the pages of its findings.
    """

    document: Mapping[str, Any]
    """The same as plain values, in the form that ``npudiff check --json`` writes (``npudiff.schema()``)."""
    findings: tuple[LoggedFinding, ...]
    """What does not hold: each has a ``finding`` with ``case``, ``verdict`` and ``detail``, and the ``folder`` that
    ``npudiff.replay`` takes."""

    @property
    def verdict(self) -> str:
        """``clean``, ``findings``, or ``nothing ran`` where no case could be judged."""
        return str(self.document["verdict"])

    @property
    def cases(self) -> int:
        """Cases that came to a verdict, of all properties."""
        return int(self.document["cases"])

    @property
    def seconds(self) -> float:
        """How long it took."""
        return float(self.document["run"]["seconds"])

    @property
    def margins(self) -> dict[str, float]:
        """Name of a property to the largest error over bound of the cases that hold: 0.9 is close to wrong."""
        found: dict[str, float] = {}
        for item in self.document["implementations"]:
            for prop in item["properties"]:
                if prop["error_over_bound"] is not None:
                    found[prop["property"]] = max(found.get(prop["property"], 0.0), float(prop["error_over_bound"]))
        return found

    @property
    def time_ratio(self) -> float | None:
        """How many times as long as what is built in it takes, if that was asked for and everything holds."""
        timed = [item["timing"] for item in self.document["implementations"] if item["timing"] is not None]
        return None if not timed else max(float(one["ratio"]) for one in timed)

    @property
    def compared(self) -> tuple[str, ...]:
        """Outputs that were compared."""
        return self._outputs("compared")

    @property
    def not_returned(self) -> tuple[str, ...]:
        """Outputs of the component that the implementation never returned: nothing is said of them."""
        return self._outputs("not_returned")

    def _outputs(self, key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for item in self.document["implementations"] for name in item[key]))

    def __bool__(self) -> bool:
        """Whether every property held, and was judged."""
        return self.verdict == "clean"

    def require(self) -> Result:
        """Return the result if every property held, for a test.

        Raises
        ------
        AssertionError
            With all findings in words, if not.
        """
        if not self:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        """Return the summary, and one finding of each cause."""
        told: dict[int, str] = {}
        for one in self.document["findings"]:
            told.setdefault(one["cause"], one["text"])
        return "\n".join((self._summary, *self._whys, *told.values()))

    @property
    def _summary(self) -> str:
        findings = counted(len(self.findings), "finding")
        causes = len({one["cause"] for one in self.document["findings"]})
        findings += f" of {counted(causes, 'cause')}" if causes < len(self.findings) else ""
        return f"npudiff: {self.verdict}: {counted(self.cases, 'case')} in {self.seconds:.1f} s, {findings}"

    @property
    def _whys(self) -> list[str]:
        idle = [*self.document["not_judged"], *self.document["left_out"]]
        return [f"no case of {one['component']}.{one['implementation']} could be judged: {one['why']}" for one in idle]

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        texts = [finding_text(one) for one in self.findings[:MOST_PAGES]]
        titles = [text.partition("\n")[0] for text in texts]
        pages = [
            (title, escaped(text), escaped(_page(one)))
            for title, text, one in zip(titles, texts, self.findings, strict=False)
        ]
        return render(
            "result.html",
            summary=self._summary,
            whys=self._whys,
            implementations=self.document["implementations"],
            findings=pages,
            more=len(self.findings) - len(pages),
        )


def _page(one: LoggedFinding) -> str:
    """The page of a finding, or nothing if it is not there any more."""
    try:
        return (one.folder / PAGE_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""


def check(
    what: What | Sequence[What],
    component: str | None = None,
    *,
    examples: int | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    target: str | None = None,
    cann: str | None = None,
    supports: Box | Sequence[Box] | None = None,
    where: Sequence[str] = (),
    model: str | None = None,
    workers: int = 1,
    isolate: bool | None = None,
    untrusted: bool = False,
    timeout: float = TIMEOUT,
    timed: bool = False,
    output: str | PathLike[str] = ".npudiff",
) -> Result:
    """Check implementations against their reference and their relations, on drawn cases.

    Parameters
    ----------
    what : callable, Implementation, str, path, or a sequence of these
        What is checked: a function ``f(inputs, target)``, what ``npudiff.implementation`` made of one, or a name, a
        module or a file as ``--impl`` takes it.
    component : str, optional
        Name of the component that the functions compute; what is an implementation already knows its own.
    examples : int, optional
        Cases of equivalence; other properties have a part of that (100).
    seconds : float, optional
        Time for all of it, in place of a number of cases.
    seed : int, optional
        Seed of the draws; without one there are others each time.
    target, cann : str, optional
        Where it runs: ``sim``, ``virtual`` or ``npu`` (``npu`` where a device is visible, else ``sim``), and the CANN
        profile of the simulator.
    supports : mapping or sequence of mappings, optional
        Allowed values per axis of a function, as of ``npudiff.implementation``.
    where : sequence of str, optional
        ``axis=values`` within which cases are drawn: ``("tokens=1..4", "dtype=bfloat16")``.
    model : str, optional
        Model within whose sizes cases are drawn.
    workers : int, optional
        Processes in which properties run.
    isolate : bool, optional
        Whether cases run in a process that may die of them; by default they do where that is possible.
    untrusted : bool, optional
        Whether files may deceive, and run where they can reach neither reference nor judge.
    timeout : float, optional
        Seconds that a case may take.
    timed : bool, optional
        Whether what holds is timed beside what is built in, on the same cases.
    output : path, optional
        Folder below which findings and remembered cases are kept.

    Returns
    -------
    Result
        What was seen.

    Raises
    ------
    UsageError
        If what is asked for cannot be done, such as an axis that there is not.
    TargetUnavailable
        If the target cannot run here.

    Examples
    --------
    >>> import npudiff, torch
    >>> def mine(inputs, target):
    ...     return inputs.values.to(torch.int32)
    >>> npudiff.check(mine, "int4_pack", examples=20).verdict
    'findings'
    """
    root = Path(output)
    begin_output(root)
    items = [what] if isinstance(what, Implementation | str | PathLike) or callable(what) else list(what)
    named = [fspath(one) for one in items if isinstance(one, str | PathLike)]
    given = [_implementation(one, component, supports) for one in items if not isinstance(one, str | PathLike)]
    if named and given:
        raise UsageError("npudiff.check: either functions, or names and files")
    if named and supports is not None:
        raise UsageError("npudiff.check: supports= is of functions; what a file has says itself what it supports")
    components = [component] if component is not None else sorted({item.component for item in given})
    request = Request(
        components=tuple(components),
        implementations=tuple(named),
        given=tuple(given),
        target=target,
        cann=cann,
        examples=examples,
        seconds=seconds,
        seed=seed,
        model=model,
        where=tuple(where),
        example_database=root / EXAMPLES,
        workers=workers,
        isolate=isolate,
        untrusted=untrusted,
        timeout=timeout,
    )
    plan = make_plan(request)
    log = RunLog(plan)
    with Run(plan.workers, [log]) as run:
        run.run(plan.tasks(keeper(root / FINDINGS)))
    timings = timed_apart(log.outcomes, seed) if timed else {}
    content = run_content(summary_of(log), log.findings, log.unjudged, timings=timings)
    _say_how_functions_are_replayed(content["findings"], {item.name for item in given if not item.selector})
    return Result(document("check", log.code, "", content), tuple(log.findings))


def _say_how_functions_are_replayed(findings: Sequence[dict[str, Any]], names: Collection[str]) -> None:
    """Say for findings of functions, which no command can find, how Python replays them."""
    for one in findings:
        if one["implementation"] in names and one["replay"]:
            line = f"npudiff.replay({one['folder']!r}, {one['implementation']})"
            one["text"] = one["text"].replace(one["replay"], line)
            one["replay"] = line


def _implementation(one: What, component: str | None, supports: Box | Sequence[Box] | None) -> Implementation:
    if isinstance(one, Implementation):
        if supports is not None:
            raise UsageError(f"npudiff.check: {one.name} says itself what it supports: supports= is of functions")
        return one
    if component is None:
        raise UsageError("npudiff.check: component= says what a function computes, and npudiff.components() lists them")
    if isinstance(one, str | PathLike):
        raise TypeError(f"{fspath(one)} is no function")
    return implementation_of(one, component, name=_name_of(one), supports=supports)


def _name_of(function: Callable[..., Any]) -> str:
    """The name of a function; of what has none, such as a lambda, one of ours."""
    name = getattr(function, "__name__", "")
    return name if name.isidentifier() else "given"


def replay(
    path: str | PathLike[str],
    what: What | None = None,
    *,
    target: str | None = None,
    cann: str | None = None,
    isolate: bool | None = None,
    timeout: float = TIMEOUT,
) -> list[Replay]:
    """Run the cases of findings again.

    Parameters
    ----------
    path : path
        The folder of a finding, or a folder of such.
    what : callable, Implementation, str or path, optional
        What is run: a function takes the place of the one that failed; a name, module or file as ``--impl`` takes it.
        By default what is built in.
    target, cann : str, optional
        Where it runs, in place of where it was found.
    isolate : bool, optional
        Whether in a process that may die of it.
    timeout : float, optional
        Seconds that a case may take.

    Returns
    -------
    list of Replay
        Of each finding ``verdict`` (``FIXED``, ``FAILED`` or ``ERROR``) and a ``line`` that says more.
    """
    return [
        replay_one(
            folder,
            [fspath(what)] if isinstance(what, str | PathLike) else [],
            target,
            cann,
            isolation=Isolation(run=timeout),
            isolate=isolate,
            given=[] if what is None or isinstance(what, str | PathLike) else [_in_place(what, folder)],
        )
        for folder in finding_folders([Path(path)])
    ]


def _in_place(what: Callable[..., Any] | Implementation, folder: Path) -> Implementation:
    """What is run in place of the implementation of a finding."""
    finding = read_finding(folder)
    if isinstance(what, Implementation):
        return what
    return implementation_of(what, finding.component, name=finding.implementation)


def components(names: Iterable[str] = ()) -> list[ListedComponent]:
    """Return what there is to be tested: of each component inputs, outputs, axes, properties and implementations.

    Parameters
    ----------
    names : iterable of str, optional
        Those that are returned; all by default.

    Raises
    ------
    UsageError
        If there is none of such a name.
    """
    found = load_components(list(names))
    implementations = select_implementations(found, [])
    return [listed(component, implementations) for component in found]
