"""The rules of the four rooms, checked on every file: who imports whom, and what nobody may do."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

from npudiff.run.discovery import component_names

ROOT = Path(__file__).parent.parent
ROOMS = ("reference", "device", "properties", "npudiff")
WINGS = (
    "errors", "text", "files", "model", "draw", "judge", "run", "findings", "show", "api", "serve", "gate", "score",
    "campaign", "commands", "cli", "plugin",
)  # fmt: skip
"""The engine, from the bottom: each wing, and each module beside the wings, stands only on those before it."""
DOORS = ("npudiff", "npudiff.__main__")

MAY_IMPORT = {
    "reference": {"reference"},
    "npudiff": {"npudiff"},
    "device": {"device", "reference", "npudiff"},
    "properties": {"properties", "reference", "npudiff"},
}
THIRD_PARTIES = {
    "reference": {"torch"},
    # typing_extensions is for type checkers only: TypeVars of Implementation and Component have a default
    "npudiff": {
        "torch",
        "numpy",
        "hypothesis",
        "jinja2",
        "packaging",
        "rich",
        "safetensors",
        "tomli",
        "pytest",
        "typing_extensions",
    },
    "device": {"torch", "torch_npu"},
    "properties": {"torch", "numpy", "hypothesis", "pytest"},
}  # fmt: skip
OF_FOLDERS = {
    "device/backends": {"pydantic_core"}, "device/backends/sglang": {"sglang", "sgl_kernel_npu"},
    "device/backends/vllm_ascend": {"vllm_ascend", "vllm"},
    "device/virtual/triton": {"triton", "numpy", "ml_dtypes"},
    "npudiff/serve": {"starlette", "uvicorn"},
    "npudiff/campaign": {"ray", "fsspec"},
}  # fmt: skip
"""What some rooms import besides: backends themselves, what a stand-in has to answer, and what an extra installs."""
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
NETWORK_MODULES = {
    "socket", "ssl", "socketserver", "urllib", "http", "ftplib", "smtplib", "telnetlib", "xmlrpc", "requests",
    "httpx", "aiohttp", "urllib3", "webbrowser",
}  # fmt: skip
OF_TEXTS = ("urllib.parse.",)
"""What takes addresses apart and opens no connection."""
OF_PAIRS = {"npudiff/run/ranks/mesh.py": {"socket"}}
"""What makes pairs of sockets, whose ends nobody else can reach."""
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {"torch.load", "numpy.load", "np.load", "os.system", "os.popen", "subprocess.getoutput"}
GLOBAL_RANDOM = {
    "random.seed", "torch.manual_seed", "torch.random.manual_seed", "torch.seed", "torch.set_rng_state",
    "np.random.seed", "numpy.random.seed", "np.random.rand", "np.random.randn", "torch.rand", "torch.randn",
    "torch.randint", "torch.randperm", "torch.rand_like", "torch.randn_like",
}  # fmt: skip
MAX_LINES = 600
SIMULATOR = "npudiff.device.simulator"


def python_files(folder):
    """Files below a folder; links are not followed, so that a room is looked through where it stands."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from python_files(path)
        elif path.suffix == ".py":
            yield path


def files():
    return [(room, path) for room in ROOMS for path in python_files(ROOT / room)]


def room_of(name):
    """The room that an imported name of npudiff is in, or None for a name of somebody else."""
    top, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    return (inner if inner in ROOMS else top) if top == "npudiff" else None


@functools.cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def offenders(offence):
    """Each file of the rooms for which ``offence(room, path)`` gives something, with that."""
    found = {str(path.relative_to(ROOT)): offence(room, path) for room, path in files()}
    return {path: what for path, what in found.items() if what}


@functools.cache
def imported(path):
    """Return the dotted names of all imports of a file, wherever they stand."""
    return frozenset(_imported(path))


