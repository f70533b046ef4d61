"""The part of every script that is the same: it reads tensors, and judges results. It needs torch and nothing else.

All below the next line is copied into the script, after the calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

# --- what follows is copied
RIGHT, WRONG, NOT_RUN = 0, 1, 2

EXTENSIONS = ("sgl_kernel_npu",)
"""Packages besides torch_npu that register operators; --import names others."""


class CannotRun(Exception):
    """The calls cannot be made here."""


class Run:
    """What the calls are given: tensors from the file, and somebody to judge what comes of them."""

    def __init__(self, stored: dict[str, torch.Tensor], device: str) -> None:
        self.stored, self.device, self.wrong, self.reached_last = stored, device, False, False
        self.moved: dict[str, torch.Tensor] = {}

    def load(
        self, name: str, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int] | None = None, offset: int = 0,
        device: str = "",
    ) -> torch.Tensor:  # fmt: skip
        """Return a tensor over stored memory; tensors over the same memory share it."""
        memory, place = self.stored[name].untyped_storage(), torch.empty(shape, device="meta")
        stride = place.stride() if stride is None else stride
        on_host = torch.empty(0, dtype=dtype).set_(memory, offset, shape, stride)
        if torch.device(device or self.device).type == "cpu":
            return on_host
        if name not in self.moved:
            whole = on_host.is_contiguous() and on_host.nbytes == memory.nbytes()
            count = memory.nbytes() // dtype.itemsize
            flat = on_host if whole else torch.empty(0, dtype=dtype).set_(memory, 0, (count,), (1,))
            self.moved[name] = flat.to(self.device)
        base = self.moved[name]
        base = base if base.dtype is dtype else base.view(-1).view(dtype)
        alike = (tuple(base.shape), base.stride(), base.storage_offset()) == (tuple(shape), tuple(stride), offset)
        return base if alike else torch.as_strided(base, shape, stride, offset)

    def last(self) -> None:
        """What is called next did not return when this was found."""
        self.reached_last = True

    def check(
        self, name: str, dtype: torch.dtype, actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor,
        gain: torch.Tensor | None = None, *, nan_is_nan: bool = False,
    ) -> None:  # fmt: skip
        """Say how far a result is from the right value, in multiples of the largest correct error of each element."""
        actual, value = actual.detach().cpu(), value.detach().cpu()
        if actual.shape != value.shape or actual.dtype != dtype:
            seen, right = (f"{list(one)} {kind}" for one, kind in ((actual.shape, actual.dtype), (value.shape, dtype)))
            self.say(name, True, f"it is {seen}, and must be {right}")
            return
        ratio = error_ratio(actual, value, bound)
        if nan_is_nan:  # two runs that must agree, whatever they say
            ratio = ratio.masked_fill(actual.isnan() & value.isnan(), 0.0)
        if ratio.numel() == 0:
            self.say(name, False, "it has no elements")
            return
        flat = int(ratio.argmax())
        worst, wrong = float(ratio.flatten()[flat]), int((ratio > 1).sum())
        place = [int(one) for one in torch.unravel_index(torch.tensor(flat), ratio.shape)]
        got, wanted, most = (float(one.expand(ratio.shape)[tuple(place)]) for one in (actual, value, bound))
        text = f"worst error / bound is {worst:.4g} at {place}: got {got!r}, expected {wanted!r} within {most:.3g}"
        text += f"; {wrong} of {ratio.numel()} elements are wrong" if wrong else ""
        if gain is not None:
            error = (actual.to(torch.float64) - value) * value
            found = torch.nan_to_num(error.sum(dim=-1) / value.square().sum(dim=-1), nan=0.0, posinf=0.0, neginf=0.0)
            longest = float((found.abs() / gain).max())
            text += f"; gain error of a row / bound is {longest:.4g}"
            worst = max(worst, longest)
        self.say(name, worst > 1, text)

    def unchanged(self, label: str, name: str, tensor: torch.Tensor) -> None:
        """Say whether an input still holds what was stored."""
        before = self.stored_copy[name]
        count = before.numel() // tensor.dtype.itemsize
        whole = torch.as_strided(tensor.detach(), (count,), (1,), 0).cpu()
        same = torch.equal(whole.view(torch.uint8), before[: count * tensor.dtype.itemsize])
        self.say(label, not same, "as it was" if same else "an input, which was written to")

    def keep(self) -> None:
        """Remember what was stored, to see what is written to."""
        self.stored_copy = {name: memory.clone() for name, memory in self.stored.items()}

    def say(self, name: str, wrong: bool, text: str) -> None:
        """Print a line, and remember whether anything is wrong."""
        self.wrong = self.wrong or wrong
        print(f"{name}: {'WRONG' if wrong else 'right'}: {text}")


def error_ratio(actual: torch.Tensor, value: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Return |actual - value| / bound; a value of the dtype of the result was moved, and equal means the same bits."""
    if actual.dtype == value.dtype and actual.is_floating_point():
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.dtype.itemsize]
        equal = actual.contiguous().view(bits) == value.contiguous().view(bits)
    else:
        equal = actual == value if actual.dtype == value.dtype else actual.to(torch.float64) == value
    wide, value, bound = (one.to(torch.float64) for one in (actual, value, bound))
    finite = torch.isfinite(wide) & torch.isfinite(value) & (bound != 0)
    ratio = torch.where(finite, (wide - value).abs() / bound, torch.inf)
    return ratio.masked_fill(torch.isposinf(bound) | equal, 0.0)


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the memories of a safetensors file, as bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if not 8 < start <= len(content):
        raise CannotRun(f"{path.name} is damaged: its header goes beyond its end")
    found = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            if entry["dtype"] != "U8" or not 0 <= first <= last <= len(content) - start:
                raise CannotRun(f"{path.name} is damaged: {name!r} goes beyond its end")
            whole = bytearray(content[start + first : start + last])
            empty = torch.empty(0, dtype=torch.uint8)
            found[name] = torch.frombuffer(whole, dtype=torch.uint8).clone() if whole else empty
    return found


