"""Models whose sizes a run can be narrowed to, and what each component makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from npudiff.model.constraints import Box

PAGE_SIZE = 128
"""Tokens per page, as backends have it on Ascend."""

FEW = range(1, 9)
"""Tokens of a case: enough, where its width is that of a model."""


@dataclass(frozen=True)
class Model:
    """Sizes of a model, from its published configuration; see ``MODELS``."""

    hidden: int
    """Elements of a hidden state."""
    experts: int
    top_k: int
    width: int
    shared_width: int
    """Experts, how many of them a token has, gates of one, and of the shared expert; 0 for none."""
    scoring: str
    """What makes scores of router logits."""
    router_bias: bool
    """Whether a bias takes part in the choice."""
    scaling: float
    """Factor of the weights."""
    head_dim: str
    """Of keys, and of values if it differs; of latent and rope key where there is a latent."""
    kv_heads: tuple[int, ...]
    group: tuple[int, ...]
    """KV heads, and query heads for each, of the kinds of layers there are."""
    router_groups: int = 1
    kept_groups: int = 1
    """Groups of experts, and how many of them a token chooses from."""
    activation: str = "silu"
    """Of experts."""
    limit: float | None = None
    """Of the activation; layers without one exist beside it where it is not part of the activation."""
    window: int | None = None
    """Visible keys of layers that have a window, the query's own included."""
    sinks: bool = False
    """Whether heads have a learned sink."""
    latent: bool = False
    """Whether attention is MLA."""
    norm: str = "plain"
    """Kind of its norms."""
    epsilon: float | None = None
    """Of its norms, where it is known."""

    @property
    def limits(self) -> tuple[float | None, ...]:
        """Limits that layers have: some layers of a model with ``silu`` have none."""
        return (self.limit,) if self.activation == "swiglu_oai" or self.limit is None else (self.limit, None)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Windows of its layers; None for those that see everything."""
        return (None,) if self.window is None else (self.window, None)


MODELS: Mapping[str, Model] = {
    "step-3.5-flash": Model(
        4096, 288, 8, 1280, 1280, "sigmoid", True, 3.0, "128", (8,), (8, 12),
        limit=7.0, window=512, norm="gemma", epsilon=1e-5,
    ),
    "deepseek-v3": Model(
        7168, 256, 8, 2048, 2048, "sigmoid", True, 2.5, "512/64", (1,), (128,),
        router_groups=8, kept_groups=4, latent=True, epsilon=1e-6,
    ),
    "gpt-oss-120b": Model(
        2880, 128, 4, 2880, 0, "softmax", False, 1.0, "64", (8,), (8,),
        activation="swiglu_oai", limit=7.0, window=128, sinks=True, epsilon=1e-5,
    ),
    "qwen3-30b-a3b": Model(
        2048, 128, 8, 768, 0, "softmax", False, 1.0, "128", (4,), (8,), epsilon=1e-6,
    ),
    "mimo-v2-flash": Model(
        4096, 256, 8, 2048, 0, "sigmoid", True, 1.0, "192/128", (4, 8), (8, 16), window=128,
    ),
}  # fmt: skip
"""By the name that ``--profile`` takes. Limit and window of Step-3.5 and the window of MiMo are what backends take for
granted; a configuration may have others."""


def of_models(box: Callable[[Model], Box | None]) -> dict[str, Box]:
    """Return what a component is narrowed to for each model, but for those of which it has nothing to say."""
    boxes = {name: box(model) for name, model in MODELS.items()}
    return {name: chosen for name, chosen in boxes.items() if chosen is not None}
