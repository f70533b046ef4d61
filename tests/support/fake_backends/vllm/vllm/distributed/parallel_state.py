"""Groups of ranks, by name."""

_groups = {}
