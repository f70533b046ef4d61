"""Random numbers: a device generator's seed and offset choose those of a CPU generator.

So ``torch.npu.manual_seed`` and a generator's state mean what they mean on a device: equal states give equal numbers,
and every draw moves the offset on. The numbers are those of the CPU, not those of a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_STEP = 4
"""Offsets of a device generator come in fours: its numbers do."""

_MIXER = 0x9E3779B97F4A7C15


def host_generator(generator: torch.Generator) -> torch.Generator:
    """Return a CPU generator for the next draw of a device generator, which moves on."""
    if generator.device.type == "cpu":
        return generator
    offset = generator.get_offset()
    generator.set_offset(offset + _STEP)
    seed = (generator.initial_seed() + offset * _MIXER) % 2**63
    return torch.Generator().manual_seed(seed)


def with_host_generator(function: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
    """Return a function that draws from the device's default generator where it is given none."""
    if "generator" in arguments:
        place = arguments.index("generator")

        def drawn(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
            if place < len(args):
                if args[place] is None:
                    args = (*args[:place], _next(), *args[place + 1 :])
            elif kwargs.get("generator") is None:
                kwargs["generator"] = _next()
            return function(*args, **kwargs)

        return drawn

    def borrowed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
        """Some operators take no generator: the CPU's own is given another state for the time of the call."""
        state = torch.default_generator.get_state()
        torch.default_generator.set_state(_next().get_state())
        try:
            return function(*args, **kwargs)
        finally:
            torch.default_generator.set_state(state)

    return borrowed


def _next() -> torch.Generator:
    return host_generator(torch.get_device_module("npu").default_generators[0])
