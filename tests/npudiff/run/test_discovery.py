from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import npudiff.properties
from npudiff.errors import UsageError
from npudiff.model.component import Component
from npudiff.run import discovery
from npudiff.run.defined import implementations_below, implementations_in
from npudiff.run.discovery import (
    built_in_implementations,
    component_names,
    default_target,
    load_component,
    load_components,
    load_target,
    select_implementations,
    target_names,
)

DECORATED = (
    'import npudiff\n@npudiff.implementation("{component}", name="{name}"{more})\ndef kernel(inputs, target): ...\n'
)


def decorated(component="swa_mask", name="mine", more=""):
    return DECORATED.format(component=component, name=name, more=more)


@pytest.fixture
def mask():
    return [load_component("swa_mask")]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Make importable modules below ``tmp_path``; forget them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def make(name, text):
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def selected(components, *selectors):
    return [f"{item.component}.{item.name}" for item in select_implementations(components, selectors)]


def test_components_and_their_targets_are_found():
    rooms = {item.name for item in pkgutil.iter_modules([str(Path(npudiff.properties.__file__).parent)])}
    assert component_names() == sorted(rooms - {"_shared", "test_components"})
    assert target_names() == ["npu", "sim", "virtual"]
    assert [component.name for component in load_components([])] == component_names()
    assert all(isinstance(component, Component) for component in load_components([]))


def test_every_implementation_of_the_device_room_is_found():
    import npudiff.device.ascend
    import npudiff.device.mutants

    names = {item.name for item in built_in_implementations()}
    exported = {
        getattr(room, name).name for room in (npudiff.device.ascend, npudiff.device.mutants) for name in room.__all__
    }
    assert names == exported
    assert len(built_in_implementations()) == len(exported)
    assert {item.component for item in built_in_implementations()} == set(component_names())
    assert all(item.summary for item in built_in_implementations())


@pytest.mark.parametrize("room", ["ascend", "mutants"])
def test_no_implementation_is_forgotten_in_what_a_room_exports(room):
    package = importlib.import_module(f"npudiff.device.{room}")
    modules = [
        importlib.import_module(f"npudiff.device.{room}.{item.name}") for item in pkgutil.iter_modules(package.__path__)
    ]
    defined = {id(item) for m in modules for item in implementations_in(m) if item.origin == m.__name__}
    assert len(modules) >= 6
    assert {id(getattr(package, name)) for name in package.__all__} == defined


def test_mutants_and_only_they_say_which_bug_they_are():
    for item in built_in_implementations():
        assert (item.wrong is not None) == item.origin.startswith("npudiff.device.mutants")


def test_without_selectors_all_built_in_implementations_of_the_components_are_chosen(mask):
    assert set(selected(mask)) == {f"swa_mask.{name}" for name in (
        "eager", "graph_buffer", "mask_left_context_512", "mask_minus_one", "mask_table_of_10000", "mask_without_tail",
        "mask_of_65535_programs", "lengths_of_the_capture")}  # fmt: skip


def test_an_implementation_is_chosen_by_its_name(mask):
    assert selected(mask, "eager") == ["swa_mask.eager"]
    assert selected(mask, "swa_mask.eager", "graph_buffer") == ["swa_mask.eager", "swa_mask.graph_buffer"]


def test_naming_one_twice_chooses_it_once(mask):
    assert selected(mask, "eager", "swa_mask.eager") == ["swa_mask.eager"]


def test_a_module_is_chosen_with_all_that_it_holds(mask):
    assert selected(mask, "npudiff.device.ascend.swa_mask") == ["swa_mask.eager", "swa_mask.graph_buffer"]


def test_a_file_is_chosen_with_its_public_implementations(mask, kernel):
    path = kernel(decorated() + decorated(name="hidden").replace("def kernel", "def _kernel"))
    (item,) = select_implementations(mask, [str(path)])
    assert (item.name, item.origin) == ("mine", str(path))


def test_a_file_with_another_component_beside_is_chosen_for_the_component_that_is_asked_for(mask, kernel):
    path = kernel(decorated() + decorated("sliding_attention", "other").replace("kernel", "other"))
    assert selected(mask, str(path)) == ["swa_mask.mine"]
    assert len(selected(load_components([]), str(path))) == 2


