"""Errors that a person can fix, and how they are worded."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A wrong value, key, file or combination; the message says what is allowed and what to type.

    Any other exception that reaches the command line is a bug and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """An error of another library in one line: its kind, and the first line of what it says."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them if they are few."""
    known = list(known)
    # `model.n_layr` is compared as a whole and by its last part, so that `n_layr` alone finds it too.
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        last = {key.split(".")[-1]: key for key in known}
        near = [last[m] for m in difflib.get_close_matches(name.split(".")[-1], list(last), n=1, cutoff=0.7)]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if len(known) <= 40 else "; see gptlab train --help"


def without_password(address: str) -> str:
    """An address as it may be shown and written: `postgresql://me:SECRET@host/db` without the secret."""
    return re.sub(r"(://[^/:@\s]*):[^@/\s]*@", r"\1:***@", address)
