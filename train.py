"""Train a model: `python train.py model=gpt124m trainer.devices=8 strategy=fsdp`; `--help` lists the config keys."""

import sys

from gptlab.cli.main import run
from gptlab.distributed.allocator import without_thread_cache

if __name__ == "__main__":
    without_thread_cache(sys.argv[0])
    sys.exit(run("train", sys.argv[1:], program=[sys.argv[0]]))
