"""Models of transformers with random weights, built locally, whose sizes and settings are far from the defaults."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.dynamic_module_utils

from gptlab.cli import convert
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.interop.architecture import TensorLocation
from gptlab.interop.tokenizer_files import tokenizer_files

VOCAB_SIZE, POSITIONS = 61, 24
# The grouped product, which transformers takes for experts, fails there at sizes that are no multiple of 16 bytes.
EXPERTS = {"experts_implementation": "eager"}
ROTARY = {"rope_type": "default", "rope_theta": 50.0}
LLAMA_3_1 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3_1["original_max_position_embeddings"] = 9


@contextmanager
def own_code(folder: Path) -> Iterator[None]:
    """Keep code that comes with models out of the cache of the person who runs the tests."""
    path, module = list(sys.path), transformers.dynamic_module_utils
    before, module.HF_MODULES_CACHE = module.HF_MODULES_CACHE, str(folder)
    try:
        yield
    finally:
        module.HF_MODULES_CACHE, sys.path[:] = before, path


def gpt2(**options) -> dict[str, Any]:
    sizes = {"vocab_size": VOCAB_SIZE, "n_positions": POSITIONS, "n_layer": 3, "n_head": 3, "n_embd": 21}
    return {**sizes, "layer_norm_epsilon": 0.03, "bos_token_id": 0, "eos_token_id": 0, **options}


def llama(**options) -> dict[str, Any]:
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": POSITIONS, "num_hidden_layers": 2, "hidden_size": 30}
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 6, "intermediate_size": 41}
    settings = {"rms_norm_eps": 0.02, "rope_parameters": ROTARY, "bos_token_id": 0, "eos_token_id": 0}
    return {**sizes, **heads, **settings, "tie_word_embeddings": False, **options}


def bert(**options) -> dict[str, Any]:
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": POSITIONS, "num_hidden_layers": 3, "hidden_size": 21}
    heads = {"num_attention_heads": 3, "intermediate_size": 33, "layer_norm_eps": 0.03}
    return {**sizes, **heads, "hidden_dropout_prob": 0.2, **options}


def t5(**options) -> dict[str, Any]:
    sizes = {"vocab_size": VOCAB_SIZE, "d_model": 24, "d_kv": 5, "d_ff": 33, "num_layers": 2, "num_heads": 3}
    distances = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    starts = {"decoder_start_token_id": 0, "eos_token_id": 1}
    return {**sizes, **distances, **starts, "layer_norm_epsilon": 0.02, "dropout_rate": 0.2, **options}


@dataclass(frozen=True)
class Case:
    """An architecture at one shape."""

    config: str
    options: dict[str, Any]
    kind: str = "AutoModelForCausalLM"
    untied: bool = False  # with a head of its own where the library's config cannot say so

    def model(self, seed: int = 0):
        """The reference, drawn so that no zero and no symmetry hides an error."""
        config = getattr(transformers, self.config)(**self.options)
        generator = torch.Generator().manual_seed(seed)
        kind = getattr(transformers, self.kind)
        model = kind.from_config(config, **EXPERTS) if self.kind.startswith("Auto") else kind(config)
        if self.untied:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                matrix = parameter.ndim >= 2
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
    "llama linear": Case("LlamaConfig", llama(rope_parameters={**ROTARY, "rope_type": "linear", "factor": 2.5})),
    "llama yarn": Case(
        "LlamaConfig",
        llama(rope_parameters={**ROTARY, "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 9}),
    ),
    "llama 3.1": Case("LlamaConfig", llama(rope_parameters={**ROTARY, **LLAMA_3_1})),
    "mistral": Case("MistralConfig", llama(sliding_window=None, num_attention_heads=6, num_key_value_heads=3)),
    "mistral window": Case("MistralConfig", llama(sliding_window=4)),
    "mixtral": Case("MixtralConfig", llama(num_local_experts=3)),
    "mixtral grouped, three of seven": Case(
        "MixtralConfig",
        llama(
            **{"num_local_experts": 7, "num_experts_per_tok": 3, "num_attention_heads": 6, "num_key_value_heads": 2},
            **{"sliding_window": 5, "tie_word_embeddings": True},
        ),
    ),
    "mixtral aligned": Case(
        "MixtralConfig",
        llama(num_local_experts=4, hidden_size=28, intermediate_size=44, num_attention_heads=7, num_key_value_heads=1),
    ),
    "mixtral one block": Case("MixtralConfig", llama(num_local_experts=5, num_hidden_layers=1)),
    "qwen2": Case("Qwen2Config", llama(num_attention_heads=6, num_key_value_heads=2)),
    "qwen2 tied": Case("Qwen2Config", llama(tie_word_embeddings=True)),
}


BERT = {"kind": "BertForPreTraining"}
BERTS = {
    "bert": Case("BertConfig", bert(), **BERT),
    "bert five heads": Case("BertConfig", bert(num_attention_heads=5, hidden_size=40, type_vocab_size=3), **BERT),
    "bert one layer": Case("BertConfig", bert(num_hidden_layers=1, num_attention_heads=1, hidden_size=9), **BERT),
    "bert mlm head alone": Case("BertConfig", bert(), "BertForMaskedLM"),
    "bert without heads": Case("BertConfig", bert(), "BertModel"),
}
T5 = {"kind": "T5ForConditionalGeneration"}
T5S = {
    "t5": Case("T5Config", t5(), **T5),
    "t5 five heads": Case("T5Config", t5(num_heads=5, d_kv=3, d_model=28, num_decoder_layers=1), **T5),
    "t5 few buckets": Case(
        "T5Config", t5(relative_attention_num_buckets=6, relative_attention_max_distance=5, num_layers=1), **T5
    ),
    "t5 gated": Case("T5Config", t5(feed_forward_proj="gated-gelu", num_decoder_layers=3), **T5),
    "t5 tied, not scaled": Case("T5Config", t5(feed_forward_proj="gated-silu", tie_word_embeddings=False), **T5),
    "t5 1.1": Case(
        "T5Config",
        t5(feed_forward_proj="gated-gelu", num_heads=7, d_kv=5, d_model=30, tie_word_embeddings=False),
        untied=True,
        **T5,
    ),
    "t5 untied": Case("T5Config", t5(feed_forward_proj="gelu_new", scale_decoder_outputs=True), untied=True, **T5),
}


def as_saved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names of a model in memory, by those that transformers saves: there experts are separate."""
    saved = {}
    for name, value in tensors.items():
        block, found, last = name.partition(".mlp.experts.")
        if found:
            parts = {"w2": value} if last == "down_proj" else dict(zip(("w1", "w3"), value.chunk(2, 1), strict=True))
            for part, stack in parts.items():
                saved |= {f"{block}.block_sparse_moe.experts.{i}.{part}.weight": one for i, one in enumerate(stack)}
        else:
            saved[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = value
    return saved


def at_location(location: TensorLocation, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Our tensor at a location among theirs."""
    parts = [location.take(tensors[name]) for name in location.names]
    return parts[0] if location.stacked is None else torch.stack(parts)


def write_older_tokenizer(folder: Path, tokenizer: Tokenizer, vocabulary: str, merges: str) -> None:
    """A byte-pair encoding as OpenAI published GPT-2's: the ids of the tokens, and a merge per line."""
    content = tokenizer_files(tokenizer, 128)["tokenizer.json"]
    vocab = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    (folder / vocabulary).write_text(json.dumps(vocab))
    lines = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / merges).write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


def run_convert(*arguments: object) -> int:
    """The exit code of `gptlab convert` with these arguments."""
    return convert.main([str(argument) for argument in arguments])


MEASURE = """
import sys, safetensors, tokenizers, numpy, torch
from gptlab.runs import convert
if sys.argv[3:]:
    from gptlab.interop import openai_checkpoint
    openai_checkpoint._tensorflow()
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
before = peak()
convert.convert(sys.argv[1], sys.argv[2])
print(peak() - before)
"""


def memory_taken(source: Path, target: Path, *, tensorflow: bool = False) -> int:
    """The peak memory of a conversion in bytes, without what the imports take."""
    command = [sys.executable, "-c", MEASURE, str(source), str(target), *(["tensorflow"] if tensorflow else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return int(done.stdout.splitlines()[-1])
