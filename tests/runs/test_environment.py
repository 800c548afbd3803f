"""environment.json: what is recorded of a machine and of the user's code, and what is not."""

import json
import subprocess
import warnings

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
    assert bits[:2] == [f"torch: 1.0 there, {torch.__version__} here", f"threads: 64 there, {here['threads']} here"]
    assert bits[2].startswith("gptlab's own source: 000000000000 there, ") and len(bits) == 3
    assert rest[0].startswith("numpy: 0.1 there")
    there = json.loads(json.dumps(here))
    there["code"]["plugins"] = {"mine": "0" * 64}
    assert environment.differences(there, here)[0] == ["plugin mine: another source"]
    assert len(environment.differences({}, here)[0]) > 5  # a record that lacks all


def test_kernels_on_gpus_add_in_any_order_unless_told_otherwise():
    there = {"machine": {"gpus": ["H100"]}, "flags": {"deterministic": False}, "layout": {"devices": "1 x H100"}}
    assert "deterministic" in str(environment.varies(there))
    assert environment.varies(there | {"flags": {"deterministic": True}}) is None
    assert environment.varies(there | {"layout": LAYOUT}) is environment.varies({"machine": {"gpus": []}}) is None


@pytest.mark.parametrize(("deterministic", "benchmark"), [(True, None), ("warn", True), (False, None), (None, None)])
def test_the_flags_of_training_are_those_that_the_trainer_sets(deterministic, benchmark, monkeypatch):
    from lightning.pytorch.trainer.connectors.accelerator_connector import _set_torch_flags

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before, was = environment._flags(), torch.backends.cudnn.benchmark
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _set_torch_flags(deterministic=deterministic, benchmark=benchmark)
        assert environment.flags_in_training(before, deterministic, benchmark) == environment._flags()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = was


def test_secrets_without_quotes_and_in_calls_are_left_out_and_code_is_kept():
    secrets = (
        "+api_key: 0123456789abcdef\n+wandb_token: hf_abcdefghij\n+export WANDB_API_KEY=deadbeef01\n"
        '+login("hf_abcdefghij")\n+password: with blanks (too)\n+token: deadbeef01\n+Authorization: Bearer deadbeef01\n'
        '+x = "AKIA0123456789ABCDEF"\n'
    )
    found = environment.without_secrets(secrets)
    parts = ("0123456789", "hf_", "deadbeef", "blanks", "AKIA")
    assert not [part for part in parts if part in found] and found.count("***") == 8
    code = "+n_tokens = len(ids)\n+token = tokenizer.encode(text)\n+loss = x\n+token_count = 3\n"
    assert environment.without_secrets(code) == code
    for name in ("id_utils.py", "src/tokenizer.cpp", "tokens.py", "tokenizer.json", "a/tokenize.sh"):
        assert not environment.PRIVATE.search(name), name
    for name in (
        ".env",
        "a/.env.local",
        "id_rsa",
        ".ssh/id_ed25519",
        "secrets.yaml",
        "hf_token.txt",
        "a.pem",
        ".netrc",
    ):
        assert environment.PRIVATE.search(name), name


def test_git_runs_no_filter_of_the_repository(repository):
    (repository / ".gitattributes").write_text("*.py filter=mine\n")
    git(repository, "config", "filter.mine.clean", "touch ran; cat")
    git(repository, "config", "filter.mine.required", "true")
    (repository / "model.py").write_text("width = 3\n")
    (own, *_) = environment._code((), str(repository) + "/./.")["repositories"]
    assert "+width = 3" in own["diff"] and not (repository / "ran").exists()


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
