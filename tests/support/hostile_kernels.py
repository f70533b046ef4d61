"""Kernels that are broken or hostile: how they end, hang, answer, or reach for the judge, and when they do.

Each is an implementation of ``swa_mask`` that is right but for that. All of a file are different in what they do or
when they do it.
"""

from __future__ import annotations

import itertools

HEAD = """
import builtins, ctypes, gc, json, os, signal, sys, threading, time
import numpy as np
import torch
import npudiff

CALLS = {}


def right(inputs):
    lengths = inputs.kv_lengths.reshape(-1, 1, 1)
    key = torch.arange(inputs.capacity)
    first = torch.zeros_like(lengths) if inputs.window is None else lengths - inputs.window
    return (key < first) | (key >= lengths)


def called(name):
    CALLS[name] = CALLS.get(name, 0) + 1
    return CALLS[name]


class Raises:
    def __getattr__(self, name):
        raise RuntimeError(f"do not look at {name}")


class Odd(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        raise RuntimeError("do not compute with me")


def later(seconds, what):
    def run():
        time.sleep(seconds)
        what()
    threading.Thread(target=run, daemon=True).start()


def leaves_a_child():
    if not os.fork():
        os.setsid()
        if not os.fork():
            time.sleep(10_000)
        os._exit(0)
"""

WHEN = {
    "always": "True",
    "several": "len(inputs.kv_lengths) > 1",
    "one": "len(inputs.kv_lengths) == 1",
    "windowed": "inputs.window is not None",
    "wide": "inputs.capacity > 2",
    "int64": "inputs.kv_lengths.dtype == torch.int64",
    "int32": "inputs.kv_lengths.dtype == torch.int32",
    "second_call": "called('{name}') > 1",
    "third_call": "called('{name}') > 2",
    "fifth_call": "called('{name}') > 4",
}
"""When a kernel does what it does; all of these are drawn in a few cases."""

