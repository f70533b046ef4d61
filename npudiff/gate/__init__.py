"""The gate of a backend's CI: what must hold, what is known not to, and how it is told."""
