"""Changes of the kind that pull requests make, in a copy of a backend: whether a gate of it finds each.

``python -m benchmarks.backend_changes sglang=CHECKOUT`` runs the gate with the backend's known issues once on a copy as
it is, which has to be open, and then with each change of ``backend_changes.txt``, which has to close it. It prints a
line for each, and ends with 1 if a gate came out otherwise.
"""

from __future__ import annotations

import shutil
import subprocess  # of this interpreter, without a shell
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.changed_lines import Change, read
from npudiff.errors import ExitCode
from npudiff.model.backend import wish_of

FILE = Path(__file__).with_suffix(".txt")
KNOWN = Path(__file__).resolve().parents[1] / "docs" / "backends"
LEFT_OUT = ("*.pyc", "__pycache__", ".git")
SECONDS = 900.0
"""What a gate may take."""


def changes_of(backend: str) -> list[Change]:
    """Return the changes of a backend, with paths below its checkout."""
    prefix = f"{backend}/"
    return [
        Change(one.path.removeprefix(prefix), one.old, one.new, one.tests)
        for one in read(FILE)
        if one.path.startswith(prefix)
    ]


def gate(backend: str, checkout: Path, components: Sequence[str], examples: str, output: Path) -> tuple[int, str]:
    """Run the gate of some components of a backend; return its exit code and its last line."""
    known = KNOWN / f"known_issues_{backend}.toml"
    command = [sys.executable, "-m", "npudiff", "gate", *components, "--backend", f"{backend}={checkout}"]
    command += ["--rotating", "off", "--budget", f"{SECONDS:.0f}s", "--examples", examples, "--output", str(output)]
    if known.exists():
        command += ["--known", str(known)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * SECONDS)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else ""


def main(arguments: Sequence[str]) -> int:
    """Run the gates of each backend that is named, ``NAME=CHECKOUT``; ``--examples N`` says how many cases."""
    examples = "100"
    if "--examples" in arguments:
        place = arguments.index("--examples")
        examples = arguments[place + 1]
        arguments = [*arguments[:place], *arguments[place + 2 :]]
    missed = [_missed(text, examples) for text in arguments]
    return int(any(missed))


def _missed(text: str, examples: str) -> bool:
    """Run all gates of a backend; whether one came out otherwise."""
    wish = wish_of(text)
    changes = changes_of(wish.name)
    if wish.checkout is None or not changes:
        raise SystemExit(f"{text}: expected one of the backends of {FILE.name}, with a checkout: NAME=CHECKOUT")
    missed = False
    with tempfile.TemporaryDirectory(prefix="backend-changes-") as temporary:
        copy = Path(temporary, "checkout")
        shutil.copytree(wish.checkout, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        all_components = sorted({component for one in changes for component in one.tests})
        missed |= not _tell("unchanged", gate(wish.name, copy, all_components, examples, Path(temporary, "out")), 0)
        for change in changes:
            path = copy / change.path
            original = path.read_text(encoding="utf-8")
            if original.count(change.old) != 1:
                print(f"NOT THERE {change.line}", flush=True)
                missed = True
                continue
            path.write_text(original.replace(change.old, change.new), encoding="utf-8")
            began = time.monotonic()
            result = gate(wish.name, copy, change.tests, examples, Path(temporary, "out"))
            missed |= not _tell(f"{time.monotonic() - began:.0f} s {change.line}", result, ExitCode.FINDINGS)
            path.write_text(original, encoding="utf-8")
    return missed


def _tell(what: str, result: tuple[int, str], wanted: int) -> bool:
    code, line = result
    print(f"{'found' if wanted else 'open'} {what}" if code == wanted else f"MISSED {what}: {code}: {line}", flush=True)
    return code == wanted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
