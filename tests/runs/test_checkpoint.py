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

from gptlab.errors import UserError
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs import checkpoint
from gptlab.runs.checkpoint_state import CheckpointState
from gptlab.runs.tensor_files import Shard, write_tensors
from gptlab.runs.writer import CheckpointWriter, Save
from gptlab.training.config import MuonConfig


def small(seed=0, **options):
    config = DecoderConfig(**{"n_layer": 1, "n_head": 2, "d_model": 8, "context_length": 4} | options)
    return build_model(config, 11, seed=seed)


def trained(seed):
    model = small(seed)
    optimizer = MuonConfig().build(model.named_parameters(), device=torch.device("cpu"))
    for step in range(3):
        step_of(model, optimizer, step)
    return model, optimizer


def step_of(model, optimizer, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def save(path, model, optimizer, **more):
    state = CheckpointState(**more)
    checkpoint.save(path, state, checkpoint.model_state(model), checkpoint.optimizer_state(optimizer))


def save_step(path, step, **more):
    checkpoint.save(path, CheckpointState(step=step, **more), {"x": torch.arange(99.0)})


def test_a_restored_optimizer_takes_the_same_steps_bit_for_bit(tmp_path):
    model, optimizer = trained(0)
    save(tmp_path / "a.ckpt", model, optimizer)
    other, other_optimizer = trained(1)
    saved = checkpoint.load(tmp_path / "a.ckpt")
    checkpoint.restore_model(other, saved.model)
    checkpoint.restore_optimizer(other_optimizer, saved.optimizer)
    for step in range(3, 6):
        step_of(model, optimizer, step)
        step_of(other, other_optimizer, step)
    for name, p in model.named_parameters():
        assert torch.equal(p, dict(other.named_parameters())[name]), name


def test_the_state_reads_back_as_it_was(tmp_path):
    state = CheckpointState(
        step=7,
        samples=56,
        skipped_steps=2,
        best={"val/loss": 1 / 3, "step": 5},
        config={"model": {"d_model": 8}, "name": None},
        data="d",
        tokenizer="t",
        arithmetic="32-true",
        special_tokens={"eos": 3},
        precision={"scale": 65536.0},
        callbacks={
            "EarlyStopping{'monitor': 'val/loss'}": {
                "best_score": torch.tensor(0.1, dtype=torch.float64),
                "wait": 2,
                "range": (1, 2.5),
                "by_step": {3: "three", (1, 2): float("inf")},
                "odd": {"__tensor__": "no tensor"},
            }
        },
    )
    checkpoint.save(tmp_path / "a.ckpt", state, {})
    found = checkpoint.load(tmp_path / "a.ckpt").state
    key = "EarlyStopping{'monitor': 'val/loss'}"
    assert torch.equal(found.rng, state.rng)
    score = found.callbacks[key].pop("best_score")
    assert score.dtype == torch.float64 and torch.equal(score, state.callbacks[key].pop("best_score"))
    found.rng = state.rng = None
    assert found == state


def test_a_callback_whose_state_cannot_be_saved_is_named(tmp_path):
    state = CheckpointState(callbacks={"Mine": {"when": threading.Lock()}})
    with pytest.raises(UserError, match=r"callbacks > Mine > when is of type lock.*state_dict"):
        checkpoint.save(tmp_path / "a.ckpt", state, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_the_safetensors_library_reads_what_is_written(tmp_path, dtype):
    import safetensors.torch

    tensors = {"a": torch.arange(6).reshape(2, 3).to(dtype), "b": torch.ones((), dtype=dtype), "c": torch.zeros(0, 4)}
    tensors["transposed"] = torch.arange(6).reshape(2, 3).to(dtype).T
    write_tensors(tmp_path / "a", tensors, {"about": "x"})
    found = safetensors.torch.load_file(tmp_path / "a")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_optimizer_state_that_is_no_tensor_reads_back(tmp_path):
    checkpoint.save(tmp_path / "a.ckpt", CheckpointState(), {}, {"w": {"step": 3, "m": torch.ones(2)}})
    found = checkpoint.load(tmp_path / "a.ckpt").optimizer["w"]
    assert found["step"] == 3 and torch.equal(found["m"], torch.ones(2)) and set(found) == {"step", "m"}


def test_names_are_the_models_own(tmp_path):
    model, optimizer = trained(0)
    save(tmp_path / "a.ckpt", model, optimizer)
    saved = checkpoint.load(tmp_path / "a.ckpt")
    assert set(saved.model) == set(saved.optimizer) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("options", [{"n_layer": 2}, {"d_model": 16}, {"tie_embeddings": False}])
def test_another_architecture_is_refused_by_name(options):
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.restore_model(small(**options), checkpoint.model_state(small()))


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "text", "pickle", "other"])
def test_what_is_no_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, CheckpointState(), {"x": torch.arange(1000.0)})
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":  # the header is at its start
        path.write_bytes(content[:50] + bytes(200) + content[250:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("hello")
    elif damage == "pickle":
        torch.save({"state_dict": {}}, path)
    else:
        write_tensors(path, {"x": torch.ones(3)}, {})
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
    torch.save({"model": _Bomb()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps({"model": _Bomb()}))
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(ValueError, match="damaged or no checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "bomb.txt").exists()


def test_the_newest_whole_one_is_found_and_the_others_are_named(tmp_path):
    for step in (1, 2, 3):
        save_step(tmp_path / f"step_{step:08d}.ckpt", step)
    (tmp_path / "step_00000003.ckpt").write_bytes(b"half")
    path, skipped = checkpoint.newest(tmp_path)
    assert path.name == "step_00000002.ckpt"
    assert len(skipped) == 1 and "step_00000003.ckpt" in skipped[0]


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path):
    path = tmp_path / "last.ckpt"
    save_step(path, 1)
    old = path.read_bytes()
    pid = os.fork()
    if pid == 0:  # a limit on file size stands in for the end of the disk
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoint.save(path, CheckpointState(), {"x": torch.zeros(1_000_000)})
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG and "could not be saved" in str(error) else 3)
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
    with pytest.raises(
        OSError, match=r"a.ckpt could not be saved \(No space left on device\); nothing of the run is saved"
    ):
        save_step(tmp_path / "a.ckpt", 0)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_checkpoint_that_is_there(tmp_path, monkeypatch):
    """Not the one that failed, nor a damaged one."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    save_step(tmp_path / "step_00000002.ckpt", 2)
    (tmp_path / "step_00000003.ckpt").write_bytes(b"cut off")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as error:
        save_step(tmp_path / "step_00000004.ckpt", 4)
    assert error.value.filename is None  # which a message would end with
    assert error.value.strerror.startswith(f"{tmp_path / 'step_00000004.ckpt'} could not be saved (No space")
    assert error.value.strerror.endswith(f"the run is saved at step 2, in {tmp_path / 'step_00000002.ckpt'}")


def test_a_link_follows_the_newest(tmp_path):
    for step in (1, 2):
        source = tmp_path / f"step_{step:08d}.ckpt"
        save_step(source, step)
        checkpoint.link(source, "last")
    (tmp_path / "step_00000002.ckpt").unlink()
    assert checkpoint.load(tmp_path / "last.ckpt").state.step == 2
    checkpoint.verify(tmp_path / "last.ckpt")


def write_folder(path, model, optimizer):
    writer = CheckpointWriter(asynchronous=False, keep_last=9, rank=0, world_size=1, timeout_seconds=60)
    writer.save(Save(path, CheckpointState(step=3), checkpoint.local_shards(model, optimizer), True, ["last"]))


def test_a_folder_holds_what_a_file_holds(tmp_path):
    model, optimizer = trained(0)
    write_folder(tmp_path / "step_00000003", model, optimizer)
    assert checkpoint.linked(tmp_path, "last").resolve() == tmp_path / "step_00000003"
    saved = checkpoint.load(tmp_path / "last")
    assert saved.state.step == 3
    other, other_optimizer = trained(1)
    checkpoint.restore_model(other, saved.model)
    checkpoint.restore_optimizer(other_optimizer, saved.optimizer)
    step_of(model, optimizer, 3)
    step_of(other, other_optimizer, 3)
    for name, p in model.named_parameters():
        assert torch.equal(p, dict(other.named_parameters())[name]), name
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.restore_model(small(d_model=16), saved.model)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not on this machine")
def test_checksums_are_those_of_sha256sum(tmp_path):
    save_step(tmp_path / "step_00000001.ckpt", 1)
    write_folder(tmp_path / "step_00000003", *trained(0))
    for folder in (tmp_path, tmp_path / "step_00000003"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["step_00000002.ckpt", "step_00000003/rank_00000.safetensors"])
def test_one_changed_bit_is_found(tmp_path, name):
    for step in (1, 2):
        save_step(tmp_path / f"step_{step:08d}.ckpt", step)
    write_folder(tmp_path / "step_00000003", *trained(0))
    assert checkpoint.newest(tmp_path) == (tmp_path / "step_00000003", [])
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        checkpoint.verify(tmp_path / name.split("/")[0])
    path, skipped = checkpoint.newest(tmp_path)
    if "3/" in name:
        assert path.name == "step_00000002.ckpt" and len(skipped) == 1 and name in skipped[0]


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "SHA256SUMS"])
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
    save_step(tmp_path / "step_00000004.ckpt", 4)  # on one device from here on
    for name in ("last", "best"):
        checkpoint.link(tmp_path / "step_00000004.ckpt", name)
    checkpoint.prune(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["SHA256SUMS", "best.ckpt", "last.ckpt", "step_00000004.ckpt"]


def test_steps_go_on_while_a_copy_is_written(tmp_path, monkeypatch):
    model, optimizer = trained(0)
    expected = {name: p.clone() for name, p in model.named_parameters()}
    go_on = threading.Event()
    write = checkpoint.write_file
    monkeypatch.setattr(checkpoint, "write_file", lambda *args: (go_on.wait(60), write(*args))[1])
    writer = CheckpointWriter(asynchronous=True, keep_last=1, rank=0, world_size=1, timeout_seconds=60)
    path = tmp_path / "step_00000003"
    writer.save(Save(path, CheckpointState(), checkpoint.local_shards(model, optimizer), True, ["last"]))
    step_of(model, optimizer, 3)
    assert not path.exists(), "nothing has its name before it is whole"
    go_on.set()
    writer.wait()
    saved = checkpoint.load(path)
    for name, value in expected.items():
        assert torch.equal(saved.model[name], value), name


def test_a_thread_that_cannot_write_says_so_to_the_steps(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", fail)
    writer = CheckpointWriter(asynchronous=True, keep_last=1, rank=0, world_size=1, timeout_seconds=60)
    writer.save(
        Save(tmp_path / "step_00000001", CheckpointState(), checkpoint.local_shards(*trained(0)), True, ["last"])
    )
    with pytest.raises(OSError, match=r"\(No space left on device\); nothing of the run is saved"):
        writer.wait()
    assert not (tmp_path / "step_00000001").exists() and not (tmp_path / "last").exists()


def test_a_folder_whose_list_lacks_rank_0_is_not_whole(tmp_path):
    folder = tmp_path / "step_00000003"
    write_folder(folder, *trained(0))
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        checkpoint.load(folder)


def test_a_tensor_with_a_shard_missing_is_named(tmp_path):
    folder = tmp_path / "step_00000003"
    model, optimizer = trained(0)
    tensors = checkpoint.local_shards(model, optimizer)
    shards = {key: Shard([0] * value.ndim, list(value.shape)) for key, value in tensors.items()}
    tensors["model/tok_emb.weight"] = tensors["model/tok_emb.weight"][:5].clone()  # another rank's file is lost
    folder.mkdir()
    name = checkpoint.rank_file(0)
    checksum = checkpoint.write_file(folder / name, tensors, CheckpointState(), shards)
    (folder / "SHA256SUMS").write_text(f"{checksum}  {name}\n")
    with pytest.raises(ValueError, match=r"lacks a shard of model/tok_emb\.weight"):
        checkpoint.load(folder)
    with pytest.raises(ValueError, match="is a part of a checkpoint; name the folder"):
        checkpoint.load(folder / name)


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
        save_step(path, step, best=best)
        checkpoint.link(path, "last")
        if step <= best_step:
            checkpoint.link(path, "best")
        checkpoint.prune(folder, 9)


def test_going_back_leaves_the_best_of_the_line_that_goes_on(tmp_path):
    saved_line(tmp_path, (5, 10, 15, 20), best_step=20)
    state = checkpoint.load(tmp_path / "step_00000010.ckpt").state
    assert checkpoint.rollback(tmp_path, 10, state.best) == ["step_00000015.ckpt", "step_00000020.ckpt"]
    for name in ("last", "best"):
        assert checkpoint.load(tmp_path / f"{name}.ckpt").state.step == 10
        checkpoint.verify(tmp_path / f"{name}.ckpt")
    assert [step for step, _ in checkpoint.kept(tmp_path)] == [5, 10]
    saved_line(tmp_path, (15, 20), best_step=10)  # and once more to the same step
    checkpoint.rollback(tmp_path, 10, state.best)
    assert sorted(p.name for p in tmp_path.glob("*.aside")) == ["step_00000015.aside", "step_00000020.aside"]


def test_a_run_that_goes_on_keeps_its_best(tmp_path):
    saved_line(tmp_path, (5, 10, 15), best_step=5)
    checkpoint.prune(tmp_path, 1)
    state = checkpoint.load(tmp_path / "step_00000015.ckpt").state
    assert checkpoint.rollback(tmp_path, 15, state.best) == []
    assert checkpoint.load(tmp_path / "best.ckpt").state.step == 5
    assert not list(tmp_path.glob(".*")), "nothing is left where a name was right already"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 3
