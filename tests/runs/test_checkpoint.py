"""Checkpoints: whole or absent, and never code."""

import errno
import os
import pickle
import resource
import shutil
import subprocess
import threading

import pytest
import torch

from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.writer import CheckpointWriter, Save
from gptlab.training.config import MuonConfig
from gptlab.training.optimizers import build_optimizer


def small(seed=0, **words):
    config = DecoderConfig(**{"n_layer": 1, "n_head": 2, "d_model": 8, "context_length": 4} | words)
    return build_model(config, 11, seed=seed)


def trained(seed):
    model = small(seed)
    optimizer = build_optimizer(model.named_parameters(), MuonConfig(), device=torch.device("cpu"))
    for step in range(3):
        step_of(model, optimizer, step)
    return model, optimizer


def step_of(model, optimizer, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def state_of(model, optimizer, **more):
    return {
        "gptlab_format": 1,
        "model": checkpoint.model_state(model),
        "optimizer": checkpoint.optimizer_state(optimizer),
        **more,
    }


def test_a_restored_optimizer_takes_the_same_steps_bit_for_bit(tmp_path):
    model, optimizer = trained(0)
    checkpoint.save(state_of(model, optimizer), tmp_path / "a.ckpt")
    other, other_optimizer = trained(1)
    state = checkpoint.load(tmp_path / "a.ckpt")
    checkpoint.restore_model(other, state["model"])
    checkpoint.restore_optimizer(other_optimizer, state["optimizer"])
    for step in range(3, 6):
        step_of(model, optimizer, step)
        step_of(other, other_optimizer, step)
    for name, p in model.named_parameters():
        assert torch.equal(p, dict(other.named_parameters())[name]), name


def test_names_are_the_models_own(tmp_path):
    model, optimizer = trained(0)
    state = state_of(model, optimizer)
    assert set(state["model"]) == set(state["optimizer"]) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("words", [{"n_layer": 2}, {"d_model": 16}, {"tie_embeddings": False}])
def test_another_architecture_is_refused_by_name(words):
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.restore_model(small(**words), checkpoint.model_state(small()))


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "text", "foreign"])
def test_what_is_no_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "a.ckpt"
    checkpoint.save({"gptlab_format": 1, "model": {"x": torch.arange(1000.0)}}, path)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":  # the directory of the archive is at its end
        path.write_bytes(content[:-200] + bytes(200))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("hello")
    else:
        torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"a\.ckpt is (damaged|not a checkpoint)"):
        checkpoint.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"resume=.*nothing\.ckpt is no checkpoint"):
        checkpoint.load(tmp_path / "nothing.ckpt")


class _Bomb:
    def __reduce__(self):
        return os.system, ("echo ran > bomb.txt",)


