"""samples.txt: a block for each evaluation."""

import math

from gptlab.runs.samples import Sample, read_samples, sample_block, samples_until


def test_a_block_has_step_and_loss_and_an_empty_line():
    losses = {"val/loss": 2.5, "val/perplexity": math.exp(2.5)}
    assert sample_block(7, losses, "two\nlines\x1b[0m \n") == "--- step 7, val/loss 2.5000\ntwo\nlines\\x1b[0m\n\n"


def test_blocks_beyond_a_step_are_dropped():
    blocks = [sample_block(step, {"val/loss": 1.0}, f"--- step by step\n--- step {step}!") for step in (5, 10, 15)]
    assert samples_until("".join(blocks), 10) == "".join(blocks[:2])
    assert samples_until("--- step 5\nas it was written before\n", 4) == ""
    assert samples_until("", 4) == ""


def test_what_was_written_is_read_back(tmp_path):
    assert read_samples(tmp_path) == []
    texts = {5: "one\n--- step by step\n\nend", 10: "", 15: "\u03b1 <b>"}
    blocks = [sample_block(step, {"val/loss": 1.0, "train_eval/loss": 2.0}, text) for step, text in texts.items()]
    (tmp_path / "samples.txt").write_text("".join(blocks), encoding="utf-8")
    losses = "val/loss 1.0000, train_eval/loss 2.0000"
    assert read_samples(tmp_path) == [Sample(step, losses, text) for step, text in texts.items()]
