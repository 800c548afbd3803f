"""What every network tells training and tools, and what a model of a plugin gets without defining it."""

import pytest
import torch
from torch import nn

from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.models.build import init_weights, shape_model
from gptlab.models.config import ModelConfig
from gptlab.models.decoder.config import DecoderConfig, NormPlacement, Position
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.loss import LMHead
from gptlab.training.config import FinetuneConfig, Finetuning
from gptlab.training.finetune import prepare_finetuning

SIZES = {"n_layer": 2, "n_head": 2, "d_model": 16, "context_length": 8}
CONFIGS = {
    "decoder": DecoderConfig(**SIZES, tie_embeddings=False),
    "rotary": DecoderConfig(**SIZES, position=Position.rotary, norm_placement=NormPlacement.post),
    "experts": DecoderConfig(**SIZES, n_expert=4, n_shared_expert=1),
    "encoder": EncoderConfig(**SIZES),
    "encoder, mlm": EncoderConfig(**SIZES, heads=Heads.masked_lm),
    "encoder-decoder": EncoderDecoderConfig(**SIZES, n_decoder_layer=3),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@each_config
def test_blocks_are_all_and_in_order(config):
    model = shape_model(config, 11)
    n_blocks = config.n_layer + getattr(config, "decoder_layers", 0)
    assert len(model.blocks) == n_blocks
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(block)] for block in model.blocks]
    assert found == sorted(found, key=lambda name: ("decoder" in name, name))
    assert list(model.output_blocks) == list(model.blocks)[-len(model.output_blocks) :]


PARTS = {
    "decoder": {"embedding", "position", "attention", "feedforward", "norm", "head"},
    "rotary": {"embedding", "attention", "feedforward", "norm"},
    "experts": {"embedding", "position", "attention", "feedforward", "norm"},
    "encoder": {"embedding", "position", "attention", "feedforward", "norm", "pooler", "head"},
    "encoder, mlm": {"embedding", "position", "attention", "feedforward", "norm", "head"},
    "encoder-decoder": {"embedding", "position", "attention", "feedforward", "norm"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_counted_to_a_part(name):
    model = shape_model(CONFIGS[name], 11, 3)
    prepare_finetuning(model, FinetuneConfig(type=Finetuning.lora))
    assert {model.part_of(name) for name, _ in model.named_parameters()} == PARTS[name] | {"adapter", "classes"}


@each_config
def test_linear_layers_are_those_of_their_names(config):
    model = shape_model(config, 11)
    for block in model.blocks:
        for name, layer in model.linear_layers(block).items():
            assert block.get_submodule(name) is layer and type(layer) is nn.Linear
            assert "experts" not in name and "router" not in name


@each_config
def test_output_modules_follow_the_last_block(config):
    """Their parameters, those of the blocks and the embeddings are all there are, each once."""
    model = shape_model(config, 11)
    after = [id(p) for module in model.output_modules for p in module.parameters()]
    blocks = [id(p) for block in model.blocks for p in block.parameters()]
    before = {id(p) for name, p in model.named_parameters() if "emb" in name or "position" in name}
    before |= {id(p) for name, p in model.named_parameters() if name == "encoder.final_norm.weight"}
    assert not set(after) & set(blocks) and not set(after) & before
    assert {id(p) for p in model.parameters()} == {*after, *blocks, *before}


@each_config
def test_a_cache_is_for_models_that_continue_a_text(config):
    model = shape_model(config, 11).to_empty(device="cpu")
    cache = model.new_cache(2, 5)
    if isinstance(config, EncoderConfig):
        assert cache is None
    else:
        assert len(cache.layers) == len(model.output_blocks) and cache.lengths == [0, 0]


@each_config
def test_a_tensor_parallel_plan_names_layers_of_its_block(config):
    model = shape_model(config, 11)
    for block in model.blocks:
        if config.tensor_parallel_dims() is None:
            with pytest.raises(UserError, match="use strategy=fsdp"):
                model.tensor_parallel_plan(block)
            continue
        splits = model.tensor_parallel_plan(block).splits
        matrices = {name for name, module in block.named_modules() if hasattr(module, "in_features")}
        assert set(splits) == matrices - {"ffn.router"}


class Average(LanguageModel):
    """The mean of the embeddings so far, through a matrix: no transformer."""

    def __init__(self, config, vocab_size):
        super().__init__(config)
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(config.d_model, config.d_model), nn.LayerNorm(config.d_model))]
        )
        self.decay = nn.Parameter(torch.empty(config.d_model))

    def hidden_states(self, tokens, *, attention_mask=None):
        x = self.embedding(tokens)
        n = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.blocks[0](x.cumsum(1) / n) + self.decay

    @property
    def head(self):
        return LMHead(self.embedding.weight)


def average():
    with torch.device("meta"):
        model = Average(ModelConfig(type="average", d_model=64), 50)
    model = model.to_empty(device="cpu")
    init_weights(model, 0)
    return model


def test_two_definitions_make_a_model():
    model = average()
    logits = model(torch.arange(6)[None])
    assert logits.shape == (1, 6, 50) and logits.isfinite().all()
    assert model.auxiliary is None and model.new_cache(1, 8) is None
    assert model.output_blocks is model.blocks
    assert model.part_of("embedding.weight") == "embedding" and model.part_of("blocks.0.1.weight") == "blocks"


def test_default_initial_values():
    model = average()
    linear, norm = model.blocks[0]
    for matrix in (model.embedding.weight, linear.weight):
        assert matrix.std().item() == pytest.approx(0.02, rel=0.05) and abs(matrix.mean()) < 0.001
    assert not linear.bias.any() and not norm.bias.any() and (norm.weight == 1).all() and not model.decay.any()


def test_adapters_fit_any_model_and_what_it_does_not_define_is_refused():
    model = average()
    with pytest.raises(UserError, match=r"finetune=last_layers .*model.type=average.*use finetune=full or lora"):
        prepare_finetuning(model, FinetuneConfig(type=Finetuning.last_layers, n_layer=1))
    with pytest.raises(UserError, match=r"model\.type=average; use strategy=fsdp"):
        model.tensor_parallel_plan(model.blocks[0])
    prepare_finetuning(model, FinetuneConfig(type=Finetuning.lora, target_modules=["0"]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"blocks.0.0.lora_down", "blocks.0.0.lora_up"}