def _imported(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                parts = path.relative_to(ROOT).with_suffix("").parts
                parts = parts if parts[0] == "npudiff" else ("npudiff", *parts)
                package = ".".join((*parts[: len(parts) - node.level], *filter(None, [package])))
            yield from (f"{package}.{alias.name}" for alias in node.names)


def dotted(node):
    """Return ``a.b.c`` of an attribute, or an empty string."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def test_every_room_is_there():
    assert {room for room, _ in files()} == set(ROOMS)
    assert len(files()) > 40


def test_imports_run_one_way():
    def wrong(room, path):
        others = {name for name in imported(path) if (room_of(name) or room) not in MAY_IMPORT[room]}
        return others | {
            name for name in imported(path) if name.partition(".")[0] in ("reference", "device", "properties")
        }

    assert offenders(wrong) == {}


def modules_of(room):
    """The modules of a room by their names, and what each imports, wherever it does: also for type checkers."""
    paths = {}
    for path in python_files(ROOT / room):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "npudiff" else ("npudiff", *parts)
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path

    def module_of(name):
        return name if name in paths else name.rpartition(".")[0]

    return {name: {module_of(one) for one in imported(path)} & set(paths) for name, path in paths.items()}


def test_wings_stand_on_those_below_them():
    def floor(name):
        return WINGS.index(name.split(".")[1])

    modules = modules_of("npudiff")
    upwards = [
        (name, other)
        for name, others in modules.items()
        if name not in DOORS
        for other in others
        if other in DOORS or floor(other) > floor(name)
    ]
    assert upwards == []
    assert {name.split(".")[1] for name in modules if name not in DOORS} == set(WINGS)
    directly = [path.name for path in (ROOT / "npudiff").iterdir() if path.suffix == ".py"]
    assert len(directly) <= 7


@pytest.mark.parametrize("room", ROOMS)
def test_no_modules_import_each_other_in_a_circle(room):
    modules = modules_of(room)
    while True:  # take away what stands on nothing that is left
        free = [name for name, others in modules.items() if not others & set(modules) - {name}]
        if not free:
            break
        for name in free:
            del modules[name]
    assert sorted(modules) == []


def test_only_the_declared_third_parties_are_imported():
    ours = {"npudiff", "tomllib", *sys.stdlib_module_names}  # tomllib is of the standard library from 3.11 on

    def undeclared(room, path):
        place = path.relative_to(ROOT).as_posix()
        of_folder = {name for folder, names in OF_FOLDERS.items() if place.startswith(f"{folder}/") for name in names}
        return {name.partition(".")[0] for name in imported(path)} - ours - THIRD_PARTIES[room] - of_folder

    assert offenders(undeclared) == {}


def test_nothing_is_unpickled_or_fetched():
    def unsafe(room, path):
        tops = {name.partition(".")[0] for name in imported(path)}
        connecting = {name.partition(".")[0] for name in imported(path) if not name.startswith(OF_TEXTS)}
        connecting -= OF_PAIRS.get(path.relative_to(ROOT).as_posix(), set())
        return tops & UNSAFE_MODULES | connecting & NETWORK_MODULES

    assert offenders(unsafe) == {}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_sockets_of_pairs_connect_to_nothing_else(name):
    used = set(re.findall(r"\bsocket\.(\w+)", (ROOT / name).read_text(encoding="utf-8")))
    assert used == {"socket", "socketpair"}


def test_nothing_that_is_read_is_executed_and_no_global_random_state_is_used():
    def unsafe(room, path):
        nodes = list(ast.walk(parsed(path)))
        used = {dotted(node) for node in nodes if isinstance(node, ast.Attribute)} | imported(path)
        called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        return called & UNSAFE_CALLS | used & (UNSAFE_ATTRIBUTES | GLOBAL_RANDOM | {"random"})

    assert offenders(unsafe) == {}


def test_modules_are_short():
    def length(room, path):
        return max(0, len(path.read_text(encoding="utf-8").splitlines()) - MAX_LINES)

    assert offenders(length) == {}


def test_the_simulator_shares_no_code_with_the_reference():
    names = {name for path in python_files(ROOT / "device" / "simulator") for name in imported(path)}
    groups = "npudiff.device.communicators."  # of ranks, which have to be those of the adapters
    assert {name for name in names if room_of(name)} == {name for name in names if name.startswith((SIMULATOR, groups))}


def test_each_room_is_a_folder_of_the_checkout_and_a_package_of_npudiff():
    for room in ("reference", "device", "properties"):
        link = ROOT / "npudiff" / room
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{room}"
        assert (ROOT / room).is_dir()
        assert not (ROOT / room).is_symlink()


def test_a_component_has_the_same_module_name_in_each_room():
    def modules(*parts):
        return {path.stem for path in (ROOT.joinpath(*parts)).iterdir() if path.is_dir() or path.suffix == ".py"}

    shared = set(component_names())
    for room in (("reference",), ("properties",), ("device", "ascend"), ("device", "mutants")):
        assert shared <= modules(*room)


WRITES = {"write_text", "write_bytes", "save_file", "mkdir", "makedirs", "mkfifo", "symlink_to", "touch"}
OPENS = {"open", "fdopen"}
WRITERS = {
    "npudiff/files/writing.py": "the writer",
    "npudiff/score/substitute.py": "appends to a file of a folder that was made for one run",
    "npudiff/commands/gate.py": "appends to the summary that GitHub's runner names",
    "npudiff/campaign/store.py": "writes behind a URL that the user names, by fsspec",
    "device/virtual/sealed.py": "makes folders that others cannot write",
}


def writes(path):
    """Yield what a file calls that writes: names of writing methods, and opening for anything but reading."""
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
        flags = {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
        if name in WRITES or (name in OPENS and (words & {"w", "wb", "a", "ab", "x", "xb"} or "O_CREAT" in flags)):
            yield name


def test_files_are_written_by_the_one_module_that_follows_no_link():
    found = offenders(lambda room, path: sorted(writes(path)))
    assert {path: names for path, names in found.items() if path not in WRITERS} == {}
    assert found.keys() == WRITERS.keys()
