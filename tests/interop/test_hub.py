"""Models of the hub: from a cache as huggingface_hub lays it out, with a stand-in for what needs the network."""

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from interop.external import CASES, run_convert
from small_runs import small_run, write_run

import gptlab
from gptlab.cli import generate
from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.errors import UserError
from gptlab.interop.hub import cached_revision, from_hub, hub_name
from gptlab.interop.transformers_folder import write_folder
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs.initial_weights import open_weights
from gptlab.training.loop import train

COMMIT, OLDER = "607a30d783dfa663caf39e06633721c8d4cfcd7e", "11c5a3d5811f50298f278a704980280950aedb10"
SIZES = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}


class Response(SimpleNamespace):
    headers: dict = {}  # noqa: RUF012
    request = None


def refusal(kind, status=404, text="no"):
    """An error of huggingface_hub, as its own code makes one from a response."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.response = Response(status_code=status)
    return error


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(cache: Path, name: str, files: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """Lay out a repository as huggingface_hub does: refs to commits, and a folder for each."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    (repository / "blobs").mkdir(exist_ok=True)
    for file in files.iterdir():
        blob = repository / "blobs" / f"{commit}-{file.name}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    _put_tree(repository, commit, [file.name for file in files.iterdir()])
    return snapshot


def _put_tree(repository: Path, commit: str, names: list[str]) -> None:
    """The list of all files of the repository, which newer versions keep: most are never downloaded."""
    try:
        from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
    except ImportError:
        return
    entries = {name: TreeCacheEntry(size=1, blob_id="0" * 40) for name in [*names, "tf_model.h5", "vocab.json"]}
    write_tree_cache(str(repository), commit, entries)


@pytest.fixture
def model(tmp_path):
    """A folder with a model on bytes, as transformers has it."""
    config, folder = DecoderConfig(**SIZES), tmp_path / "files"
    folder.mkdir()
    weights = build_model(config, 257, seed=3).state_dict()
    write_folder(folder, config, weights.__getitem__, ByteTokenizer(), card="")
    return folder


def test_what_is_in_the_cache_needs_no_network(cache, model, monkeypatch, capsys):
    put(cache, "gpt2", model)
    put(cache, "openai-community/gpt2", model)
    for name in ("gpt2", "openai-community/gpt2", "gpt2@main"):
        opened, tokenizer = gptlab.load(name)
        assert opened.config.n_layer == 2 and tokenizer.encode("a").tolist() == [97]
    assert generate.main(["run=gpt2", "prompt=It", "max_new_tokens=4", "temperature=0"]) == 0
    assert capsys.readouterr().out.startswith("It")
    assert run_convert("from=gpt2", "to=runs/gpt2") == 0
    assert cached_revision("gpt2") == cached_revision("gpt2@main") == COMMIT


def test_a_revision_of_a_name(cache, model):
    put(cache, "some/model", model, commit=OLDER, ref="v1")
    put(cache, "some/model", model)
    assert from_hub("some/model").name == COMMIT and from_hub("some/model@v1").name == OLDER
    assert from_hub(f"some/model@{OLDER}").name == OLDER
    assert cached_revision("some/model@v2") is None and cached_revision("runs/model") is None


def test_a_local_folder_of_that_name_wins(cache, model, tmp_path):
    put(cache, "gpt2", model)
    write_run(tmp_path / "gpt2", n_layer=1)
    opened, _ = gptlab.load("gpt2")
    assert opened.config.n_layer == 1


def test_training_starts_from_the_cache_and_goes_on_without_it(cache, model, tmp_path):
    put(cache, "gpt2", model)
    started = DecoderConfig(**SIZES, init_from="gpt2")
    config = small_run(tmp_path / "run", model=started, budget_steps=4)
    config.callbacks.checkpoint.every_steps, config.callbacks.checkpoint.keep_last = 2, 9
    train(config)
    plain = train(small_run(tmp_path / "plain", model=DecoderConfig(**SIZES, init_from=str(model)), budget_steps=4))
    assert plain.metrics()["train/loss"].equals(gptlab.open_run(tmp_path / "run").metrics()["train/loss"])
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["model.init_from"] == COMMIT
    cache.rename(tmp_path / "gone")
    (tmp_path / "run" / "summary.json").unlink()
    for later in ("step_00000004.ckpt", "last.ckpt", "best.ckpt"):
        (tmp_path / "run" / "checkpoints" / later).unlink(missing_ok=True)
    train(config)
    assert json.loads((tmp_path / "run" / "inputs.json").read_text())["model.init_from"] == COMMIT
    opened, _ = gptlab.load(tmp_path / "run")
    assert opened.config.d_model == 32


