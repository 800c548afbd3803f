import pytest

from gptlab.costs import parameter_counts, training_pass
from gptlab.lab.layers import layers
from gptlab.models.build import shape_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig

SMALL = {"context_length": 16, "n_layer": 3, "n_head": 2, "d_model": 8}


def top(found):
    """The layers that are in no other."""
    names = {layer.name for layer in found}
    return [one for one in found if not any(one.name.startswith(f"{name}.") for name in names - {one.name})]


def test_bert_base_by_hand():
    """BERT base (arXiv:1810.04805): 110M parameters as 12 layers of 7,087,872 and embeddings of 23,837,184."""
    config = EncoderConfig(context_length=512, n_layer=12, n_head=12, d_model=768, heads=Heads.masked_lm, dropout=0.0)
    found = {layer.name: layer for layer in layers(shape_model(config, 30522), 512)}
    assert found["tok_emb"].parameters == 30522 * 768
    assert found["pos_emb"].parameters + found["seg_emb"].parameters + found["emb_norm"].parameters == 514 * 768 + 1536
    block = found["blocks.0"]
    assert (block.parameters, block.count) == (4 * (768 * 768 + 768) + 2 * 1536 + 768 * 3072 * 2 + 3072 + 768, 12)
    # Four products of (512, 768) with (768, 768), scores and their sums over 12 heads, and the feedforward layer.
    attention = 4 * 512 * 768 * 768 + 2 * 512 * 512 * 768
    assert found["blocks.0.attn"].multiply_adds == attention
    assert block.multiply_adds == attention + 2 * 512 * 768 * 3072
    assert found["blocks.0.ffn.up"].input == (1, 512, 768) and found["blocks.0.ffn.up"].output == (1, 512, 3072)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size", [40, 100])
def test_the_layers_of_a_decoder_add_up(tied, vocab_size):
    model = shape_model(DecoderConfig(**SMALL, tie_embeddings=tied), vocab_size)
    found = layers(model, 16)
    assert sum(layer.count * layer.parameters for layer in top(found)) == parameter_counts(model)["total"]
    forward = 2 * sum(layer.count * layer.multiply_adds for layer in top(found)) / 16
    assert 3 * forward == pytest.approx(training_pass(model, 16).flops_per_token)
    assert found[-1].name == ("head (tied to tok_emb.weight)" if tied else "lm_head")
    assert found[-1].output == (1, 16, vocab_size)


def test_the_layers_of_an_encoder_decoder_add_up():
    model = shape_model(EncoderDecoderConfig(**SMALL), 40)
    found = layers(model, 16, target_length=6)
    assert sum(layer.count * layer.parameters for layer in top(found)) == parameter_counts(model)["total"]
    forward = 2 * sum(layer.count * layer.multiply_adds for layer in top(found)) / 16
    assert 3 * forward == pytest.approx(training_pass(model, 16, target_length=6).flops_per_token)


def test_blocks_that_differ_are_given_one_by_one():
    config = DecoderConfig(**SMALL, attention_pattern="alternating", attention_window=4)
    model = shape_model(config, 40)
    counts = [layer.count for layer in layers(model, 16) if layer.name.count(".") == 1 and "blocks" in layer.name]
    assert sum(counts) == 3
