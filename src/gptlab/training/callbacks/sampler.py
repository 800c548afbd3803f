"""What the model makes of examples, in words: where people look before they read a loss."""

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gptlab.config import RunConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.generation.decode import generate_tokens
from gptlab.objectives.base import Examples, Objective, PreviewContext
from gptlab.runs.folder import RunFolder


class Sampler(Callback):
    """Lets the objective show at each evaluation what the model does."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, objective: Objective, tokenizer: Tokenizer, examples: Examples
    ):
        self.config = config
        self.folder = folder
        self.objective = objective
        self.tokenizer = tokenizer
        self.examples = examples.gather(np.arange(min(objective.n_preview, len(examples))))
        self.newest = ""
        # Before training, so that a prompt that cannot be spelled costs no work.
        prompt = tokenizer.encode(config.callbacks.sample.prompt or "").tolist()
        self.prompt = prompt[-config.context_length :]

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        settings = self.config.callbacks.sample
        # Every rank shows the same, since with a sharded model none can compute alone.
        generator = torch.Generator(module.device).manual_seed(self.config.seed)

        def write(tokens: list[int]) -> list[int]:
            prompt = torch.tensor([tokens[-self.config.context_length :]], device=module.device)
            return generate_tokens(
                module.model,
                prompt,
                settings.max_new_tokens,
                context_length=self.config.context_length,
                temperature=settings.temperature,
                vocab_size=self.tokenizer.vocab_size,
                generator=generator,
            )[0, prompt.shape[1] :].tolist()

        def to_device(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(module.device) for name, value in batch.items()}

        shown = PreviewContext(module.model, self.examples, self.tokenizer, self.prompt, write, to_device)
        # Compiled blocks would be compiled again for shapes that training never has.
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.no_grad(), trainer.precision_plugin.forward_context():
            self.newest = self.objective.preview(shown)
        if self.folder.writes:
            with open(self.folder.path / "samples.txt", "a") as file:
                file.write(f"--- step {module.finished_steps}\n{self.newest}\n")
