"""Checkpoints: whole or absent, and never code."""

import errno
import os
import pickle
import resource

import pytest
import torch

from gptlab.models.build import build_model
from gptlab.models.config import DecoderConfig
from gptlab.training import checkpoint
from gptlab.training.config import MuonConfig
from gptlab.training.optim import build_optimizer


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


def test_a_restored_optimiser_takes_the_same_steps_bit_for_bit(tmp_path):
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


@pytest.mark.parametrize("words", [{"n_layer": 2}, {"d_model": 16}, {"tied_head": False}])
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
    with pytest.raises(ValueError, match=r"resume=.*nothing\.ckpt is not a file"):
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
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_failed_rename_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left on device; the run stays saved"):
        checkpoint.save({"gptlab_format": 1}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_link_follows_the_newest(tmp_path):
    for step in (1, 2):
        source = tmp_path / f"step_{step:08d}.ckpt"
        checkpoint.save({"gptlab_format": 1, "step": step}, source)
        checkpoint.link(source, tmp_path / "last.ckpt")
    (tmp_path / "step_00000002.ckpt").unlink()
    assert checkpoint.load(tmp_path / "last.ckpt")["step"] == 2
