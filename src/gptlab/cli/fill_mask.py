"""The command `gptlab fill-mask`: tokens for the masks of a text, by an encoder."""

import json
from dataclasses import asdict

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, print_text, read, read_standard_input, without_last_line_end
from gptlab.errors import UserError
from gptlab.fields import shown
from gptlab.generation.config import OutputFormat
from gptlab.quoting import unescaped

OPTIONS = {"run": str, "text": list[str], "top_k": int, "device": str, "output": OutputFormat}
HELP = """gptlab fill-mask run=PATH text="The [MASK] sat down." [key=value ...]

    run        an encoder: a run folder (its best checkpoint), a .ckpt file, a transformers folder or a hub name
    text       a text with one or several masks, written [MASK] or <mask>; may be given several times, and without it
               one is read from standard input
    top_k      show so many of the most likely tokens for each mask (5)
    device     cpu, cuda, cuda:1 ... (a GPU where there is one)
    output     text, or json with nothing else on standard output (text)
    plugins    modules that register components of your own, as [MODULE]
"""
FOREIGN = {
    "model": "run",
    "prompt": "text",
    "input": "text",
    "sentence": "text",
    "n": "top_k",
    "k": "top_k",
    "format": "output",
}


def main(arguments: list[str]) -> int:
    """Fill the masks that the arguments hold; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: fill(arguments))


def fill(arguments: list[str]) -> None:
    """Read the model and print the most likely tokens of each mask."""
    given = read(load_plugins(arguments), OPTIONS, "gptlab fill-mask", FOREIGN)
    if not given.get("run"):
        raise UserError("gptlab fill-mask needs run=PATH: a run folder, a .ckpt file or a transformers folder")
    if given.get("top_k", 1) < 1:
        raise UserError(f"top_k={shown(given['top_k'])} must be at least 1")
    texts = unescaped(given.get("text", []))
    if not texts:
        text = read_standard_input()
        if text is None:
            raise UserError('there is no text; give text="The [MASK] sat down.", or one on standard input')
        texts = [without_last_line_end(text)]
    from gptlab.generation.fill_mask import TOP_K, fill_mask
    from gptlab.generation.precision import find_device
    from gptlab.runs.load import load_model

    device = find_device(given.get("device"))
    model, tokenizer, _ = load_model(given["run"], "run")
    model = model.to(device)
    results = [fill_mask(model, tokenizer, text, top_k=given.get("top_k", TOP_K)) for text in texts]
    if given.get("output") is OutputFormat.json:
        shown_ = [
            {"text": text, "masks": [[asdict(one) for one in mask] for mask in masks]}
            for text, masks in zip(texts, results, strict=True)
        ]
        print(json.dumps({"run": given["run"], "results": shown_}))
        return
    for text, masks in zip(texts, results, strict=True):
        for number, mask in enumerate(masks, 1):
            print_text(f"--- {text}{f', mask {number}' if len(masks) > 1 else ''}\n")
            width = max(len(repr(one.text)) for one in mask)
            for one in mask:
                print_text(f"{100 * one.probability:6.2f}%  {one.text!r:<{width}}  {one.sequence}\n")
