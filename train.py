"""Train a model: `python train.py model=gpt124m trainer.devices=8 strategy=fsdp`; `--help` lists the config keys."""

import sys

from gptlab.cli.main import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:], program=[sys.argv[0]]))
