"""llama.cpp as a contender of `benchmarks/generation.py`, in a process of its own.

    python benchmarks/llama_worker.py FOLDER THREADS N_LAYER D_MODEL N_HEAD VOCAB_SIZE CONTEXT

Needs `xllamacpp`, which is llama.cpp as a package that comes built, and `gguf`. Writes a GPT-2 with random float32
weights as a GGUF file into FOLDER and loads it. A line with two numbers asks for greedy tokens after a prompt of so
many; the answer is a line of JSON with the seconds that each took. The end of standard input ends it.
"""

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path


def write_model(path: Path, n_layer: int, width: int, n_head: int, vocab_size: int, context: int) -> int:
    """A GPT-2 in GGUF, whose tokens have no meaning; returns the number of its parameters."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(4 * width)
    writer.add_head_count(n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}".encode() for i in range(vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
    writer.add_token_merges(["t 0"])
    draw, total = np.random.default_rng(0), 0
    shapes = {"token_embd.weight": (vocab_size, width), "position_embd.weight": (context, width)}
    shapes |= {"output_norm.weight": (width,), "output_norm.bias": (width,)}
    for i in range(n_layer):
        for name in ("attn_norm", "ffn_norm"):
            shapes |= {f"blk.{i}.{name}.weight": (width,), f"blk.{i}.{name}.bias": (width,)}
        layers = {"attn_qkv": (3, 1), "attn_output": (1, 1), "ffn_up": (4, 1), "ffn_down": (1, 4)}
        for name, (outputs, inputs) in layers.items():
            shapes |= {f"blk.{i}.{name}.weight": (outputs * width, inputs * width)}
            shapes |= {f"blk.{i}.{name}.bias": (outputs * width,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, (0.02 * draw.standard_normal(shape)).astype(np.float32))
        total += int(np.prod(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def seconds_of_tokens(server, asked: dict, n_tokens: int) -> list[float]:
    """The seconds that each token of a streamed completion took."""
    times = [time.perf_counter()]
    server.handle_completions(asked, lambda _: times.append(time.perf_counter()))
    return [b - a for a, b in pairwise(times[: n_tokens + 1])]  # after the tokens comes a summary


def main() -> None:
    folder, threads, n_layer, width, n_head, vocab_size, context = Path(sys.argv[1]), *map(int, sys.argv[2:])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not mix with the answers
    import numpy as np
    import xllamacpp

    file = folder / "model.gguf"
    n_parameters = write_model(file, n_layer, width, n_head, vocab_size, context)
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.verbosity = str(file), context, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    print("ready", n_parameters, file=out, flush=True)
    for line in sys.stdin:
        n_prompt, n_tokens = map(int, line.split())
        prompt = np.random.default_rng(0).integers(vocab_size, size=n_prompt).tolist()
        asked = {"prompt": prompt, "n_predict": n_tokens, "temperature": 0, "ignore_eos": True}
        asked |= {"stream": True, "cache_prompt": False}
        print(json.dumps(seconds_of_tokens(server, asked, n_tokens)), file=out, flush=True)


if __name__ == "__main__":
    main()
