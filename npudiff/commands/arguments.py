"""What can be asked on the command line: commands, options, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from npudiff.errors import ExitCode, UsageError, did_you_mean, nearest
from npudiff.files.writing import USUAL_ROOT
from npudiff.gate.rotation import ROTATING
from npudiff.model.backend import wish_of
from npudiff.model.version import VERSION
from npudiff.show.document import DocumentFile

DEFAULT_ROOT = Path(USUAL_ROOT)
"""Folder below which findings and remembered cases are kept."""


class _Parser(argparse.ArgumentParser):
    """A parser whose usage errors have npudiff's exit code, and name what may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        end = "" if message.endswith("?") else ";"
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}{end} see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - as its overloads say
        """Parse what is known, and refuse an option that looks like one of these."""
        options, rest = super().parse_known_args(args, namespace)
        for word in rest:
            name = word.partition("=")[0]
            known = {one.lstrip("-"): one for one in self._option_string_actions}
            if name.startswith("-") and (near := nearest(name.lstrip("-"), known)):
                self.error(f"unrecognized arguments: {' '.join(rest)}; did you mean {known[near]!r}?")
        return options, rest

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse what is not among an argument's choices."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), action.choices or ())
            raise


class _Renamed(argparse.Action):
    """An option that has another name now."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, new: str, **more: Any) -> None:  # noqa: ANN401
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **more)
        self._new = new

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        """Refuse it, and name the one that it is."""
        del rest
        parser.error(f"{self.option_strings[0]} is called {self._new} now")


def _seconds(text: str) -> float:
    """Read a duration such as ``90``, ``60s`` or ``10m``."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a duration such as 60s or 10m, got {text!r}")
    return seconds


def backend(text: str) -> str:
    """Read a backend, as a selector of implementations."""
    try:
        return wish_of(text).selector
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Read a positive number."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="npudiff",
        description="Test Ascend NPU implementations against pure-PyTorch references, on drawn cases.",
        epilog="Exit codes: 0 clean, 1 findings, 2 interrupted, 3 internal error, 4 usage, 5 nothing ran, 6 no device.",
    )
    parser.add_argument("--version", action="version", version=f"npudiff {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_check(commands)
    _add_self_test(commands)
    _add_gate(commands)
    _add_campaign(commands)
    _add_list(commands)
    _add_replay(commands)
    _add_report(commands)
    _add_score(commands)
    _add_doctor(commands)
    _add_serve(commands)
    virtual = commands.add_parser(
        "virtual",
        help="run a program on a virtual NPU: npudiff virtual -- python script.py",
        description="Run a program in whose Python processes device='npu' is a virtual NPU on host memory.",
    )
    virtual.add_argument("--cann", metavar="VERSION", help="CANN profile, whose version torch_npu is told (8.5)")
    virtual.add_argument(
        "--soc", metavar="NAME", help="name of the chip that torch_npu is told, such as Ascend910_9391 (Ascend910B3)"
    )
    virtual.add_argument("--triton", action="store_true", help="run Triton kernels on it, by Triton's interpreter")
    virtual.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="devices that each process has, npu:0 and so on (1, or a device a rank)",
    )
    virtual.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="run the program as N ranks, as torchrun does, with collectives over HCCL",
    )
    virtual.add_argument(
        "--rank-timeout", type=float, metavar="SECONDS", help="how long a rank waits for another one (600)"
    )
    virtual.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...", help="what to run")
    return parser


