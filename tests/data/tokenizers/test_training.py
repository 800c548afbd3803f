"""Learning in another process gives the same vocabulary, and ends when it is no longer wanted."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptlab.data.tokenizers import threads, training
from gptlab.data.tokenizers.training import learn

WORDS = [f"{a}{b}{c}" for a in "strnlm" for b in "aeiou" for c in ("n", "ck", "st", "r")]
TEXTS = [" ".join(random.Random(n).choices(WORDS, k=400)) for n in range(20)]
SETTINGS = {
    "bpe": {"vocab_size": 400},
    "wordpiece": {
        "vocab_size": 100,
        "lowercase": True,
        "special_tokens": ["[UNK]", *(f"##{letter}" for letter in "aceiklmnorstu")],
        "alphabet": list("aceiklmnorstu"),
        "prefix": "##",
    },
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_another_process_learns_the_same(kind, monkeypatch):
    here = learn(kind, TEXTS, **SETTINGS[kind])
    monkeypatch.setattr(training, "SMALL_CHARACTERS", 10)
    assert learn(kind, iter(["", *TEXTS]), **SETTINGS[kind]) == here and len(here) > 90


@pytest.mark.parametrize("asked, allowed", [(None, "true"), ("false", "false"), ("0", "0"), ("true", "true")])
def test_its_threads_are_as_many_as_the_user_allows(asked, allowed, monkeypatch):
    monkeypatch.setattr(threads, "_set_here", None)
    monkeypatch.setattr(training, "SMALL_CHARACTERS", 10)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if asked is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", asked)
    else:
        threads.forbid_threads()  # in this process, as opening a tokenizer.json does
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, env, **k: started.append(env) or popen(*a, env=env, **k))
    learn("bpe", TEXTS, vocab_size=300)
    assert started[0]["TOKENIZERS_PARALLELISM"] == allowed
    assert os.environ.get("TOKENIZERS_PARALLELISM") == (asked or "false")


def test_what_fails_there_is_an_error_here(monkeypatch, capfd):
    monkeypatch.setattr(training, "SMALL_CHARACTERS", 10)
    with pytest.raises(RuntimeError, match="exit code"):
        learn("bpe", TEXTS, vocab_size="many")
    assert "TypeError" in capfd.readouterr().err


def test_an_exception_while_the_texts_are_read_ends_the_other_process(monkeypatch):
    monkeypatch.setattr(training, "SMALL_CHARACTERS", 10)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])

    def texts():
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn("bpe", texts(), vocab_size=400)
    assert started[0].poll() is not None


def test_short_runs_are_learned_from_as_they_are():
    for text in (*TEXTS, "a" * 999 + " " + "-" * 999 + "1" * 999):
        assert list(training._short_runs([text])) == [text]
    long = "x " + "a" * 2500 + "-" * 1000 + "b"
    parts = list(training._short_runs([long]))
    assert "".join(parts) == long and [len(part) for part in parts] == [1002, 1000, 1501]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_other_process_does_not_outlive_a_killed_one(tmp_path):
    program = (
        "import random, sys\n"
        "from gptlab.data.tokenizers.training import learn\n"
        "texts = [' '.join('%x' % random.getrandbits(60) for _ in range(40_000)) for _ in range(30)]\n"
        "print('ready', flush=True)\n"
        "learn('bpe', texts, vocab_size=30_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        deadline = time.monotonic() + 60
        while not (found := Path(children).read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.kill()  # which leaves it no chance to end the other
    stat = Path(f"/proc/{found[0]}/stat")
    while stat.exists() and " Z " not in stat.read_text():
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.05)
