"""A tokenizer from a module outside the package: saved, restored and sent to worker processes by its registration."""

import subprocess
import sys

import pytest

PLUGIN = '''
from dataclasses import dataclass

import numpy as np

from gptlab.data.tokenizers.config import TokenizerConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer, vocabulary_fingerprint
from gptlab.registry import register


@register("tokenizer", "shifted")
class ShiftedConfig(TokenizerConfig):
    shift: int = 1

    def build(self, texts):
        return Shifted(self.shift)

    @classmethod
    def restore(cls, state):
        return Shifted(state["shift"])


class Shifted(Tokenizer):
    """Bytes, shifted."""

    type = "shifted"
    eot = 256

    def __init__(self, shift):
        self.shift = shift
        self.vocab_size = 257
        self.fingerprint = vocabulary_fingerprint(self.type, bytes([shift]))

    def encode(self, text):
        return (np.frombuffer(text.encode(), dtype=np.uint8).astype(int) + self.shift) % 256

    def decode(self, ids):
        return bytes((i - self.shift) % 256 for i in self.check_ids(ids) if i < 256).decode()

    def state(self):
        return {"shift": self.shift}
'''

RUN = """
import json, sys
from pathlib import Path
import gptlab.data.prepare as module
{importing}
from gptlab.data.encode import Encoders
from gptlab.data.sources.config import TextConfig
from gptlab.data.tokenizers.tokenizer import load_tokenizer
module._SMALL_CORPUS_BYTES = 0
started = []
enter = Encoders.__enter__
Encoders.__enter__ = lambda self: (enter(self), started.append(len(self._workers)))[0]
data = module.prepare(
    TextConfig(path="a.txt", cache_dir="cache", n_processes=2, val_fraction=0), ShiftedConfig(shift=3), progress=False
)
text = Path("a.txt").read_text()
assert data.tokenizer.decode(data.train.tokens) == text
assert data.train.tokens.tolist() == data.tokenizer.encode(text).tolist()
assert load_tokenizer(data.folder / "tokenizer.json").fingerprint == data.tokenizer.fingerprint
print(started)
"""


@pytest.mark.parametrize(("importing", "workers"), [("from shifted_plugin import ShiftedConfig", 2), (PLUGIN, 0)])
def test_a_plugins_tokenizer(tmp_path, importing, workers):
    (tmp_path / "a.txt").write_text("some text, " * 100)
    (tmp_path / "shifted_plugin.py").write_text(PLUGIN)
    (tmp_path / "run.py").write_text(RUN.replace("{importing}", importing))
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([workers])
    # Without the plugin the file is refused with what to type.
    (folder,) = (tmp_path / "cache").glob("text-*")
    path = str(folder / "tokenizer.json")
    code = f"from gptlab.data.tokenizers.tokenizer import load_tokenizer; load_tokenizer({path!r})"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tokenizer.type=shifted is unknown" in refused.stderr and "plugins=[MODULE]" in refused.stderr