def _add_check(commands: argparse._SubParsersAction[_Parser]) -> None:
    check = commands.add_parser(
        "check",
        help="check implementations on drawn cases",
        description="Check every implementation against its reference and its relations, on drawn cases.",
    )
    check.add_argument("components", nargs="*", metavar="COMPONENT", help="components to check; all by default")
    check.add_argument("--case", metavar="JSON", help="run this one case instead of drawing any")
    _add_target(check)
    check.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit XML, too")
    amount = check.add_mutually_exclusive_group()
    amount.add_argument("--examples", type=positive, metavar="N", help="cases of equivalence per implementation")
    amount.add_argument("--budget", type=_seconds, metavar="TIME", help="time for the whole run, such as 60s or 10m")
    check.add_argument("--model", metavar="MODEL", help="draw within a model's sizes, such as step-3.5-flash")
    check.add_argument("--profile", action=_Renamed, new="--model")
    check.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="AXIS=VALUES",
        help="draw within these values only: window=512,none or kv_length=1..4096 (see 'npudiff list COMPONENT')",
    )
    check.add_argument(
        "--causes",
        type=positive,
        metavar="N",
        help="defects of one implementation to look for, each outside of the region in which those before it fail "
        "(1; of a backend 4)",
    )
    check.add_argument("--seed", type=int, metavar="N", help="seed of the draws")
    check.add_argument(
        "--hypothesis-profile",
        default="dev",
        metavar="NAME",
        help="dev, ci (the same cases every time) or nightly",
    )
    check.add_argument(
        "--timed", action="store_true", help="time implementations of --impl that hold beside what is built in"
    )
    _add_shared(check)
    _add_run(check)
    _add_json(check)


def _add_self_test(commands: argparse._SubParsersAction[_Parser]) -> None:
    test = commands.add_parser(
        "self-test",
        help="find every bug that was planted",
        description="Run all that is wrong on purpose: each mutant re-creates a real bug, and has to be found.",
    )
    test.add_argument("components", nargs="*", metavar="COMPONENT", help="components; all by default")
    _add_place(test)
    test.add_argument("--examples", type=positive, metavar="N", help="cases per mutant (100)")
    test.add_argument("--seed", type=int, metavar="N", help="seed of the draws")
    _add_run(test)
    _add_json(test)
    _add_own(test)
    test.set_defaults(impl=[], shared=None, timed=False)


def _add_gate(commands: argparse._SubParsersAction[_Parser]) -> None:
    gate = commands.add_parser(
        "gate",
        help="the gate of a CI job: the same cases every time, known issues, and other cases until the time is up",
        description="Run the gate of a CI job. It leaves junit.xml, npudiff.sarif and summary.md in its output folder.",
    )
    gate.add_argument("components", nargs="*", metavar="COMPONENT", help="components to check; all by default")
    _add_target(gate)
    gate.add_argument("--budget", type=_seconds, default=600.0, metavar="TIME", help="time for all of it (10m)")
    gate.add_argument("--examples", type=positive, metavar="N", help="cases of equivalence that are always run (100)")
    gate.add_argument("--known", type=Path, metavar="FILE", help="known issues (known_issues.toml, if it is there)")
    gate.add_argument("--since", metavar="REV", help="run first what has changed since this revision")
    gate.add_argument(
        "--only-touched",
        action="store_true",
        help="with --since, run nothing else; where a change touches nothing that is under test, all is run",
    )
    gate.add_argument(
        "--touches",
        action="append",
        default=[],
        metavar="PATTERN=COMPONENTS",
        help="with --since, what files touch that no Python module imports: 'csrc/attention/*=sliding_attention'",
    )
    gate.add_argument("--rotation", metavar="NAME", help="name of the rotating part; the time (UTC) by default")
    gate.add_argument(
        "--rotating",
        choices=ROTATING,
        default="fails",
        help="what a finding of the rotating part does (fails)",
    )
    _add_shared(gate)
    _add_run(gate)
    _add_json(gate)


