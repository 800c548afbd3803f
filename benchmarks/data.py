"""Speed of the data pipeline: sequences, gathering, tokenizing to disk, starting; and of token shards.

    python benchmarks/data.py --rounds 5 --megabytes 60 --token-file-gigabytes 1
    python benchmarks/data.py --shards --rounds 3 --megabytes 60 --line-megabytes 500

What is compared alternates within each round; the table gives medians over the rounds. Sequences and gathering use one
core. The corpus is Python's standard library, repeated; one-thread tiktoken encodes the same documents in a loop and
keeps nothing.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from gptlab.data.config import DataConfig, Split
from gptlab.data.examples.windows import SlidingWindows
from gptlab.data.mixture.examples import MixtureOrder
from gptlab.data.mixture.interleave import Interleave
from gptlab.data.order import ExampleOrder, example_index
from gptlab.data.prepare import prepare
from gptlab.data.sources.config import StdlibConfig, TextConfig
from gptlab.data.token_file import TokenFile, TokenWriter
from gptlab.data.tokenizers.config import BPEConfig, ByteConfig, GPT2Config, TokenizerConfig
from gptlab.errors import UserError

N_TOKENS = 1_000_000
SHAPES = ((12, 64), (12, 256), (64, 256), (12, 1024))


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def row(what: str, value: str, note: str = "") -> None:
    print(f"{what:<46} {value:>16}  {note}".rstrip())


def sequences(folder: Path, rounds: int) -> None:
    rng = np.random.default_rng(0)
    path = folder / "tokens.bin"
    with TokenWriter(path, vocab_size=50_257, tokenizer="benchmark") as writer:
        writer.write(rng.integers(0, 50_257, N_TOKENS))
    tokens = TokenFile.open(path, verify=False).tokens

    def build() -> SlidingWindows:
        return SlidingWindows(tokens, 256, 1)

    milliseconds = [seconds(build) * 1e3 for _ in range(rounds)]
    tracemalloc.start()
    kept = build()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    row(
        "sequences, 1M tokens, T 256, stride 1", f"{statistics.median(milliseconds):.3f} ms", f"{len(kept):,} sequences"
    )
    row("  their memory", f"{peak_bytes:,} bytes", "view of the map" if _is_view(kept, tokens) else "A COPY")
    for batch, context in SHAPES:
        view = SlidingWindows(tokens, context, 1)
        indices = [rng.integers(0, len(view), batch) for _ in range(200)]
        speeds = []
        for _ in range(rounds):
            taken = seconds(lambda view=view, indices=indices: [view.gather(wanted) for wanted in indices])
            speeds.append(batch * context * len(indices) / taken / 1e6)
        row(f"gather B {batch}, T {context}", f"{statistics.median(speeds):,.0f} M tokens/s")
    micro = [seconds(lambda: example_index(1, np.arange(12), 10**9), 200) * 1e6 for _ in range(rounds)]
    row("order of 12 samples among 1e9 examples", f"{statistics.median(micro):.0f} us")
    seeking(rounds)


def seeking(rounds: int) -> None:
    """How long it takes to find samples far into a run, alone: nothing is kept from one to the next."""
    n = 10**12
    order = ExampleOrder(1, n)
    weights = (Fraction(51, 100), Fraction(29, 100), Fraction(20, 100))
    half = (Fraction(1, 3),) * 3
    constant, scheduled = Interleave(((0, weights),), 1024), Interleave(((0, half), (10**15, weights)), 1024)
    mixed = {
        name: MixtureOrder(
            names=("a", "b", "c"), interleave=one, orders=(ExampleOrder(1, n),) * 3, offsets=(0, n, 2 * n)
        )
        for name, one in (("constant", constant), ("scheduled", scheduled))
    }
    draw = np.random.default_rng(0)
    orders = {"": order, ", mixture": mixed["constant"], ", scheduled mixture": mixed["scheduled"]}
    for name, one in orders.items():
        for count in (1, 12, 4096):
            starts = draw.integers(0, n, 5 if count == 4096 else 50)
            taken = [
                seconds(lambda one=one, at=at, count=count: one.indices(np.arange(at, at + count)))
                for _ in range(rounds)
                for at in starts
            ]
            row(f"seek to {count} of 1e12{name}", f"{statistics.median(taken) * 1e3:.3f} ms")


def _is_view(view: SlidingWindows, tokens: np.ndarray) -> bool:
    return np.shares_memory(view._windows, tokens)


def tokenizing(folder: Path, rounds: int, megabytes: int) -> None:
    texts = [text for _, text in StdlibConfig().build().documents()]
    corpus = folder / "corpus"
    documents: list[str] = []
    n_bytes = 0
    while n_bytes < megabytes * 1e6:
        copy = corpus / f"{len(documents):06d}"
        copy.mkdir(parents=True)
        for number, text in enumerate(texts):
            (copy / f"{number:04d}.py").write_bytes(text.encode())
            documents.append(text)
            n_bytes += len(text.encode())
    try:
        tokenizer = GPT2Config().build(lambda: iter(()))
        config: GPT2Config | BPEConfig = GPT2Config()
        print(f"\ntokenizer: gpt2; {len(documents):,} documents, {n_bytes / 1e6:.1f} MB")
    except UserError:
        config = BPEConfig(vocab_size=16_384)
        tokenizer = config.build(lambda: iter(texts))
        print(f"\ntokenizer: bpe, vocabulary {tokenizer.vocab_size:,}, trained here (gpt2 is not available)")
        print(f"{len(documents):,} documents, {n_bytes / 1e6:.1f} MB")

    # tiktoken alone: for the bpe its ranks behind tiktoken's own spelling of GPT-2's split.
    ranks = {token: rank for rank, token in enumerate(tokenizer._vocabulary)}
    encoding = (
        tiktoken.get_encoding("gpt2")
        if isinstance(config, GPT2Config)
        else tiktoken.Encoding("bpe", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    )

    def tiktoken_alone() -> float:
        return seconds(lambda: [len(encoding.encode_ordinary(text)) for text in documents])

    def ours(n_processes: int) -> float:
        cache = folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        data = TextConfig(path=str(corpus), cache_dir=str(cache), n_processes=n_processes, split=Split.document)
        return seconds(lambda: prepare(data, config, progress=False))

    if isinstance(config, BPEConfig):
        print("(the figures of prepare include training the bpe)")
    runs = {"tiktoken": tiktoken_alone, "one": lambda: ours(1), "two": lambda: ours(2)}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(run())
    names = {
        "tiktoken": "tiktoken, one thread, nothing written",
        "one": "prepare, 1 process, to disk",
        "two": "prepare, 2 processes, to disk",
    }
    for name, label in names.items():
        ratio = statistics.median(base / own for base, own in zip(taken["tiktoken"], taken[name], strict=True))
        row(label, f"{n_bytes / 1e6 / statistics.median(taken[name]):.1f} MB/s", f"{ratio:.2f} x tiktoken")


def first_batch(data: DataConfig, tokenizer: TokenizerConfig, *, batch: int = 12, context: int = 256) -> float:
    """Seconds from a checked config to the first batch of token ids, as one rank spends them without the model."""

    def work() -> None:
        prepared = prepare(data, tokenizer, progress=False)
        examples = SlidingWindows(prepared.train.tokens, context, context)
        examples.gather(example_index(1, np.arange(batch), len(examples)))

    return seconds(work)


def start_times(folder: Path, gigabytes: float, rounds: int = 3) -> dict[str, float]:
    """Seconds to the first batch of a token file of that size (10^9 bytes): `first`, median `second`, `verified`.

    The text is bytes under tokenizer=byte, two bytes a token, so it has half the size of the token file.
    """
    path = folder / "start.txt"
    block = bytes(np.random.default_rng(0).integers(32, 127, 1_000_000, dtype=np.uint8))
    with open(path, "wb") as file:
        for _ in range(max(1, round(gigabytes * 500))):
            file.write(block)
    time.sleep(2.1)  # a file that changed within two seconds is hashed again
    data = TextConfig(path=str(path), cache_dir=str(folder / "start"), val_fraction=0.0)
    tokenizer = ByteConfig()
    found = {"first": first_batch(data, tokenizer)}
    found["second"] = statistics.median(first_batch(data, tokenizer) for _ in range(rounds))
    found["verified"] = seconds(lambda: prepare(data, tokenizer, progress=False, verify=True))
    path.unlink()
    shutil.rmtree(folder / "start")
    return found


def starting(folder: Path, rounds: int, gigabytes: float) -> None:
    found = start_times(folder, gigabytes, rounds)
    print()
    row(f"first start, {gigabytes:g} GB token file", f"{found['first']:.2f} s", "text hashed, tokenized, verified")
    row("second start, to the first batch", f"{found['second'] * 1e3:.1f} ms")
    row("start with verify=True", f"{found['verified']:.2f} s")


# What one call of `prepare_shards` takes, in a process of its own: seconds, CPU seconds of all processes, and the most
# memory in MB of this process and of one that encodes. (ru_maxrss would count what the parent had when it forked.)
ONE_CALL = """
import json, os, sys, time
from gptlab.data import encode
from gptlab.data.config import Split
from gptlab.data.sharding import prepare_shards
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.config import GPT2Config
path, out, n_processes = sys.argv[1:]
def peak(process):
    with open(f"/proc/{process}/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmHWM"))