def test_a_file_from_elsewhere_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"gptlab_format": 1, "model": _Bomb()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps({"gptlab_format": 1, "model": _Bomb()}))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(ValueError, match="damaged or no checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "bomb.txt").exists()


def test_the_newest_whole_one_is_found_and_the_others_are_named(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save({"gptlab_format": 1, "step": step}, tmp_path / f"step_{step:08d}.ckpt")
    (tmp_path / "step_00000003.ckpt").write_bytes(b"half")
    path, skipped = checkpoint.newest(tmp_path)
    assert path.name == "step_00000002.ckpt"
    assert len(skipped) == 1 and "step_00000003.ckpt" in skipped[0]


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoint.save({"gptlab_format": 1, "step": 1}, path)
    old = path.read_bytes()
    pid = os.fork()
    if pid == 0:  # a limit on file size stands in for the end of the disk
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save({"gptlab_format": 1, "model": torch.zeros(1_000_000)}, path)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG and "last checkpoint" in str(error) else 3)
        except BaseException:
            os._exit(4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["SHA256SUMS", "last.ckpt"]


def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left on device; nothing of the run is saved yet"):
        checkpoint.save({"gptlab_format": 1}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_link_follows_the_newest(tmp_path):
    for step in (1, 2):
        source = tmp_path / f"step_{step:08d}.ckpt"
        checkpoint.save({"gptlab_format": 1, "step": step}, source)
        checkpoint.link(source, "last")
    (tmp_path / "step_00000002.ckpt").unlink()
    assert checkpoint.load(tmp_path / "last.ckpt")["step"] == 2
    checkpoint.verify(tmp_path / "last.ckpt")


def write_folder(path, model, optimizer):
    saver = CheckpointWriter(asynchronous=False, keep_last=9, rank=0, world_size=1, timeout_seconds=60)
    rest = {"gptlab_format": 1, "step": 3}
    saver.save(Save(path, rest, checkpoint.local_shards(model, optimizer), ["last"]))


def test_a_folder_holds_what_a_file_holds(tmp_path):
    model, optimizer = trained(0)
    write_folder(tmp_path / "step_00000003", model, optimizer)
    assert checkpoint.linked(tmp_path, "last").resolve() == tmp_path / "step_00000003"
    state = checkpoint.load(tmp_path / "last")
    assert state["step"] == 3
    other, other_optimizer = trained(1)
    checkpoint.restore_model(other, state["model"])
    checkpoint.restore_optimizer(other_optimizer, state["optimizer"])
    step_of(model, optimizer, 3)
    step_of(other, other_optimizer, 3)
    for name, p in model.named_parameters():
        assert torch.equal(p, dict(other.named_parameters())[name]), name
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.restore_model(small(d_model=16), state["model"])


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not on this machine")
def test_checksums_are_those_of_sha256sum(tmp_path):
    checkpoint.save({"gptlab_format": 1}, tmp_path / "step_00000001.ckpt")
    write_folder(tmp_path / "step_00000003", *trained(0))
    for folder in (tmp_path, tmp_path / "step_00000003"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    "name", ["step_00000002.ckpt", "step_00000003/rank_00000.safetensors", "step_00000003/state.pt"]
)
def test_one_changed_bit_is_found(tmp_path, name):
    for step in (1, 2):
        checkpoint.save({"gptlab_format": 1, "step": step, "x": torch.arange(99.0)}, tmp_path / f"step_{step:08d}.ckpt")
    write_folder(tmp_path / "step_00000003", *trained(0))
    assert checkpoint.newest(tmp_path) == (tmp_path / "step_00000003", [])
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not what was written"):
        checkpoint.verify(tmp_path / name.split("/")[0])
    path, skipped = checkpoint.newest(tmp_path)
    if "3/" in name:
        assert path.name == "step_00000002.ckpt" and len(skipped) == 1 and name in skipped[0]


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "state.pt", "SHA256SUMS"])
def test_a_folder_that_lacks_a_file_names_it(tmp_path, name):
    write_folder(tmp_path / "step_00000003", *trained(0))
    (tmp_path / "step_00000003" / name).unlink()
    for read in (checkpoint.load, checkpoint.verify):
        with pytest.raises(ValueError, match=rf"step_00000003 .*{name}"):
            read(tmp_path / "step_00000003")


def test_the_best_outlives_the_newest(tmp_path):
    for step in (1, 2, 3):
        path = tmp_path / f"step_{step:08d}"
        write_folder(path, *trained(0))
        if step == 1:
            checkpoint.link(path, "best")
    checkpoint.prune(tmp_path, 1)
    assert [step for step, _ in checkpoint.kept(tmp_path)] == [1, 3]
    checkpoint.save({"gptlab_format": 1}, tmp_path / "step_00000004.ckpt")  # on one device from here on
    for name in ("last", "best"):
        checkpoint.link(tmp_path / "step_00000004.ckpt", name)
    checkpoint.prune(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["SHA256SUMS", "best.ckpt", "last.ckpt", "step_00000004.ckpt"]


def test_steps_go_on_while_a_copy_is_written(tmp_path, monkeypatch):
    model, optimizer = trained(0)
    expected = {name: p.clone() for name, p in model.named_parameters()}
    go_on = threading.Event()
    write = checkpoint.write_shards
    monkeypatch.setattr(checkpoint, "write_shards", lambda *args: (go_on.wait(60), write(*args))[1])
    saver = CheckpointWriter(asynchronous=True, keep_last=1, rank=0, world_size=1, timeout_seconds=60)
    path = tmp_path / "step_00000003"
    saver.save(Save(path, {"gptlab_format": 1}, checkpoint.local_shards(model, optimizer), ["last"]))
    step_of(model, optimizer, 3)
    assert not path.exists(), "nothing has its name before it is whole"
    go_on.set()
    saver.wait()
    state = checkpoint.load(path)
    for name, value in expected.items():
        assert torch.equal(state["model"][name], value), name


def test_a_thread_that_cannot_write_says_so_to_the_steps(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_shards", fail)
    saver = CheckpointWriter(asynchronous=True, keep_last=1, rank=0, world_size=1, timeout_seconds=60)
    saver.save(Save(tmp_path / "step_00000001", {}, checkpoint.local_shards(*trained(0)), ["last"]))
    with pytest.raises(OSError, match="No space left on device; nothing of the run is saved yet"):
        saver.wait()
    assert not (tmp_path / "step_00000001").exists() and not (tmp_path / "last").exists()


@pytest.mark.parametrize("lost", ["rank_00000.safetensors", "state.pt"])
def test_a_folder_whose_list_lacks_a_file_is_not_whole(tmp_path, lost):
    folder = tmp_path / "step_00000003"
    write_folder(folder, *trained(0))
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines if lost not in line))
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        checkpoint.load(folder)


def test_a_tensor_with_a_part_missing_is_named(tmp_path):
    folder = tmp_path / "step_00000003"
    model, optimizer = trained(0)
    parts = checkpoint.local_shards(model, optimizer)
    where = {key: (tuple(slice(0, n) for n in value.shape), value.shape) for key, value in parts.items()}
    parts["model/tok_emb.weight"] = parts["model/tok_emb.weight"][:5].clone()  # of another rank's the file is lost
    folder.mkdir()
    sums = {"state.pt": checkpoint.write_file({"gptlab_format": 1}, folder / "state.pt")}
    sums["rank_00000.safetensors"] = checkpoint.write_shards(parts, where, folder / "rank_00000.safetensors")
    (folder / "SHA256SUMS").write_text("".join(f"{checksum}  {name}\n" for name, checksum in sums.items()))
    with pytest.raises(ValueError, match=r"lacks a part of model/tok_emb\.weight"):
        checkpoint.load(folder)


def test_links_that_a_copy_made_into_folders_are_links_again(tmp_path):
    write_folder(tmp_path / "step_00000003", *trained(0))
    shutil.copytree(tmp_path / "step_00000003", tmp_path / "best")
    (tmp_path / "last").unlink()
    shutil.copytree(tmp_path / "step_00000003", tmp_path / "last")
    write_folder(tmp_path / "step_00000004", *trained(0))
    checkpoint.link(tmp_path / "step_00000004", "best")
    for name in ("last", "best"):
        assert (tmp_path / name).is_symlink() and (tmp_path / name).resolve().name == "step_00000004"


def saved_line(folder, steps, best_step):
    """Checkpoints of these steps, each knowing the best so far, as a run leaves them."""
    for step in steps:
        path = folder / f"step_{step:08d}.ckpt"
        best = {"step": min(step, best_step), "val/loss": 1.0}
        checkpoint.save({"gptlab_format": 1, "step": step, "best": best}, path)
        checkpoint.link(path, "last")
        if step <= best_step:
            checkpoint.link(path, "best")
        checkpoint.prune(folder, 9)


def test_going_back_leaves_the_best_of_the_line_that_goes_on(tmp_path):
    saved_line(tmp_path, (5, 10, 15, 20), best_step=20)
    state = checkpoint.load(tmp_path / "step_00000010.ckpt")
    assert checkpoint.rollback(tmp_path, 10, state["best"]) == ["step_00000015.ckpt", "step_00000020.ckpt"]
    for name in ("last", "best"):
        assert checkpoint.load(tmp_path / f"{name}.ckpt")["step"] == 10
        checkpoint.verify(tmp_path / f"{name}.ckpt")
    assert [step for step, _ in checkpoint.kept(tmp_path)] == [5, 10]
    saved_line(tmp_path, (15, 20), best_step=10)  # and once more to the same step
    checkpoint.rollback(tmp_path, 10, state["best"])
    assert sorted(p.name for p in tmp_path.glob("*.aside")) == ["step_00000015.aside", "step_00000020.aside"]


def test_a_run_that_goes_on_keeps_its_best(tmp_path):
    saved_line(tmp_path, (5, 10, 15), best_step=5)
    checkpoint.prune(tmp_path, 1)
    state = checkpoint.load(tmp_path / "step_00000015.ckpt")
    assert checkpoint.rollback(tmp_path, 15, state["best"]) == []
    assert checkpoint.load(tmp_path / "best.ckpt")["step"] == 5
    assert not list(tmp_path.glob(".*")), "nothing is left where a name was right already"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 3
