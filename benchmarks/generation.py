"""Tokens per second of one text, beside transformers, litgpt, llama.cpp and what the machine's memory allows.

    OMP_NUM_THREADS=2 python benchmarks/generation.py [--rounds 5] [--tokens 32] [--litgpt-python PATH]
                                                      [--llama-python PATH] [--run PATH]

GPT-2's 124M parameters with random weights, batch 1, greedy, float32 unless given otherwise. All take turns within one
run. `floor` is one product of a vector and a matrix of rows of 1024 with as many elements as the model's, by torch's
own matrix library. `products` are the model's own matrices times a vector, one after another and nothing between them,
as gptlab computes them. `stream` adds up as many numbers in one block: about what this memory gives, and the strictest
bound. A rate is one over the median time between two tokens, so that what other programs take from single steps does
not count; reading the prompt has a column of its own. Of the rounds the median and the range are shown.

litgpt's pins clash with ours: --litgpt-python names an interpreter that can import it, --llama-python one that can
import xllamacpp and gguf, whose model is the same shape in float32. --run prints what int8 costs in
perplexity, on text that the model has not seen: up to 32,768 tokens of the run's validation split, or the file --text.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from gptlab.generation.threads import brief_spin

os.environ.update(brief_spin(os.environ))  # for all of them: as `gptlab generate` has it

import torch

from gptlab.data.prepare import prepare as prepare_data
from gptlab.generation.config import Precision
from gptlab.generation.decode import decode
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.precision import prepare
from gptlab.generation.sampling import Sampling
from gptlab.models.build import shape_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.nn.linear import threaded_linear
from gptlab.runs.load import load_model
from gptlab.runs.run import Run

VOCAB_SIZE, CONTEXT, N_LAYER, D_MODEL = 50_257, 1024, 12, 768
N_WEIGHTS = 124_439_808 - CONTEXT * D_MODEL  # of the position embeddings a token reads one
PROMPTS = (16, 512)
BOUNDS = ("floor", "products", "stream")
VALIDATION_TOKENS = 32_768
LLAMA_WORKER = Path(__file__).with_name("llama_worker.py")

LITGPT = """
import sys, time, torch
torch.set_num_threads({threads})
import json
from litgpt.generate.base import generate_fn
from litgpt.model import GPT, Config
config = Config(name="gpt2", block_size={context}, vocab_size={vocab_size}, padded_vocab_size={vocab_size}, n_layer=12,
                n_head=12, n_embd=768, rotary_percentage=1.0, parallel_residual=False, bias=True, lm_head_bias=False,
                norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP")
torch.manual_seed(0)
model = GPT(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
print("ready", sum(p.numel() for p in model.parameters()), flush=True)
for line in sys.stdin:
    n_prompt, n_tokens = map(int, line.split())
    prompt = torch.randint({vocab_size}, (n_prompt,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model.clear_kv_cache()
        model.max_seq_length = n_prompt + n_tokens
        model.set_kv_cache(batch_size=1)
        times = [time.perf_counter()]
        for token in generate_fn(model, prompt, n_prompt + n_tokens, temperature=0.0, top_p=0.0, include_prompt=False,
                                 include_eos=True):
            times.append(time.perf_counter())
        assert len(times) == n_tokens + 1
        print(json.dumps([b - a for a, b in zip(times, times[1:])]), flush=True)
"""

# The seconds that each of so many tokens took after a prompt of so many.
Contender = Callable[[int, int], list[float]]


def prompt_of(n_tokens: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (n_tokens,), generator=torch.Generator().manual_seed(0)).tolist()


def between(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


class Clock:
    """A streamer of transformers that records when it gets the prompt and each token."""

    def __init__(self):
        self.times = []

    def put(self, tokens) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def gptlab(precision: Precision) -> Contender:
    config = DecoderConfig(n_layer=N_LAYER, n_head=12, d_model=D_MODEL, context_length=CONTEXT)
    model = shape_model(config, VOCAB_SIZE).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    model = prepare(model, precision, torch.device("cpu"))

    def run(n_prompt: int, n_tokens: int) -> list[float]:
        prompt = prompt_of(n_prompt)
        times = [time.perf_counter()]
        with torch.no_grad():
            state = DecodingState(model, [prompt], n_more=n_tokens)
            for _ in decode(state, n_tokens, Sampling(temperature=0.0)):
                times.append(time.perf_counter())
        return between(times)

    return run


def transformers() -> Contender:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None)).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None

    def run(n_prompt: int, n_tokens: int) -> list[float]:
        prompt = torch.tensor([prompt_of(n_prompt)])
        attend = torch.ones_like(prompt)
        clock = Clock()
        with torch.no_grad():
            model.generate(prompt, attention_mask=attend, do_sample=False, max_new_tokens=n_tokens, streamer=clock)
        return between(clock.times)

    return run


def litgpt(python: str, threads: int) -> Contender:
    script = LITGPT.format(threads=threads, context=CONTEXT, vocab_size=VOCAB_SIZE)
    return in_process("litgpt", [python, "-c", script], threads)


def llama_cpp(python: str, threads: int, folder: str) -> Contender:
    shape = ("12", "768", "12", str(VOCAB_SIZE), str(CONTEXT))
    return in_process("llama.cpp", [python, str(LLAMA_WORKER), folder, str(threads), *shape], threads)


def in_process(name: str, command: list[str], threads: int) -> Contender:
    """A contender in another interpreter, which answers each line with the seconds of its tokens."""
    worker = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if not worker.stdout.readline().startswith("ready"):
        sys.exit(f"error: {command[0]} cannot run {name}")

    def run(n_prompt: int, n_tokens: int) -> list[float]:
        print(n_prompt, n_tokens, file=worker.stdin, flush=True)
        return json.loads(worker.stdout.readline())

    return run


def products() -> Contender:
    """The products of one token alone: each of the model's matrices times a vector, laid out as for decoding."""
    of_block = ((3 * D_MODEL, D_MODEL), (D_MODEL, D_MODEL), (4 * D_MODEL, D_MODEL), (D_MODEL, 4 * D_MODEL))
    pairs = []
    for n_outputs, n_inputs in (*(of_block * N_LAYER), (VOCAB_SIZE, D_MODEL)):
        by_column = n_outputs >= n_inputs
        weight = torch.randn(n_inputs, n_outputs).t() if by_column else torch.randn(n_outputs, n_inputs)
        pairs.append((torch.randn(n_inputs), weight))

    def token() -> None:
        for vector, weight in pairs:
            threaded_linear(vector, weight)

    return repeated(token)


def plain_product() -> Contender:
    """One product with as many weights."""
    matrix, vector = torch.randn(N_WEIGHTS // 1024, 1024), torch.randn(1024)
    return repeated(lambda: matrix @ vector)


def sums() -> Contender:
    """As many numbers as a token reads, added up."""
    block = torch.randn(N_WEIGHTS)
    return repeated(block.sum)


def repeated(token: Callable[[], object]) -> Contender:
    @torch.no_grad()
    def run(n_prompt: int, n_tokens: int) -> list[float]:
        times = [time.perf_counter()]
        for _ in range(n_tokens):
            token()
            times.append(time.perf_counter())
        return between(times)

    return run


def measure(contenders: dict[str, Contender], rounds: int, n_tokens: int) -> dict[tuple[str, int], list[tuple]]:
    """(rate of tokens after the first, seconds to the first) of each round, by contender and prompt."""
    measured = {(name, n): [] for n in PROMPTS for name in contenders}
    for turn in range(rounds + 1):
        for n in PROMPTS:
            for name, run in contenders.items():
                first, *steps = run(n, n_tokens + 1)
                assert len(steps) == n_tokens
                if turn:  # the first is to warm up
                    measured[name, n].append((1 / statistics.median(steps), first))
    return measured


def table(contenders: dict[str, Contender], measured: dict, bytes_read: int) -> None:
    rate = {key: statistics.median(row[0] for row in rows) for key, rows in measured.items()}
    first = {key: statistics.median(row[1] for row in rows) for key, rows in measured.items()}
    speed = {name: rate[name, PROMPTS[0]] * bytes_read / 1e9 for name in BOUNDS}
    print(
        f"{bytes_read / 1e6:.0f} MB of weights, read with {', '.join(f'{rate:.1f}' for rate in speed.values())} GB/s\n"
    )
    for n in PROMPTS:
        print(f"prompt {n:<15} tokens/s   range            of floor  of products  of stream   first token")
        for name in contenders:
            rates = [row[0] for row in measured[name, n]]
            shown = "" if name in speed else f"{first[name, n] * 1e3:8.0f} ms"
            shares = "   ".join(f"{rate[name, n] / rate[bound, n]:9.0%}" for bound in speed)
            print(f"{name:<22} {rate[name, n]:8.1f}   {min(rates):6.1f} to {max(rates):6.1f} {shares}   {shown}")
        for ours in ("gptlab", "gptlab int8"):
            for theirs in ("transformers", "litgpt", "llama.cpp"):
                if theirs in contenders:
                    print(f"    {ours} / {theirs}: {rate[ours, n] / rate[theirs, n]:.2f}")
        print()


def perplexity(run: str, text: Path | None) -> None:
    from gptlab.generation.scoring import score, token_nats

    ids, exact = None if text is not None else held_out(run), None
    for precision in Precision:
        model, tokenizer, _ = load_model(run)
        model = prepare(model, precision, torch.device("cpu"))
        nats = score(model, tokenizer, text.read_text(encoding="utf-8")).nats if ids is None else token_nats(model, ids)
        found = math.exp(statistics.fmean(nats))
        exact = exact or found
        print(f"perplexity {precision.value:<5} {found:.4f} ({found / exact - 1:+.3%}) on {len(nats):,} tokens")


def held_out(run: str) -> list[int]:
    """The first tokens of a run's validation split, as training prepared them."""
    file = Path(run) / "config.yaml"
    config = Run(file.parent).config if file.is_file() else None
    if config is None or not Path(run, "metrics.csv").is_file():
        raise ValueError(f"--run {run} is no folder that a run left, so nothing is held out; add --text FILE")
    split = prepare_data(config.data, config.tokenizer, progress=False).val
    if split is None:
        raise ValueError(f"--run {run} was trained without a validation split; add --text FILE")
    return split.tokens[:VALIDATION_TOKENS].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--litgpt-python", metavar="PATH")
    parser.add_argument("--llama-python", metavar="PATH")
    parser.add_argument("--run", help="a run folder, or with --text a .ckpt file or a transformers folder")
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.run:
        try:
            return perplexity(given.run, given.text)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
    if given.text:
        parser.error("--text is scored by a model; add --run PATH")
    contenders = {
        **dict(zip(BOUNDS, (plain_product(), products(), sums()), strict=True)),
        "gptlab": gptlab(Precision.float32),
        "gptlab int8": gptlab(Precision.int8),
        "transformers": transformers(),
    }
    if given.litgpt_python:
        contenders["litgpt"] = litgpt(given.litgpt_python, given.threads)
    with tempfile.TemporaryDirectory() as folder:
        if given.llama_python:
            contenders["llama.cpp"] = llama_cpp(given.llama_python, given.threads, folder)
        table(contenders, measure(contenders, given.rounds, given.tokens), 4 * N_WEIGHTS)


if __name__ == "__main__":
    from ending import finish

    finish(main)
