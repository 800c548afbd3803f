"""Train a model: `python train.py model=gpt124m trainer.devices=8 strategy=fsdp`; `--help` lists the words."""

import sys

from gptlab.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