def elsewhere(operators: list[str]) -> str:
    """What is said besides where there is no NPU: calls of torch's own operators can be made on any machine."""
    return "" if operators else "; all calls are torch's own: --device cpu makes them here"


def make_ready(device: str, extensions: list[str], operators: list[str]) -> None:
    """Import what the calls need, and say what is missing."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        if not device.startswith("npu"):
            raise CannotRun(f"no device {device!r}: {first_line(error)}") from None
        kind = "npu"
    if kind == "npu":
        try:
            importlib.import_module("torch_npu")
            available = torch.get_device_module("npu").is_available()
        except (ImportError, OSError, RuntimeError) as error:
            why = f"torch_npu is missing, or does not import: {first_line(error)}"
            raise CannotRun(why + elsewhere(operators)) from None
        if not available:
            raise CannotRun("torch_npu sees no device: see npu-smi info" + elsewhere(operators))
    for extension in extensions:
        importlib.import_module(extension)
    missing = [name for name in operators if not is_there(name)]
    if missing and kind == "npu":
        for extension in EXTENSIONS:
            if importlib.util.find_spec(extension) is not None:
                importlib.import_module(extension)
        missing = [name for name in missing if not is_there(name)]
    if missing:
        raise CannotRun(f"nothing has registered {', '.join(missing)}; --import MODULE imports what does")


def is_there(operator: str) -> bool:
    """Whether an operator is registered."""
    space, _, name = operator.partition("::")
    name, _, overload = name.partition(".")
    return hasattr(getattr(torch.ops, space), name) and hasattr(getattr(getattr(torch.ops, space), name), overload)


def first_line(error: BaseException) -> str:
    """The exception's type, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def line_of(error: BaseException) -> int:
    """The line of the calls in which an exception was raised."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_name == "calls" else line
        trace = trace.tb_next
    return line


def main(calls: Callable[[Run, str], None], data: Path | None, operators: list[str], end: str) -> int:
    """Make the calls, and return the exit code: 1 if something is wrong, 0 if not, 2 if they cannot be made here.

    end: what came of the last call when this was found, if it did not return.
    """
    parser = argparse.ArgumentParser(
        description="Exit code: 1 if the result is wrong, 0 if not, 2 if it cannot run here."
    )
    parser.add_argument("--device", default="npu:0", help="where to run (npu:0)")
    parser.add_argument("--import", dest="extensions", metavar="MODULE", action="append", default=[])
    options = parser.parse_args()
    try:
        make_ready(options.device, options.extensions, operators)
        run = Run({} if data is None else read(data), options.device)
    except (CannotRun, ImportError, OSError, ValueError, KeyError) as error:
        print(f"cannot run here: {first_line(error)}")
        return NOT_RUN
    run.keep()
    try:
        calls(run, options.device)
        if torch.device(options.device).type != "cpu":
            torch.get_device_module(options.device).synchronize()
    except Exception as error:  # noqa: BLE001 - whatever the device says
        if end and run.reached_last:
            print(f"FAILED in line {line_of(error)}: {type(error).__name__}: {error}")
            return WRONG
        print(f"cannot run here: line {line_of(error)} raised, as it did not before: {type(error).__name__}: {error}")
        return NOT_RUN
    if end:
        print(f"the last call returned, which it did not when this was found: {end}")
    return WRONG if run.wrong else RIGHT
