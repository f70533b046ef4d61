"""``npudiff doctor``: what this machine can run, and what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from npudiff.commands.contract import contract
from npudiff.errors import ExitCode
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.backend import Wish, wished
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import TargetUnavailable
from npudiff.model.job import Budget, Job, Verdict
from npudiff.model.version import VERSION
from npudiff.run.backends import load_backend, room_of
from npudiff.run.discovery import (
    component_names,
    default_target,
    load_components,
    load_target,
    select_implementations,
    target_names,
)
from npudiff.run.engine import run_job
from npudiff.run.environment import autoload_would_fail, cann_library, version_of
from npudiff.show.console import Console

_PROBE_CASES = 3
VIRTUAL = "virtual"
"""The target that has ranks: processes with a device each, on this machine."""

_RANKS = """
import torch, torch.distributed as dist
dist.init_process_group("hccl")
torch.npu.set_device(dist.get_rank())
x = torch.full((3,), dist.get_rank() + 1, device="npu")
dist.all_reduce(x)
assert x.tolist() == [3] * 3, x
dist.destroy_process_group()
"""
NO_TORCH_NPU = "not installed (needed for the npu target: the extra 'npu' of this project)"


def doctor(options: argparse.Namespace) -> int:
    """Run ``npudiff doctor`` and return its exit code: 0 if the default target works, or what it was asked about."""
    if options.contract is not None:
        return contract(options)
    console = Console(verbose=False)
    facts: dict[str, Any] = {}
    if options.json is not None:
        options.json.content = lambda: facts
    if options.impl:
        facts["backends"] = []
        for wish in wished(options.impl):
            found = _backend(wish, options.target)
            facts["backends"].append(found)
            console.lines([*_backend_lines(found)])
        return ExitCode.CLEAN
    if options.target:
        works, text = _probe(options.target)
        facts["targets"] = [{"target": options.target, "works": works, "said": text}]
        console.lines([text])
        return ExitCode.CLEAN if works else ExitCode.DEVICE_LOST
    return _machine(console, facts)


def _machine(console: Console, facts: dict[str, Any]) -> int:
    """Say all of this machine, and try every target with a few cases of one implementation of each component."""
    facts["software"] = software = _software()
    console.lines([f"{name:16} {text or 'not installed'}" for name, text in software.items()])
    console.lines(["", *_torch_npu(), "", "targets"])
    facts |= {"torch_npu": version_of("torch_npu"), "cann": cann_library() or None, "targets": []}
    for name in target_names():
        works, text = _probe_alone(name)
        facts["targets"].append({"target": name, "works": works, "said": text})
        console.lines([f"  {name:14} {text}"])
    facts["ranks"] = None
    if any(one["target"] == VIRTUAL and one["works"] for one in facts["targets"]):
        works, text = _probe_ranks()
        facts["ranks"] = {"works": works, "said": text}
        console.lines([f"  {'virtual ranks':14} {text}"])
    components, implementations = component_names(), select_implementations(load_components([]), [])
    facts |= {"components": components, "implementations": len(implementations), "default_target": None}
    console.lines(["", f"components       {', '.join(components)}", f"implementations  {len(implementations)}"])
    working = [one["target"] for one in facts["targets"] if one["works"]]
    if not working:
        console.lines(["", "no target works here"])
        return ExitCode.DEVICE_LOST
    facts["default_target"] = "npu" if "npu" in working else "sim"
    console.lines(["", f"default target   {facts['default_target']}"])
    return ExitCode.CLEAN


def _backend(wish: Wish, target: str | None) -> dict[str, Any]:
    """Import a backend beside its device, and return what there is of it."""
    where = load_target(target, None) if target else default_target(None, load_backend(wish.name).target)
    room = room_of(wish)
    missing = [(item, item.requires()) for item in room.implementations if item.requires is not None]
    return {
        "backend": wish.name,
        "version": room.booted.version,
        "origin": str(room.booted.origin),
        "target": where.name,
        "cann": where.cann,
        "stood_in_for": dict(room.booted.stubs()),
        "operators": list(room.booted.operators()),
        "implementations": len(room.implementations) - sum(bool(why) for _, why in missing),
        "components": len({item.component for item in room.implementations}),
        "not_applicable": {
            **room.left_out,
            **{f"{item.component}.{item.name}": why for item, why in missing if why},
        },
        "notes": list(room.booted.notes),
    }


def _backend_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['backend']:16} {found['version']}, {found['origin']}"
    yield f"{'target':16} {found['target']}, CANN {found['cann']}"
    yield f"{'stood in for':16} " + (
        ", ".join(f"{name} {count}" for name, count in found["stood_in_for"].items()) or "none"
    )
    yield from (f"{'operators':16} {line}" for line in found["operators"])
    yield f"{'implementations':16} {found['implementations']} of {found['components']} components"
    yield from (f"{'not applicable':16} {name}: {why}" for name, why in found["not_applicable"].items())
    yield from (f"{'note':16} {line}" for line in found["notes"])


def _software() -> dict[str, str | None]:
    """Names and versions; None for what is not installed."""
    versions = {
        name: version_of(name) or None for name in ("torch", "numpy", "hypothesis", "safetensors", "rich", "pytest")
    }
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return {"npudiff": VERSION, "python": python, **versions}


def _torch_npu() -> Iterator[str]:
    version = version_of("torch_npu")
    yield f"torch_npu        {version or NO_TORCH_NPU}"
    yield f"CANN             {cann_library() or 'libhccl.so not found: source set_env.sh of the CANN toolkit'}"
    if version and autoload_would_fail():
        yield "                 torch_npu without CANN: 'import torch' alone fails here, since torch loads it;"
        yield "                 npudiff sets TORCH_DEVICE_BACKEND_AUTOLOAD=0, and so must your own scripts"
    if "TORCH_DEVICE_BACKEND_AUTOLOAD" in os.environ:
        yield f"                 TORCH_DEVICE_BACKEND_AUTOLOAD={os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD']}"
    for variable in ("ASCEND_HOME_PATH", "ASCEND_RT_VISIBLE_DEVICES"):
        if variable in os.environ:
            yield f"                 {variable}={os.environ[variable]}"
    if sys.platform != "linux":
        yield "                 torch_npu exists for Linux only"


def _probe_alone(name: str) -> tuple[bool, str]:
    """Try a target in a process of its own: one may crash, and two of them want torch_npu in different states."""
    command = [sys.executable, "-m", "npudiff", "doctor", "--target", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this very program
    said = (done.stdout if done.returncode in (ExitCode.CLEAN, ExitCode.DEVICE_LOST) else done.stderr).strip()
    lines = said.splitlines() or ["it said nothing"]
    last = next(
        (line.strip() for line in lines if line.strip().startswith("what():")), lines[-1]
    )  # of C++, before its frames
    if done.returncode in (ExitCode.CLEAN, ExitCode.DEVICE_LOST):
        return done.returncode == ExitCode.CLEAN, last
    return False, f"crashed with exit code {done.returncode}: {last}"


def _probe_ranks() -> tuple[bool, str]:
    """Try two ranks that add their numbers."""
    command = [sys.executable, "-m", "npudiff", "virtual", "--ranks", "2", "--rank-timeout", "60", "--"]
    done = subprocess.run(  # noqa: S603 - this very program
        [*command, sys.executable, "-c", _RANKS], capture_output=True, text=True, check=False
    )
    if done.returncode == ExitCode.CLEAN:
        return True, "work (two added their numbers over HCCL)"
    last = (done.stderr.strip().splitlines() or ["they said nothing"])[-1]
    return False, f"do not work: {last}"


def _probe(name: str) -> tuple[bool, str]:
    """Try a target in this process: a few cases of one implementation of each component."""
    try:
        target = load_target(name, None)
    except TargetUnavailable as error:
        return False, f"not available: {error}"
    components = load_components([])
    failed = []
    for component in components:
        item = next(item for item in select_implementations([component], []) if item.wrong is None)
        job = Job(Subject(component, item, target), EQUIVALENCE, item.constraints.within(Constraints()))
        if run_job(job, Budget(examples=_PROBE_CASES, shrink=False)).verdict is not Verdict.HOLDS:
            failed.append(job.name)
    if failed:
        return False, f"runs, but gives wrong answers: {', '.join(failed)}"
    return True, f"works (CANN {target.cann}; {_PROBE_CASES} known answers per component)"
