"""Proves of each kernel that its mistake is seen on inputs by hand, and that without it the kernel is right there.

``python demo.py`` runs itself twice, with the mistakes and with TWIN=1, and compares with the references. Twins are also
run on the inputs of all other kernels of their component, and must be right there.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run():
    """Error over bound of every kernel on its own inputs, and the largest one on all inputs of its component."""
    sys.path.insert(0, str(HERE))
    import torch

    torch.set_num_threads(1)
    import demo_cases
    import demo_layer
    import demo_pools

    from npudiff.judge.compare import compare
    from npudiff.run.discovery import implementations_in, load_component, load_target

    target = load_target("sim", None)
    results = {}

    def worst(component, kernel, calls):
        kernel = kernel.fresh()
        ratios = []
        for inputs in calls:
            with target.activate():
                outputs = kernel(inputs, target)
            ratios.append(compare(component.reference(inputs), outputs).worst)
        return ratios

    cases = {**demo_cases.CASES, **demo_layer.CASES}
    for name, inputs in cases.items():
        component = load_component(name)
        for kernel in implementations_in(importlib.import_module(name)):
            ratios = worst(component, kernel, inputs[kernel.name])
            others = [max(worst(component, kernel, calls)) for calls in inputs.values()]
            results[kernel.name] = {
                "last": ratios[-1], "before": max(ratios[:-1], default=0.0), "all": max(others),
                "wrong_in": sum(ratio > 1 for ratio in others), "of": len(others),
            }  # fmt: skip
    results.update(demo_pools.results(target))
    print(json.dumps(results))


def main():
    """Compare both runs with what has to be."""
    found = []
    for twin in ("0", "1"):
        environment = {**os.environ, "TWIN": twin, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__, "--run"], env=environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr)
            return 1
        found.append(json.loads(done.stdout.splitlines()[-1].replace("Infinity", "1e999")))
    wrong, right = found
    listed = [entry["name"] for entry in json.loads((HERE / "manifest.json").read_text())]
    failed = set(wrong) ^ set(listed)
    for name in sorted(wrong):
        one, other = wrong[name], right[name]
        proved = one["last"] > 1 and other["last"] <= 1 and other["all"] <= 1 and one["before"] <= 1
        if not proved:
            failed.add(name)
        print(
            f"{'proved' if proved else 'NOT PROVED':10}  {name:60} wrong {one['last']:10.3g}  right {other['all']:6.3f}"
            f"  wrong in {one['wrong_in']} of {one['of']} inputs here"
        )
    print(f"{len(wrong) - len(failed & set(wrong))} of {len(listed)} proved")
    for name in sorted(set(listed) ^ set(wrong)):
        print("listed or run, not both:", name)
    return 1 if failed else 0


if __name__ == "__main__":
    if "--run" in sys.argv:
        run()
    else:
        sys.exit(main())
