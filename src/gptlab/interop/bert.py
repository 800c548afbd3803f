"""BERT as transformers keeps it: post-norm blocks under long names, heads apart."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gptlab.errors import UserError
from gptlab.interop.architecture import Architecture, TensorLocation, in_blocks, shown
from gptlab.models.config import Feedforward
from gptlab.models.encoder.config import EncoderConfig, Heads

CLASSES = {
    Heads.pretraining: "BertForPreTraining",
    Heads.masked_lm: "BertForMaskedLM",
    Heads.none: "BertModel",
}
MODULES = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "norm2": "output.LayerNorm",
}
POOLER = {"pooler": "bert.pooler.dense"}
MLM = {"mlm.dense": "cls.predictions.transform.dense", "mlm.norm": "cls.predictions.transform.LayerNorm"}
NSP = {"nsp": "cls.seq_relationship"}
BIAS = "cls.predictions.bias"


def _both(modules: Mapping[str, str]) -> dict[str, TensorLocation]:
    kinds = ("weight", "bias")
    return {f"{ours}.{kind}": TensorLocation(f"{theirs}.{kind}") for ours, theirs in modules.items() for kind in kinds}


def _locations(config: EncoderConfig) -> dict[str, TensorLocation]:
    embeddings = {"tok_emb": "word_embeddings", "pos_emb": "position_embeddings", "seg_emb": "token_type_embeddings"}
    locations = {
        f"{ours}.weight": TensorLocation(f"bert.embeddings.{theirs}.weight") for ours, theirs in embeddings.items()
    }
    locations |= _both({"emb_norm": "bert.embeddings.LayerNorm"})
    locations |= in_blocks(config.n_layer, "bert.encoder.layer.{}.", _both(MODULES))
    if config.heads is not Heads.masked_lm:
        locations |= _both(POOLER)
    if config.heads is not Heads.none:
        locations |= _both(MLM) | {"mlm.bias": TensorLocation(BIAS)}
    if config.heads is Heads.pretraining:
        locations |= _both(NSP)
    return locations


def _seen(theirs: Mapping[str, Any], names: Collection[str], read: Callable[[str], Tensor]) -> dict[str, Any]:
    """The class whose tensors these are: config.json names the one that was saved last, which may have fewer."""
    if any(name.startswith(NSP["nsp"]) for name in names):
        return {"architectures": [CLASSES[Heads.pretraining]]}
    return {"architectures": [CLASSES[Heads.masked_lm if BIAS in names else Heads.none]]}


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    named = theirs.get("architectures") or [CLASSES[Heads.pretraining]]
    found = [heads for heads, name in CLASSES.items() if [name] == named]
    if not found:
        raise UserError(f"architectures={shown(named)} is none of {', '.join(CLASSES.values())}")
    return {"heads": found[0]}


BERT = Architecture(
    model_type="bert",
    class_name=CLASSES[Heads.pretraining],
    config=EncoderConfig,
    keys={
        "context_length": "max_position_embeddings",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "d_model": "hidden_size",
        "d_ff": "intermediate_size",
        "n_segment": "type_vocab_size",
        "norm_eps": "layer_norm_eps",
        "dropout": "hidden_dropout_prob",
        "dropout_attention": "attention_probs_dropout_prob",
        "init_std": "initializer_range",
    },
    always={"feedforward": Feedforward.gelu_exact},
    defaults={
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
    },
    demands={
        "hidden_act": ("gelu",),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    },
    prefix="bert.",
    locations=_locations,
    buffers=(".position_ids", ".token_type_ids"),
    read=_read,
    write=lambda config: {"architectures": [CLASSES[config.heads]]},
    seen=_seen,
    copies={"cls.predictions.decoder.weight": "tok_emb.weight", "cls.predictions.decoder.bias": "mlm.bias"},
    class_head="classifier",
    classifier="BertForSequenceClassification",
    without_heads=lambda config: replace(config, heads=Heads.none),
    older={"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"},
)
