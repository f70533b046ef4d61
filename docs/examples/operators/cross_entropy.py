"""Cross entropy of rows of logits with a target each; rows whose target is ignored have none."""

from dataclasses import dataclass

import torch

import npudiff
from npudiff.reference.inexact import Inexact, exp, log

IGNORED = -100


@dataclass(frozen=True)
class CrossEntropyInputs:
    logits: torch.Tensor
    """``[rows, classes]``, bfloat16, float16 or float32."""
    targets: torch.Tensor
    """int64 ``[rows]``: a class, or -100 for none."""


@dataclass(frozen=True)
class CrossEntropyCase(npudiff.Case):
    rows: int = npudiff.axis("rows", range(1, 2**12 + 1), drawn=(1, 2, 3, 17, 257))
    classes: int = npudiff.axis("classes", range(1, 2**14 + 1), 64, drawn=(2, 3, 64, 1000, 1))
    dtype: str = npudiff.axis("dtype", ("bfloat16", "float16", "float32"), "bfloat16")
    factor: int = npudiff.axis("logits are this much larger", range(1, 101), 1, drawn=(1, 1, 100))
    ignored: bool = npudiff.axis("whether some rows have no target", (False, True), False)
    seed: int = npudiff.seed()

    def inputs(self):
        logits = (self.normal("logits", self.rows, self.classes) * self.factor).to(getattr(torch, self.dtype))
        targets = torch.tensor(npudiff.Stream(self.seed, "targets").integers(0, self.classes, self.rows))
        if self.ignored:
            targets[1::2] = IGNORED
        return CrossEntropyInputs(logits, targets)


@npudiff.component(CrossEntropyCase, outputs=("loss",))
def cross_entropy(inputs):
    """Logarithm of the sum of exponentials less the logit of the target; 0 where there is none.

    Returns
    -------
    tensor
        ``loss``: float32 ``[rows]``.
    """
    x, there = Inexact.exact(inputs.logits), inputs.targets != IGNORED
    largest = x.largest(keepdim=True)
    sums = log(exp(x.minus(largest).in_float32()).sum())
    chosen = x.value.gather(1, inputs.targets.clamp(min=0)[:, None]).squeeze(1)
    lse = sums.plus(Inexact.exact(largest.value.squeeze(1))).in_float32()
    loss = lse.minus(Inexact.exact(chosen)).in_float32(2)
    return Inexact(loss.value * there, loss.error * there).expected(torch.float32)


@npudiff.implementation("cross_entropy")
def of_torch(inputs, target):
    """Torch's own, in float32."""
    return torch.nn.functional.cross_entropy(inputs.logits.float(), inputs.targets, reduction="none")


@npudiff.implementation("cross_entropy")
def by_logsumexp(inputs, target):
    """The logarithm of the sum less the logit of the target."""
    x = inputs.logits.float()
    chosen = x.gather(1, inputs.targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(inputs.targets == IGNORED, 0.0, torch.logsumexp(x, 1) - chosen)


@npudiff.mutant(
    of_torch, "rows without a target have that of class 0", supports={"ignored": (True,), "rows": range(2, 4097)}
)
def ignored_is_class_zero(inputs, target):
    return torch.nn.functional.cross_entropy(inputs.logits.float(), inputs.targets.clamp(min=0), reduction="none")


@npudiff.mutant(of_torch, "the logarithm of a softmax that has underflowed")
def log_of_softmax(inputs, target):
    x = torch.softmax(inputs.logits.float(), -1).log()
    chosen = x.gather(1, inputs.targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(inputs.targets == IGNORED, 0.0, -chosen)


@npudiff.mutant(of_torch, "the last class is not in the sum", supports={"classes": range(2, 16385)})
def last_class_left_out(inputs, target):
    x = inputs.logits.float()
    chosen = x.gather(1, inputs.targets.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(inputs.targets == IGNORED, 0.0, torch.logsumexp(x[:, :-1], 1) - chosen)
