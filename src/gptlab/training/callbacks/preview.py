"""Text that the model writes at each evaluation, which people read before they look at a loss."""

import sys

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.files import write_text_atomic
from gptlab.generation.decode import generate_tokens
from gptlab.objectives.base import Examples, Objective, PreviewContext
from gptlab.runs.folder import RunFolder
from gptlab.runs.samples import SAMPLES, sample_block, samples_until
from gptlab.training.config import SampleConfig


class Preview(Callback):
    """Lets the objective show at each evaluation what the model does; appends it to samples.txt."""

    def __init__(
        self,
        config: SampleConfig,
        folder: RunFolder,
        objective: Objective,
        tokenizer: Tokenizer,
        examples: Examples,
        *,
        context_length: int,
        seed: int,
    ):
        self.config = config
        self.folder = folder
        self.objective = objective
        self.tokenizer = tokenizer
        self.examples = examples.gather(np.arange(min(objective.n_preview, len(examples))))
        self.context_length = context_length
        self.seed = seed
        self.newest = ""
        # Encoded before training, so that a prompt that the tokenizer cannot encode costs no work.
        prompt = tokenizer.encode(config.prompt or "").tolist()
        self.prompt = prompt[-context_length:]
        if len(prompt) > context_length and folder.writes:
            print(
                f"warning: callbacks.sample.prompt has {len(prompt):,} tokens and the context holds "
                f"{context_length:,}: samples continue its last {context_length:,}",
                file=sys.stderr,
            )

    def on_train_start(self, trainer, module) -> None:
        """Drop the samples of steps that are trained again, after a run was killed or went back."""
        path = self.folder.path / SAMPLES
        if self.folder.writes and path.is_file():
            write_text_atomic(path, samples_until(path.read_text(encoding="utf-8"), module.finished_steps))

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # Every rank computes the same, since with a sharded model none can alone.
        generator = torch.Generator(module.device).manual_seed(self.seed)

        def write(tokens: list[int]) -> list[int]:
            prompt = torch.tensor([tokens[-self.context_length :]], device=module.device)
            return generate_tokens(
                module.model,
                prompt,
                self.config.max_new_tokens,
                context_length=self.context_length,
                temperature=self.config.temperature,
                vocab_size=self.tokenizer.vocab_size,
                generator=generator,
            )[0, prompt.shape[1] :].tolist()

        def to_device(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(module.device) for name, value in batch.items()}

        context = PreviewContext(module.model, self.examples, self.tokenizer, self.prompt, write, to_device)
        # Compiled blocks would be compiled again for shapes that training never has.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.no_grad(), trainer.precision_plugin.forward_context():
            self.newest = self.objective.preview(context)
        if self.folder.writes:
            with open(self.folder.path / SAMPLES, "a", encoding="utf-8", newline="\n") as file:
                file.write(sample_block(module.finished_steps, module.evaluation, self.newest))
