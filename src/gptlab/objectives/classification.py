"""The label of a text, and with it the words (GPT, section 3.2, equations 3 to 5; BERT, section 4.1)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.data.examples.example_table import ExampleTable, TokenizedExample
from gptlab.data.prepare import PreparedData
from gptlab.data.sources.config import TableConfig
from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.nn.loss import IGNORE_INDEX, linear_cross_entropy
from gptlab.objectives.base import Batch, LossTerm, Objective, PreviewContext, auxiliary, pad
from gptlab.objectives.config import ClassificationConfig

SHOWN_CHARACTERS = 80  # of a text


class Classification(Objective):
    """A decoder tells the label from a text's last token, an encoder from its first, through the pooler."""

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
        self.pad = tokenizer.pad or 0  # no position looks there
        self.ends: tuple[int, int] | None = None  # what an encoder's texts begin and end with
        self.n_added = 0  # how many of these the tokenizer has not put there already
        self.lm_weight = config.lm_weight
        self.scored_fraction = 1.0 if self.lm_weight else 0.0
        self.names = ("loss", "accuracy")
        if pooled:
            if tokenizer.cls is None or tokenizer.sep is None:
                raise UserError(
                    f"objective=classification reads an encoder's first token, and tokenizer={tokenizer.type} has no "
                    "<cls> and <sep>; use tokenizer=wordpiece, or add tokenizer.special_tokens=[<cls>,<sep>]"
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

    def collate(self, rows: list[TokenizedExample], numbers: np.ndarray) -> Batch:
        """Tokens (B, T) of the longest row's length, how many of them are each row's (B), and labels (B)."""
        texts = [row.tokens if self.ends is None else self._marked(row.tokens) for row in rows]
        tokens, lengths = pad(texts, self.pad)
        return {"tokens": tokens, "lengths": lengths, "labels": torch.tensor([row.label for row in rows])}

    def _marked(self, text: np.ndarray) -> np.ndarray:
        first, last = self.ends
        inner = text[int(text[0] == first) : len(text) - int(text[-1] == last)]
        return np.concatenate([[first], inner, [last]])

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        labels = {"labels": len(batch["labels"])}
        return labels | ({"words": batch["lengths"].sum() - len(batch["labels"])} if self.lm_weight else {})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, LossTerm]:
        scores, hidden = self._scores(model, batch)
        labels = batch["labels"]
        label_loss = LossTerm(F.cross_entropy(scores, labels, reduction="sum"), "labels")
        accuracy = LossTerm((scores.argmax(-1) == labels).sum(), "labels", weight=0.0)
        added = auxiliary(model, len(labels), "labels") if self.ends is None else {}
        if not self.lm_weight:
            return {"loss": label_loss, "accuracy": accuracy, **added}
        targets = batch["tokens"][:, 1:].masked_fill(~attention_mask(batch)[:, 1:], IGNORE_INDEX)
        lm_loss = linear_cross_entropy(hidden[:, :-1], model.head, targets)
        lm_term = LossTerm(lm_loss, "words", weight=self.lm_weight)
        return {"label_loss": label_loss, "lm_loss": lm_term, "accuracy": accuracy, **added}

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the classes (B, C), and what they were told from (B, T, D)."""
        tokens = batch["tokens"]
        if self.ends is not None:
            hidden = model.hidden_states(tokens, mask=attention_mask(batch))
            description = model.pooled(hidden)  # (B, D)
        else:
            hidden = model.hidden_states(tokens)
            description = hidden[torch.arange(len(tokens), device=tokens.device), batch["lengths"] - 1]
        return model.class_head(description).float(), hidden

    def preview(self, context: PreviewContext) -> str:
        """A few texts with their labels, each beside the model's guess."""
        batch = context.to_device(self.collate(context.examples, np.arange(len(context.examples))))
        scores, classes = self._scores(context.model, batch)[0], self.data.class_names
        lines = []
        for row, guess in zip(context.examples, scores.argmax(-1).tolist(), strict=True):
            text = " ".join(context.tokenizer.decode(row.tokens).split())[:SHOWN_CHARACTERS]
            lines.append(f"[{classes[row.label]} > {classes[guess]}] {text}")
        return "\n".join(lines)


def attention_mask(batch: Batch) -> Tensor:
    """Where there is a token, (B, T)."""
    return torch.arange(batch["tokens"].shape[1], device=batch["tokens"].device) < batch["lengths"][:, None]
