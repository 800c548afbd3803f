"""Functions of Python files as records, held against the functions that Python itself makes of them."""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import numpy as np
import pytest

from gptlab.data.prepare import prepare
from gptlab.data.sources.config import FunctionsConfig, StdlibConfig, TextConfig
from gptlab.data.sources.functions import functions
from gptlab.data.tokenizers.config import BPEConfig, ByteConfig

SOURCE = '''
import os

def kept(a, b=2):
    """Add two numbers.

    More of it.
    """
    # a comment
    total = a + b
    return total

def no_docstring(a):
    b = a
    return b

def two_words(a):
    """Too short"""
    b = a
    return b

def long_line(a):
    """a b c d e f g h i j k l m n o p q r s t u"""
    b = a
    return b

def short_code(a):
    """Return what it gets."""
    return a

def nothing_but_words():
    """Do nothing at all."""

if os.name:
    class Outer:
        class Inner:
            @property
            async def method(self):
                """  Return the answer now.  """
                def within(x):
                    """Is not a row."""
                    y = x
                    return y
                return within(42)
'''
LONG = 'def long():\n    """Have many, many lines."""\n' + "    a = 1\n" * 40
FILES = {
    "top.py": SOURCE,
    "package/__init__.py": SOURCE,
    "package/module.py": LONG,
    "package/just.py": LONG.replace("    a = 1\n", "", 1),
    "broken.py": "def broken(:\n",
    "escapes.py": 'def kept(a):\n    """Keep \\d as it is."""\n    b = a\n    return "\\d"\n',
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "source"


def test_which_functions_and_what_of_them(folder):
    records = list(functions(StdlibConfig(path=str(folder)).build()))
    assert [(row["module"], row["package"], row["name"]) for row in records] == [
        ("escapes", "escapes", "kept"),
        ("package", "package", "kept"),
        ("package", "package", "method"),
        ("package.just", "package", "long"),
        ("top", "top", "kept"),
        ("top", "top", "method"),
    ]
    kept, method = records[1:3]
    assert kept["code"] == "def kept(a, b=2):\n    total = a + b\n    return total"
    assert kept["summary"] == "Add two numbers."
    assert method["summary"] == "Return the answer now."
    assert method["code"].startswith("@property\nasync def method(self):\n\n    def within(x):")


def test_they_are_the_functions_that_python_makes():
    root = Path(inspect.getfile(importlib.import_module("json"))).parent
    records = list(functions(StdlibConfig(path=str(root)).build()))
    assert {"loads", "dump", "dumps"} <= {row["name"] for row in records}
    checked = 0
    for row in records:
        module = importlib.import_module("json" if row["module"] == "__init__" else f"json.{row['module']}")
        function = getattr(module, row["name"], None)
        if not inspect.isfunction(function):
            continue
        assert inspect.getdoc(function).splitlines()[0] == row["summary"]
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert ast.dump(ast.parse(row["code"]).body[0].args) == ast.dump(node.args)
        assert [ast.dump(line) for line in ast.parse(row["code"]).body[0].body] == [
            ast.dump(line) for line in node.body[1:]
        ]
        checked += 1
    assert checked >= 3


def test_functions_as_examples(folder, tmp_path):
    settings = {"path": str(folder), "cache_dir": str(tmp_path / "cache"), "val_fraction": 0.0}
    config = FunctionsConfig(
        label_column="package", class_names=["top", "package"], drop_unknown_classes=True, **settings
    )
    data = prepare(config, BPEConfig(vocab_size=300), progress=False)
    assert data.examples["train"].labels.tolist() == [1, 1, 1, 0, 0]
    assert "functions of the .py files of" in data.description and data.folder.name.startswith("functions-")
    config = FunctionsConfig(prompt="{code}\n# Summary:", response=" {summary}", **settings)
    data = prepare(config, ByteConfig(), progress=False)
    row = data.examples["train"].gather(np.array([1]))[0]
    assert data.tokenizer.decode(row.tokens[~row.scored]) == (
        "def kept(a, b=2):\n    total = a + b\n    return total\n# Summary:"
    )
    assert data.tokenizer.decode(row.tokens[row.scored]) == " Add two numbers.<|endoftext|>"


def test_what_is_refused(folder, tmp_path):
    settings = {"path": str(folder), "cache_dir": str(tmp_path / "cache")}
    for config, why in (
        (FunctionsConfig(**settings), "none is set; set one of them, as data=function_packages"),
        (
            FunctionsConfig(messages="code", **settings),
            r"data=functions reads Python .* no data\.messages=code",
        ),
        (FunctionsConfig(dataset="a/b", response="x"), r"takes no data\.dataset=a/b"),
        (
            FunctionsConfig(response="{comment}", **settings),
            r"record 1 of functions of .* lacks; it has code, module",
        ),
        (
            FunctionsConfig(label_column="name", class_names=["x", "y"], drop_unknown_classes=True, **settings),
            "has no record with a label of",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            prepare(config, ByteConfig(), progress=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.py").write_text("a = 1\n")
    settings["path"] = str(tmp_path / "empty")
    with pytest.raises(ValueError, match="has no record; give another table"):
        prepare(FunctionsConfig(response="x", **settings), ByteConfig(), progress=False)


def test_no_code_is_run(tmp_path):
    (tmp_path / "a.py").write_text("raise SystemExit('was run')\n" + SOURCE)
    assert list(functions(TextConfig(path=str(tmp_path / "a.py")).build()))
