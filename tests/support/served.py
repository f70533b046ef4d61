"""A judge as a program, and candidates for it."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema

from npudiff.show.document import schema

RIGHT = """
import npudiff, torch

@npudiff.implementation("int4_pack")
def candidate(inputs, target):
    values = inputs.values - 8 if inputs.encoding == "offset binary" else inputs.values
    words = torch.zeros_like(values[..., 0::8])
    for place in range(8):
        words |= (values[..., place::8] & 15) << 4 * place
    print("a candidate that talks")
    return words
"""
WRONG = RIGHT.replace("& 15", "& 7")
PLAIN = RIGHT.replace('@npudiff.implementation("int4_pack")\n', "")


class Judge:
    """``npudiff serve`` on a pipe."""

    def __init__(self, *options):
        command = [sys.executable, "-m", "npudiff", "serve", "--target", "sim", *options]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.count = 0

    def send(self, **request):
        """Send a request, and return its id."""
        self.count += 1
        self.process.stdin.write(json.dumps({"id": self.count, **request}) + "\n")
        self.process.stdin.flush()
        return self.count

    def receive(self):
        """Read the next answer."""
        answer = json.loads(self.process.stdout.readline())
        jsonschema.validate(answer, schema())
        return answer

    def ask(self, source=RIGHT, component="int4_pack", **more):
        """Have a candidate judged."""
        number = self.send(source=source, component=component, **more)
        answer = self.receive()
        assert answer["id"] == number
        return answer

    def close(self):
        """Close standard input; return the exit code, and what was written to standard error."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said
