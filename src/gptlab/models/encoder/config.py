"""Config schema: bidirectional encoders."""

from enum import Enum

from gptlab.fields import bounded
from gptlab.models.config import Capability, Feedforward, Parametrization, TransformerConfig
from gptlab.registry import register


class Heads(Enum):
    """What an encoder has beside its blocks."""

    none = "none"  # the pooler alone
    masked_lm = "masked_lm"  # a token for each position, and no pooler
    pretraining = "pretraining"  # both, and whether the second segment follows the first


CAPABILITIES = {
    Heads.none: (Capability.pooler,),
    Heads.masked_lm: (Capability.mlm_head,),
    Heads.pretraining: (Capability.pooler, Capability.mlm_head, Capability.nsp_head),
}


@register("model", "encoder")
class EncoderConfig(TransformerConfig):
    """A bidirectional encoder; the defaults are BERT's."""

    feedforward: Feedforward = Feedforward.gelu_exact
    n_segment: int = bounded(2, ge=1)  # segment types that a token can belong to
    norm_eps: float = bounded(1e-12, gt=0)
    heads: Heads = Heads.pretraining
    dropout_attention: float | None = bounded(None, ge=0, lt=1)  # null: dropout
    init_std: float = bounded(0.02, gt=0)

    def build(self, vocab_size: int):
        from gptlab.models.encoder.network import Encoder

        return Encoder(self, vocab_size)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({Capability.bidirectional, *CAPABILITIES[self.heads]})

    @property
    def parametrizations(self) -> frozenset[Parametrization]:
        return frozenset({Parametrization.standard, Parametrization.mup})  # its norms follow the additions

    def remedy(self, missing: frozenset[Capability]) -> str:
        fitting = [heads.value for heads, found in CAPABILITIES.items() if missing <= set(found)]
        return f"set model.heads={' or '.join(fitting)}" if fitting else ""

    def dropout_at(self, place: str) -> float:
        """The rate at "attention" or elsewhere."""
        if place == "attention" and self.dropout_attention is not None:
            return self.dropout_attention
        return self.dropout
