"""Config schema: encoder-decoders."""

from gptlab.errors import UserError
from gptlab.fields import bounded
from gptlab.models.config import Capability, Feedforward, Parametrization, TransformerConfig
from gptlab.registry import register


@register("model", "encoder_decoder")
class EncoderDecoderConfig(TransformerConfig):
    """An encoder that a decoder attends to; the defaults are T5's.

    Positions are relative, so any length can be read; `context_length` is how long texts are in training.
    """

    n_decoder_layer: int | None = bounded(None, ge=1, le=2_000)  # null: n_layer, which is the encoder's
    feedforward: Feedforward = Feedforward.relu
    relative_attention_num_buckets: int = 32  # ranges of distance that have a bias of their own
    relative_attention_max_distance: int = 128  # in tokens; all beyond it share a bias
    norm_eps: float = bounded(1e-6, gt=0)
    tie_embeddings: bool = True
    scale_decoder_outputs: bool | None = None  # by d_model^-0.5 before the head; null: where embeddings are tied
    decoder_start_token_id: int = bounded(0, ge=0)
    init_factor: float = bounded(1.0, gt=0)  # of T5's own initial values

    def build(self, vocab_size: int):
        from gptlab.models.encoder_decoder.network import EncoderDecoder

        return EncoderDecoder(self, vocab_size)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({Capability.encoder_decoder})

    @property
    def parametrizations(self) -> frozenset[Parametrization]:
        return frozenset({Parametrization.standard, Parametrization.mup})  # its two depths have no one ratio

    @property
    def decoder_layers(self) -> int:
        return self.n_layer if self.n_decoder_layer is None else self.n_decoder_layer

    @property
    def scales_decoder_outputs(self) -> bool:
        return self.tie_embeddings if self.scale_decoder_outputs is None else self.scale_decoder_outputs

    def tensor_parallel_dims(self) -> dict[str, int] | None:
        return None  # all heads share the biases of relative positions

    def check(self) -> None:
        super().check()
        buckets = self.relative_attention_num_buckets
        if buckets < 4 or buckets % 2:
            raise UserError(
                f"model.relative_attention_num_buckets={buckets} must be even and at least 4: the encoder has half of "
                "them for each direction"
            )
        if self.relative_attention_max_distance <= buckets // 2:
            raise UserError(
                f"model.relative_attention_max_distance={self.relative_attention_max_distance} must be above half of "
                f"model.relative_attention_num_buckets={buckets}"
            )
        if self.vocab_size is not None and self.decoder_start_token_id >= self.vocab_size:
            raise UserError(
                f"model.decoder_start_token_id={self.decoder_start_token_id} is outside "
                f"model.vocab_size={self.vocab_size}"
            )
