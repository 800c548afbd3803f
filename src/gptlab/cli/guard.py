"""Exit codes, and errors as a person reads them."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from gptlab.errors import UserError, without_password

SILENT_SECONDS = 4  # more than rank 0 takes to end the other ranks


def guard(action: Callable[[], int | None], arguments: Sequence[str] = ()) -> int:
    """Carry out `action`, print what went wrong, and return the process's exit code.

    0 done, or what `action` returns, 2 for bad input, 1 for a failure, 130, 143 and 138 after a signal. `arguments` are
    what was typed.
    """
    try:
        return action() or 0
    except UserError as error:
        return _print(str(error), 2)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        asked = {"-h", "--help", "--cfg"} & set(sys.argv)  # by `--help | head`, which nothing is lost by
        return 1 if asked else _print("standard output was closed before the end", 1)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is not None:
            return _print(str(error), code)
        if _is_of_hydra(error):
            from gptlab.overrides import explain

            return _print(explain(error, arguments), 2)
        if isinstance(error, OSError) and error.strerror:
            place = f": {error.filename}" if error.filename else ""
            return _print(f"{error.strerror}{place}", 1, shared=False)
        return _print(f"\n{traceback.format_exc().rstrip()}", 1, shared=False)


def _is_of_hydra(error: Exception) -> bool:
    # Without importing Hydra, which most commands do not need.
    homes = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    if isinstance(error, AssertionError):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        homes.add(frame.f_globals.get("__name__", "").split(".")[0])
    return bool(homes & {"hydra", "omegaconf", "yaml"})


def _print(message: str, code: int, *, shared: bool = True) -> int:
    """Print an error; one that all ranks have is printed by rank 0 alone."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", local)))
    if rank and shared:
        if code > 2:
            return code  # after a signal all ranks end
        # Rank 0 prints the same, or else has not failed. Its launcher ends this one as soon as it has.
        time.sleep(SILENT_SECONDS)
    # In one piece, since the ranks write to the same screen.
    sys.stderr.write(f"{f'rank {rank}: ' if rank else ''}error: {without_password(message)}\n")
    sys.stderr.flush()
    return code
