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
from npudiff.run.discovery import (
    built_in_implementations,
    component_names,
    default_target,
    implementations_below,
    implementations_in,
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
        "mask_of_65535_programs")}  # fmt: skip


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


def test_implementations_that_a_file_imports_count_as_its_own(mask, kernel):
    assert selected(mask, str(kernel("from npudiff.device.ascend.swa_mask import swa_mask_eager"))) == [
        "swa_mask.eager"
    ]


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
        (decorated("swa_musk"), "mine: unknown component 'swa_musk'; known: "),
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
        ("egaer", "unknown implementation 'egaer'; known: eager and "),
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
        (lambda: load_target("sim", "7"), "unknown CANN profile '7'; known: 8.5, 9.0, pessimistic"),
    ],
)
def test_unknown_names_are_refused_with_those_that_there_are(load, expected):
    with pytest.raises(UsageError) as caught:
        load()
    assert str(caught.value).startswith(expected)


def test_the_default_target_is_the_simulator_where_no_device_is_visible(monkeypatch):
    from npudiff.model.target import TargetUnavailable

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
