"""Proves of each kernel that its mistake is seen on inputs by hand, and that without it the kernel is right on all of them.

``python demo.py`` runs itself twice, with the mistakes and with TWIN=1, and compares with the references.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run():
    """Error over bound of each kernel on its own inputs, and the largest one on all inputs of its component."""
    sys.path.insert(0, str(HERE))
    import torch

    torch.set_num_threads(1)
    import demo_attention
    import demo_states

    from npudiff.judge.compare import compare
    from npudiff.run.discovery import implementations_in, load_component, load_target

    target = load_target("sim", None)
    results = {}
    for name, cases in demo_attention.CASES.items():
        component = load_component(name)

        def worst(kernel, calls, component=component):
            kernel, found = kernel.fresh(), []
            for inputs in calls:
                with target.activate():
                    outputs = kernel(inputs, target)
                outputs = {"output": outputs} if isinstance(outputs, torch.Tensor) else outputs
                found.append(compare(component.reference(inputs), outputs).worst)
            return found

        for kernel in implementations_in(importlib.import_module(name)):
            own = worst(kernel, cases[kernel.name])
            everything = [max(worst(kernel, calls)) for calls in cases.values()]
            results[kernel.name] = {"last": own[-1], "before": max(own[:-1], default=0.0), "all": max(everything),
                                    "wrong_in": sum(one > 1 for one in everything), "of": len(everything)}  # fmt: skip
    results.update(demo_states.results(target))
    print(json.dumps(results))


def main():
    """Compare both runs with what has to be."""
    found = []
    for twin in ("", "1"):
        environment = {**os.environ, "TWIN": twin, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__, "--run"], env=environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr)
            return 1
        found.append(json.loads(done.stdout.splitlines()[-1].replace("Infinity", "1e999").replace("NaN", "1e999")))
    wrong, right = found
    listed = {entry["name"] for entry in json.loads((HERE / "manifest.json").read_text())}
    failed = set(wrong) ^ listed
    for name in sorted(wrong):
        one, other = wrong[name], right[name]
        proved = one["last"] > 1 and one["before"] <= 1 and other["all"] <= 1
        if not proved:
            failed.add(name)
        print(f"{'proved' if proved else 'NOT PROVED':10}  {name:44} wrong {one['last']:10.3g}  right {other['all']:6.3f}"
              f"  wrong in {one['wrong_in']} of {one['of']} inputs here")  # fmt: skip
    print(f"{len(set(wrong) - failed)} of {len(listed)} proved", *sorted(set(wrong) ^ listed))
    return 1 if failed else 0


if __name__ == "__main__":
    if "--run" in sys.argv:
        run()
    else:
        sys.exit(main())
