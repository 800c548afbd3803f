"""One contender of `benchmarks/training.py` in a process of its own, which takes training steps when it is told to.

    python benchmarks/contenders.py SETTINGS.json

Runs in the interpreter of the peer, so it needs nothing of gptlab but for gptlab itself. All start from the same
weights, take the same batches and step AdamW at a constant rate after clipping to a norm of 1. A line with a number on
standard input asks for so many steps; the answer is a line of JSON with the seconds they took, their losses, and the
peak of memory until then. Between requests the process sleeps. The end of standard input ends it.
"""

import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LR, WEIGHT_DECAY, BETAS, GRAD_CLIP = 6e-4, 0.1, (0.9, 0.95), 1.0


class Turns:
    """Waits until steps are asked for, times them and answers; `out` is where answers go."""

    def __init__(self, device: str, out):
        self.device, self.out = device, out
        self.left, self.started, self.losses = 0, 0.0, []

    def begin(self, version: str = "") -> None:
        """Called once, when the next thing that happens is a step; `version` is the library's."""
        import torch

        found = {"torch": importlib.metadata.version("torch"), "threads": torch.get_num_threads()}
        self._answer({"version": version, **found})
        self._wait()

    def finish_step(self, loss) -> None:
        """Called after each step; its loss, a tensor, is read when the turn is over."""
        self.losses.append(loss.detach())
        self.left -= 1
        if self.left:
            return
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.started
        losses = [float(loss) for loss in self.losses]
        self._answer({"seconds": seconds, "losses": losses, "peak_bytes": peak_bytes(self.device)})
        self._wait()

    def _wait(self) -> None:
        request = sys.stdin.readline()
        if not request:
            os._exit(0)  # in the middle of somebody's training loop
        self.left, self.losses, self.started = int(request), [], time.perf_counter()

    def _answer(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self.out, flush=True)


def peak_bytes(device: str) -> int | None:
    """The peak of this process: of resident memory, or of what torch allocated on a GPU; None where nobody counts."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def batches(given: SimpleNamespace) -> Iterator[tuple[Any, Any]]:
    """Tokens and targets (B, T) of step after step, from the file (steps, B, T + 1)."""
    import numpy as np
    import torch

    for sequences in np.load(given.batches, mmap_mode="r"):
        sequences = torch.from_numpy(sequences.astype(np.int64)).to(given.device)
        yield sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous()


def weights(given: SimpleNamespace, *, linear: bool) -> dict[str, Any]:
    """The initial weights under GPT-2's names; `linear`: the matrices of blocks (out, in), as nn.Linear has them."""
    from safetensors.torch import load_file

    found = load_file(given.weights)
    matrices = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    if linear:
        found = {name: value.t() if name.endswith(matrices) else value for name, value in found.items()}
    return found | {"lm_head.weight": found["transformer.wte.weight"]}


def gptlab(given: SimpleNamespace, turns: Turns) -> None:
    """`gptlab.train` itself, with the callbacks that the overrides leave, imported as train.py does."""
    from gptlab.distributed.lightning_import import import_lightning_alone

    import_lightning_alone()
    import lightning

    import gptlab

    class Clock(lightning.Callback):
        def on_train_start(self, trainer, module) -> None:
            turns.begin()

        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            self.loss = next(iter(module.last_step["terms"].values()))  # later it has gone into metrics.csv

        def on_train_batch_end(self, *_) -> None:
            turns.finish_step(self.loss)

    gptlab.train(gptlab.compose(*given.overrides, f"run_dir={given.folder}/run"), callbacks=[Clock()])


def nanogpt(given: SimpleNamespace, turns: Turns) -> None:
    """The steps of nanoGPT's train.py with its model.py, on one device and without accumulation."""
    sys.path.insert(0, given.nanogpt)
    import torch
    from model import GPT, GPTConfig

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = given.device == "cuda"
    model: Any = GPT(
        GPTConfig(
            block_size=given.context_length,
            vocab_size=given.vocab_size,
            n_layer=given.n_layer,
            n_head=given.n_head,
            n_embd=given.d_model,
            dropout=0.0,
            bias=True,
        )
    )
    model.load_state_dict(weights(given, linear=True))
    model.to(given.device)
    # Its AdamW is the fused one where it is told that the device is a GPU.
    optimizer = model.configure_optimizers(WEIGHT_DECAY, LR, BETAS, "cuda" if given.fused else given.device)
    if given.compile:
        model = torch.compile(model)
    on_gpu = given.device == "cuda"
    context = torch.autocast("cuda", dtype=torch.bfloat16) if on_gpu else nullcontext()
    turns.begin()
    for tokens, targets in batches(given):
        with context:
            _, loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.finish_step(loss)


