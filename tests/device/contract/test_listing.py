"""Reading listings: wheels, unpacked wheels, packages, and what is none of these."""

from __future__ import annotations

import zipfile

import pytest

from npudiff.device.contract.listing import LISTING, ListingError, listed_schemas, read_file, read_listing, registered

TEXT = """\
backend: NPU
autograd:
- func: npu_swiglu(Tensor self, int dim=-1) -> Tensor
  impl_ns: op_api
custom:
- device_check: NoCheck
  func: npu_swiglu(Tensor self, int dim=-1) -> Tensor
- func: 'npu_x.out(Tensor x, *, Tensor[] out) -> (Tensor, Tensor)'
  structured_inherit: x.out
supported:
- func: clone
  op_api: true
"""
SCHEMAS = {
    "npu_swiglu": "npu_swiglu(Tensor input, int dim=-1) -> Tensor",
    "npu_x.out": "npu_x.out(Tensor x, *, Tensor[] out) -> (Tensor, Tensor)",
}
VERSION = "__version__ = '2.9.0.post4'\ngit_version = '1'\n"


@pytest.fixture
def package(tmp_path):
    """An unpacked wheel; returns a function of its listing."""

    def write(text=TEXT, version=VERSION):
        folder = tmp_path / "unpacked" / "torch_npu"
        (folder / LISTING).parent.mkdir(parents=True, exist_ok=True)
        (folder / LISTING).write_text(text)
        (folder / "version.py").write_text(version)
        return folder.parent

    return write


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return path


def test_schemas_are_read_once_each_as_they_are_registered():
    assert listed_schemas(TEXT.splitlines()) == SCHEMAS


@pytest.mark.parametrize("way", ["wheel", "unpacked", "package"])
def test_a_wheel_a_folder_and_a_package_say_the_same(package, tmp_path, way):
    folder = package()
    paths = {"unpacked": folder, "package": folder / "torch_npu", "wheel": tmp_path / "a.whl"}
    zipped(folder, paths["wheel"])
    listing = read_listing(paths[way])
    assert (listing.version, listing.source, listing.schemas) == ("2.9.0.post4", paths[way].name, SCHEMAS)
    assert read_file(paths[way], "version.py").decode() == VERSION


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("f(Tensor self, int b) -> Tensor", "f(Tensor input, int b) -> Tensor"),
        ("f_(Tensor(a!) self) -> Tensor(a!)", "f_(Tensor(a!) input) -> Tensor(a!)"),
        ("f(Tensor x, str myself='self') -> Tensor", "f(Tensor x, str myself='self') -> Tensor"),
        (
            "f.out(Tensor q, *, Tensor(a!) attention_out, Tensor(b!) softmax_lse) -> (Tensor(a!), Tensor(b!))",
            "f.out(Tensor q, *, Tensor[] out) -> (Tensor, Tensor)",
        ),
    ],
)
def test_the_listings_way_of_writing_becomes_the_librarys(listed, expected):
    assert registered(listed) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- func: npu_x(Tensor x,\n    int y) -> Tensor\n", "an entry that is no schema: npu_x\\(Tensor x,"),
        ("- func: f(int a) -> int\n- func: f(int b) -> int\n", "two schemas of f"),
        ("custom:\n", "lists no function"),
    ],
)
def test_a_listing_that_cannot_be_read_is_an_error_with_its_place(package, text, message):
    with pytest.raises(ListingError, match=f"unpacked: .*{message}"):
        read_listing(package(text))


def test_a_package_without_a_version_or_a_listing_is_an_error(package, tmp_path):
    with pytest.raises(ListingError, match=r"version\.py does not say"):
        read_listing(package(version="pass"))
    with pytest.raises(ListingError, match=f"no torch_npu with a file {LISTING}"):
        read_listing(tmp_path)
    with pytest.raises(ListingError, match=f"no torch_npu with a file {LISTING}"):
        read_listing(zipped(tmp_path / "nothing", tmp_path / "empty.whl"))


def test_what_is_no_wheel_is_an_error(tmp_path):
    with pytest.raises(ListingError, match=r"gone\.whl: no such file or folder"):
        read_listing(tmp_path / "gone.whl")
    (tmp_path / "text.whl").write_text("text")
    with pytest.raises(ListingError, match=r"text.whl: neither a wheel nor a folder"):
        read_listing(tmp_path / "text.whl")
