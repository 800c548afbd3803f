"""Llama, Mistral, Qwen2 and Mixtral as transformers keeps them: the same names, other biases, windows and experts."""

from collections.abc import Mapping
from typing import Any

from gptlab.errors import UserError
from gptlab.interop.architecture import Architecture, TensorLocation, in_blocks, shown, typed
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import (
    AttentionPattern,
    DecoderConfig,
    Norm,
    NormPlacement,
    Position,
    RopeType,
    RouterSoftmax,
)

# What each `rope_type` is made of, by our keys. Of ntk there is none: it is another rope_theta.
SCALINGS = {
    "linear": {"factor": "rope_factor"},
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_context",
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
        "attention_factor": "rope_attention_factor",
    },
    "llama3": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_context",
        "high_freq_factor": "rope_beta_fast",
        "low_freq_factor": "rope_beta_slow",
    },
}
KEYS = {
    "context_length": "max_position_embeddings",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "d_model": "hidden_size",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "dropout_attention": "attention_dropout",
    "init_std": "initializer_range",
}
ALWAYS = {
    "position": Position.rotary,
    "norm": Norm.rmsnorm,
    "norm_placement": NormPlacement.pre,
    "feedforward": Feedforward.swiglu,
    "qk_norm": False,
    "logit_softcap": None,
}
DENSE = {"attention_pattern": AttentionPattern.dense}
DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "hidden_act": "silu",
}
ATTENTION = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj",
}
FEEDFORWARD = {"ffn.gate": "mlp.gate_proj", "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"}
EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}


def _locations(config: DecoderConfig) -> dict[str, TensorLocation]:
    matrices = ATTENTION | (FEEDFORWARD if config.n_expert is None else {"ffn.router": "block_sparse_moe.gate"})
    block = {f"{ours}.weight": TensorLocation(f"{theirs}.weight") for ours, theirs in (matrices | NORMS).items()}
    for ours, theirs in EXPERT.items() if config.n_expert is not None else ():
        name = f"block_sparse_moe.experts.{{}}.{theirs}.weight"
        block[f"ffn.experts.{ours}.weight"] = TensorLocation(name, stacked=config.n_expert)
    for ours, theirs in matrices.items():
        if config.attention_biased if ours in ("attn.q", "attn.k", "attn.v") else config.bias:
            block[f"{ours}.bias"] = TensorLocation(f"{theirs}.bias")
    locations = {"tok_emb.weight": TensorLocation("model.embed_tokens.weight")}
    locations |= in_blocks(config.n_layer, "model.layers.{}.", block)
    locations["final_norm.weight"] = TensorLocation("model.norm.weight")
    if not config.tie_embeddings:
        locations["lm_head.weight"] = TensorLocation("lm_head.weight")
    return locations


def _rotation(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary keys, by the keys of transformers 5 or of earlier versions."""
    given, scaling = (
        typed(key, theirs.get(key), dict, type(None)) or {} for key in ("rope_parameters", "rope_scaling")
    )
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"partial_rotary_factor={given['partial_rotary_factor']} is not supported")
    theta = given.get("rope_theta", theirs.get("rope_theta", 10_000.0))
    found: dict[str, Any] = {"rope_theta": float(typed("rope_theta", theta, float))}
    for options, key in ((given, "rope_parameters"), (scaling, "rope_scaling")):
        kind = options.get("rope_type", options.get("type", "default"))
        if kind == "default":
            continue
        if kind not in SCALINGS:
            raise UserError(
                f"{key} of type {shown(kind)} changes the rotary frequencies and is not supported; only "
                f"{', '.join(SCALINGS)} and default are"
            )
        unknown = sorted(options.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *SCALINGS[kind]})
        if unknown:
            raise UserError(f"{key} of type {kind} with {unknown[0]}={shown(options[unknown[0]])} is not supported")
        found["rope_type"] = RopeType(kind)
        for name, ours in SCALINGS[kind].items():
            if options.get(name) is not None:
                whole = ours == "rope_original_context"
                found[ours] = (int if whole else float)(typed(f"{key}.{name}", options[name], int if whole else float))
        if kind != "linear" and "rope_original_context" not in found:
            found["rope_original_context"] = typed(
                "max_position_embeddings", theirs.get("max_position_embeddings"), int
            )
        break
    return found


def _all_dense(theirs: Mapping[str, Any]) -> dict[str, Any]:
    kinds = typed("layer_types", theirs.get("layer_types"), list, type(None)) or []
    others = sorted({shown(kind) for kind in kinds} - {"full_attention"})
    if others:
        raise UserError(f"layer_types with {', '.join(others)} are not supported")
    return _rotation(theirs)


def _windowed(theirs: Mapping[str, Any]) -> dict[str, Any]:
    window = typed("sliding_window", theirs["sliding_window"], int, type(None))
    if window is None:
        return _rotation(theirs) | DENSE
    return _rotation(theirs) | {"attention_pattern": AttentionPattern.sliding_window, "attention_window": window}


def _write_rotation(config: DecoderConfig) -> dict[str, Any]:
    own = config.rotation
    kind = own.rope_type.value
    names = SCALINGS.get(kind, {})
    parameters = {"rope_type": kind if names else "default"}
    parameters |= {name: getattr(own, ours) for name, ours in names.items() if getattr(own, ours) is not None}
    # Both spellings, so that versions before 5 open the folder too.
    older = {"rope_scaling": parameters} if names else {}
    return {
        "rope_theta": own.rope_theta,
        "rope_parameters": parameters | {"rope_theta": own.rope_theta},
        **older,
    }


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    keys=KEYS | {"bias": ("attention_bias", "mlp_bias")},
    always=ALWAYS | DENSE,
    defaults=DEFAULTS | {"attention_bias": False, "mlp_bias": False},
    demands={"hidden_act": ("silu",)},
    prefix="model.",
    locations=_locations,
    buffers=(".rotary_emb.inv_freq",),
    read=_rotation,
    write=_write_rotation,
)

MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    keys=KEYS,
    always=ALWAYS | {"bias": False},
    defaults=DEFAULTS | {"sliding_window": 4096},
    demands={"hidden_act": ("silu",)},
    prefix="model.",
    locations=_locations,
    buffers=(".rotary_emb.inv_freq",),
    read=_windowed,
    write=lambda config: _write_rotation(config) | {"sliding_window": config.attention_window},
)

QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    keys=KEYS,
    always=ALWAYS | DENSE | {"bias": False, "qkv_bias": True},
    defaults=DEFAULTS,
    demands={"hidden_act": ("silu",), "use_sliding_window": (False,)},
    prefix="model.",
    locations=_locations,
    buffers=(".rotary_emb.inv_freq",),
    read=_all_dense,
    write=_write_rotation,
)

MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    keys=KEYS | {"n_expert": "num_local_experts", "n_expert_per_token": "num_experts_per_tok"},
    always=ALWAYS | {"bias": False, "n_shared_expert": None, "router_softmax": RouterSoftmax.after},
    defaults=DEFAULTS
    | {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "rope_theta": 1e6, "sliding_window": None}
    | {"num_local_experts": 8, "num_experts_per_tok": 2},
    demands={"hidden_act": ("silu",), "router_jitter_noise": (0.0,)},
    prefix="model.",
    locations=_locations,
    buffers=(".rotary_emb.inv_freq",),
    read=_windowed,
    write=lambda config: _write_rotation(config) | {"sliding_window": config.attention_window},
)
