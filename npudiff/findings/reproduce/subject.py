"""A subject whose implementation is watched: a check of a property with it writes down all that it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from npudiff.findings.reproduce.recorder import Recorder, Watching
from npudiff.model.component import Answer, ExpectedOutput, Subject


@dataclass(frozen=True)
class WatchedSubject(Subject):
    """A subject whose calls are written down."""

    recorder: Recorder
    """Writes; it must be entered."""
    expectations: list[Mapping[str, ExpectedOutput]]
    """What the reference said, each time that it was asked."""

    def call_guarded(self, question: Callable[[], Answer], *given: object) -> Answer:
        """Write down what the question calls; what surrounds it is ours."""

        def watched() -> Answer:
            self.recorder.returned = False
            self.recorder.variables.given(given[0] if len(given) == 1 else list(given))
            self.recorder.tape.note("run")
            with self.recorder.at(Watching.EVERYTHING):
                answer = question()
            self.recorder.returned = True
            return answer

        with self.recorder.at(Watching.NOTHING):
            return super().call_guarded(watched, *given)

    def _outputs(self, inputs: Any) -> Mapping[str, torch.Tensor]:  # noqa: ANN401 - the component's own contract
        outputs = super()._outputs(inputs)
        for name, tensor in outputs.items():
            self.recorder.fetched(name, tensor)
        return outputs

    def fresh(self) -> Subject:
        """What an implementation makes to keep between calls is made by calls too."""
        with self.recorder.at(Watching.EVERYTHING):
            return super().fresh()

    def expected(self, inputs: Any) -> Mapping[str, ExpectedOutput]:  # noqa: ANN401 - the component's own contract
        """Write down nothing of the reference: its values are stored."""
        with self.recorder.at(Watching.NOTHING):
            expected = super().expected(inputs)
        self.expectations.append(expected)
        return expected
