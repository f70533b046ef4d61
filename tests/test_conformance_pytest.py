"""The plugin for checkouts of others: which skips it undoes, and which programs it finds in a document."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks.conformance import PLUGIN
from benchmarks.conformance_pytest import Block, programs

TESTS = """
import unittest
from functools import wraps

import pytest

def on_a_chip(test):
    @wraps(test)
    def checked(self):
        raise unittest.SkipTest("another chip")
    return checked

class TestIt(unittest.TestCase):
    @unittest.skip("not now")
    def test_parked(self): pass

    @on_a_chip
    @unittest.skip("not now")
    def test_parked_for_another_chip(self): pass

    @unittest.skipIf(True, "too old")
    def test_too_old(self): pass

    def test_enabled(self): pass

@unittest.skip("not now")
class TestAll(unittest.TestCase):
    def test_of_a_class(self): assert False

@pytest.mark.skip(reason="not now")
def test_marked(): pass
"""

DOCUMENT = """
# torch_npu.npu_of_the_year_3000

```python
torch_npu.npu_of_the_year_3000(Tensor x, float limit=0.0) -> Tensor
```

1. A block that is indented, and answers

    ```Python
    import torch_npu
    print(1)
    # 执行上述代码的输出类似如下
    tensor([[1., ..., 1.]])
    ```

2. A session, with an answer, and a line that lacks its prompt

```python
>>> x = [1,
         2]  # npu
>>> for one in x:
...     print(one)
...
1
2
tensor([[1],
        ...,
        [2]])
>>> y = x
```

```python
print("nothing of the device")
```

```bash
npu-smi info
```
"""


def _ran(folder, *names):
    options = ("-q", "-rA", "-p", "no:npudiff", "-p", "no:cacheprovider", "-p", PLUGIN.stem)
    command = [sys.executable, "-m", "pytest", *options, *names]
    path = {"PYTHONPATH": str(PLUGIN.parent)}
    done = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, check=False)
    said = re.findall(r"^(PASSED|FAILED) [^:\n]*::(.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return {name: outcome for outcome, name in said}, done.stdout


@pytest.mark.slow
def test_parked_tests_run_and_no_others(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    results, told = _ran(tmp_path, "--parked", "test_it.py")
    assert results == {"TestIt::test_parked": "PASSED", "TestAll::test_of_a_class": "FAILED", "test_marked": "PASSED"}
    assert "1 skipped, 2 deselected" in told, "what another chip is needed for is still skipped"


def test_without_it_skips_are_skips(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    assert _ran(tmp_path, "test_it.py")[0] == {"TestIt::test_enabled": "PASSED"}


def test_programs_of_a_document_are_what_was_typed():
    assert list(programs(DOCUMENT)) == [
        Block("block 2", 11, "import torch_npu\nprint(1)\n\n"),
        Block("block 3", 20, "x = [1,\n         2]  # npu\nfor one in x:\n    print(one)\n\ny = x\n"),
    ]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("model = torch.compile(model, backend=npu_backend)", "a graph compiler"),
        ("torch.distributed.init_process_group(backend='hccl')", "several cards"),
        ("x.to(torch.float8_e4m3fn).npu()", "MX or fp8"),
        ("torch_npu.npu_swiglu(x)", None),
    ],
)
def test_what_is_out_of_scope_is_named(source, why):
    assert Block("block 1", 1, source).out_of_scope == why


def test_a_program_is_main_and_fails_where_it_ends_with_a_status(tmp_path):
    good = "# npu\nimport unittest\nclass T(unittest.TestCase):\n    def test(self): pass\nunittest.main()\n"
    texts = good, good.replace("pass", "assert False"), "raise ValueError('npu')\n", "import torchair  # npu\n"
    (tmp_path / "a.md").write_text("".join(f"```python\n{text}```\n" for text in texts))
    results, told = _ran(tmp_path, "a.md")
    assert results == {"block 1": "PASSED", "block 2": "FAILED", "block 3": "FAILED"}
    assert "a.md:16: ValueError" in told
    assert "1 skipped" in told


@pytest.mark.slow
def test_files_are_run_in_forks_with_packages_that_stand_in(tmp_path):
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no library')\n")
    (package / "part.py").write_text("VALUE = 3\n")
    (tmp_path / "test_good.py").write_text(
        "from theirs.part import VALUE\nimport built\ndef test(): assert (VALUE, built.KIND) == (3, 'theirs')\n"
    )
    (tmp_path / "builder.py").write_text(
        "import sys, types\n\ndef build(folder):\n    sys.path.insert(0, str(folder))\n"
        "    sys.modules['built'] = types.SimpleNamespace(KIND=folder.name)\n"
    )
    (tmp_path / "test_ends.py").write_text("import os\ndef test(): os._exit(5)\n")
    (tmp_path / "test_long.py").write_text("import time\ndef test(): pass\ndef test_long(): time.sleep(60)\n")
    options = ["-p", "no:npudiff", "-p", "no:cacheprovider"]
    lines = [
        json.dumps([[*options, "--junitxml=long.xml", name], f"{name}.log", seconds])
        for name, seconds in (("test_good.py", 60), ("test_ends.py", 60), ("test_long.py", 3), ("test_good.py", 60))
    ]
    command = [sys.executable, str(PLUGIN), "json", "theirs=theirs", "builder:build=theirs"]
    done = subprocess.run(
        command, cwd=tmp_path, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split() == ["0", "5", "null", "0"], done.stderr
    assert "1 passed" in (tmp_path / "test_good.py.log").read_text()
    assert "KeyboardInterrupt" in (tmp_path / "test_long.py.log").read_text()
