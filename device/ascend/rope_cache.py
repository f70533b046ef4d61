"""Tables of cosines and sines as rope classes hold them, and the ways in which attention asks them.

sglang keeps ``[cos | sin]`` in the dtype of the model; its DeepSeek class keeps float32 buffers of repeated halves
besides; MLA reads the former and repeats the halves itself. Models without a table compute rows from positions.
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.rope_frequencies import inverse_frequencies, mscale, softmax_scale
from npudiff.reference.rope_cache import RopeCacheInputs
from npudiff.reference.rope_scaling import RopeConfig

Outputs = dict[str, torch.Tensor]


class Rope:
    """One rope instance: buffers of cosines and sines, built for some rows and appended to when there are too few.

    Parameters
    ----------
    config : RopeConfig
        The rope.
    rows : int
        Rows to build.
    first_row : int
        Row where the buffers begin; none before it is asked for.
    dtype : torch.dtype
        Dtype of the table.
    device : str
        Where the buffers are.
    """

    def __init__(self, config: RopeConfig, rows: int, first_row: int, dtype: torch.dtype, device: str) -> None:
        self.config, self.first_row, self.dtype, self.device = config, first_row, dtype, device
        self.rows = rows
        self.inv_freq = inverse_frequencies(config, device)
        self.buffers = self.build(min(first_row, rows), rows)

    def build(self, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Compute the buffers of rows ``start`` to ``stop``."""
        return (self.table(self.angles(start, stop)),)

    def table(self, angles: torch.Tensor) -> torch.Tensor:
        """Cosines, then sines, of each row."""
        return (torch.cat([angles.cos(), angles.sin()], dim=-1) * mscale(self.config)).to(self.dtype)

    def angles(self, start: int, stop: int) -> torch.Tensor:
        """Positions of rows times frequencies, float32 ``[rows, width / 2]``."""
        return torch.outer(self.positions(start, stop), self.inv_freq)

    def positions(self, start: int, stop: int) -> torch.Tensor:
        """Positions of rows; linear scaling divides them, and with several factors lays out one section per factor."""
        if self.config.kind != "linear":
            return self.count(start, stop)
        if len(self.config.factors) == 1:
            return self.count(start, stop) / self.config.factor
        sections = [self.count(0, int(self.config.max_positions * factor)) / factor for factor in self.config.factors]
        return torch.cat(sections)[start:stop]

    def count(self, start: int, stop: int) -> torch.Tensor:
        """Integers as float32."""
        return torch.arange(start, stop, dtype=torch.float32, device=self.device)

    def ensure(self, rows: int) -> None:
        """Append rows until there are so many."""
        if rows <= self.rows:
            return
        new = self.build(max(self.rows, self.first_row), rows)
        self.buffers = tuple(torch.cat([old, more]) for old, more in zip(self.buffers, new, strict=True))
        self.rows = rows

    def read(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The asked rows of every buffer."""
        return tuple(buffer[rows - self.first_row] for buffer in self.buffers)


class RepeatedHalves(Rope):
    """Buffers of cosines and of sines in float32, over the whole width, as the DeepSeek class registers them."""

    def build(self, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Compute the rows of both buffers."""
        angles = self.angles(start, stop)
        whole = torch.cat([angles, angles], dim=-1)
        factor = mscale(self.config)
        return whole.cos() * factor, whole.sin() * factor


def rope_of(inputs: RopeCacheInputs, kind: type[Rope], device: str) -> Rope:
    """Build the ropes of all layers of the model, remembered by their parameters, and return that of this layer."""
    built: dict[RopeConfig, Rope] = {}
    for config in (inputs.config, inputs.other):
        if config is not None and config not in built:
            built[config] = kind(config, inputs.lengths[0], inputs.first_row, inputs.dtype, device)
    rope = built[inputs.config]
    for length in inputs.lengths[1:]:
        rope.ensure(length)
    return rope


def scale_of(config: RopeConfig) -> torch.Tensor:
    """The softmax scale, a number on the host, as a tensor."""
    return torch.tensor([softmax_scale(config)], dtype=torch.float32)


def read_table(inputs: RopeCacheInputs, device: str, kind: type[Rope] = Rope) -> torch.Tensor:
    """Rows of the table at positions plus offsets."""
    on_device = inputs.to(device)
    rows = on_device.positions if on_device.offsets is None else on_device.positions + on_device.offsets
    return rope_of(on_device, kind, device).read(rows)[0]


def read_halves(inputs: RopeCacheInputs, device: str, kind: type[Rope] = RepeatedHalves) -> Outputs:
    """Rows of both buffers at positions plus offsets, cast, as four-dimensional tensors."""
    on_device = inputs.to(device)
    rows = on_device.positions if on_device.offsets is None else on_device.positions + on_device.offsets
    cosine, sine = rope_of(on_device, kind, device).read(rows)
    return {
        "cos": cosine.to(inputs.dtype)[:, None, None, :],
        "sin": sine.to(inputs.dtype)[:, None, None, :],
        "softmax_scale": scale_of(inputs.config),
    }


@implementation("rope_cache", graph=True)
def rope_table(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Rows of the plain table, [cos | sin] in the dtype of the model, as npu_mrope reads it."""
    return {"table": read_table(inputs, target.device)}


@implementation("rope_cache", graph=True)
def get_cos_sin_cache(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Rows of float32 buffers with repeated halves, cast to the dtype that is asked for (sglang's DeepSeek class)."""
    return read_halves(inputs, target.device)


@implementation("rope_cache", graph=True)
def get_sin_cos(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Rows of the plain table, split into cosines and sines, each repeated (sglang's MLA preprocessing)."""
    cosine, sine = read_table(inputs, target.device).chunk(2, dim=-1)
    return spread(cosine, sine, inputs.config)


def spread(cosine: torch.Tensor, sine: torch.Tensor, config: RopeConfig) -> Outputs:
    """Repeat the halves of ``[tokens, width / 2]``."""
    wide = {name: half.repeat(1, 2)[:, None, None, :] for name, half in (("cos", cosine), ("sin", sine))}
    return {**wide, "softmax_scale": scale_of(config)}


@implementation("rope_cache", on_device=True, graph=True)
def from_positions(inputs: RopeCacheInputs, target: Target) -> Outputs:
    """Computed from positions at every call, without a table, as models of transformers do."""
    config = inputs.config
    position = (inputs.positions if inputs.offsets is None else inputs.positions + inputs.offsets).float()
    frequencies = inverse_frequencies(config, target.device)
    if len(config.factors) > 1:
        ends = torch.tensor(config.sections, device=target.device).cumsum(0)
        section = (position.unsqueeze(1) >= ends).sum(dim=1)
        starts = torch.nn.functional.pad(ends, (1, 0))
        factor = torch.tensor(config.factors, dtype=torch.float32, device=target.device)
        angles = (position - starts[section]).unsqueeze(1) * (frequencies / factor[section].unsqueeze(1))
    else:
        divided = frequencies / config.factor if config.kind == "linear" else frequencies
        angles = position.unsqueeze(1) * divided
    whole = torch.cat([angles, angles], dim=-1)
    cosine, sine = (part * mscale(config) for part in (whole.cos(), whole.sin()))
    return {
        "cos": cosine.to(inputs.dtype)[:, None, None, :],
        "sin": sine.to(inputs.dtype)[:, None, None, :],
        "softmax_scale": scale_of(config),
    }