BUILT_IN = "from npudiff.device.ascend.swa_mask import swa_mask_eager\n"


def test_built_in_implementations_that_a_file_imports_are_not_its_own(mask, kernel):
    assert selected(mask, str(kernel(BUILT_IN + decorated()))) == ["swa_mask.mine"]
    path = kernel(BUILT_IN + "from npudiff.device import ascend\nALL = [swa_mask_eager]\n", "no_kernel.py")
    with pytest.raises(UsageError, match="no function in it is decorated"):
        selected(mask, str(path))


def test_a_built_in_implementation_with_a_name_or_limits_of_the_users_is_theirs(mask, kernel):
    text = BUILT_IN + 'from dataclasses import replace\nmine = replace(swa_mask_eager, name="mine")\n'
    assert selected(mask, str(kernel(text))) == ["swa_mask.mine"]


def test_what_a_module_imports_from_the_built_in_ones_is_not_its_own(mask, module):
    module("npudiff_test_mixed", BUILT_IN + decorated())
    assert selected(mask, "npudiff_test_mixed") == ["swa_mask.mine"]


def test_a_module_that_is_built_in_gives_its_own(mask):
    own = {"mask_left_context_512", "mask_minus_one", "mask_table_of_10000", "mask_without_tail"}
    found = {name.partition(".")[2] for name in selected(mask, "npudiff.device.mutants.swa_mask")}
    assert found >= own
    assert not found & {"eager", "graph_buffer"}
    assert set(selected(mask, "npudiff.device.ascend")) == {"swa_mask.eager", "swa_mask.graph_buffer"}


LOOP = """
import npudiff
for size in (1, 2):
    @npudiff.implementation("swa_mask", name=f"of_{size}")
    def kernel(inputs, target, size=size): ...
"""
FACTORY = """
import npudiff
def made(size):
    @npudiff.implementation("swa_mask", name=f"of_{size}")
    def kernel(inputs, target): return size
    return kernel
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (LOOP, "of_1 of_2"),
        (FACTORY + "one, two = made(1), made(2)", "of_1 of_2"),
        (FACTORY + "for size in (1, 2): made(size)", "of_1 of_2"),
        (FACTORY + "KERNELS = [made(size) for size in (1, 2)]", "of_1 of_2"),
        (FACTORY + "KERNELS = {size: made(size) for size in (1, 2)}", "of_1 of_2"),
        (FACTORY + "KERNELS = made(2), made(1)\none = KERNELS[1]", "of_2 of_1"),
        (FACTORY + "one, _two, _MORE = made(1), made(2), [made(3)]", "of_1"),
        (FACTORY.replace("kernel", "_kernel") + "made(1)", ""),
        (FACTORY.replace("kernel", "_kernel") + "one = made(1)", "of_1"),
    ],
)
def test_implementations_of_a_loop_or_a_factory_are_found(mask, kernel, text, names):
    expected = [f"swa_mask.{name}" for name in names.split()]
    try:
        assert selected(mask, str(kernel(text))) == expected
    except UsageError as error:
        assert not expected
        assert "no function in it is decorated" in str(error)  # noqa: PT017 - nothing that is public


def test_a_loop_that_gives_one_name_twice_is_refused(mask, kernel):
    with pytest.raises(UsageError, match=r"two implementations are called swa_mask\.of"):
        selected(mask, str(kernel(LOOP.replace("of_{size}", "of"))))


def test_a_loop_in_a_module_that_was_imported_before_is_found(mask, module):
    module("npudiff_test_loop", LOOP)
    importlib.import_module("npudiff_test_loop")
    assert selected(mask, "npudiff_test_loop") == ["swa_mask.of_1", "swa_mask.of_2"]


def test_a_factory_of_another_module_gives_what_the_file_keeps(mask, kernel):
    kernel(FACTORY, "factory.py")
    path = kernel("import factory\nKERNELS = [factory.made(1)]\nfactory.made(2)")
    assert selected(mask, str(path)) == ["swa_mask.of_1"]


BESIDE = """
import npudiff, device
from reference import WHO
@npudiff.implementation("swa_mask", name="{name}")
def kernel(inputs, target):
    import properties, device as again
    return WHO, device.WHO, properties.WHO, again.WHO
