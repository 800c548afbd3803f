"""Importing Lightning without the packages that a library it imports loads for metrics and plots."""

import re
import sys
from typing import Any

LEFT_OUT = {"matplotlib", "scipy", "transformers"}


def import_lightning_alone() -> None:
    """Let torchmetrics, which Lightning imports, go on in this process as where matplotlib or transformers is missing.

    Training uses none of its metrics, and what it loads for them came to 110 MiB. For processes in which nobody else's
    code uses them either. No effect where it is imported already, or looks for packages in a way that is not known.
    """
    if "torchmetrics" in sys.modules:
        return
    try:
        from lightning_utilities.core import imports

        is_installed, check = imports.package_available, imports.RequirementCache._check_available
    except (ImportError, AttributeError):
        return

    def check_unless_left_out(cache: Any) -> None:
        if _package(cache.requirement or cache.module) in LEFT_OUT:
            cache.available, cache.message = False, "left out in training"
        else:
            check(cache)

    imports.package_available = lambda name: _package(name) not in LEFT_OUT and is_installed(name)
    imports.RequirementCache._check_available = check_unless_left_out  # pyright: ignore[reportAttributeAccessIssue]
    try:
        import torchmetrics  # noqa: F401
    finally:
        imports.package_available, imports.RequirementCache._check_available = is_installed, check


def _package(name: str) -> str:
    """The package of a module such as `scipy.signal`, or of a requirement such as `transformers>=4.4`."""
    return re.split(r"[^\w-]", name, maxsplit=1)[0]
