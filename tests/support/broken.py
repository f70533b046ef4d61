from __future__ import annotations

from npudiff import implementation
from npudiff.model.component import Subject
from npudiff.model.job import Budget, Job, Verdict
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job


def verdict(component, relation, device, supports=None, examples=60) -> Verdict:
    """Return what one relation of a component says of a device, a function of inputs and target."""
    (prop,) = (one for one in component.relations if one.name == relation)
    item = implementation(component.name, name="device", supports=supports)(device)
    job = Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)
    return run_job(job, Budget(examples=examples, seed=1, shrink=False)).verdict
