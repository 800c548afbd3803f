"""Text classification, and with a causal model language modeling beside it (GPT, section 3.2, equations 3 to 5; BERT,
section 4.1)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.data.examples.example_table import ExampleTable, TokenizedExample
from gptlab.data.prepare import PreparedData
from gptlab.data.sources.config import TableConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.nn.loss import IGNORE_INDEX, linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, PreviewContext, pad
from gptlab.objectives.config import ClassificationConfig

PREVIEW_CHARACTERS = 80  # of a text


class Classification(Objective):
    """Predict a text's class from its last token, or from the first through the pooler if `pooled`."""

    perplexity_of = None
    n_preview = 5

    def __init__(
        self,
        config: ClassificationConfig,
        tokenizer: Tokenizer,
        *,
        data: TableConfig,
        context_length: int,
        pooled: bool,
    ):
        self.data, self.context_length = data, context_length
        self.pad = tokenizer.pad or 0  # any token will do: padding is masked
        self.ends: tuple[int, int] | None = None  # the special tokens around a text; None: the text alone
        self.n_added = 0  # special tokens that are added to what the tokenizer wrote
        self.lm_weight = config.lm_weight
        self.scored_fraction = 1.0 if self.lm_weight else 0.0
        self.names = ("loss", "accuracy")
        if pooled:
            if tokenizer.cls is None or tokenizer.sep is None:
                raise UserError(
                    f"objective=classification reads the <cls> token of this model, and tokenizer={tokenizer.type} has "
                    "no <cls> and <sep>; use tokenizer=wordpiece, or add tokenizer.special_tokens=[<cls>,<sep>]"
                )
            self.ends = tokenizer.cls, tokenizer.sep
            self.unused_parameters = ("mlm.", "nsp.")
            self.n_added = (tokenizer.beginning[:1] != (tokenizer.cls,)) + (tokenizer.eot != tokenizer.sep)
        elif self.lm_weight:
            self.names = ("loss", "label_loss", "lm_loss", "accuracy")
        else:
            self.unused_parameters = ("lm_head.",)

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> ExampleTable:
        return data.examples[split].fit(self.context_length - self.n_added, self.data.overlong)

    def collate(self, examples: list[TokenizedExample], sample_ids: np.ndarray) -> Batch:
        """Tokens and attention mask (B, T), padded to the longest text, and class labels (B)."""
        texts = [_enclosed(example.tokens, self.ends) for example in examples]
        tokens, attention_mask = pad(texts, self.pad)
        labels = torch.tensor([example.label for example in examples])
        return {"tokens": tokens, "attention_mask": attention_mask, "labels": labels}

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        labels = {"labels": len(batch["labels"])}
        return labels | ({"tokens": batch["attention_mask"][:, 1:].sum()} if self.lm_weight else {})

    def loss(self, model: LanguageModel, batch: Batch) -> dict[str, LossTerm]:
        logits, hidden_states = self._logits(model, batch)
        labels = batch["labels"]
        label_loss = LossTerm(F.cross_entropy(logits, labels, reduction="sum"), "labels")
        accuracy = LossTerm((logits.argmax(-1) == labels).sum(), "labels", weight=0.0)
        if not self.lm_weight:
            return {"loss": label_loss, "accuracy": accuracy}
        targets = batch["tokens"][:, 1:].masked_fill(~batch["attention_mask"][:, 1:], IGNORE_INDEX)
        lm_loss = LossTerm(
            linear_cross_entropy(hidden_states[:, :-1], model.head, targets), "tokens", weight=self.lm_weight
        )
        return {"label_loss": label_loss, "lm_loss": lm_loss, "accuracy": accuracy}

    def _logits(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the classes (B, C), and the hidden states (B, T, D)."""
        mask = batch["attention_mask"]
        hidden_states = model.hidden_states(batch["tokens"], attention_mask=mask)
        if self.ends is not None:
            pooled = model.pooled(hidden_states)  # (B, D)
        else:
            pooled = hidden_states[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]
        assert model.class_head is not None
        return model.class_head(pooled).float(), hidden_states

    def preview(self, context: PreviewContext) -> str:
        """A few texts, each with its class and the model's prediction."""
        batch = context.to_device(self.collate(context.examples, np.arange(len(context.examples))))
        logits, names = self._logits(context.model, batch)[0], self.data.class_names
        lines = []
        for example, guess in zip(context.examples, logits.argmax(-1).tolist(), strict=True):
            text = " ".join(context.tokenizer.decode(example.tokens).split())[:PREVIEW_CHARACTERS]
            lines.append(f"[{names[example.label]} > {names[guess]}] {text}")
        return "\n".join(lines)


def _enclosed(text: np.ndarray, ends: tuple[int, int] | None) -> np.ndarray:
    if ends is None:
        return text
    first, last = ends
    inner = text[int(text[0] == first) : len(text) - int(text[-1] == last)]
    return np.concatenate([[first], inner, [last]])
