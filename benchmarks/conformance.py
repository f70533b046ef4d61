"""Other people's operator tests, unmodified, on the virtual NPU, beside what is known of each.

``python -m benchmarks.conformance CHECKOUT...`` takes checkouts of op-plugin, of torch_npu (Ascend/pytorch), of
vllm-ascend and of sgl-kernel-npu, which it knows by their folders, and runs the suites that it has of them: test files
of operators that the simulator has, those of their tests that a skip without a condition parks, and the programs in
documents. Each file has a process of its own under ``npudiff virtual``, forked from one that has imported torch_npu; of
each it prints what passed, failed and was skipped. ``conformance.json`` says which failures are known, and whose they
are; a test that fails and is not known there, and one that passed there and does not any more, end it with 1.
``--update`` writes the results into the table, and keeps what it says of failures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess  # pytest, and git, without a shell
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pytest

from benchmarks.conformance_pytest import programs

TABLE = Path(__file__).with_suffix(".json")

PLUGIN = Path(__file__).with_name("conformance_pytest.py")

SECONDS = 900.0
"""What the tests of one file may take."""

PARKS = re.compile(r"(?:unittest|mark)\.skip\b")


@dataclass(frozen=True)
class Suite:
    """Whose tests, and how they are run."""

    name: str
    known_by: str
    """A folder that only checkouts of its project have."""
    patterns: tuple[str, ...]
    """Its test files, or documents."""
    only_simulated: bool = False
    """Whether files count only if they name an operator that the simulator has."""
    parked: bool = False
    """Whether it is the tests that a skip without a condition parks."""
    folder: str = "."
    """Where they are run: programs that they start import what lies there."""
    options: tuple[str, ...] = ()
    """Of pytest."""
    imports: tuple[str, ...] = ("torch_npu",)
    """Modules that are imported once, for all files; as :func:`benchmarks.conformance_pytest.serve` has them."""
    device: tuple[str, ...] = ()
    """Options of ``npudiff virtual``."""


_NIGHTLY = "tests/e2e/nightly/single_node/ops"
_OF_VLLM_ASCEND = (f"--confcutdir={_NIGHTLY}", "--continue-on-collection-errors", "-o", "pythonpath=.")
_BOOTED = ("npudiff.device.backends.vllm_ascend.boot:boot=.",)
"""As ``--backend vllm_ascend`` has it: what its build writes, and its library, are stood in for."""
_OF_OPERATORS = ("test/test_custom_ops/**/test_*.py",)

SUITES = (
    Suite("op-plugin", "op_plugin/ops", _OF_OPERATORS, only_simulated=True),
    Suite("op-plugin, parked", "op_plugin/ops", _OF_OPERATORS, only_simulated=True, parked=True, options=("--parked",)),
    Suite("op-plugin, documents", "op_plugin/ops", ("docs/zh/custom_APIs/torch_npu/*.md",)),
    Suite(
        "torch_npu",
        "torch_npu/csrc",
        (
            "test/npu/test_aclgraph*.py", "test/npu/test_cann_version.py", "test/npu/test_copy.py",
            "test/npu/test_empty_strided_npu.py", "test/npu/test_generators.py", "test/npu/test_npu_format.py",
            "test/npu/test_npugraph*.py", "test/npu/test_serialization*.py", "test/npu/test_soc_version.py",
            "test/npu/test_storage.py", "test/npu/test_stream.py", "test/npu/test_tensor*.py",
            "test/npu/test_torch_npu.py", "test/test_bool_storage.py", "test/test_copy_.py",
        ),
        folder="test",
    ),
    Suite(
        "vllm-ascend",
        "vllm_ascend",
        (f"{_NIGHTLY}/singlecard_ops/test_*.py",),
        options=_OF_VLLM_ASCEND,
        imports=_BOOTED,
    ),
    Suite(
        "vllm-ascend, Triton",
        "vllm_ascend",
        (f"{_NIGHTLY}/singlecard_ops/triton/test_*.py",),
        options=_OF_VLLM_ASCEND,
        imports=_BOOTED,
        device=("--triton",),
    ),
    Suite(
        "sgl-kernel-npu",
        "python/sgl_kernel_npu",
        ("tests/python/sgl_kernel_npu/test_*.py",),
        # Its own __init__ loads a library that is compiled for the NPU.
        imports=("torch_npu", "sgl_kernel_npu=python/sgl_kernel_npu/sgl_kernel_npu"),
        device=("--triton",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How one test ended."""

    outcome: str
    """``passed``, ``failed`` or ``skipped``."""
    reason: str = ""
    """In a line, why it did not pass."""


