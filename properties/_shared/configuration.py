"""The configuration of a model, as Hugging Face publishes it (``config.json``), read for its sizes.

Names of fields are those of the configurations of 2024 to 2026. What one does not say, and what no component has, is
left out: a component then says that the model is nothing for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

GEMMA_NORMS = (
    "gemma", "gemma2", "gemma3", "gemma3_text", "step3p5", "step3p7", "qwen3_next", "qwen3_5", "qwen3_5_text",
    "qwen3_5_moe", "qwen3_5_moe_text",
)  # fmt: skip
"""Types of models whose norms add 1 to the weight; their configurations do not say it (Gemma 4's do not add it)."""

SINKS = ("gpt_oss",)
"""Types of models all of whose heads have a learned sink."""

SCORES = ("sigmoid", "softmax", "sqrtsoftplus")


@dataclass(frozen=True)
class Layer:
    """A kind of attention layer."""

    head_dim: str
    """Of keys, and of values if it differs; of latent and rope key where there is a latent."""
    kv_heads: int
    group: int
    """KV heads, and query heads for each."""
    windows: tuple[int | None, ...] = (None,)
    """Visible keys, the query's own included; several where that is disputed, None for all."""
    sinks: bool = False
    """Whether heads have a learned sink."""


@dataclass(frozen=True)
class Rope:
    """A table of cosines and sines."""

    kind: str
    """As ``rope_cache`` calls it."""
    rotary: int
    head_dim: int
    """Elements of a head that are rotated, of how many."""
    base: float
    factor: float = 1.0
    max_positions: int = 4096
    low: float = 1.0
    high: float = 4.0
    """Of llama3."""
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float = 0.0
    """Of YaRN."""


@dataclass(frozen=True)
class LinearLayer:
    """A layer of linear attention by the gated delta rule."""

    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    width: int
    """Tokens under its convolution."""
    by_channel: bool = False
    """Whether channels decay, each by itself, as Kimi's."""

    @property
    def channels(self) -> int:
        """Channels of the convolution: of queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim


@dataclass(frozen=True)
class Indexer:
    """What chooses the keys of sparse attention."""

    heads: int
    dim: int
    count: int
    """Keys that are chosen."""


@dataclass(frozen=True)
class Model:
    """Sizes of a model."""

    hidden: int
    """Elements of a hidden state."""
    layers: tuple[Layer, ...]
    """Kinds of attention layers."""
    experts: int = 0
    top_k: int = 0
    width: int = 0
    shared_width: int = 0
    """Experts, how many of them a token has, gates of one, and of the shared expert; 0 for none."""
    scoring: str = ""
    """What makes scores of router logits; empty where no component has it."""
    router_bias: bool = False
    """Whether a bias takes part in the choice."""
    scaling: float = 1.0
    """Factor of the weights."""
    renormalise: bool = True
    """Whether the weights of the chosen experts are divided by their sum."""
    router_groups: int = 1
    kept_groups: int = 1
    """Groups of experts, and how many of them a token chooses from."""
    activation: str = "silu"
    """Of experts; empty where no component has it."""
    limit: float | None = None
    """Of the activation; layers without one exist beside it where it is not part of the activation."""
    shared_limit: float | None = None
    """Of the activation of shared experts, where it is another one."""
    alpha: float = 1.702
    """Of swiglu_oai."""
    latent: bool = False
    """Whether attention is MLA."""
    query_rank: int = 0
    """Elements of MLA's compressed query."""
    norm: str = "plain"
    """Kind of its norms."""
    epsilon: float | None = None
    """Of its norms, where it is known."""
    ropes: tuple[Rope, ...] = ()
    """Tables of its layers."""
    rope_sections: str = ""
    """Frequencies of each kind of position, of models that read pictures: ``16/24/24``."""
    dense_width: int = 0
    """Gates of a layer without experts; 0 for none."""
    linear: LinearLayer | None = None
    indexer: Indexer | None = None

    @property
    def limits(self) -> tuple[float | None, ...]:
        """Limits that layers have: some layers of a model with ``silu`` have none."""
        return (self.limit,) if self.activation == "swiglu_oai" or self.limit is None else (self.limit, None)

    @property
    def head_dims(self) -> tuple[str, ...]:
        """Head dims of its layers."""
        return tuple(dict.fromkeys(layer.head_dim for layer in self.layers))

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """KV heads of its layers."""
        return tuple(sorted({layer.kv_heads for layer in self.layers}))

    @property
    def windowed(self) -> tuple[Layer, ...]:
        """Layers that have a window."""
        return tuple(layer for layer in self.layers if layer.windows != (None,))


def model_of(configuration: Mapping[str, Any]) -> Model:
    """Return the sizes that a configuration says.

    Raises
    ------
    ValueError
        If it is no configuration of a language model.
    """
    text = configuration.get("text_config", configuration)
    if not isinstance(text, Mapping) or not isinstance(text.get("hidden_size"), int):
        raise ValueError("no configuration of a model: it has no hidden_size")
    kind = str(text.get("model_type") or configuration.get("model_type") or "")
    latent = isinstance(text.get("kv_lora_rank"), int)
    layers = tuple(dict.fromkeys(_layers(text, kind)))
    gemma = bool(text.get("use_gemma_norm", kind in GEMMA_NORMS))
    model = Model(
        text["hidden_size"],
        layers,
        latent=latent,
        query_rank=_number(text, "q_lora_rank"),
        norm="gemma" if gemma else "plain",
        epsilon=_first(text, "rms_norm_eps", "layernorm_epsilon", "layer_norm_epsilon", "norm_eps"),
        ropes=tuple(dict.fromkeys(_ropes(text, latent=latent))),
        rope_sections="/".join(map(str, _rope_parameters(text).get("mrope_section") or ())),
        linear=_linear(text),
        indexer=_indexer(text),
    )
    return _with_experts(model, text, kind)


def _linear(text: Mapping[str, Any]) -> LinearLayer | None:
    """The layer of linear attention, as Qwen's and Kimi's configurations have it."""
    heads = _number(text, "linear_num_value_heads")
    if heads:
        return LinearLayer(
            _number(text, "linear_num_key_heads"), heads, _number(text, "linear_key_head_dim"),
            _number(text, "linear_value_head_dim"), _number(text, "linear_conv_kernel_dim"),
        )  # fmt: skip
    said = text.get("linear_attn_config")
    if not isinstance(said, Mapping) or not _number(said, "num_heads"):
        return None
    heads, dim = _number(said, "num_heads"), _number(said, "head_dim")
    return LinearLayer(heads, heads, dim, dim, _number(said, "short_conv_kernel_size"), by_channel=True)


def _indexer(text: Mapping[str, Any]) -> Indexer | None:
    heads, count = _number(text, "index_n_heads"), _number(text, "index_topk")
    return Indexer(heads, _number(text, "index_head_dim"), count) if heads and count else None


def _with_experts(model: Model, text: Mapping[str, Any], kind: str) -> Model:
    experts = _number(text, "n_routed_experts", "num_experts", "num_local_experts")
    top_k = _number(text, "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "experts_per_token")
    width = _number(text, "moe_intermediate_size", "intermediate_size")
    if not (experts and top_k and width):
        return model
    shared = _number(text, "shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size",
                     "moe_shared_expert_intermediate_size")  # fmt: skip
    shared = shared or width * _number(text, "n_shared_experts", "num_shared_experts")
    scoring = str(text.get("scoring_func") or text.get("moe_router_activation_func") or "softmax")
    bias = text.get("topk_method") == "noaux_tc" or bool(
        text.get("use_moe_router_bias") or text.get("use_routing_bias")
    )
    activation, limit = _activation(text, kind)
    return replace(
        model,
        experts=experts,
        top_k=top_k,
        width=width,
        shared_width=shared,
        dense_width=_dense_width(text),
        scoring=scoring if scoring in SCORES and kind != "llama4_text" else "",
        router_bias=bias,
        scaling=float(_first(text, "routed_scaling_factor", "moe_router_scaling_factor") or 1.0),
        renormalise=bool(text.get("norm_topk_prob", text.get("moe_renormalize", True))),
        router_groups=_number(text, "n_group", "num_expert_group") or 1,
        kept_groups=_number(text, "topk_group") or 1,
        activation=activation,
        limit=limit,
        alpha=float(text.get("swiglu_alpha", 1.702)),
    )


def _dense_width(text: Mapping[str, Any]) -> int:
    """Gates of layers without experts, unless the configuration says that all layers have experts."""
    none = text.get("mlp_only_layers") == [] or text.get("first_k_dense_replace") == 0
    return 0 if none or not text.get("moe_intermediate_size") else _number(text, "intermediate_size")


def _activation(text: Mapping[str, Any], kind: str) -> tuple[str, float | None]:
    """The activation of experts, and its limit; a limit of another activation is none that a component has."""
    name = str(_first(text, "hidden_act", "hidden_activation", "mlp_hidden_act") or "silu")
    limit = text.get("swiglu_limit")
    if kind == "gpt_oss" or name == "swigluoai":
        return "swiglu_oai", 7.0 if limit is None else float(limit)
    known = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
    return (known.get(name, "") if limit is None else "", None)


def _layers(text: Mapping[str, Any], kind: str) -> Iterator[Layer]:
    """Yield the kinds of attention layers."""
    heads = _number(text, "num_attention_heads")
    if not heads:
        return
    if isinstance(text.get("kv_lora_rank"), int):
        yield Layer(f"{text['kv_lora_rank']}/{_number(text, 'qk_rope_head_dim')}", 1, heads)
        return
    kv_heads = _number(text, "num_key_value_heads") or heads
    dims = _dims(_head_dim(text), _number(text, "v_head_dim"))
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    types, sinks = set(_layer_types(text)), kind in SINKS
    windowed = isinstance(window, int) and (not types or "sliding_attention" in types)
    if not windowed or "full_attention" in types:
        own = _number(text, "num_global_key_value_heads") or kv_heads
        of_all = _dims(_number(text, "global_head_dim"), 0) if text.get("global_head_dim") else dims
        yield from _layer(of_all, heads, own, None, sinks=sinks or bool(text.get("add_full_attention_sink_bias")))
    if windowed:
        dims = _dims(_number(text, "swa_head_dim") or _head_dim(text), _number(text, "swa_v_head_dim", "v_head_dim"))
        own = _number(text, "swa_num_key_value_heads") or kv_heads
        heads = _number(text, "swa_num_attention_heads") or heads
        yield from _layer(dims, heads, own, window, sinks=sinks or bool(text.get("add_swa_attention_sink_bias")))


def _layer(dims: str, heads: int, kv_heads: int, window: int | None, *, sinks: bool) -> Iterator[Layer]:
    if heads % kv_heads == 0:
        yield Layer(dims, kv_heads, heads // kv_heads, (window,), sinks)


def _layer_types(text: Mapping[str, Any]) -> Iterator[str]:
    yield from text.get("layer_types") or ()
    yield from ("sliding_attention" if one else "full_attention" for one in text.get("hybrid_layer_pattern") or ())


def _head_dim(text: Mapping[str, Any]) -> int:
    return _number(text, "head_dim") or int(text["hidden_size"]) // _number(text, "num_attention_heads")


def _dims(head_dim: int, values: int) -> str:
    return f"{head_dim}/{values}" if values and values != head_dim else str(head_dim)


def _ropes(text: Mapping[str, Any], *, latent: bool) -> Iterator[Rope]:
    """Yield the tables of a model's layers."""
    said = _rope_parameters(text)
    by_type = [one for one in said.values() if isinstance(one, Mapping)]
    for parameters in by_type or [said]:
        yield from _rope({**text, **parameters}, parameters, latent=latent)
    if "swa_rope_theta" in text:
        yield from _rope({**text, "rope_theta": text["swa_rope_theta"]}, {}, latent=latent)


def _rope_parameters(text: Mapping[str, Any]) -> Mapping[str, Any]:
    said = text.get("rope_parameters") or text.get("rope_scaling") or {}
    return said if isinstance(said, Mapping) else {}


def _rope(text: Mapping[str, Any], scaling: Mapping[str, Any], *, latent: bool) -> Iterator[Rope]:
    base = text.get("rope_theta")
    if not isinstance(base, int | float) or not text.get("num_attention_heads"):
        return
    head_dim = _number(text, "qk_nope_head_dim") + _number(text, "qk_rope_head_dim") if latent else _head_dim(text)
    share = float(text.get("partial_rotary_factor") or 1.0)
    rotary = _number(text, "qk_rope_head_dim", "rotary_dim") or 2 * int(head_dim * share / 2)
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    names = {"default": "base", "yarn": "deepseek_yarn" if latent else "yarn"}
    rope = Rope(names.get(kind, kind), rotary, head_dim, float(base))
    if rope.kind == "base":
        yield rope
    elif rope.kind in ("linear", "dynamic", "llama3", "yarn", "deepseek_yarn"):
        length = _number(scaling, "original_max_position_embeddings") or _number(text, "max_position_embeddings")
        yield replace(
            rope,
            factor=float(scaling.get("factor", 1.0)),
            max_positions=length,
            low=float(scaling.get("low_freq_factor", 1.0)),
            high=float(scaling.get("high_freq_factor", 4.0)),
            fast=float(scaling.get("beta_fast", 32.0)),
            slow=float(scaling.get("beta_slow", 1.0)),
            truncate=bool(scaling.get("truncate", True)),
            mscale=scaling.get("mscale"),
            mscale_all_dim=float(scaling.get("mscale_all_dim", 0.0)),
        )


def _first(text: Mapping[str, Any], *names: str) -> Any:  # noqa: ANN401 - of whichever field is there
    return next((text[name] for name in names if text.get(name) is not None), None)


def _number(text: Mapping[str, Any], *names: str) -> int:
    """The first of some fields that is a number, or 0."""
    found = (text.get(name) for name in names)
    return next((int(one) for one in found if isinstance(one, int | float) and math.isfinite(one)), 0)
