"""Programs that have imported npudiff already: a server imports it once and forks for each, as that takes seconds.

``warm.run`` is what running ``python -m npudiff`` by subprocess is, and ``warm.run_pytest`` ``python -m pytest``, for
tests that need a process of their own and not a fresh interpreter: a guardian, signals, and processes that may die.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

_IMPORTED = (
    "torch", "npudiff.run.plan", "npudiff.run.engine", "npudiff.run.isolation.supervisor", "npudiff.commands.check",
    "npudiff.commands.gate", "npudiff.show.finding", "npudiff.show.run_page.write", "npudiff.run.untrusted.candidate",
    "hypothesis.stateful", "pytest", "xdist.plugin",
)  # fmt: skip


def run(*arguments, cwd, timeout=120, env=None):
    """Run npudiff as a program; returns what ``subprocess.run`` does, with the output as text."""
    return _run("npudiff", arguments, cwd, timeout, env)


def run_pytest(*arguments, cwd, timeout=120, env=None):
    """Run pytest as a program, without plugins of the run that this is part of; as ``run`` otherwise."""
    own = ("PYTEST_XDIST", "PYTEST_CURRENT_TEST", "COV")
    environment = {name: value for name, value in (env or os.environ).items() if not name.startswith(own)}
    # Hypothesis is there already, and asks pytest to rewrite its assertions.
    quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    return _run("pytest", (*quiet, *arguments), cwd, timeout, environment)


def _run(program, arguments, cwd, timeout, env):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        wanted = {
            "program": program,
            "arguments": [*map(str, arguments)],
            "cwd": str(cwd),
            "environment": env or dict(os.environ),
        }
        line = _server()
        socket.send_fds(line, [json.dumps(wanted).encode()], [out.fileno(), err.fileno()])
        pid = int(line.recv(64))
        line.settimeout(timeout)
        try:
            status = int(line.recv(64))
        except TimeoutError:
            os.killpg(pid, signal.SIGKILL)
            line.settimeout(None)
            line.recv(64)
            raise
        finally:
            line.settimeout(None)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), *texts)


@functools.cache
def _server():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment, cwd="/"
    )
    theirs.close()

    def end():
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(line):
    import importlib

    for name in _IMPORTED:
        importlib.import_module(name)
    while True:
        message, descriptors, _, _ = socket.recv_fds(line, 2**20, 2)
        if not message:
            return
        pid = os.fork()
        if not pid:
            line.close()
            _become(json.loads(message), *descriptors)
        for one in descriptors:
            os.close(one)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        line.send(str(pid).encode())
        line.send(str(os.waitpid(pid, 0)[1]).encode())


def _become(wanted, out, err):
    """Be the program: as the interpreter runs its ``__main__``, and ends."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["environment"])
        sys.path[0] = wanted["cwd"]  # of ``python -m``
        if wanted["program"] == "pytest":
            import pytest

            sys.argv = [str(Path(pytest.__file__).with_name("__main__.py")), *wanted["arguments"]]
            code = int(pytest.main(wanted["arguments"]))
        else:
            from npudiff.cli import entry

            sys.argv = ["npudiff", *wanted["arguments"]]
            code = entry()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[:] = [one for one in sys.path if Path(one) != Path(__file__).parent]
    sys.path.insert(0, "")
    _serve(socket.socket(fileno=int(sys.argv[1])))
