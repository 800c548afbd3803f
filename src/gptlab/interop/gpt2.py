"""GPT-2 and GPT-1 as transformers keeps them: matrices (in, out), queries, keys and values in one."""

from gptlab.interop.architecture import Architecture, TensorLocation, in_blocks
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import AttentionPattern, DecoderConfig, Norm, NormPlacement, Position

KEYS = {
    "context_length": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "d_model": "n_embd",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
    "dropout_embedding": "embd_pdrop",
    "dropout_attention": "attn_pdrop",
    "dropout_residual": "resid_pdrop",
    "init_std": "initializer_range",
}
ALWAYS = {
    "position": Position.learned,
    "norm": Norm.layernorm,
    "attention_pattern": AttentionPattern.dense,
    "feedforward": Feedforward.gelu,
    "bias": True,
    "qk_norm": False,
    "logit_softcap": None,
}
DEFAULTS = {
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-5,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "initializer_range": 0.02,
}


def _locations(config: DecoderConfig, tokens: str, positions: str, final_norm: str | None) -> dict[str, TensorLocation]:
    block = {}
    for kind in ("weight", "bias"):
        matrix = kind == "weight"
        for part, name in enumerate("qkv"):
            block[f"attn.{name}.{kind}"] = TensorLocation(f"attn.c_attn.{kind}", matrix, part, 3)
        for ours, theirs in (("attn.out", "attn.c_proj"), ("ffn.up", "mlp.c_fc"), ("ffn.down", "mlp.c_proj")):
            block[f"{ours}.{kind}"] = TensorLocation(f"{theirs}.{kind}", matrix)
        for ours, theirs in (("norm1", "ln_1"), ("norm2", "ln_2")):
            block[f"{ours}.{kind}"] = TensorLocation(f"{theirs}.{kind}")
    locations = {"tok_emb.weight": TensorLocation(f"transformer.{tokens}.weight")}
    locations["pos_emb.weight"] = TensorLocation(f"transformer.{positions}.weight")
    locations |= in_blocks(config.n_layer, "transformer.h.{}.", block)
    if final_norm is not None:
        locations |= {
            f"final_norm.{kind}": TensorLocation(f"transformer.{final_norm}.{kind}") for kind in ("weight", "bias")
        }
    if not config.tie_embeddings:
        locations["lm_head.weight"] = TensorLocation("lm_head.weight")
    return locations


GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    keys=KEYS | {"d_ff": "n_inner"},
    always=ALWAYS | {"norm_placement": NormPlacement.pre},
    defaults=DEFAULTS | {"n_inner": None},
    demands={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    prefix="transformer.",
    locations=lambda config: _locations(config, "wte", "wpe", "ln_f"),
    buffers=(".attn.bias", ".attn.masked_bias"),
)

GPT1 = Architecture(
    model_type="openai-gpt",
    class_name="OpenAIGPTLMHeadModel",
    keys=KEYS,
    always=ALWAYS | {"norm_placement": NormPlacement.post},
    defaults=DEFAULTS,
    demands={"afn": ("gelu", "gelu_new")},  # its "gelu" is the tanh form
    prefix="transformer.",
    locations=lambda config: _locations(config, "tokens_embed", "positions_embed", None),
    buffers=(".attn.bias", ".position_ids"),
)
