"""How a benchmark ends where it is interrupted, or where its output is read no further, as by `| head`."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def finish(main: Callable[[], int | None]) -> NoReturn:
    """Carry out `main` and end the process with its exit code; 1 where standard output was closed, 130 after Ctrl-C."""
    try:
        try:
            code = main()
        finally:  # also at `--help | head`, which leaves by SystemExit
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        code = 1 if {"-h", "--help"} & set(sys.argv) else "error: standard output was closed before the end"
    sys.exit(code)
