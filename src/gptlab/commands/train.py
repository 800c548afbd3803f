"""The command `python train.py`."""

from hydra.utils import instantiate

from gptlab import compose
from gptlab.config import RunConfig
from gptlab.training.stopping import requeue_before_the_first_step


def main() -> int:
    return compose.run(_train)


def _train(config: RunConfig) -> None:
    requeue_before_the_first_step()
    # torch and lightning take seconds to import: only an accepted config pays for them.
    from gptlab.training.run import train

    train(config, callbacks=[instantiate(extra) for extra in config.callbacks.extra.values()])
