"""Models on the Hugging Face hub: read from huggingface_hub's cache, downloaded into it once, and uploaded."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gptlab.data.sources.huggingface import REPOSITORY
from gptlab.errors import UserError, first_line
from gptlab.interop.transformers_folder import is_whole, read_architecture

UPLOAD = "hub:"  # before the name of a repository to write to
WEIGHTS = "model*.safetensors"
PICKLES = "pytorch_model*.bin"  # where there are no safetensors
FILES = ["*.json", "*.jinja", WEIGHTS, "tokenizer*", "merges.txt"]  # no code
TOKENIZERS = ("tokenizer.json", "vocab.json")
ELSEWHERE = ["*/*"]  # the same weights for other libraries
_NAME = re.compile(rf"(?P<repository>{REPOSITORY})(@(?P<revision>[\w./-]+))?")
_OURS = ("runs/", "checkpoints/")  # how paths of ours begin, which are never looked up


class HubName(NamedTuple):
    """A repository and, after @, a branch, tag or commit of it."""

    repository: str
    revision: str | None


def hub_name(text: str) -> HubName | None:
    """What a text names on the hub; None where it can only be a path."""
    found = _NAME.fullmatch(text)
    if found is None or text.startswith(_OURS) or found["repository"].endswith((".ckpt", ".safetensors", ".json")):
        return None
    return HubName(found["repository"], found["revision"])


def from_hub(text: str) -> Path | None:
    """The folder of a model of the hub in huggingface_hub's cache; None where `text` cannot name one.

    What is in the cache is used as it is, without the network. Else it is downloaded: its config first, and its weights
    only if they can be read. UserError where it cannot be had, with what to type.
    """
    name = hub_name(text)
    if name is None:
        return None
    cached = _cached(name)
    if cached is not None and (_has_tokenizer(cached) or _lacks_tokenizer(name)):
        return cached
    try:
        folder = _downloaded(name, text)
    except UserError:
        if cached is None:
            raise
        return cached  # which may have no tokenizer on the hub either
    if not _has_tokenizer(folder):
        _record_absence(name)
    return folder


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in TOKENIZERS)


def _lacks_tokenizer(name: HubName) -> bool:
    """Whether the cache has it on record that the hub has no tokenizer of this model."""
    from huggingface_hub import try_to_load_from_cache

    # A path where the file is there, None where nothing is known, else a marker of its absence.
    found = [try_to_load_from_cache(name.repository, file, revision=name.revision) for file in TOKENIZERS]
    return all(file is not None and not isinstance(file, str) for file in found)


def _record_absence(name: HubName) -> None:
    """Let the cache know that the hub has no tokenizer of this model, so that it is not asked again."""
    from huggingface_hub import hf_hub_download

    for file in TOKENIZERS:
        with suppress(Exception):  # which the library raises once it has made the record, and without the network
            hf_hub_download(name.repository, file, revision=name.revision)


def _downloaded(name: HubName, text: str) -> Path:
    folder = _download(name, ["config.json"], text)
    if not (folder / "config.json").is_file():
        raise UserError(f"{text} on the hub holds no model of transformers: it has no config.json; name another")
    read_architecture(folder)
    folder = _download(name, FILES, text)
    if not is_whole(folder):
        folder = _download(name, [*FILES, PICKLES], text)
    if not is_whole(folder):
        raise UserError(
            f"{text} has no weights that gptlab reads in the cache: neither model.safetensors nor pytorch_model.bin is "
            f"whole; type: {_command(name)}"
        )
    return folder


def cached_revision(text: str) -> str | None:
    """The commit of the model that `from_hub` would take from the cache; None where it is not there."""
    name = hub_name(text)
    folder = None if name is None else _cached(name)
    return None if folder is None else folder.name


def _cached(name: HubName) -> Path | None:
    try:
        from huggingface_hub import snapshot_download

        # Its config alone: what else is there and not needed must not be missed.
        folder = Path(
            snapshot_download(
                name.repository, revision=name.revision, allow_patterns=["config.json"], local_files_only=True
            )
        )
    except Exception:  # not there, not installed, no valid name: each version has its own errors
        return None
    return folder if is_whole(folder) else None


def _download(name: HubName, files: list[str], text: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{text} is not a path, and models of the hub need huggingface_hub ({error}); type: pip install "
            "huggingface_hub"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name.repository, revision=name.revision, allow_patterns=files, ignore_patterns=ELSEWHERE
            )
        )
    except Exception as error:  # network, hub and cache each raise their own
        raise UserError(f"{text} is neither a path nor a model in the cache, and {_reason(name, error)}") from error


def _reason(name: HubName, error: Exception) -> str:
    """Why a repository cannot be had, and the command that helps."""
    from huggingface_hub import constants, errors

    repository, command = name.repository, _command(name)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the hub asks for consent to its license: give it on https://huggingface.co/{repository}, then type: "
            "hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {repository} has no revision {name.revision}; leave out @{name.revision}"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return (
            f"the hub has no model {repository} that you may read; correct the name, or, if it is private, type: "
            "hf auth login"
        )
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE=1 forbids the network; type: {command}"
    return (
        f"the hub cannot be reached ({described(error)}); with a network type: {command}, or copy that cache, "
        f"{constants.HF_HUB_CACHE}, from a machine that has it"
    )


def _command(name: HubName) -> str:
    """What downloads a repository into the cache from a shell."""
    from huggingface_hub import constants

    revision = "" if name.revision is None else f" --revision {name.revision}"
    allow = "HF_HUB_OFFLINE=0 " if constants.HF_HUB_OFFLINE else ""
    return f"{allow}hf download {name.repository}{revision} --exclude '*/*'"


def check_upload(target: str) -> HubName:
    """The repository that `to=hub:...` names; UserError where it is none or nobody is logged in."""
    name = hub_name(target.removeprefix(UPLOAD))
    if name is None or "/" not in name.repository or name.revision is not None:
        raise UserError(f"to={target} names no repository; write to={UPLOAD}USER/NAME")
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        raise UserError(f"to={target} needs huggingface_hub ({error}); type: pip install huggingface_hub") from error
    if not get_token():
        raise UserError(f"to={target} needs you to be logged in at the hub; type: hf auth login")
    return name


def upload(folder: Path, name: HubName, *, private: bool | None, overwrite: bool, replaced: Iterable[str] = ()) -> str:
    """Upload a folder as a new model of the hub and return its address.

    With `overwrite` the repository may exist: a commit is added to it, which deletes those files of the names in
    `replaced` that the folder does not have. `private` None: as the account has it. UserError where the hub refuses.
    """
    from huggingface_hub import HfApi

    api, repository = HfApi(), name.repository
    try:
        created = api.create_repo(repository, repo_type="model", private=private, exist_ok=overwrite)
        # A repository that exists stays as public or private as it is, whatever was asked for.
        is_private = private if private is None else bool(api.model_info(repository).private)
    except Exception as error:
        raise UserError(f"the hub does not create {repository}: {_refusal(error)}") from error
    if is_private != private:
        raise UserError(
            f"private={str(private).lower()}, and {repository} is a {'private' if is_private else 'public'} repository "
            "already; nothing is uploaded: change it in its settings on the hub, or leave out private="
        )
    try:
        api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=str(folder),
            commit_message="Upload by gptlab convert",
            delete_patterns=sorted(replaced),
        )
    except Exception as error:
        raise UserError(
            f"{created} is there, and the upload failed: {_refusal(error)}; type the command again with overwrite=true"
        ) from error
    return str(created)


def _refusal(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 409:
        return "it exists; add overwrite=true to add a commit to it, or name another"
    if status in (401, 403):
        return f"your token may not write there ({described(error)}); type: hf auth login"
    return described(error)


def described(error: Exception) -> str:
    """The first line of an error of another library, without the token, should it be there."""
    token: Any = None
    try:
        from huggingface_hub import get_token

        token = get_token()
    except Exception:  # a message needs no token
        pass
    line = first_line(error)
    return line.replace(token, "***") if token else line
