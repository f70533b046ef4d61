"""The judge over HTTP: on a port and on a socket, with a token."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection

import jsonschema
import pytest

from npudiff.show.document import schema
from served import RIGHT, WRONG

TOKEN = "a-token-of-some-length"  # noqa: S105 - of a server that lives for seconds


class Server:
    """``npudiff serve`` over HTTP."""

    def __init__(self, *options, token=TOKEN):
        command = [sys.executable, "-m", "npudiff", "serve", "--target", "sim", "--workers", "2", *options]
        self.process = subprocess.Popen(
            command, env={**os.environ, "NPUDIFF_TOKEN": token}, stderr=subprocess.PIPE, text=True
        )
        self.first = self.process.stderr.readline()
        self.where = self.first.split()[-1]

    def connection(self):
        """Open a connection."""
        if self.where.startswith("http://"):
            return HTTPConnection(self.where.removeprefix("http://"), timeout=60)
        made = HTTPConnection("localhost", timeout=60)
        made.sock = socket.socket(socket.AF_UNIX)
        made.sock.connect(self.where)
        return made

    def ask(self, path, message=None, token=TOKEN):
        """Send a request; return the status and the answer."""
        connection = self.connection()
        body = None if message is None else message if isinstance(message, bytes) else json.dumps(message)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        if path != "/schema":
            jsonschema.validate(said, schema())
        return answer.status, said

    def end(self):
        """Tell it to end; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self):
        """Wait for its end; return the exit code."""
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture(scope="module")
def server():
    one = Server("--http", "0")
    yield one
    assert one.end() == 0


@pytest.mark.slow
def test_candidates_are_judged(server):
    status, said = server.ask("/check", {"id": "mine", "component": "int4_pack", "source": RIGHT, "examples": 5})
    assert (status, said["verdict"], said["id"]) == (200, "clean", "mine")
    status, said = server.ask("/check", {"component": "int4_pack", "source": WRONG, "examples": 5})
    assert (status, said["verdict"]) == (200, "findings")
    assert "id" not in said


def test_what_is_no_request_is_refused(server):
    assert server.ask("/check", {"component": "int4_pack"})[0] == 400
    assert server.ask("/check", b"{")[0] == 400
    assert server.ask("/check", [1])[0] == 400
    assert server.ask("/check", b"x" * (2**22 + 1))[0] == 413
    assert server.ask("/components/int4_pck")[0] == 400


@pytest.mark.few(1)
@pytest.mark.parametrize("token", [None, "", TOKEN[:-1], TOKEN + "x"])
def test_nobody_gets_in_without_the_token(server, token):
    for path, message in (("/hello", None), ("/components", None), ("/check", {})):
        status, said = server.ask(path, message, token=token)
        assert (status, said["verdict"]) == (401, "usage error")


def test_contracts_and_the_form_of_answers(server):
    assert server.ask("/components/int4_pack")[1]["components"][0]["outputs"] == ["words"]
    assert len(server.ask("/components")[1]["components"]) > 20
    assert server.ask("/schema", token=None)[1] == schema()


@pytest.mark.slow
def test_a_client_that_goes_away_gives_its_candidate_up(server):
    slow = RIGHT.replace("    words = ", "    import time; time.sleep(0.2)\n    words = ")
    connection = server.connection()
    body = json.dumps({"component": "int4_pack", "source": slow})
    connection.request("POST", "/check", body, {"Authorization": f"Bearer {TOKEN}"})
    until = time.monotonic() + 20
    while server.ask("/hello")[1]["judging"] == 0:
        assert time.monotonic() < until
    connection.close()
    while server.ask("/hello")[1]["judging"]:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_a_socket_of_this_machine(tmp_path):
    one = Server("--socket", str(tmp_path / "judge"))
    try:
        assert one.ask("/hello")[1]["workers"] == 2
    finally:
        assert one.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "token", "said"),
    [
        (["--http", "0"], "short", "a token has 16"),
        (["--http", "0", "--token-file", "/nowhere"], TOKEN, "--token-file /nowhere"),
        (["--http", "port"], TOKEN, "expected PORT or HOST:PORT"),
        (["--http", "99999"], TOKEN, "expected PORT or HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_refused(options, token, said):
    one = Server(*options, token=token)
    assert said in one.first
    assert one.ended() == 4
