"""The command `gptlab COMMAND ...`."""

import atexit
import gc
import importlib
import os
import sys

VERBS = {
    "train": "train a model, or a sweep of them",
    "sweep": "search hyperparameters, one trial after another",
    "scaling": "train a ladder of sizes and budgets, fit its scaling law, predict a larger run",
    "plan": "parameters, FLOPs, memory, time and cost of a run, before it starts",
    "compare": "runs side by side, and whether a difference is more than the seeds'",
    "verify": "whether a run is what it claims to be: its record, and steps of it trained again",
    "reproduce": "train a run again from its config, and say how closely it came out",
    "amend": "change a run while it is going",
    "convert": "weights in from transformers or OpenAI, and out to transformers",
    "evaluate": "perplexity, prompts with examples and lm-eval's tasks",
    "generate": "text from a run, a checkpoint or a transformers folder",
    "fill-mask": "tokens for the masks of a text, by an encoder",
    "embed": "vectors of texts, and how similar they are",
    "prepare": "text to token shards, in parallel, which any run can train on",
    "tokenize": "the pieces and ids that tokenizers make of a text",
    "inspect": "what is in the data, what a training step reads, what a model computes",
}


def main() -> int:
    """Hand the arguments to the command's file; returns the exit code."""
    try:
        return _main()
    except BrokenPipeError:  # `gptlab --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main() -> int:
    verb, *arguments = sys.argv[1:] or [""]
    if verb in ("", "-h", "--help"):
        print("gptlab COMMAND key=value ...\n")
        for name, what in VERBS.items():
            print(f"    gptlab {name:<10} {what}")
        if verb:
            print(f"\n{_presets()}")
        print("\n    gptlab COMMAND --help     describes a command")
        if not verb:
            print("    gptlab --help             lists the presets of training as well")
        print("    gptlab --completion bash  prints what completes commands and options in that shell, or in zsh")
        print("    gptlab --version          prints the version")
        return 0
    if verb == "--completion":
        from gptlab.cli.completion import SHELLS

        if arguments not in [[shell] for shell in SHELLS]:
            print(f"error: --completion needs a shell: {' or '.join(SHELLS)}", file=sys.stderr)
            return 2
        print(SHELLS[arguments[0]], end="")
        return 0
    if verb == "--complete":  # what the shell asks
        from gptlab.cli.completion import candidates

        print("\n".join(candidates(" ".join(arguments), VERBS)))
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"gptlab {version('gptlab')}")
        return 0
    if verb not in VERBS:
        from gptlab.errors import did_you_mean

        print(f"error: {verb} is not a command of gptlab{did_you_mean(verb, VERBS)}", file=sys.stderr)
        return 2
    if verb in ("train", "sweep", "scaling"):
        from gptlab.distributed.allocator import without_thread_cache

        without_thread_cache(sys.argv[0])
    return run(verb, arguments, program=[sys.argv[0], verb])


def run(verb: str, arguments: list[str], *, program: list[str]) -> int:
    """Carry out a command; returns the exit code. `program` is what starts it, before its arguments."""
    # Python's last collections of garbage, through all that torch and Lightning made, took 2 s of every end.
    atexit.register(gc.freeze)
    try:
        module = importlib.import_module(f"gptlab.cli.{verb.replace('-', '_')}")
    except KeyboardInterrupt:
        return 130
    return module.main(arguments, program) if verb == "train" else module.main(arguments)


def _presets() -> str:
    from gptlab.cli.completion import presets

    lines = [f"    {group:<11} {', '.join(names)}" for group, names in presets().items()]
    return "\n".join(["presets of gptlab train:", *lines])


if __name__ == "__main__":
    sys.exit(main())