peaks, end_child = [0], encode.end_child
def end(child):
    peaks.append(peak(child.pid))
    end_child(child)
encode.end_child = end
data = TextConfig(path=path, val_fraction=0.0, split=Split.document, n_processes=int(n_processes), cache_dir=out + "-c")
start, cpu = time.perf_counter(), sum(os.times()[:4])
prepare_shards(data, GPT2Config(), out, shard_tokens=10_000_000)
print(json.dumps([time.perf_counter() - start, sum(os.times()[:4]) - cpu, peak("self"), max(peaks)]))
"""

# nanoGPT's data/openwebtext/prepare.py from a data set that is on disk already: map, then 1024 writes to a memory map.
NANOGPT = """
import json, os, sys, time
import datasets, numpy as np, tiktoken
path, out, n_processes = sys.argv[1:]
datasets.disable_progress_bars()
dataset = datasets.load_dataset("json", data_files=path, split="train", cache_dir=out + "-c")
encoding = tiktoken.get_encoding("gpt2")
def process(example):
    ids = encoding.encode_ordinary(example["text"])
    ids.append(encoding.eot_token)
    return {"ids": ids, "len": len(ids)}
start, cpu = time.perf_counter(), sum(os.times()[:4])
tokenized = dataset.map(process, remove_columns=["text"], num_proc=int(n_processes))
tokens = np.memmap(out, dtype=np.uint16, mode="w+", shape=(int(np.sum(tokenized["len"], dtype=np.uint64)),))
total_batches, position = min(1024, len(tokenized)), 0
for index in range(total_batches):
    batch = tokenized.shard(num_shards=total_batches, index=index, contiguous=True).with_format("numpy")
    ids = np.concatenate(batch["ids"])
    tokens[position : position + len(ids)] = ids
    position += len(ids)