def _add_campaign(commands: argparse._SubParsersAction[_Parser]) -> None:
    campaign = commands.add_parser(
        "campaign",
        help="search for hours or days, keep what was learned, and go on where it ended",
        description="Search in rounds until the time is up or Ctrl-C. Started again with the same output folder, it "
        "goes on with what it knows. campaign.html in that folder shows how far it is.",
    )
    campaign.add_argument("components", nargs="*", metavar="COMPONENT", help="components to search; all by default")
    _add_target(campaign)
    campaign.add_argument("--time", type=_seconds, metavar="TIME", help="time, such as 8h; without end by default")
    campaign.add_argument("--model", metavar="MODEL", help="draw within a model's sizes, such as step-3.5-flash")
    campaign.add_argument(
        "--where", action="append", default=[], metavar="AXIS=VALUES", help="draw within these values only"
    )
    campaign.add_argument("--batch", type=positive, metavar="N", help="cases of equivalence of a round (200)")
    campaign.add_argument("--seed", type=int, metavar="N", help="seed of a campaign that is new; others keep theirs")
    campaign.add_argument("-j", dest="workers", type=positive, metavar="N", help="as --workers")
    campaign.add_argument(
        "--ray",
        metavar="auto|ADDRESS",
        help="run on a Ray cluster: the one that this machine belongs to or a new one, or the one of an address",
    )
    campaign.add_argument("--cards", type=positive, metavar="N", help="a worker for each of so many cards")
    campaign.add_argument(
        "--corpus",
        metavar="DIR|URL",
        help="cases that campaigns have in common: a folder, or what fsspec opens, such as s3://bucket/corpus; those "
        "of others are run first, own ones are added",
    )
    _add_shared(campaign)
    _add_run(campaign)
    _add_json(campaign)
    campaign.set_defaults(examples=None)


def _add_list(commands: argparse._SubParsersAction[_Parser]) -> None:
    listing = commands.add_parser("list", help="list components, implementations, properties and axes")
    listing.add_argument("components", nargs="*", metavar="COMPONENT", help="show these in full")
    listing.add_argument("--impl", action="append", default=[], metavar="NAME|MODULE|FILE", help="list these only")
    _add_own(listing)
    _add_backend(listing)
    _add_json(listing)


def _add_replay(commands: argparse._SubParsersAction[_Parser]) -> None:
    replay = commands.add_parser(
        "replay",
        help="run the cases of findings again: FIXED, FAILED or ERROR",
        description="Run the cases of findings again. Nothing in a finding is executed, and no path in it is followed.",
    )
    replay.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="finding folders, or a folder of them")
    _add_isolation(replay)
    _add_target(replay)
    _add_json(replay)


def _add_report(commands: argparse._SubParsersAction[_Parser]) -> None:
    report = commands.add_parser(
        "report",
        help="make one page of the runs that were",
        description="Make one HTML page of the runs that left a record, with their findings. Needs no network.",
    )
    report.add_argument(
        "paths",
        nargs="*",
        type=Path,
        default=[DEFAULT_ROOT],
        metavar="PATH",
        help="output folders of runs, or records of single runs (.npudiff)",
    )
    report.add_argument("--output", type=Path, metavar="FILE", help="the page; by default report.html in the first one")


def _add_score(commands: argparse._SubParsersAction[_Parser]) -> None:
    score = commands.add_parser(
        "score",
        help="measure how many of the planted bugs are found, by npudiff and by ordinary tests",
        description="Run npudiff, and tests as they are usually written, on every mutant from several seeds.",
    )
    score.add_argument("components", nargs="*", metavar="COMPONENT", help="components to score; all by default")
    score.add_argument("--mutant", action="append", default=[], metavar="NAME", help="score these mutants only")
    score.add_argument("--method", action="append", default=[], metavar="NAME", help="run these methods only")
    score.add_argument(
        "--suite",
        metavar="COMMAND",
        help="run this command with each mutant in place of the built-in implementation: 'pytest -x tests/mine'",
    )
    _add_place(score)
    score.add_argument("--seeds", type=positive, default=10, metavar="N", help="seeds of npudiff's own method (10)")
    score.add_argument("--baseline-seeds", type=positive, default=2, metavar="N", help="seeds of the other methods (2)")
    score.add_argument("--examples", type=positive, default=100, metavar="N", help="cases per method and mutant (100)")
    _add_workers(score)
    score.add_argument(
        "--budget", type=_seconds, metavar="TIME", help="begin no other seed after this time, such as 2m"
    )
    score.add_argument(
        "--shrink",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make what is found smaller (the default)",
    )
    score.add_argument(
        "--correct",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run correct implementations as well, which must not be accused (the default)",
    )
    score.add_argument("--record", type=Path, metavar="FILE", help="write what --expect needs to this file, too")
    score.add_argument("--expect", type=Path, metavar="FILE", help="fail if a mutant that this record has is lost")
    _add_output(score)
    _add_json(score)