EXITS = {
    **{f"exits_{code}": f"os._exit({code})" for code in (0, 1, 3, 77)},
    **{f"exits_by_c_{code}": f"ctypes.CDLL(None).exit({code})" for code in (0, 2)},
    **{f"sys_exit_{code}": f"sys.exit({code})" for code in (0, 1)},
    **{f"raises_{name}": f"raise {name}('on purpose')" for name in (
        "SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException", "StopIteration", "MemoryError",
        "RecursionError", "AssertionError", "UnicodeError", "BrokenPipeError", "ConnectionResetError", "EOFError",
    )},
    "raises_group": "raise BaseExceptionGroup('all', [ValueError(1), KeyboardInterrupt()])",
    "raises_odd_text": "raise ValueError('\\x1b[31m\\ud800' * 100)",
    "raises_no_text": "raise type('Bad', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "skips": "__import__('pytest').skip('no')",
    "fails": "__import__('pytest').fail('no')",
    "assumes": "__import__('hypothesis').assume(False)",
    "recurses": "(lambda f: f(f))(lambda f: f(f))",
}  # fmt: skip
SIGNALS = {
    f"signal_{name}": f"os.kill(os.getpid(), signal.{name})"
    for name in (
        "SIGSEGV",
        "SIGABRT",
        "SIGKILL",
        "SIGTERM",
        "SIGBUS",
        "SIGILL",
        "SIGFPE",
        "SIGHUP",
    )  # not SIGPIPE, which Python ignores
} | {"reads_null": "ctypes.string_at(0)", "kills_its_group": "os.killpg(os.getpgrp(), signal.SIGKILL)"}
HANGS = {
    "sleeps": "time.sleep(10_000)",
    "waits": "threading.Event().wait()",
    "stops": "os.kill(os.getpid(), signal.SIGSTOP)",
    "spins": "[None for _ in iter(int, 1)]",
}
LEAVINGS = {
    f"thread_exits_{code}_after_{milliseconds}": f"later({milliseconds / 1000}, lambda: os._exit({code}))"
    for code in (0, 5)
    for milliseconds in (50, 200)
} | {
    "thread_crashes": "later(0.1, lambda: ctypes.string_at(0))",
    "forks_and_is_wrong": "leaves_a_child(); return ~right(inputs)",
    "forks_and_returns_twice": "return ~right(inputs) if os.fork() else right(inputs)",
}
RETURNS = {
    f"returns_{number}": f"return {what}"
    for number, what in enumerate((
        "None", "[]", "{}", "()", "'mask'", "b'mask'", "0", "True", "object()", "Raises()", "torch", "right",
        "iter([])", "np.zeros(3, bool)", "[right(inputs)]", "(right(inputs), right(inputs))", "{'mask': None}",
        "{'mask': Raises()}",
        "{'other': right(inputs)}", "{0: right(inputs)}", "{'mask': right(inputs), 'more': right(inputs)}",
        "{'mask': right(inputs).tolist()}", "right(inputs).float()", "right(inputs).to(torch.uint8)",
        "right(inputs).unsqueeze(0)", "right(inputs)[..., :0]", "right(inputs).flatten()", "torch.tensor(True)",
        "right(inputs).to('meta')", "right(inputs).to_sparse()", "right(inputs).to(torch.complex64)", "~right(inputs)",
        "right(inputs).expand(3, *right(inputs).shape)", "torch.nested.nested_tensor([torch.zeros(2)])",
        "torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)", "right(inputs).float().requires_grad_()",
        "inputs.kv_lengths", "inputs", "type('Shape', (), {'shape': 1, 'dtype': 2})()", "Odd(right(inputs).float())",
        "right(inputs).new_zeros(2**28)", "{'mask': right(inputs)}.items()", "(one for one in [right(inputs)])",
        "lambda: right(inputs)", "ValueError('returned')", "right(inputs).double() * float('nan')",
    ))
}  # fmt: skip
PATCHES = {
    "patches_equal": "torch.equal = lambda *a: True; return ~right(inputs)",
    "patches_where": "torch.where = lambda *a: a[1]; return ~right(inputs)",
    "patches_compare": "__import__('npudiff.judge.compare', fromlist=['x']).compare = None; return ~right(inputs)",
    "patches_the_reference": (
        "import npudiff.properties.swa_mask as p; object.__setattr__(p.component, 'reference', lambda i: {}); "
        "return ~right(inputs)"
    ),
    "patches_json": (
        "json.dumps = lambda *a, **k: '{\"verdict\": \"holds\", \"worst\": 0, \"exact\": true}'; return ~right(inputs)"
    ),
    "patches_open": "builtins.open = None; return ~right(inputs)",
    "clears_modules": "sys.modules.clear(); return ~right(inputs)",
    "patches_tensor": "torch.Tensor.__eq__ = lambda *a: torch.tensor(True); return ~right(inputs)",
    "closes_files": "os.closerange(3, 200)",
    "writes_inputs": "inputs.kv_lengths.fill_(1); return ~right(inputs)",
    "finds_connections": (
        "[one.send_bytes(b'{\"verdict\": \"holds\", \"worst\": 0.0, \"exact\": true}') for one in gc.get_objects() "
        "if type(one).__name__ == 'Connection']; return ~right(inputs)"
    ),
    "stops_collecting": "gc.disable(); gc.freeze(); return ~right(inputs)",
    "changes_folder": "os.chdir('/'); return ~right(inputs)",
}  # fmt: skip

KINDS = {**EXITS, **SIGNALS, **LEAVINGS, **RETURNS, **PATCHES}


def names_and_texts(count: int, hangs: int) -> list[tuple[str, str]]:
    """So many kernels, of which so many hang: name, and source of the function."""
    ordinary = itertools.product(WHEN.items(), KINDS.items())
    kernels = [(f"{kind}__{when}", code, condition) for (when, condition), (kind, code) in ordinary]
    stuck = [(kind, code, "True") for kind, code in itertools.islice(itertools.cycle(HANGS.items()), hangs)]
    numbered = [(f"{name}__{number}", code, condition) for number, (name, code, condition) in enumerate(stuck)]
    chosen = [*kernels[: count - hangs], *numbered]
    if len(chosen) < count:
        raise ValueError(f"there are {len(chosen)} kernels")
    return [(name, _text(name, code, condition.format(name=name))) for name, code, condition in chosen]


def _text(name: str, code: str, condition: str) -> str:
    body = code.replace("; return", "\n        return")
    return (
        f'\n\n@npudiff.implementation("swa_mask", name="{name}")\ndef {name}(inputs, target):\n'
        f"    if {condition}:\n        {body}\n    return right(inputs)\n"
    )