tokens.flush()
print(json.dumps([time.perf_counter() - start, sum(os.times()[:4]) - cpu]))
"""


def in_a_process(program: str, *arguments: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def shards(folder: Path, rounds: int, megabytes: float, line_megabytes: float, n_processes: int = 2) -> None:
    """Token shards beside tiktoken and nanoGPT's way, from one JSONL file, each in a process of its own."""
    texts = [text for _, text in StdlibConfig().build().documents()]
    once = sum(len(text.encode()) for text in texts)
    n_copies = max(1, round(megabytes * 1e6 / once))

    def write(path: Path, n_copies: int) -> float:
        with open(path, "w") as file:
            for _ in range(n_copies):
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        return n_copies * once

    n_bytes = write(folder / "corpus.jsonl", n_copies)
    encoding = tiktoken.get_encoding("gpt2")
    print(
        f"\ntoken shards: gpt2, {n_copies * len(texts):,} documents, {n_bytes / 1e6:.1f} MB of text in one JSONL file"
    )

    def one_call(name: str, n: int = n_processes) -> list[float]:
        found = in_a_process(ONE_CALL, str(folder / name), str(folder / "out"), str(n))
        for path in folder.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return found

    def nanogpt() -> list[float]:
        return in_a_process(NANOGPT, str(folder / "corpus.jsonl"), str(folder / "out"), str(n_processes))

    def alone() -> list[float]:
        cpu = time.process_time()
        taken = seconds(lambda: [len(encoding.encode_ordinary(text)) for text in texts])
        return [taken * n_copies, (time.process_time() - cpu) * n_copies]

    runs = {
        "tiktoken, one thread, nothing written": alone,
        f"prepare, {n_processes} processes": lambda: one_call("corpus.jsonl"),
    }
    runs[f"nanoGPT's prepare, {n_processes} processes"] = nanogpt
    taken: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found = run()
            taken[name].append(found[0])
            cpu[name].append(found[1])
            for path in folder.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    first, second, third = taken.values()
    for name, found in taken.items():
        ratio = statistics.median(base / own for base, own in zip(first, found, strict=True))
        work = statistics.median(own / base for base, own in zip(cpu[next(iter(cpu))], cpu[name], strict=True))
        speed = f"{n_bytes / 1e6 / statistics.median(found):.1f} MB/s"
        row(name, speed, f"{ratio:.2f} x tiktoken, {work:.2f} x its CPU time")
    row("  prepare beside nanoGPT's", f"{statistics.median(b / a for a, b in zip(second, third, strict=True)):.2f} x")

    write(folder / "small.jsonl", max(1, n_copies // 5))
    write(folder / "large.jsonl", max(1, n_copies // 5) * 10)
    small, large = one_call("small.jsonl"), one_call("large.jsonl")
    row("  memory, main process, 1x and 10x", f"{small[2]:.0f}, {large[2]:.0f} MB", f"{large[2] / small[2] - 1:+.1%}")
    row(
        "  memory, one that encodes, 1x and 10x",
        f"{small[2]:.0f}, {large[2]:.0f} MB",
        f"{large[2] / small[2] - 1:+.1%}",
    )
    (folder / "large.jsonl").unlink()
    line = " ".join(" ".join(texts).split())
    with open(folder / "line.txt", "w") as file:
        for _ in range(max(1, round(line_megabytes * 1e6 / len(line.encode())))):
            file.write(line + " ")
    size = (folder / "line.txt").stat().st_size / 1e6
    time_taken, _, *memory = one_call("line.txt")
    row(f"one line of {size:.0f} MB", f"{size / time_taken:.1f} MB/s", f"memory {memory[0]:.0f} and {memory[1]:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--token-file-gigabytes", type=float, default=1.0)
    parser.add_argument("--shards", action="store_true", help="token shards instead")
    parser.add_argument("--line-megabytes", type=float, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.shards:
            shards(Path(folder), arguments.rounds, arguments.megabytes, arguments.line_megabytes)
            return
        sequences(Path(folder), arguments.rounds)
        tokenizing(Path(folder), arguments.rounds, arguments.megabytes)
        starting(Path(folder), arguments.rounds, arguments.token_file_gigabytes)


if __name__ == "__main__":
    from ending import finish

    finish(main)
