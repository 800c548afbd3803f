"""The command `gptlab VERB key=value ...`."""

import importlib
import sys

VERBS = {
    "amend": "a planned change of a run in mid-flight",
    "convert": "weights in from transformers or OpenAI, and out to transformers",
    "evaluate": "perplexity, prompts with examples and lm-eval's tasks, in numbers",
    "generate": "text from a run, a checkpoint or a transformers folder",
}


def main() -> int:
    """Hand the words to the verb's file; returns the exit code."""
    verb, *words = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print("gptlab VERB key=value ...\n")
        for name, what in VERBS.items():
            print(f"    gptlab {name:<10} {what}")
        print("\ngptlab VERB --help says more; python train.py trains.")
        return 0
    if verb not in VERBS:
        from gptlab import compose

        print(f"error: {verb} is not a verb of gptlab{compose.nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"gptlab.commands.{verb}").main(words)


if __name__ == "__main__":
    sys.exit(main())