def test_an_unfinished_download_is_not_taken_for_a_model(cache, model):
    snapshot = put(cache, "gpt2", model)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"type: HF_HUB_OFFLINE=0 hf download gpt2 --exclude"):
        gptlab.load("gpt2")
    assert cached_revision("gpt2") is None


def test_a_model_without_a_tokenizer_is_taken_where_the_hub_cannot_be_asked(cache, model):
    (model / "tokenizer.json").unlink()
    snapshot = put(cache, "gpt2", model)
    assert from_hub("gpt2") == snapshot
    with pytest.raises(UserError, match="has no tokenizer that can be read"):
        gptlab.load("gpt2")


def test_a_model_without_a_tokenizer_asks_the_network_once(cache, model, monkeypatch):
    (model / "tokenizer.json").unlink()
    snapshot = put(cache, "gpt2", model)
    asked = []

    def download(name, *, local_files_only=False, **options):
        asked.extend([] if local_files_only else [name])
        return str(snapshot)

    def download_file(name, file, *, revision=None):
        """What huggingface_hub does on a 404."""
        absent = cache / "models--gpt2" / ".no_exist" / COMMIT / file
        absent.parent.mkdir(parents=True, exist_ok=True)
        absent.touch()
        raise refusal(errors.EntryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_file)
    assert from_hub("gpt2") == snapshot and len(asked) == 2
    asked.clear()
    assert from_hub("gpt2") == from_hub("gpt2@main") == from_hub(f"gpt2@{COMMIT}") == snapshot and not asked


@pytest.mark.parametrize("pickled", [False, True])
def test_only_what_is_read_is_downloaded(pickled, cache, tmp_path, monkeypatch):
    """As the released Llamas: for other libraries too, in folders and under other names; the config comes first."""
    names = ["config.json", "tokenizer.json", "tokenizer.model", "original/params.json", "original/consolidated.00.pth"]
    names += ["consolidated.safetensors", "onnx/model.safetensors", "model.onnx", "chat_template.jinja", "code.py"]
    names += ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "training_args.bin"]
    names += [] if pickled else ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    contents = {"config.json": '{"model_type": "llama"}'}
    for kind, shard in (("model.safetensors", "model-00001-of-00001.safetensors"),) if not pickled else ():
        contents[f"{kind}.index.json"] = json.dumps({"weight_map": {"a": shard}})
    contents["pytorch_model.bin.index.json"] = '{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}'
    folder, asked = tmp_path / "snapshot", []

    def download(name, *, revision=None, allow_patterns=None, ignore_patterns=None, local_files_only=False):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        asked.append(allow_patterns)
        for file in huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (folder / file).parent.mkdir(exist_ok=True, parents=True)
            (folder / file).write_text(contents.get(file, ""))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert from_hub("meta/llama") == folder and asked[0] == ["config.json"]
    weights = {path.name for path in folder.rglob("*") if path.suffix not in (".json", ".jinja")} - {"tokenizer.model"}
    assert weights == {"pytorch_model-00001-of-00001.bin" if pickled else "model-00001-of-00001.safetensors"}
    assert (folder / "chat_template.jinja").is_file()

    contents["config.json"] = '{"model_type": "mamba"}'
    asked.clear()
    with pytest.raises(UserError, match="model_type=mamba is not supported"):
        from_hub("state/mamba")
    assert asked == [["config.json"]]  # and no weights


