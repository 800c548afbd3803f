"""environment.json: what is recorded of a machine and of the user's code, and what is not."""

import json
import subprocess

import pytest
import torch

from gptlab.errors import UserError
from gptlab.runs import environment

LAYOUT = {"devices": "1 x CPU (threads: 1), 32-true", "world_size": 1}


def git(folder, *arguments):
    names = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "model.py").write_text("width = 1\n")
    (tmp_path / ".env").write_text("A=1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commit_and_the_changes_of_the_users_code_are_kept_without_secrets(repository, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "sk-of-the-environment")
    text = 'width = 2\napi_key = "sk-of-the-code"\nURL = "https://me:hunter22@host/x"\n'
    (repository / "model.py").write_text(text)
    (repository / ".env").write_text("A=sk-of-the-file\n")
    (repository / "new.py").write_text("")
    found = environment.describe(LAYOUT)
    (own, *_) = found["code"]["repositories"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True).stdout.strip()
    assert own["commit"] == head and own["untracked_files"] == 1 and not own["diff_is_whole"]
    assert "+width = 2" in own["diff"] and "+api_key = ***" in own["diff"] and ".env" not in own["diff"]
    whole = json.dumps(found)
    assert not [secret for secret in ("sk-of-", "hunter22") if secret in whole]


def test_changes_are_kept_up_to_a_size(repository):
    (repository / "model.py").write_text("x = 1\n" * 100_000)
    (own, *_) = environment._code((), str(repository) + "/.")["repositories"]
    assert len(own["diff"].encode()) == environment.DIFF_BYTES and not own["diff_is_whole"]


def test_it_says_what_decides_about_the_last_bit():
    here = environment.describe(LAYOUT)
    assert here["torch"]["version"] == torch.__version__ and here["threads"] == torch.get_num_threads()
    assert here["packages"]["torch"] == torch.__version__ and "PATH" not in json.dumps(here)
    assert environment.differences(here, here) == ([], [])
    there = json.loads(json.dumps(here))
    there["torch"]["version"], there["threads"], there["packages"]["numpy"] = "1.0", 64, "0.1"
    there["code"]["source"] = "0" * 64
    bits, rest = environment.differences(there, here)
    assert bits == [f"torch: 1.0 there, {torch.__version__} here", f"threads: 64 there, {here['threads']} here"]
    assert rest[0].startswith("numpy: 0.1 there") and rest[1].startswith("gptlab's own source: 000000000000 there")


def test_a_run_that_goes_on_elsewhere_has_an_environment_for_each_part(tmp_path):
    first, second = {"threads": 1}, {"threads": 2}
    for step, one in ((0, first), (5, first), (10, second), (20, first)):
        environment.record(tmp_path, step, one, anew=step == 0)
    kept = environment.read(tmp_path)
    assert [one["step"] for one in kept] == [0, 10, 20]
    assert [environment.at_step(kept, step)["threads"] for step in (0, 9, 10, 19, 20)] == [1, 1, 2, 2, 1]
    environment.record(tmp_path, 15, second, anew=False)  # a kill: back to a checkpoint of before the last part
    assert [one["step"] for one in environment.read(tmp_path)] == [0, 10]
    (tmp_path / environment.FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        environment.read(tmp_path)
