"""T5, T5 1.1 and FLAN-T5 as transformers keeps them: numbered sublayers, the bias of positions in the first block."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gptlab.errors import UserError
from gptlab.interop.architecture import Architecture, TensorLocation, in_blocks, shown, typed
from gptlab.models.config import Feedforward
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

HEAD, EMBEDDING = "lm_head.weight", "shared.weight"
ATTENTION = {"q": "q", "k": "k", "v": "v", "out": "o"}
# The first spelling is the one we write.
FEEDFORWARDS = {
    "relu": Feedforward.relu,
    "gated-gelu": Feedforward.geglu,  # the tanh form, whatever its name says
    "gated-gelu_new": Feedforward.geglu,
    "gated-silu": Feedforward.swiglu,
    "gelu_new": Feedforward.gelu,
    "gelu": Feedforward.gelu_exact,
    "relu2": Feedforward.relu2,
}


def _block(config: EncoderDecoderConfig, *, cross: bool) -> dict[str, TensorLocation]:
    last = 2 if cross else 1
    names = {f"attn.{ours}": f"layer.0.SelfAttention.{theirs}" for ours, theirs in ATTENTION.items()}
    names |= {"norm1": "layer.0.layer_norm", "norm2": f"layer.{last}.layer_norm"}
    if cross:
        names |= {f"cross.{ours}": f"layer.1.EncDecAttention.{theirs}" for ours, theirs in ATTENTION.items()}
        names["norm_cross"] = "layer.1.layer_norm"
    matrices = {"gate": "wi_0", "up": "wi_1"} if config.feedforward.gated else {"up": "wi"}
    for ours, theirs in {**matrices, "down": "wo"}.items():
        names[f"ffn.{ours}"] = f"layer.{last}.DenseReluDense.{theirs}"
    return {f"{ours}.weight": TensorLocation(f"{theirs}.weight") for ours, theirs in names.items()}


def _locations(config: EncoderDecoderConfig) -> dict[str, TensorLocation]:
    locations = {"tok_emb.weight": TensorLocation(EMBEDDING)}
    for stack, n_blocks in (("encoder", config.n_layer), ("decoder", config.decoder_layers)):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        locations[f"{stack}.position.table.weight"] = TensorLocation(bias)
        block = _block(config, cross=stack == "decoder")
        locations |= in_blocks(n_blocks, f"{stack}.block.{{}}.", block, f"{stack}.blocks.{{}}.")
        locations[f"{stack}.final_norm.weight"] = TensorLocation(f"{stack}.final_layer_norm.weight")
    if not config.tie_embeddings:
        locations["lm_head.weight"] = TensorLocation(HEAD)
    return locations


def _seen(theirs: Mapping[str, Any], names: Collection[str], read: Callable[[str], Tensor]) -> dict[str, Any]:
    """Whether the head is tied, which transformers infers from the tensors; config.json tells whether it is scaled."""
    tied = HEAD not in names or (EMBEDDING in names and torch.equal(read(HEAD), read(EMBEDDING)))
    given = theirs.get("scale_decoder_outputs")
    scaled = theirs.get("tie_word_embeddings") is not False if given is None else given
    return {"tie_word_embeddings": tied, "scale_decoder_outputs": scaled}


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    kind = theirs["feed_forward_proj"]
    if kind not in FEEDFORWARDS:
        raise UserError(f"feed_forward_proj={shown(kind)} is not supported; only {', '.join(FEEDFORWARDS)} are")
    start = next((theirs[key] for key in ("decoder_start_token_id", "pad_token_id") if theirs.get(key) is not None), 0)
    return {"feedforward": FEEDFORWARDS[kind], "decoder_start_token_id": typed("decoder_start_token_id", start, int)}


def _write(config: EncoderDecoderConfig) -> dict[str, Any]:
    kinds = {ours: theirs for theirs, ours in reversed(FEEDFORWARDS.items())}
    return {
        # One that it does not have would be read back as another, which is how `refusals` finds it.
        "feed_forward_proj": kinds.get(config.feedforward, "relu"),
        "decoder_start_token_id": config.decoder_start_token_id,
    }


T5 = Architecture(
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    config=EncoderDecoderConfig,
    keys={
        "context_length": "n_positions",
        "n_layer": "num_layers",
        "n_decoder_layer": "num_decoder_layers",
        "n_head": "num_heads",
        "d_model": "d_model",
        "d_head": "d_kv",
        "d_ff": "d_ff",
        "relative_attention_num_buckets": "relative_attention_num_buckets",
        "relative_attention_max_distance": "relative_attention_max_distance",
        "norm_eps": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
        "scale_decoder_outputs": "scale_decoder_outputs",
        "dropout": "dropout_rate",
        "init_factor": "initializer_factor",
    },
    always={},
    defaults={
        "n_positions": 512,
        "num_decoder_layers": None,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": True,
        "scale_decoder_outputs": None,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "feed_forward_proj": "relu",
    },
    demands={"is_encoder_decoder": (True,)},
    prefix="",
    locations=_locations,
    buffers=(".EncDecAttention.relative_attention_bias.weight",),  # never used
    read=_read,
    write=_write,
    seen=_seen,
    copies=dict.fromkeys((HEAD, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "tok_emb.weight"),
)
