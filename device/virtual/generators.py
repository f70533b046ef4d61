"""Random numbers: a device generator's seed and offset choose those of a CPU generator.

So ``torch.npu.manual_seed`` and a generator's state mean what they mean on a device: equal states give equal numbers,
and every draw moves the offset on. The numbers are those of the CPU, not those of a device.

A kernel that is captured draws when its graph is replayed: from the state that the generator has then, and as far from
it as the draw was from the beginning of the capture.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from npudiff.device.virtual import devices, tasks

_STEP = 4
"""Offsets of a device generator come in fours: its numbers do."""

_MIXER = 0x9E3779B97F4A7C15
_STATE = struct.Struct("=qq")
"""A generator's state: seed and offset; within a capture, the offset from the capture's beginning."""

_source: ContextVar[Callable[[torch.Generator], torch.Generator] | None] = ContextVar("source", default=None)


def host_generator(generator: torch.Generator) -> torch.Generator:
    """Return a CPU generator for the next draw of a device generator, which moves on."""
    if generator.device.type == "cpu":
        return generator
    source = _source.get()
    return source(generator) if source is not None else _seeded(*_moved_on(generator))


def with_host_generator(function: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
    """Return a function that draws from the CPU generators of device generators, by default of the device's own."""
    if "generator" in arguments:
        place = arguments.index("generator")

        def drawn(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
            if place < len(args):
                args = (*args[:place], host_generator(args[place] or _own()), *args[place + 1 :])
            else:
                kwargs["generator"] = host_generator(kwargs.get("generator") or _own())
            return function(*args, **kwargs)

        return drawn

    def borrowed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an operator's
        """Some operators take no generator: the CPU's own is given another state for the time of the call."""
        state = torch.default_generator.get_state()
        torch.default_generator.set_state(host_generator(_own()).get_state())
        try:
            return function(*args, **kwargs)
        finally:
            torch.default_generator.set_state(state)

    return borrowed


@contextlib.contextmanager
def noted() -> Iterator[list[torch.Generator]]:
    """Note which device generators are drawn from in a block, and leave them where they are."""
    asked: list[torch.Generator] = []

    def source(generator: torch.Generator) -> torch.Generator:
        asked.append(generator)
        return torch.Generator()

    token = _source.set(source)
    try:
        yield asked
    finally:
        _source.reset(token)


@contextlib.contextmanager
def repeated(draws: Iterable[Draw]) -> Iterator[None]:
    """Draw in a block what was to be drawn when its kernel was launched."""
    left = iter(draws)
    token = _source.set(lambda _: next(left).host())
    try:
        yield
    finally:
        _source.reset(token)


class Draw:
    """A draw of a kernel that runs later; the generator moves on when the kernel is launched."""

    def __init__(self, generator: torch.Generator) -> None:
        graph = tasks.capturing()
        self._graph = None if graph is None else _in_graph(graph, generator)
        self._seed, self._offset = _moved_on(generator)

    def host(self) -> torch.Generator:
        """Return the CPU generator to draw from."""
        if self._graph is None:
            return _seeded(self._seed, self._offset)
        return _seeded(self._graph.seed, self._graph.offset + self._offset)


class _InGraph:
    """A generator of a graph: its seed, and its offset at the beginning of the last replay."""

    def __init__(self, graph: tasks.Graph, generator: torch.Generator) -> None:
        self.graph, self.generator = graph, generator  # the graph lives as long as its draws
        self.seed = self.offset = self._drawn = 0

    def end(self) -> None:
        """Note how far the generator moves in each replay: torch_npu moves it before the replay."""
        _, self._drawn = _STATE.unpack(bytes(self.generator.get_state()))

    def start(self) -> None:
        """Take the state of the generator for a replay, when its turn comes on the stream."""
        state = self.generator.initial_seed(), self.generator.get_offset() - self._drawn
        if tasks.recording():
            tasks.launch("npudiff::generator", lambda: self._begin(state))
        else:
            self._begin(state)

    def _begin(self, state: tuple[int, int]) -> None:
        self.seed, self.offset = state


def _in_graph(graph: tasks.Graph, generator: torch.Generator) -> _InGraph:
    """Return what a graph knows of a generator."""
    for told in graph.ends:
        known: _InGraph = told.__self__  # type: ignore[attr-defined]
        if known.generator is generator:
            return known
    made = _InGraph(graph, generator)
    graph.ends.append(made.end)
    graph.starts.append(made.start)
    return made


def _moved_on(generator: torch.Generator) -> tuple[int, int]:
    """Return seed and offset of a generator, which then moves on."""
    if not tasks.recording():
        offset = generator.get_offset()
        generator.set_offset(offset + _STEP)
        return generator.initial_seed(), offset
    # Within a capture only states may be asked for; torch_npu lets the graph know the generator then.
    seed, offset = _STATE.unpack(bytes(generator.get_state()))
    generator.set_state(torch.frombuffer(bytearray(_STATE.pack(seed, offset + _STEP)), dtype=torch.uint8))
    return seed, offset


def _seeded(seed: int, offset: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + offset * _MIXER) % 2**63)


def _own() -> torch.Generator:
    generator: torch.Generator = torch.get_device_module("npu").default_generators[devices.current()]
    return generator
