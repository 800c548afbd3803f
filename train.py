"""Train a model: `python train.py model=gpt124m trainer.devices=8 strategy=fsdp`; `--help` lists the config keys."""

import sys

from gptlab.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
