"""Errors that a person can fix, and how they are worded."""

import difflib
import re
from collections.abc import Iterable

# Arguments of an address that hold a secret: those of signed addresses too.
SECRETS = "[^=&?#]*(?:password|passwd|pwd|token|secret|credential|signature|api[-_]?key)|(?:[^=&?#]*[-_])?key|sig"


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


def without_password(text: str) -> str:
    """A text as it may be shown and written: `postgresql://me:SECRET@host/db` in it without the secret."""
    # Of the web what is digits alone is a port. Databases take passwords with / and @ in them.
    text = re.sub(r"(https?://[^/:@\s\[]*):(?!\d+(?:[/?#\s]|$))\S*@", r"\1:***@", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<!http)(?<!https)(://[^/:@\s\[]*):(?!\d+(?:[/?#][^@\s]*)?(?:\s|$))\S*@", r"\1:***@", text)
    text = re.sub(r"(https?://)[^/:@\s\[]+@", r"\1***@", text, flags=re.IGNORECASE)  # a token in place of a name
    return re.sub(rf"([?&](?:{SECRETS})=)[^&#;\s]+", r"\1***", text, flags=re.IGNORECASE)


def refuse_password(key: str, value: str) -> None:
    """Refuse an address with a password in it: configs are written into files, shown, and sent to loggers."""
    if re.search(r"(?:^|[\[,'\"{])[a-z][a-z0-9+.-]*://", value, re.IGNORECASE) and without_password(value) != value:
        instead = (
            "Addresses of files take credentials from where fsspec looks for them, such as FSSPEC_S3_KEY and "
            "FSSPEC_S3_SECRET or ~/.config/fsspec"
            if key == "to" or key.startswith(("data.", "tokenizer."))
            else "MLflow takes a whole address from MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; the password of storage= is read from GPTLAB_STORAGE_PASSWORD"
        )
        raise UserError(
            f"{key}={without_password(value)} has a password in it, which files, loggers and logs would show; leave it "
            f"out. {instead}"
        )
