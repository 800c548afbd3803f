"""The command `gptlab embed`: vectors of texts, and how similar they are."""

import json

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, read, read_standard_input
from gptlab.errors import UserError
from gptlab.generation.config import OutputFormat
from gptlab.quoting import unescaped

OPTIONS = {"run": str, "text": list[str], "pooling": str, "device": str, "output": OutputFormat}
N_SHOWN = 8  # numbers of a vector
TEXT_CHARACTERS = 60  # of a text in the table
HELP = """gptlab embed run=PATH text="..." text="..." [key=value ...]

    run        an encoder or a causal model: a run folder (its best checkpoint), a .ckpt file, a transformers folder or
               a hub name
    text       a text; given several times, their cosine similarities are shown; without it each line of standard input
               is one
    pooling    how one vector is made of the tokens' states: mean, cls (the first token's), last, or pooler (mean)
    device     cpu, cuda, cuda:1 ... (a GPU where there is one)
    output     text, or json with the vectors and nothing else on standard output (text)
    plugins    modules that register components of your own, as [MODULE]
"""
FOREIGN = {
    "model": "run",
    "prompt": "text",
    "sentence": "text",
    "sentences": "text",
    "texts": "text",
    "input": "text",
    "pooling_mode": "pooling",
    "format": "output",
}


def main(arguments: list[str]) -> int:
    """Embed the texts that the arguments hold; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: embed_texts(arguments))


def embed_texts(arguments: list[str]) -> None:
    """Read the model, and print the vectors or their similarities."""
    arguments = load_plugins(arguments)
    given = read(arguments, OPTIONS, "gptlab embed", FOREIGN)
    if not given.get("run"):
        raise UserError("gptlab embed needs run=PATH: a run folder, a .ckpt file or a transformers folder")
    texts = unescaped(given.get("text", []))
    if not texts:
        lines = read_standard_input()
        if lines is None:
            raise UserError('there is no text; give text="...", or one text a line on standard input')
        texts = [line for line in lines.splitlines() if line.strip()]
        if not texts:
            raise UserError("standard input is empty; give one text a line")
    from gptlab.generation.embedding import Pooling, cosine_similarity, embed
    from gptlab.generation.precision import find_device
    from gptlab.runs.load import load_model
    from gptlab.values import coerce

    pooling = coerce("pooling", given["pooling"], Pooling) if "pooling" in given else None
    device = find_device(given.get("device"))
    model, tokenizer, _ = load_model(given["run"], "run")
    vectors = embed(model.to(device), tokenizer, texts, pooling=pooling)
    similarity = cosine_similarity(vectors)
    if given.get("output") is OutputFormat.json:
        results = [{"text": text, "embedding": vector} for text, vector in zip(texts, vectors.tolist(), strict=True)]
        print(json.dumps({"run": given["run"], "results": results, "cosine_similarity": similarity.tolist()}))
        return
    if len(texts) == 1:
        begin = " ".join(f"{value:.4f}" for value in vectors[0, :N_SHOWN].tolist())
        more = " ..." if vectors.shape[1] > N_SHOWN else ""
        print(f"{vectors.shape[1]:,} dimensions, norm {vectors[0].norm():.4f}: {begin}{more}")
        return
    numbers = [str(number) for number in range(1, len(texts) + 1)]
    for number, text in zip(numbers, texts, strict=True):
        short = text if len(text) <= TEXT_CHARACTERS else f"{text[: TEXT_CHARACTERS - 3]}..."
        print_text(f"{number:>{len(numbers[-1])}}  {short!r}\n")
    print("\ncosine similarity")
    print(" " * len(numbers[-1]) + "".join(f"{number:>9}" for number in numbers))
    for number, values in zip(numbers, similarity.tolist(), strict=True):
        print(f"{number:>{len(numbers[-1])}}" + "".join(f"{value:9.4f}" for value in values))