def transformers(given: SimpleNamespace, turns: Turns) -> None:
    """GPT-2 in Hugging Face's Trainer, with its default optimizer."""
    import numpy as np
    import torch
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    config = hf.GPT2Config(
        vocab_size=given.vocab_size,
        n_positions=given.context_length,
        n_embd=given.d_model,
        n_layer=given.n_layer,
        n_head=given.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = hf.GPT2LMHeadModel(config)
    model.load_state_dict(weights(given, linear=False))
    sequences = np.load(given.batches, mmap_mode="r").reshape(-1, given.context_length + 1)
    losses = []

    class Sequences(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(sequences)

        def __getitem__(self, i: int) -> dict[str, Any]:
            sequence = torch.from_numpy(sequences[i].astype(np.int64))
            # Its own shift would leave the last target of a sequence out.
            return {"input_ids": sequence[:-1], "labels": sequence[1:], "shift_labels": sequence[1:]}

    class Trainer(hf.Trainer):
        def compute_loss(self, *args, **kwargs):
            found = super().compute_loss(*args, **kwargs)
            losses.append(found.detach())
            return found

    class Clock(hf.TrainerCallback):
        def on_train_begin(self, *_, **__) -> None:
            turns.begin(hf.__version__)

        def on_step_end(self, *_, **__) -> None:
            turns.finish_step(losses.pop())

    arguments = hf.TrainingArguments(
        output_dir=given.folder,
        max_steps=given.n_steps,
        per_device_train_batch_size=given.micro_batch_size,
        train_sampling_strategy="sequential",
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=GRAD_CLIP,
        bf16=given.device == "cuda",
        use_cpu=given.device == "cpu",
        torch_compile=given.compile,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,  # shift_labels is an argument of the loss
    )
    Trainer(model=model, args=arguments, train_dataset=Sequences(), callbacks=[Clock()]).train()


def litgpt(given: SimpleNamespace, turns: Turns) -> None:
    """The steps of litgpt's pretrain.py. It has no learned positions, so it rotates queries and keys instead."""
    import lightning
    import torch
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer

    fabric = lightning.Fabric(
        accelerator=given.device, devices=1, precision="bf16-mixed" if given.device == "cuda" else "32-true"
    )
    config = Config(
        name="gpt2",
        block_size=given.context_length,
        vocab_size=given.vocab_size,
        padded_vocab_size=given.vocab_size,
        n_layer=given.n_layer,
        n_head=given.n_head,
        n_embd=given.d_model,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=True,
        gelu_approximate="tanh",
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
    )
    with fabric.init_module(empty_init=True):
        model: Any = GPT(config)
    names = {".ln_1.": ".norm_1.", ".ln_2.": ".norm_2.", ".c_attn.": ".qkv.", ".c_proj.": ".proj.", ".c_fc.": ".fc."}
    pattern = re.compile("|".join(map(re.escape, names)))
    model.load_state_dict(
        {
            pattern.sub(lambda found: names[found[0]], name): value
            for name, value in weights(given, linear=True).items()
            if name != "transformer.wpe.weight"
        }
    )
    model.transformer.wte.weight = model.lm_head.weight
    model.max_seq_length = given.context_length
    model = fabric.setup(torch.compile(model) if given.compile else model)
    settings = {"lr": LR, "weight_decay": WEIGHT_DECAY, "betas": BETAS, "fused": given.device == "cuda"}
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer("AdamW", model.parameters(), **settings))
    turns.begin(importlib.metadata.version("litgpt"))
    for tokens, targets in batches(given):
        logits = model(tokens)
        loss = chunked_cross_entropy(logits, targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()
        turns.finish_step(loss)


LIBRARIES: dict[str, Callable[[SimpleNamespace, Turns], None]] = {
    function.__name__: function for function in (gptlab, nanogpt, transformers, litgpt)
}


def main() -> None:
    given = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    LIBRARIES[given.library](given, Turns(given.device, out))


if __name__ == "__main__":
    main()
