"""Models that no architecture of transformers holds: our own config keys and names, with the code beside them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from gptlab.config import to_plain
from gptlab.errors import UserError
from gptlab.interop.architecture import DERIVED, Architecture, TensorLocation, meaning, shapes, shown
from gptlab.models.config import ModelConfig, model_from_plain
from gptlab.models.decoder.config import DecoderConfig, Position
from gptlab.models.encoder.config import EncoderConfig, Heads

MODEL_CODE = Path(__file__).with_name("modeling_gptlab.py")  # self-contained: copied, and imported by its reader alone
KINDS: dict[str, type[ModelConfig]] = {"decoder": DecoderConfig, "encoder": EncoderConfig}
HEADS = ("lm_head.", "mlm.", "nsp.")  # how the names of tensors begin that are not the base model's
PREFIX = "model."  # of the others
# The classes of the code, by the Auto classes that open them. The last one but the classifier has all of the heads.
DECODER = {"AutoModel": "GptlabDecoder", "AutoModelForCausalLM": "GptlabForCausalLM"}
ENCODER = {"AutoModel": "GptlabEncoder"}
MASKED_LM = {"AutoModelForMaskedLM": "GptlabForMaskedLM"}
PRETRAINING = {"AutoModelForPreTraining": "GptlabForPreTraining"}
CLASSIFIER = {"AutoModelForSequenceClassification": "GptlabForSequenceClassification"}


@dataclass(frozen=True, kw_only=True, eq=False)
class GptlabArchitecture(Architecture):
    """Our own config keys and names, so that there is nothing to translate."""

    def holds(self, config: ModelConfig) -> bool:
        return type(config) in KINDS.values()

    def refusals(self, config: ModelConfig) -> dict[str, str]:
        # A cache of transformers has no place for embeddings, of which the newest is wanted with the next token.
        shifts = isinstance(config, DecoderConfig) and config.token_shift
        return {"model.token_shift=true": "model.token_shift=false"} if shifts else {}

    def write_config(self, config: ModelConfig, vocab_size: int) -> dict[str, Any]:
        classes = _classes(config)
        code = {key: f"{MODEL_CODE.stem}.{name}" for key, name in ({"AutoConfig": "GptlabConfig"} | classes).items()}
        plain = to_plain(config) | {"vocab_size": vocab_size}
        plain |= {key: meaning(config, key) for key in plain if key in DERIVED}
        if isinstance(config, DecoderConfig) and config.position is Position.rotary:
            plain |= {key: to_plain(value) for key, value in config.rotation._asdict().items()}
        for key in ("init_from", "parametrization", "base_d_model", "base_n_layer", "base_d_head"):  # of a standard one
            del plain[key]
        if isinstance(config, EncoderConfig):
            # The code has one block for both; these are what a decoder can choose and an encoder cannot.
            plain |= {"norm_placement": "post", "n_kv_head": config.n_head}
        main = [name for key, name in classes.items() if key not in CLASSIFIER][-1]
        return {"architectures": [main], "auto_map": code, "model_type": self.model_type, **plain}

    def _understood(self, theirs: Mapping[str, Any]) -> ModelConfig:
        kind = KINDS.get(theirs["type"]) if isinstance(theirs.get("type"), str) else None
        if kind is None:
            raise UserError(f"type={shown(theirs.get('type'))} is not supported; only {' or '.join(KINDS)} are")
        names = {field.name for field in fields(kind)} - {"vocab_size", "init_from"}
        return model_from_plain({name: value for name, value in theirs.items() if name in names})


def _classes(config: ModelConfig) -> dict[str, str]:
    if not isinstance(config, EncoderConfig):
        return DECODER | CLASSIFIER
    return {
        Heads.none: ENCODER | CLASSIFIER,
        Heads.masked_lm: ENCODER | MASKED_LM,
        Heads.pretraining: ENCODER | MASKED_LM | PRETRAINING | CLASSIFIER,
    }[config.heads]


def _locations(config: ModelConfig) -> dict[str, TensorLocation]:
    return {name: TensorLocation(name if name.startswith(HEADS) else PREFIX + name) for name in shapes(config, 1)}


def _seen(theirs: Mapping[str, Any], names: Collection[str], read: Callable[[str], Tensor]) -> dict[str, Any]:
    """What the tensors tell: the heads, of which a class of transformers may save fewer than config.json names."""
    if theirs.get("type") != "encoder":
        # Of a class head's model transformers does not save the head of its tokens.
        headless = "class_head.weight" in names and "lm_head.weight" not in names
        return {"tie_embeddings": True} if headless else {}
    for prefix, heads in (("nsp.", Heads.pretraining), ("mlm.", Heads.masked_lm)):
        if any(name.startswith(prefix) for name in names):
            return {"heads": heads.value}
    return {"heads": Heads.none.value}


GPTLAB = GptlabArchitecture(
    model_type="gptlab",
    class_name=DECODER["AutoModelForCausalLM"],
    keys={},
    always={},
    defaults={},
    demands={},
    prefix=PREFIX,
    locations=_locations,
    seen=_seen,
    class_head="class_head",
    classifier=CLASSIFIER["AutoModelForSequenceClassification"],
)
