"""The command `gptlab convert`: weights in from another library's folder, and out to one for transformers."""

import typing

from gptlab.cli.guard import guard
from gptlab.cli.options import load_plugins, read
from gptlab.errors import UserError
from gptlab.interop.config import Format

OPTIONS = {"from": str, "to": str, "format": Format, "overwrite": bool, "private": bool}
HELP = """gptlab convert from=PATH to=PATH [format=transformers|gptlab|openai] [overwrite=true]
                   [private=true]

    from       a run folder (its best checkpoint) or a checkpoint, to be written for transformers, or, where the
               checkpoint is sharded, with format=gptlab as one file;
               a transformers folder, a name on the Hugging Face hub or the TensorFlow checkpoint of
               GPT-2 that OpenAI released, to be read into gptlab
    to         the folder to write; one that is not empty is refused. hub:USER/NAME uploads what is written for
               transformers to the Hugging Face hub
    format     the format to write; by default the other one than that of from=. openai is the format of from=
               instead, OpenAI's checkpoint, which needs TensorFlow: pip install "gptlab[openai]"
    overwrite  true: replace what an earlier conversion wrote to to=; on the hub, add a commit to what is there
    private    true or false: whether others see the repository on the hub (as the account has it)
    plugins    modules that register components of your own, as [MODULE]
"""

# Other programs' names for ours, where spelling alone would not find them.
FOREIGN = {
    "source": "from",
    "input": "from",
    "run": "from",
    "model": "from",
    "checkpoint": "from",
    "checkpoint_dir": "from",
    "output": "to",
    "target": "to",
    "out_dir": "to",
    "output_dir": "to",
    "force": "overwrite",
    "kind": "format",
}


def main(arguments: list[str]) -> int:
    """Convert as the arguments ask; returns the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    return guard(lambda: convert(arguments))


def convert(arguments: list[str]) -> None:
    """Convert a model and print what was written."""
    given: dict[str, typing.Any] = read(load_plugins(arguments), OPTIONS, "gptlab convert", FOREIGN)
    for key in ("from", "to"):
        if not given.get(key):
            raise UserError(f"gptlab convert needs {key}=PATH")
    from gptlab.runs import convert as library  # torch takes seconds to import: not for a wrong option

    done = library.convert(
        given["from"],
        given["to"],
        given.get("format"),
        overwrite=given.get("overwrite", False),
        private=given.get("private"),
    )
    for note in done.notes:
        print(note)
    print(f"{given['from']} is written to {given['to']} as {done.format.value}")
