"""The threads of the `tokenizers` library, which TOKENIZERS_PARALLELISM allows or forbids."""

import os

VARIABLE = "TOKENIZERS_PARALLELISM"
_set_here: str | None = None


def forbid_threads() -> None:
    """Keep the library to one thread in this process, unless the variable is set: forks are warned about threads."""
    global _set_here
    if VARIABLE not in os.environ:
        _set_here = os.environ[VARIABLE] = "false"


def threads_of_child() -> dict[str, str]:
    """The environment of a process that does nothing else: threads, unless the user has said otherwise."""
    given = os.environ.get(VARIABLE)
    return {VARIABLE: "true" if given in (None, _set_here) else given}
