"""Filter: documents by the address that they come from."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from gptlab.data.curation.config import AddressesConfig
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal
from gptlab.errors import UserError


class Addresses(DocumentFilter):
    """Allow and deny lists of domains and patterns; a document without an address is in no list."""

    rules = ("allow", "deny_domains", "deny_patterns")

    def __init__(self, config: AddressesConfig) -> None:
        self._column = config.column
        self._allowed = _domains([*config.allow_domains, *_lines(config.allow_file)])
        self._denied = _domains([*config.deny_domains, *_lines(config.deny_file)])
        self._allowed_patterns = [re.compile(pattern) for pattern in config.allow_patterns]
        self._denied_patterns = [re.compile(pattern) for pattern in config.deny_patterns]
        self._has_allowed = bool(config.allow_domains or config.allow_patterns or config.allow_file is not None)

    def check(self, candidate: Candidate) -> Removal | None:
        address = candidate.value(self._column, "addresses") or ""
        above = _above(domain_of(address))
        if found := next((domain for domain in above if domain in self._denied), None):
            return Removal("deny_domains", f"{address} is of {found}")
        if found := next((pattern for pattern in self._denied_patterns if pattern.search(address)), None):
            return Removal("deny_patterns", f"{address} has {found.pattern}")
        in_list = any(domain in self._allowed for domain in above)
        in_list = in_list or any(pattern.search(address) for pattern in self._allowed_patterns)
        if self._has_allowed and not in_list:
            return Removal("allow", f"{address} is not allowed" if address else "it has no address")
        return None


def domain_of(address: str) -> str:
    """The domain of an address in small letters, without port and user; the address may have no scheme."""
    try:
        return (urlsplit(address if "//" in address else f"//{address}").hostname or "").rstrip(".")
    except ValueError:  # as of [ without ]
        return ""


def _above(domain: str) -> list[str]:
    """A domain and those that it is below: a.b.org, b.org, org."""
    parts = domain.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))] if domain else []


def _domains(names: Iterable[str]) -> set[str]:
    return {name.strip().lower().strip(".").removeprefix("*.") for name in names}


def _lines(path: str | None) -> list[str]:
    """The lines of a list, without blank ones and comments after #."""
    if path is None:
        return []
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read ({error}); name a text file with a domain a line") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
