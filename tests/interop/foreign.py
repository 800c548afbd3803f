"""Models of transformers with random weights, built locally, whose sizes and settings are far from the defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS, POSITIONS = 61, 24
ROTARY = {"rope_type": "default", "rope_theta": 50.0}


def gpt2(**words) -> dict[str, Any]:
    sizes = {"vocab_size": WORDS, "n_positions": POSITIONS, "n_layer": 3, "n_head": 3, "n_embd": 21}
    return {**sizes, "layer_norm_epsilon": 0.03, "bos_token_id": 0, "eos_token_id": 0, **words}


def llama(**words) -> dict[str, Any]:
    sizes = {"vocab_size": WORDS, "max_position_embeddings": POSITIONS, "num_hidden_layers": 2, "hidden_size": 30}
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 6, "intermediate_size": 41}
    settings = {"rms_norm_eps": 0.02, "rope_parameters": ROTARY, "bos_token_id": 0, "eos_token_id": 0}
    return {**sizes, **heads, **settings, "tie_word_embeddings": False, **words}


@dataclass(frozen=True)
class Case:
    """An architecture at one shape."""

    config: str
    words: dict[str, Any]

    def model(self, seed: int = 0):
        """The reference, drawn so that no zero and no symmetry hides an error."""
        config = getattr(transformers, self.config)(**self.words)
        generator = torch.Generator().manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                matrix = parameter.ndim == 2
                parameter.copy_(0.25 * drawn if matrix else 0.3 * drawn + (1.0 if "weight" in name else 0.0))
        return model.eval()

    def save(self, path: Path, **how) -> Path:
        self.model().save_pretrained(path, **how)
        return path


CASES = {
    "gpt1": Case("OpenAIGPTConfig", gpt2()),
    "gpt1 five heads": Case("OpenAIGPTConfig", gpt2(n_head=5, n_embd=40, n_layer=2)),
    "gpt2": Case("GPT2Config", gpt2()),
    "gpt2 five heads": Case("GPT2Config", gpt2(n_head=5, n_embd=40, n_inner=33, n_layer=2)),
    "gpt2 untied": Case("GPT2Config", gpt2(n_head=7, n_embd=28, tie_word_embeddings=False)),
    "llama": Case("LlamaConfig", llama()),
    "llama tied, grouped": Case(
        "LlamaConfig", llama(num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "llama one key head": Case("LlamaConfig", llama(num_attention_heads=3, num_key_value_heads=1, head_dim=10)),
    "llama wide heads": Case("LlamaConfig", llama(num_key_value_heads=1, head_dim=8)),
    "llama biased": Case("LlamaConfig", llama(attention_bias=True, mlp_bias=True)),
    "mistral": Case("MistralConfig", llama(sliding_window=None, num_attention_heads=6, num_key_value_heads=3)),
    "mistral window": Case("MistralConfig", llama(sliding_window=4)),
    "qwen2": Case("Qwen2Config", llama(num_attention_heads=6, num_key_value_heads=2)),
    "qwen2 tied": Case("Qwen2Config", llama(tie_word_embeddings=True)),
}
