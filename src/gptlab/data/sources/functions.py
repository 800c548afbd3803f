"""Functions of Python sources as records, read by `ast`: no code is run."""

import ast
import hashlib
import platform
import warnings
from collections.abc import Iterator

from gptlab.data.sources.config import FunctionsConfig
from gptlab.data.sources.source import Corpus, RecordSource
from gptlab.data.sources.stdlib import open_stdlib

_WORDS = range(3, 21)  # of a docstring's first line
_LINES = range(3, 41)  # of the code without it


def open_functions(config: FunctionsConfig) -> RecordSource:
    """The functions of the standard library, or of the files in `data.path`, as a table."""
    corpus = open_stdlib(config)
    # How code is written out differs between versions of Python.
    key = hashlib.sha256(f"{corpus.fingerprint} {platform.python_version()}".encode()).hexdigest()
    return RecordSource(
        description=f"functions of {corpus.description}", fingerprint=key, records=lambda: functions(corpus)
    )


def functions(corpus: Corpus) -> Iterator[dict[str, str]]:
    """Records with `module package name code summary`, in the order of the corpus.

    Functions and methods, without those nested in functions, whose docstring begins with a line of 3 to 20 words and
    whose code has 3 to 40 lines. `summary` is that line and `code` the rest as `ast.unparse` writes it: without
    docstring, comments and indentation. A file that this version of Python cannot parse is left out.
    """
    for name, text in corpus.documents():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other people's escapes
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node in _within(tree):
            lines = (ast.get_docstring(node) or "").strip().splitlines()
            if not lines or len(lines[0].split()) not in _WORDS:
                continue
            del node.body[0]
            code = ast.unparse(node)
            if node.body and code.count("\n") + 1 in _LINES:
                yield {
                    "module": module,
                    "package": module.partition(".")[0],
                    "name": node.name,
                    "code": code,
                    "summary": lines[0].strip(),
                }


def _within(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _within(child)
