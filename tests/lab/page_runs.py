"""Run folders as training leaves them, made without training."""

import json
import math
from pathlib import Path

import yaml
from small_runs import small_run

from gptlab.config import to_plain
from gptlab.runs.folder import MetricsFile
from gptlab.runs.samples import sample_block

HOSTILE = """</script><img src=x onerror="document.title='taken'">&amp;'<b>"""
COLUMNS = ["step", "tokens", "train/loss", "train/lr", "perf/tokens_per_second", "val/loss"]


def make_run(
    folder: Path, *, lr: float = 1e-3, seed: int = 0, n_steps: int = 60, state: str = "finished", **more
) -> Path:
    """A run of which every value can be computed: a loss that falls with the learning rate, and waves of its seed."""
    folder.mkdir(parents=True)
    plain = to_plain(small_run(folder, seed=seed, **more))
    plain["optimizer"]["lr"] = lr
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, allow_unicode=True), encoding="utf-8")
    file = MetricsFile(folder / "metrics.csv", COLUMNS)
    samples = ""
    for step in range(1, n_steps + 1):
        loss = 1 + 4 * math.exp(-30 * lr * step) + 0.1 * math.sin(7 * step + seed)
        row = {"step": step, "tokens": 128 * step, "train/loss": loss, "train/lr": lr, "perf/tokens_per_second": 640.0}
        if step % 10 == 0:
            row["val/loss"] = loss + 0.05
            samples += sample_block(step, {"val/loss": loss + 0.05}, f"written after {step} steps {HOSTILE}")
        file.write(row)
    file.close()
    (folder / "samples.txt").write_text(samples, encoding="utf-8")
    (folder / "events.jsonl").write_text('{"event": "started", "step": 0, "devices": "1 x CPU, 32-true"}\n')
    if state == "finished":
        summary = {"finished": True, "stopped_early": False, "steps": n_steps, "flops_per_token": 1000.0}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder
