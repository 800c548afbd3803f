"""The runs whose losses must not move, on any device: what they learn, and the losses themselves."""

from pathlib import Path

from small_runs import OBJECTIVES, of_objective, small_run

from gptlab.config import RunConfig
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import DecoderConfig, Init, Norm, Position
from gptlab.training.config import AdamWConfig, CosineConfig, MuonConfig

HERE = Path(__file__).parent
SHAPE = {"n_layer": 2, "n_head": 4, "d_model": 32, "context_length": 16}

RUNS = {
    **{name: {"objective": name} for name in OBJECTIVES if name != "causal_lm"},
    "causal_lm_gpt2_adamw": {
        "model": DecoderConfig(**SHAPE, dropout=0.1),
        "optimizer": AdamWConfig(lr=1e-2),
    },
    "causal_lm_modern_muon": {
        "model": DecoderConfig(
            **SHAPE,
            n_kv_head=2,
            position=Position.rotary,
            norm=Norm.rmsnorm,
            feedforward=Feedforward.relu2,
            bias=False,
            qk_norm=True,
            tie_embeddings=False,
            logit_softcap=15.0,
            init=Init.zero,
        ),
        "optimizer": MuonConfig(lr=1e-2),
    },
}


def golden_file(name: str) -> Path:
    """Where the losses of a run are held."""
    return HERE / f"{name}.txt"


def golden_losses(name: str) -> list[float]:
    """The loss of each step of a run."""
    return [float(line) for line in golden_file(name).read_text().split()]


def golden_run(name: str, folder: Path) -> RunConfig:
    """The config of a run of twenty steps in `folder`, on the CPU."""
    options = dict(RUNS[name])
    if "objective" in options:
        options |= of_objective(options["objective"], folder)
    return small_run(
        folder / "run", budget_steps=20, schedule=CosineConfig(warmup_steps=4), micro_batch_size=4, **options
    )
