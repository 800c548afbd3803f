"""Small models of each kind with random weights, and a text."""

import torch
from torch import nn

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.lab.inspection.subject import Subject, subject_of
from gptlab.models.base import LanguageModel
from gptlab.models.build import build_model
from gptlab.models.config import ModelConfig
from gptlab.models.decoder.config import AttentionPattern, DecoderConfig, Norm, NormPlacement, Position
from gptlab.models.encoder.config import EncoderConfig, Heads
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.nn.loss import LMHead

TEXT = "To be, or not to be"
SIZES = {"n_layer": 2, "n_head": 4, "d_model": 16, "context_length": 32}
MODELS = {
    "gpt2": DecoderConfig(**SIZES, init_std=0.4),
    "post-norm": DecoderConfig(**SIZES, init_std=0.4, norm_placement=NormPlacement.post),
    "modern": DecoderConfig(
        **SIZES,
        **{"n_kv_head": 2, "position": Position.rotary, "norm": Norm.rmsnorm, "qk_norm": True, "bias": False},
        **{"attention_pattern": AttentionPattern.sliding_window, "attention_window": 5},
        **{"tie_embeddings": False, "logit_softcap": 3.0, "attention_scale": 0.7, "init_std": 0.4},
    ),
    "experts": DecoderConfig(**SIZES, init_std=0.4, n_expert=4),
    "bert": EncoderConfig(**SIZES, init_std=0.4),
    "bert without heads": EncoderConfig(**SIZES, heads=Heads.none),
    "t5": EncoderDecoderConfig(**SIZES),
}


class Mean(nn.Linear):
    def __init__(self, width):
        super().__init__(width, width)

    def forward(self, x):
        return super().forward(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Average(LanguageModel):
    """A plugin's model, without attention: each token's state is mixed with the mean of those before it.

    With `adds` what a block gives is added to what it reads outside of the block.
    """

    def __init__(self, vocab_size: int, *, adds: bool = False, n_layer: int = 2, width: int = 8):
        super().__init__(ModelConfig(n_layer=n_layer, d_model=width, context_length=32))
        self.adds = adds
        self.tok_emb = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Mean(width) for _ in range(n_layer))

    def hidden_states(self, tokens, *, attention_mask=None):
        x = self.tok_emb(tokens)
        for block in self.blocks:
            x = x + block(x) if self.adds else block(x)
        return x

    @property
    def head(self):
        return LMHead(weight=self.tok_emb.weight)


def tokenizer() -> ByteTokenizer:
    return ByteTokenizer(["<mask>", "<cls>", "<sep>", "<pad>", "<extra_id_0>"])


def subject(name: str, text: str = TEXT, **given) -> Subject:
    """A model of `MODELS` that reads the text."""
    own = tokenizer()
    return subject_of(build_model(MODELS[name], own.vocab_size, seed=1).eval(), own, text, **given)


def plugin(**options) -> Subject:
    torch.manual_seed(0)
    return subject_of(Average(tokenizer().vocab_size, **options).eval(), tokenizer(), TEXT)
