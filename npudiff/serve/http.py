"""The judge over HTTP: the same requests and answers as on standard input, with a token, on this machine by default.

    POST /check                 a candidate; answers with its verdict
    GET  /components            all contracts
    GET  /components/{name}     one contract
    GET  /hello                 what the judge is, and how much it has to do
    GET  /schema                the form of all answers; needs no token

The web server runs in this process and the bench in another, which it speaks to in lines of JSON. A client that goes
away while it waits gives its candidate up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from npudiff.errors import ExitCode, UsageError
from npudiff.serve.requests import MOST_BYTES
from npudiff.show.document import document, schema

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    raise UsageError(f"npudiff serve over HTTP needs the extra: pip install 'npudiff[serve]' ({missing})") from None

TOKEN_VARIABLE = "NPUDIFF_TOKEN"  # noqa: S105 - its name
LEAST_TOKEN = 16
"""Characters of a token, at least."""

_LINE = 2**26
"""Bytes of an answer, at most."""

_WATCHED_EVERY = 0.5
"""Seconds between two looks whether a client is still there."""

_BACKLOG = 128

_CLOSING = 5.0
"""Seconds that the bench gets to end."""

_STATUS = {ExitCode.USAGE: 400, ExitCode.INTERNAL: 500, ExitCode.DEVICE_LOST: 503}
"""Status of answers that are no verdicts."""


def serve_http(options: argparse.Namespace) -> int:
    """Serve until the process is told to end, and return the exit code.

    Raises
    ------
    UsageError
        If the address or the token makes no sense.
    """
    token, is_new = _token(options.token_file)
    bench = BenchProcess(_command(options))
    where = _where(options)
    server = uvicorn.Server(uvicorn.Config(application(bench, token), log_level="warning", **where))
    try:
        listening = server.config.bind_socket()
        listening.listen(_BACKLOG)  # who connects from now on waits until there is an answer
    except SystemExit:  # it has told why
        return ExitCode.USAGE
    name = options.socket or "http://{}:{}".format(*listening.getsockname()[:2])
    print(f"npudiff serve: listening on {name}", file=sys.stderr, flush=True)
    if is_new:
        print(f"npudiff serve: token {token}", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # of a signal, after everything was ended
        server.run(sockets=[listening])
    return ExitCode.CLEAN


def _token(file: Path | None) -> tuple[str, bool]:
    """Return the token that clients have to show, and whether it is a new one."""
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {file}: {error}") from None
    else:
        text = os.environ.get(TOKEN_VARIABLE, "")
        if not text:
            return secrets.token_urlsafe(24), True
    if len(text) < LEAST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"a token has {LEAST_TOKEN} printable characters of ASCII or more, without blanks")
    return text, False


def _where(options: argparse.Namespace) -> dict[str, Any]:
    if options.socket is not None:
        return {"uds": str(options.socket)}
    host, _, port = options.http.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--http {options.http}: expected PORT or HOST:PORT, such as 8123")
    return {"host": host.strip("[]") or "127.0.0.1", "port": int(port)}


def _command(options: argparse.Namespace) -> list[str]:
    """The command of the bench."""
    given = {"--target": options.target, "--cann": options.cann, "--workers": options.workers}
    more = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return [sys.executable, "-m", "npudiff", "serve", *more]


class BenchProcess:
    """The process that judges, and who waits for which answer.

    Parameters
    ----------
    command : list of str
        Starts it.
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0

    @contextlib.asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        """Have the process run while a web application does."""
        del app
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, limit=_LINE)
        reader = asyncio.create_task(self._read(self._process))
        try:
            yield
        finally:
            await self._close(self._process)
            reader.cancel()

    async def _close(self, process: asyncio.subprocess.Process) -> None:
        """Give up all that is being judged, and end the process."""
        assert process.stdin is not None  # noqa: S101 - as asked for
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in self._waiting:
                process.stdin.write(json.dumps({"do": "cancel", "of": number}).encode() + b"\n")
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _CLOSING)
        except asyncio.TimeoutError:
            process.kill()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request; one that is given up is cancelled there, too."""
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return _ended()
        self._count += 1
        number = self._count
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            process.stdin.write(json.dumps({**request, "id": number}).encode() + b"\n")
            await process.stdin.drain()
            return await answer
        except (BrokenPipeError, ConnectionResetError):
            return _ended()
        except asyncio.CancelledError:
            process.stdin.write(json.dumps({"do": "cancel", "of": number}).encode() + b"\n")
            raise
        finally:
            self._waiting.pop(number, None)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Give answers to those who wait for them."""
        assert process.stdout is not None  # noqa: S101 - as asked for
        while line := await process.stdout.readline():
            answer = json.loads(line)
            waits = self._waiting.get(answer.pop("id"))
            if waits is not None and not waits.done():
                waits.set_result(answer)
        for waits in self._waiting.values():
            if not waits.done():
                waits.set_result(_ended())


def _ended() -> dict[str, Any]:
    return document("serve", ExitCode.INTERNAL, "the process that judges has ended", {})


def application(bench: BenchProcess, token: str) -> Starlette:
    """Return the web application.

    Parameters
    ----------
    bench : BenchProcess
        Judges.
    token : str
        What a client has to show.
    """

    def guarded(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarding(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {token}".encode()):
                return _refused(401, "a token is needed: Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})
            return await answer(request)

        return guarding

    async def check(request: Request) -> Response:
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    return _refused(413, f"a request has {MOST_BYTES} bytes at most")
            message = json.loads(body)
        except (ValueError, RecursionError):
            return _refused(400, "no JSON")
        except ClientDisconnect:
            return Response(status_code=499)
        if not isinstance(message, dict):
            return _refused(400, "a request is a JSON object")
        given = message.get("id")
        answer = await _while_connected(request, bench.ask({**message, "do": "check"}))
        return _response({**({} if given is None else {"id": given}), **answer})

    async def components(request: Request) -> Response:
        name = request.path_params.get("name")
        asked: dict[str, Any] = {"do": "components"} if name is None else {"do": "components", "names": [name]}
        return _response(await bench.ask(asked))

    async def hello(request: Request) -> Response:
        del request
        return _response(await bench.ask({"do": "hello"}))

    async def form(request: Request) -> Response:
        del request
        return JSONResponse(schema())

    return Starlette(
        routes=[
            Route("/check", guarded(check), methods=["POST"]),
            Route("/components", guarded(components)),
            Route("/components/{name}", guarded(components)),
            Route("/hello", guarded(hello)),
            Route("/schema", form),
        ],
        lifespan=bench.running,
    )


async def _while_connected(request: Request, asking: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """Return an answer; where the client goes away, nobody waits for it any more."""
    task = asyncio.ensure_future(asking)
    while not task.done():
        await asyncio.wait({task}, timeout=_WATCHED_EVERY)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return document("serve", ExitCode.INTERRUPTED, "the client went away", {})
    return task.result()


def _response(answer: dict[str, Any]) -> Response:
    return JSONResponse(answer, _STATUS.get(ExitCode(answer["exit_code"]), 200))


def _refused(status: int, problem: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(document("serve", ExitCode.USAGE, problem, {}), status, headers)
