"""Proves of each kernel that its mistake is seen on inputs by hand, and that without it the kernel is right on all of them.

``python demo.py`` runs itself twice, with the mistakes and with TWIN=1, on the simulator's ranks, and compares with the
references. Names of components as arguments are run alone.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def takes(kernel, inputs):
    """Whether a kernel is for the mode or stage of some inputs."""
    boxes = kernel.constraints.boxes
    return any(all(getattr(inputs, name) in values for name, values in box.items()) for box in boxes)


def run(names):
    """Error over bound of each kernel on inputs of its own, and on all that it takes."""
    import torch

    torch.set_num_threads(1)
    import demo_cases

    from npudiff.judge.compare import compare
    from npudiff.model.component import Subject
    from npudiff.run.discovery import implementations_in, load_component, load_target

    target = load_target("sim", None)
    results = {}
    for name in names or demo_cases.CASES:
        component = load_component(name)
        cases = {label: make() for label, make in demo_cases.CASES[name].items()}
        expected = {label: component.reference(inputs) for label, inputs in cases.items()}
        for kernel in implementations_in(importlib.import_module(name)):
            number, found = int(kernel.name.removeprefix(f"r_{name}_")[:2]), {}
            subject = Subject(component, kernel.fresh(), target)
            for label, inputs in cases.items():
                if takes(kernel, inputs):
                    with target.activate():  # twice, since one kernel keeps something for the next call
                        found[label] = max(compare(expected[label], subject.run(inputs)).worst for _ in range(2))
            results[kernel.name] = {"own": found[number], "all": max(found.values()), "of": len(found),
                                    "wrong_in": [str(label) for label, worst in found.items() if not worst <= 1]}  # fmt: skip
    target.on_ranks.close()
    print(json.dumps(results))


def main(names):
    """Compare both runs with what has to be."""
    found = []
    for twin in ("", "1"):
        environment = {**os.environ, "TWIN": twin, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--run", *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr)
            return 1
        found.append(json.loads(done.stdout.splitlines()[-1].replace("Infinity", "1e999").replace("NaN", "1e999")))
    wrong, right = found
    listed = {entry["name"] for entry in json.loads((HERE / "manifest.json").read_text())
              if not names or entry["component"] in names}  # fmt: skip
    failed = set(wrong) ^ listed
    for name in sorted(wrong):
        one, other = wrong[name], right[name]
        proved = one["own"] > 1 and not other["wrong_in"]
        if not proved:
            failed.add(name)
        print(f"{'proved' if proved else 'NOT PROVED':10}  {name:64} wrong {one['own']:10.3g}  twin {other['all']:6.3f}"
              f"  wrong in {len(one['wrong_in'])} of {one['of']}: {', '.join(one['wrong_in'])}")  # fmt: skip
    print(f"{len(set(wrong) - failed)} of {len(listed)} proved", *sorted(set(wrong) ^ listed))
    return 1 if failed else 0


if __name__ == "__main__":
    if "--run" in sys.argv:
        run([name for name in sys.argv[1:] if name != "--run"])
    else:
        sys.exit(main(sys.argv[1:]))