def suites_of(checkout: Path) -> list[Suite]:
    """Return what there is to run of a checkout; none, if it is nobody's who is known here."""
    return [one for one in SUITES if (checkout / one.known_by).is_dir()]


def files_of(suite: Suite, checkout: Path) -> Iterator[Path]:
    """Yield test files and documents, relative to the checkout."""
    from npudiff.device.contract.trees import has_kernel, sites

    for path in sorted({path for pattern in suite.patterns for path in checkout.glob(pattern)}):
        if suite.parked and not PARKS.search(path.read_text(encoding="utf-8")):
            continue
        if path.suffix == ".md" and not list(programs(path.read_text(encoding="utf-8"))):
            continue
        if not suite.only_simulated or any(has_kernel(site) for site in sites(path)):
            yield path.relative_to(checkout)


class EnvironmentIncomplete(RuntimeError):
    """The process of a suite ended: what it imports is not there, which its own words above say."""


class Runner:
    """A process under ``npudiff virtual`` that runs files of a suite, each in a fork of it."""

    def __init__(self, suite: Suite, checkout: Path, device: Sequence[str]) -> None:
        self.suite, self.checkout, self.device = suite, checkout, device

    def __enter__(self) -> Runner:
        self._opened = ExitStack()
        self.place = Path(self._opened.enter_context(tempfile.TemporaryDirectory()))
        program = shutil.copy(PLUGIN, self.place)
        npudiff = shutil.which("npudiff", path=str(Path(sys.executable).parent)) or "npudiff"
        command = [npudiff, "virtual", *self.device, *self.suite.device, "--", sys.executable, program]
        self.process = self._opened.enter_context(
            subprocess.Popen(
                [*command, *self.suite.imports], cwd=self.checkout / self.suite.folder, env=_environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self._opened.close()

    def run(self, file: Path, seconds: float) -> dict[str, Result]:
        """Return how each test of a file ended; a process that ends early is the file itself, ``failed``."""
        report, log = self.place / "junit.xml", self.place / "log"
        report.unlink(missing_ok=True)
        arguments = ["-q", "-p", "no:npudiff", "-p", "no:cacheprovider", "--tb=line", f"--junitxml={report}"]
        path = str((self.checkout / file).resolve())
        code = self._code([*arguments, *self.suite.options, path], log, seconds)
        results = dict(_results(report)) if report.is_file() else {}
        if code == pytest.ExitCode.NO_TESTS_COLLECTED or (results and code is not None):
            return results
        said = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        ends = {None: f"no end after {seconds:.0f} s", -signal.SIGKILL: "killed, as where memory is short"}
        return results | {file.name: Result("failed", ends.get(code, _line(said)))}

    def _code(self, arguments: Sequence[str], log: Path, seconds: float) -> int | None:
        requests, answers = cast("IO[str]", self.process.stdin), cast("IO[str]", self.process.stdout)
        answer = ""
        with suppress(BrokenPipeError):  # it has ended
            requests.write(json.dumps([arguments, str(log), seconds]) + "\n")
            requests.flush()
            answer = answers.readline()
        if not answer:
            raise EnvironmentIncomplete(f"{self.suite.name}: npudiff virtual ended with {self.process.wait()}")
        code: int | None = json.loads(answer)
        return code


def _environment() -> dict[str, str]:
    left_out = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "PYTEST_ADDOPTS")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {"OMP_NUM_THREADS": "1"}


def _results(report: Path) -> Iterator[tuple[str, Result]]:
    """Yield the tests of a JUnit file that pytest has written."""
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by pytest a moment ago
        holder = case.get("classname", "").rpartition(".")[2]
        name = "::".join(part for part in (holder, case.get("name", "")) if part not in ("", "md"))  # of a document
        if not name:  # the test that was interrupted
            continue
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, reason = "failed", _line(_message(child))
            elif child.tag == "skipped":
                outcome, reason = "skipped", _line(child.get("message") or "")
        yield name, Result(outcome, reason)


def _message(failure: ET.Element) -> str:
    """Return what failed; of a file that could not be imported, the error."""
    message = failure.get("message") or failure.text or ""
    errors = re.findall(r"^E +(\S.*)$", failure.text or "", re.MULTILINE)
    return f"{message}: {errors[-1]}" if message == "collection failure" and errors else message


def _line(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x…", " ".join(text.split()))[:200]


NOT_LOOKED_AT = "not looked at"

Known = Mapping[str, object]
"""Of each test of a file: ``"passed"``, ``"skipped"``, or why it fails and whose fault that is."""


def surprises(file: str, results: Mapping[str, Result], known: Known) -> Iterator[str]:
    """Yield tests that fail and are not known to, and tests that passed and do not any more."""
    for name, result in results.items():
        before = known.get(name)
        if result.outcome == "failed" and not isinstance(before, dict):
            yield f"{file}::{name} fails: {result.reason}"
        elif before == "passed" and result.outcome == "skipped":
            yield f"{file}::{name} is skipped, and passed before: {result.reason}"
    for name in sorted(known.keys() - results.keys()):
        yield f"{file}::{name} did not run"


def recorded(results: Mapping[str, Result], before: Known) -> dict[str, object]:
    """Return what the table keeps of a file: whose a failure is stays, where it still fails."""
    kept: dict[str, object] = {}
    for name, result in sorted(results.items()):
        known = before.get(name)
        if result.outcome != "failed":
            kept[name] = result.outcome
        else:
            looked_at = isinstance(known, dict) and known["whose"] != NOT_LOOKED_AT
            kept[name] = known if looked_at else {"fails": result.reason, "whose": NOT_LOOKED_AT}
    return kept


def main() -> int:
    """Run tests and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("-k", dest="chosen", metavar="REGEX", help="only files whose path has this in it")
    parser.add_argument("--suite", choices=[one.name for one in SUITES], help="only this one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what the tests of one file may take (900)")
    parser.add_argument("--cann", default="9.0", help="CANN that torch_npu is told (9.0)")
    parser.add_argument("--soc", default="Ascend910B3", help="chip that torch_npu is told (Ascend910B3)")
    parser.add_argument("--update", action="store_true", help="write the results into the table")
    options = parser.parse_args()
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    surprised = 0
    for checkout in options.checkouts:
        suites = suites_of(checkout)
        if not suites:
            parser.error(f"{checkout} is no checkout of {', '.join(sorted({one.known_by for one in SUITES}))}")
        for suite in suites:
            if options.suite in (None, suite.name):
                try:
                    surprised += _compared(suite, checkout, table, options)
                except EnvironmentIncomplete as error:  # other suites may run
                    surprised += 1
                    print(f"  {error}", flush=True)
    return int(surprised > 0)


def _compared(suite: Suite, checkout: Path, table: dict[str, Any], options: argparse.Namespace) -> int:
    """Run a suite, print what came of it beside the table, and return how many surprises there were."""
    known = table.setdefault(suite.name, {"commit": "", "files": {}})
    commit = _commit(checkout)
    print(f"{suite.name}, {commit or 'an unknown commit'}; the table is of {known['commit'] or 'no commit'}")
    surprised, everything = 0, dict[str, Result]()
    for file, results in _run_all(suite, checkout, options):
        before = known["files"].get(file, {})
        print(f"  {Path(file).name:50} {told(results, before)}", flush=True)
        for line in surprises(file, results, before):
            surprised += 1
            print(f"    {line}", flush=True)
        everything |= {f"{file}::{name}": result for name, result in results.items()}
        if options.update and (results or before):
            known |= {"commit": commit or known["commit"], "files": known["files"] | {file: recorded(results, before)}}
            TABLE.write_text(json.dumps(table, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
    print(f"  {'together':50} {told(everything, {})}")
    return surprised


def _run_all(suite: Suite, checkout: Path, options: argparse.Namespace) -> Iterator[tuple[str, Mapping[str, Result]]]:
    """Yield the results of each file that was chosen."""
    with Runner(suite, checkout, ("--cann", options.cann, "--soc", options.soc)) as runner:
        for file in files_of(suite, checkout):
            if not options.chosen or re.search(options.chosen, str(file)):
                yield str(file), runner.run(file, options.seconds)


def told(results: Mapping[str, Result], known: Known) -> str:
    """Return counts in a line, and the commonest reasons of skips."""
    counts = Counter(result.outcome for result in results.values())
    theirs = Counter(
        str(entry.get("whose"))
        for name, entry in known.items()
        if isinstance(entry, dict) and name in results and results[name].outcome == "failed"
    )
    text = f"{counts['passed']:5} passed {counts['failed']:4} failed {counts['skipped']:4} skipped"
    if theirs:
        text += f"; known: {', '.join(f'{count} {whose}' for whose, count in theirs.most_common())}"
    skips = Counter(result.reason for result in results.values() if result.outcome == "skipped")
    if skips:
        text += f"; skipped: {skips.most_common(1)[0][0]}"
    return text


def _commit(checkout: Path) -> str:
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip()[:12]


if __name__ == "__main__":
    sys.exit(main())
