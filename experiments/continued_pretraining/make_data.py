"""Two domains from this Python's standard library, without a download: its English, and its code without the English.

prose/: the documentation in the modules, a file for each module with its docstrings, and the language's help topics.
code/: the same modules without docstrings and comments, as `ast.unparse` writes them.
"""

import ast
import pydoc_data.topics
import sys
from pathlib import Path

from gptlab.data.sources.config import StdlibConfig

LEAST_CHARACTERS = 500  # of a module's docstrings


def docstrings(tree: ast.AST) -> list[str]:
    """Every docstring of a module, which loses them."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                found.append(text)
                node.body = node.body[1:] or [ast.Pass()]
    return found


def main(folder: Path) -> None:
    """Write both domains into the folder."""
    prose, code = folder / "prose", folder / "code"
    for domain in (prose, code):
        domain.mkdir(parents=True, exist_ok=True)
    for name, text in StdlibConfig().build().documents():
        if name.startswith("pydoc_data/"):
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        english = "\n\n".join(docstrings(tree))
        file = name.replace("/", ".")
        if len(english) >= LEAST_CHARACTERS:
            (prose / file.replace(".py", ".txt")).write_text(english + "\n", encoding="utf-8")
        rest = ast.unparse(tree)
        if rest.strip():
            (code / file).write_text(rest + "\n", encoding="utf-8")
    for topic, text in pydoc_data.topics.topics.items():
        (prose / f"topic.{topic}.txt").write_text(text, encoding="utf-8")
    for domain in (prose, code):
        sizes = [file.stat().st_size for file in domain.iterdir()]
        print(f"{domain}: {len(sizes):,} files, {sum(sizes):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "continued_pretraining"))
