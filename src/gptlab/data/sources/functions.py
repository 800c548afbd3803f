"""Functions of Python sources as the rows of a table, read by `ast`: no code is run."""

import ast
import warnings
from collections.abc import Iterator

from gptlab.data.sources.corpus import Corpus

_WORDS = range(3, 21)  # of a docstring's first line
_LINES = range(3, 41)  # of the code without it


def functions(corpus: Corpus) -> Iterator[dict[str, str]]:
    """Rows with `module package name code summary`, in the order of the corpus.

    They are functions and methods, but not those within a function, whose docstring begins with a line of 3 to 20 words
    and whose code has 3 to 40 lines. `summary` is that line and `code` the rest as `ast.unparse` writes it: without
    docstring, comments and indentation. A file that is no Python of this version is left out.
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