@pytest.mark.parametrize(
    "error, online, remedy",
    [
        (errors.LocalEntryNotFoundError("offline"), False, "type: HF_HUB_OFFLINE=0 hf download some/model@"),
        (errors.LocalEntryNotFoundError("cannot connect"), True, "with a network type: hf download some/model@"),
        (ConnectionError("refused\nmore"), True, r"cannot be reached \(ConnectionError: refused\); with a network"),
        (refusal(errors.RepositoryNotFoundError), True, "has no model some/model that you may read; correct the name"),
        (refusal(errors.GatedRepoError, 403), True, "https://huggingface.co/some/model, then type: hf auth login"),
        (refusal(errors.RevisionNotFoundError), True, "has no revision v9; leave out @v9"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_had_says_what_to_type(error, online, remedy, cache, monkeypatch):
    def download(name, **options):
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not online)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    name = "some/model@v9" if "v9" in remedy else "some/model"
    with pytest.raises(UserError, match=remedy.removesuffix("@")) as caught:
        gptlab.load(name)
    assert str(caught.value).startswith(f"{name} is neither a path nor a model in the cache, and ")


def test_paths_are_not_looked_up_on_the_hub(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *given, **options: pytest.fail("asked the hub"))
    for name in ("./model", "runs/small", "/nowhere/model", "a/b/c", "last.ckpt", "~/model", "../x", "a b", "m.json"):
        assert hub_name(name) is None and from_hub(name) is None
        with pytest.raises(UserError, match="does not exist"):
            gptlab.load(name)


class Api:
    """What `gptlab convert` needs of huggingface_hub.HfApi; repositories are folders of this class."""

    repositories: dict = {}  # noqa: RUF012
    fails: Exception | None = None

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        if repo_id in self.repositories and not exist_ok:
            raise refusal(errors.HfHubHTTPError, 409, "409 Client Error: Conflict")
        self.repositories.setdefault(repo_id, {"private": private, "files": {}})
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id):
        return SimpleNamespace(private=bool(self.repositories[repo_id]["private"]))

    def upload_folder(self, *, repo_id, repo_type, folder_path, commit_message, delete_patterns):
        if self.fails is not None:
            raise self.fails
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        there = self.repositories[repo_id]["files"]
        for name in huggingface_hub.utils.filter_repo_objects(list(there), allow_patterns=delete_patterns):
            del there[name]
        there |= files


@pytest.fixture
def api(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(Api, "repositories", {})
    return Api


def test_an_upload(api, tmp_path, capsys):
    run = write_run(tmp_path / "a run", qk_norm=True)
    assert run_convert(f"from={run}", "to=hub:me/mine", "private=true") == 0
    out = capsys.readouterr().out
    assert "uploaded to https://huggingface.co/me/mine" in out and f"{run} is written to hub:me/mine" in out
    found = api.repositories["me/mine"]
    assert found["private"] is True
    assert {"config.json", "model.safetensors", "modeling_gptlab.py", "tokenizer.json"} <= found["files"].keys()
    assert run_convert(f"from={run}", "to=hub:me/mine") == 2
    assert "it exists; add overwrite=true to add a commit to it, or name another" in capsys.readouterr().err
    found["files"].clear()
    assert run_convert(f"from={run}", "to=hub:me/mine", "overwrite=true") == 0 and found["files"]
    # What only an earlier export wrote goes; what somebody else put there stays.
    found["files"] |= {"chat_template.jinja": b"of another model", "curve.png": b"", ".gitattributes": b""}
    plain = write_run(tmp_path / "plain")
    assert run_convert(f"from={plain}", "to=hub:me/mine", "overwrite=true") == 0
    assert {"config.json", "curve.png", ".gitattributes"} <= found["files"].keys()
    assert not {"chat_template.jinja", "modeling_gptlab.py"} & found["files"].keys()
    found["private"] = False
    found["files"].clear()
    assert run_convert(f"from={run}", "to=hub:me/mine", "overwrite=true", "private=true") == 2 and not found["files"]
    assert "is a public repository already; nothing is uploaded" in capsys.readouterr().err


def test_an_upload_that_fails_tells_no_token(api, tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run")
    monkeypatch.setattr(api, "fails", RuntimeError("403 for https://hub?token=hf_secret\nmore"))
    assert run_convert(f"from={run}", "to=hub:me/mine") == 2
    error = capsys.readouterr().err
    assert "the upload failed: RuntimeError: 403 for https://hub?token=***; type the command again with" in error
    assert "hf_secret" not in error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["to=hub:mine"], "to=hub:mine names no repository; write to=hub:USER/NAME"),
        (["to=hub:me/mine@v1"], "names no repository"),
        (["to=hub:me/mine", "format=gptlab"], "format=gptlab cannot be uploaded; leave it out"),
        (["to=out", "private=true"], "private=true is about the hub; name a repository with to=hub:USER/NAME"),
    ],
)
def test_uploads_that_cannot_be(arguments, message, api, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert run_convert(f"from={run}", *arguments) == 2
    assert message in capsys.readouterr().err and not api.repositories


def test_nobody_is_logged_in(api, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert run_convert(f"from={write_run(tmp_path / 'run')}", "to=hub:me/mine") == 2
    assert "needs you to be logged in at the hub; type: hf auth login" in capsys.readouterr().err


def test_the_weights_of_a_cached_model_are_those_of_its_file(cache, tmp_path):
    case = CASES["gpt2"]
    put(cache, "distilgpt2", case.save(tmp_path / "theirs"))
    folder = from_hub("distilgpt2")
    assert folder.name == COMMIT
    tokens = torch.arange(1, 9)[None]
    source = open_weights("distilgpt2", "run")
    model = build_model(source.config, source.vocab_size, seed=0).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(source.read(name))
        assert torch.allclose(model(tokens), case.model()(tokens).logits, atol=1e-4)
