"""samples.txt: a block for each evaluation."""

import re

from small_runs import small_run, step_rows

from gptlab.training.config import CallbacksConfig, CheckpointConfig, SampleConfig
from gptlab.training.loop import train


def test_a_run_that_goes_back_has_each_sample_once(tmp_path, capsys):
    sample = SampleConfig(max_new_tokens=4, prompt="a prompt that is longer than the context")
    callbacks = CallbacksConfig(checkpoint=CheckpointConfig(keep_last=2), sample=sample, plot=False)
    train(small_run(tmp_path / "run", callbacks=callbacks))
    content = (tmp_path / "run" / "samples.txt").read_text()
    losses = [row["val/loss"] for row in step_rows(tmp_path / "run" / "metrics.csv") if row["step"] in (5, 10)]
    assert re.findall(r"^--- step (\d+), val/loss (\d+\.\d{4})$", content, re.MULTILINE) == [
        ("5", f"{losses[0]:.4f}"),
        ("10", f"{losses[1]:.4f}"),
    ]
    assert "callbacks.sample.prompt has 40 tokens and the context holds 16" in capsys.readouterr().err
    checkpoints = tmp_path / "run" / "checkpoints"
    (tmp_path / "run" / "summary.json").unlink()
    for file in (*checkpoints.glob("step_00000010*"), *checkpoints.glob("last*"), *checkpoints.glob("best*")):
        file.unlink()
    train(small_run(tmp_path / "run", callbacks=callbacks))
    assert (tmp_path / "run" / "samples.txt").read_text() == content