"""


@pytest.fixture
def repository(tmp_path, module):
    """Make folders of kernels with modules of their own beside them, whose names are the same in each."""

    def make(name, text=BESIDE):
        folder = tmp_path / name
        (folder / "device").mkdir(parents=True)
        for place in ("reference.py", "properties.py", "device/__init__.py"):
            (folder / place).write_text(f"WHO = {name!r}")
        (folder / "kernel.py").write_text(text.replace("{name}", name))
        return str(folder / "kernel.py")

    return make


def called(components, *selectors):
    return [item.function(None, None) for item in select_implementations(components, selectors)]


def test_a_file_imports_what_lies_beside_it_when_it_is_imported_and_when_it_is_called(mask, repository):
    assert called(mask, repository("one")) == [("one",) * 4]


def test_each_file_has_its_own_neighbours_also_when_it_is_called_later(mask, repository):
    items = select_implementations(mask, [repository("one"), repository("two")])
    assert [item.function(None, None) for item in (*items, *items)] == 2 * [("one",) * 4, ("two",) * 4]


def test_neighbours_stand_before_the_working_folder_and_leave_what_it_has(mask, repository, tmp_path):
    (tmp_path / "device.py").write_text("WHO = 'working folder'")
    working = importlib.import_module("device")
    assert called(mask, repository("one")) == [("one",) * 4]
    assert importlib.import_module("device") is working


def test_a_stateful_one_has_its_neighbours_as_well(mask, repository):
    text = BESIDE.replace('name="{name}"', 'name="{name}", stateful=True').replace("(inputs, target)", "()")
    text = text.replace("    return ", "    return lambda inputs, target: ").replace(": WHO", ": (WHO") + ")"
    (one, two) = select_implementations(mask, [repository("one", text), repository("two", text)])
    for item, name in ((one, "one"), (two, "two")):
        assert item.fresh().function(None, None) == (name,) * 4
        assert item.function(None, None) == (name,) * 4


def test_a_neighbour_stands_before_no_module_of_the_standard_library_or_of_npudiff(mask, kernel, tmp_path):
    for name in ("colorsys", "npudiff"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    sys.modules.pop("colorsys", None)
    path = kernel("import colorsys, npudiff.model\n" + decorated())
    assert selected(mask, str(path)) == ["swa_mask.mine"]
    assert "colorsys" in sys.stdlib_module_names


def test_a_neighbour_that_fails_to_import_is_named_as_the_files_failure(mask, kernel):
    kernel("1 / 0", "helper_that_fails.py")
    with pytest.raises(UsageError, match="fails to import: ZeroDivisionError: division by zero"):
        selected(mask, str(kernel("import helper_that_fails")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (decorated().replace("(inputs, target)", "(inputs)"), "mine: takes (inputs, target), got (inputs)"),
        (
            decorated().replace("(inputs, target)", "(inputs: int, target, stream) -> None"),
            "mine: takes (inputs, target), got (inputs, target, stream)",
        ),
        (
            decorated().replace("(inputs, target)", "(inputs, target, *, stream)"),
            "mine: takes (inputs, target), got (inputs, target, *, stream)",
        ),
        (
            decorated(more=", stateful=True"),
            "mine: stateful=True decorates what takes nothing and returns f(inputs, target), got (inputs, target)",
        ),
        (
            "import npudiff\nmine = npudiff.implementation('swa_mask', name='mine')(7)",
            "mine: takes (inputs, target), got int, which cannot be called",
        ),
    ],
)
def test_what_cannot_be_called_as_an_implementation_is_one_usage_error(mask, kernel, text, expected):
    path = kernel(text)
    with pytest.raises(UsageError) as caught:
        select_implementations(mask, [str(path)])
    assert str(caught.value) == f"--impl {path}: {expected}"


@pytest.mark.parametrize(
    "function",
    ["lambda inputs, target: 1", "lambda *given: 1", "lambda inputs, target, fast=True: 1", "max", "dict", "type"],
)
def test_what_can_be_called_or_has_no_signature_passes(mask, kernel, function):
    path = kernel(f"import npudiff\nmine = npudiff.implementation('swa_mask', name='mine')({function})")
    assert selected(mask, str(path)) == ["swa_mask.mine"]


@pytest.mark.parametrize("former", ["device.mutants.swa_mask", "device.ascend", "properties.swa_mask"])
@pytest.mark.parametrize("checkout", [True, False])
def test_a_module_under_its_name_before_the_packages_were_one_is_answered_with_the_new_one(
    mask, former, checkout, monkeypatch
):
    elsewhere = [entry for entry in sys.path if not Path(entry, "device", "ascend").is_dir()]
    root = str(Path(npudiff.properties.__file__).resolve().parent.parent)
    monkeypatch.setattr(sys, "path", [*elsewhere, *([root] if checkout else [])])
    with pytest.raises(UsageError) as caught:
        selected(mask, former)
    assert str(caught.value) == f"--impl {former}: this module is npudiff.{former} now"


def test_a_users_own_module_of_a_former_name_is_theirs(mask, module):
    module("device.__init__", "")
    module("device.swa_mask", decorated())
    assert selected(mask, "device.swa_mask") == ["swa_mask.mine"]
    with pytest.raises(UsageError, match=r"this module is npudiff\.device\.mutants now"):
        selected(mask, "device.mutants")


def test_a_file_is_executed_once_though_it_is_named_twice(mask, kernel, monkeypatch):
    path = kernel("import sys; sys.npudiff_runs = getattr(sys, 'npudiff_runs', 0) + 1\n" + decorated())
    monkeypatch.setattr(sys, "npudiff_runs", 0, raising=False)
    assert selected(mask, str(path), str(path)) == ["swa_mask.mine"]
    assert sys.npudiff_runs == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(:\n", "fails to import: SyntaxError: "),
        ("raise RuntimeError('no device')", "fails to import: RuntimeError: no device"),
        ("import no_such_module", "fails to import: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(0)", "fails to import: SystemExit"),
        ("x = 1", "no function in it is decorated with @npudiff.implementation"),
        (decorated("swa_musk"), "mine: unknown component 'swa_musk'; did you mean 'swa_mask'? known: "),
        (decorated("sliding_attention"), "implements sliding_attention, not swa_mask"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(mask, kernel, text, expected):
    path = kernel(text)
    with pytest.raises(UsageError) as caught:
        select_implementations(mask, [str(path)])
    assert str(caught.value).startswith(f"--impl {path}: {expected}")
    assert not [name for name in sys.modules if name.endswith("my_kernel")] or "fails" not in expected


def test_what_is_named_twice_is_there_once_and_namesakes_are_refused(mask, tmp_path):
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(decorated())
    one, other = str(tmp_path / "one.py"), str(tmp_path / "other.py")
    assert len(select_implementations(mask, [one, one, "eager", "npudiff.device.ascend.swa_mask"])) == 3
    with pytest.raises(UsageError, match=rf"--impl: swa_mask\.mine is in {one} and in {other}: rename one of them"):
        select_implementations(mask, [one, other])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (', supports={"heads": (1,)}', "implementation mine: unknown axis 'heads'; known: batch, capacity, "),
        (', supports={"lengths_dtype": ("int8",)}', "implementation mine: lengths_dtype is one of {int32, int64}, "),
        (', supports=[{"batch": (1,)}, {"window": (0,)}]', "implementation mine: window is one of 1..2147483647 or "),
    ],
)
def test_an_implementation_that_supports_what_there_is_not_is_named(mask, kernel, more, expected):
    with pytest.raises(UsageError) as caught:
        select_implementations(mask, [str(kernel(decorated(more=more)))])
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("egaer", "unknown implementation 'egaer'; did you mean 'eager'? known: eager, gathered and "),
        ("no.such.module", "unknown implementation 'no.such.module'; known: "),
        ("", "unknown implementation ''; known: "),
        ("nowhere/kernel.py", "--impl nowhere/kernel.py: no such file"),
        ("kernel.py", "--impl kernel.py: no such file"),
        ("sliding_attention.eager", "unknown implementation 'sliding_attention.eager'; known: "),
        ("fia_decode_mask", "--impl fia_decode_mask: implements sliding_attention, not swa_mask"),
        ("json", "--impl json: no function in it is decorated with @npudiff.implementation"),
    ],
)
def test_a_selector_that_names_nothing_is_refused(mask, selector, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        select_implementations(mask, [selector])
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("npudiff_test_broken", "raise RuntimeError('broken')"),
        ("npudiff_test_quits", "import sys; sys.exit(3)"),
        ("npudiff_test_package.inner", "raise RuntimeError('broken')"),
    ],
)
def test_a_module_that_fails_to_import_is_refused(mask, module, name, text):
    module(name, text)
    with pytest.raises(UsageError, match=f"--impl {name}: fails to import"):
        select_implementations(mask, [name])


def test_a_module_whose_package_fails_to_import_is_refused(mask, module):
    module("npudiff_test_bad.__init__", "raise RuntimeError('broken')")
    module("npudiff_test_bad.inner", "")
    with pytest.raises(UsageError, match=r"npudiff_test_bad\.inner.*broken"):
        select_implementations(mask, ["npudiff_test_bad.inner"])


def test_two_files_of_one_name_do_not_disturb_each_other(mask, kernel, tmp_path):
    (tmp_path / "other").mkdir()
    paths = [kernel(decorated(name="one")), kernel(decorated(name="two"), "other/my_kernel.py")]
    items = select_implementations(mask, [str(path) for path in paths])
    assert [item.name for item in items] == ["one", "two"]


def test_two_functions_of_one_name_in_a_file_are_refused_or_both_kept(mask, kernel):
    text = decorated() + decorated().replace("def kernel", "def another")
    try:
        items = select_implementations(mask, [str(kernel(text))])
    except UsageError as error:
        assert "mine" in str(error)  # noqa: PT017 - either answer is right, losing one is not
        return
    assert len(items) == 2


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (lambda: load_component("../../x"), "unknown component '../../x'; known: "),
        (lambda: load_target("gpu", None), "unknown target 'gpu'; known: npu, sim"),
        (lambda: load_target("sim", "7"), "unknown CANN profile '7'; known: 8.5, 9.0, 9.1, pessimistic"),
    ],
)
def test_unknown_names_are_refused_with_those_that_there_are(load, expected):
    with pytest.raises(UsageError) as caught:
        load()
    assert str(caught.value).startswith(expected)


def test_the_default_target_is_the_simulator_where_no_device_is_visible(monkeypatch):
    from npudiff.model.implementation import TargetUnavailable

    points = dict(discovery._entry_points("targets"))

    class Unavailable:
        def load(self):
            def npu(cann):
                raise TargetUnavailable("none here")

            return npu

    monkeypatch.setattr(discovery, "_entry_points", lambda group: {**points, "npu": Unavailable()})
    assert default_target("9.0").name == "sim"
    assert default_target("9.0").cann == "9.0"
    assert default_target(None).cann == "8.5"


def test_what_a_foreign_entry_point_gives_is_checked(monkeypatch):
    class Strange:
        name, module, attr = "strange", "math", "pi"

        def load(self):
            return lambda cann: "not a target"

    monkeypatch.setattr(discovery, "_entry_points", lambda group: {"strange": Strange()})
    discovery._component_modules.cache_clear()
    monkeypatch.setattr(discovery, "_component_modules", discovery._component_modules.__wrapped__)
    with pytest.raises(UsageError, match=r"'strange' of npudiff\.targets did not return a Target"):
        load_target("strange", None)
    with pytest.raises(UsageError, match=r"math has no Component called 'pi'"):
        load_component("strange")


def test_two_implementations_of_one_name_in_a_room_are_refused(module):
    kernels = {"one": decorated(name="first"), "two": decorated(name="second")}
    module("room.__init__", "")
    for name, text in kernels.items():
        module(f"room.{name}", text)
    with pytest.raises(ValueError, match="two implementations in room are named kernel"):
        implementations_below("room", importlib.import_module("room").__path__)


@pytest.mark.parametrize("name", ["my_kernels.py", "folder/kernels.py"])
def test_a_file_in_the_place_of_a_component_is_told_how_to_be_named(name):
    with pytest.raises(UsageError, match=f"{name} is a file: --impl {name} if it has implementations, --component"):
        load_component(name)