def _add_doctor(commands: argparse._SubParsersAction[_Parser]) -> None:
    doctor = commands.add_parser("doctor", help="say what this machine can run, and what is missing")
    doctor.add_argument("--target", metavar="NAME", help="say only whether this target works, in one line")
    _add_backend(doctor)
    doctor.add_argument(
        "--contract",
        nargs="*",
        type=Path,
        metavar="WHEEL|FOLDER",
        help="show which versions of torch_npu accept the calls of the implementations, and these besides",
    )
    _add_json(doctor)


def _add_serve(commands: argparse._SubParsersAction[_Parser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="a judge that stays warm: candidates in, verdicts out, as JSON lines or over HTTP",
        description="Judge candidates, text that may deceive, in processes of their own. Requests are JSON lines on "
        "standard input and answers on standard output; or HTTP, with a token.",
    )
    _add_place(serve)
    _add_workers(serve)
    how = serve.add_mutually_exclusive_group()
    how.add_argument("--http", metavar="[HOST:]PORT", help="answer HTTP here (127.0.0.1); 0 for any port")
    how.add_argument("--socket", type=Path, metavar="FILE", help="answer HTTP on a socket of this machine")
    serve.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the token that requests over HTTP have; NPUDIFF_TOKEN, or a new one that is shown, by default",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add what every run of a plan can be told."""
    _add_workers(parser)
    _add_isolation(parser)
    _add_output(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="show every property, and where the cases were")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        type=DocumentFile,
        metavar="FILE|-",
        help="write what was seen as one JSON document, too; with - nothing else is written to standard output",
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shared",
        type=Path,
        metavar="DIR",
        help="an output folder of others, such as CI publishes: what failed there is tried first; it is not written",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes; by default up to 4 on the host, 1 on a device"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_ROOT, metavar="DIR", help="where it is written (.npudiff)"
    )


def _add_isolation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="run cases in a process that may die of them; by default on a device, for "
        "what is not built in, and for crashes that are replayed",
    )
    parser.add_argument(
        "--untrusted",
        action="store_true",
        help="judge the files of --impl from another process, which they cannot reach: for code that may deceive",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="TIME",
        help="isolated, for a case (60s; with --budget a tenth of it if that is less, and at least 5s)",
    )
    parser.add_argument(
        "--warm-up", type=_seconds, default=300.0, metavar="TIME", help="isolated, until the device answers (5m)"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--impl",
        action="append",
        default=[],
        metavar="NAME|MODULE|FILE",
        help="implementations to use: a name, a module, or a Python file with @npudiff.implementation functions",
    )
    _add_own(parser)
    _add_backend(parser)
    _add_place(parser)


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--component",
        dest="own",
        action="append",
        default=[],
        metavar="MODULE|FILE",
        help="components and properties of your own, and implementations beside them: a module, or a Python file with "
        "@npudiff.component or @npudiff.property_of functions",
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        dest="impl",
        action="append",
        default=[],
        type=backend,
        metavar="NAME[=CHECKOUT]",
        help="shipping code to test, unmodified: what is installed, or a checkout of it: sglang, vllm_ascend=../mine",
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", metavar="NAME", help="sim, virtual or npu; by default npu where a device is visible"
    )
    parser.add_argument("--cann", metavar="VERSION", help="CANN profile of the simulator, such as 8.5")
