"""The label of a text, and with it the words (GPT, section 3.2, equations 3 to 5; BERT, section 4.1)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlab.config import RunConfig
from gptlab.data.prepare import PreparedData
from gptlab.data.rows import Row, RowTable
from gptlab.data.tokenizer import Tokenizer
from gptlab.nn.loss import IGNORE_INDEX, linear_cross_entropy
from gptlab.objectives.objective import Batch, Objective, Shown, Term, auxiliary, filled

SHOWN_CHARACTERS = 80  # of a text


class Classification(Objective):
    """A decoder tells the label from a text's last token, an encoder from its first, through the pooler."""

    perplexity_of = None
    n_shown = 5

    def __init__(self, config: RunConfig, tokenizer: Tokenizer):
        super().__init__(config, tokenizer)
        self.pad = tokenizer.pad or 0  # no position looks there
        self.ends: tuple[int, int] | None = None  # what an encoder's texts begin and end with
        self.n_added = 0  # how many of these the tokenizer has not put there already
        self.lm_weight = config.objective.lm_weight
        self.head_share = 1.0 if self.lm_weight else 0.0
        self.names = ("loss", "accuracy")
        if config.model.architecture == "encoder":
            if tokenizer.cls is None or tokenizer.sep is None:
                raise ValueError(
                    f"objective=classification reads an encoder's first token, and tokenizer={config.tokenizer.kind} "
                    "has no <cls> and <sep>; use tokenizer=wordpiece, or add tokenizer.special_words=[<cls>,<sep>]"
                )
            self.ends = tokenizer.cls, tokenizer.sep
            self.idle = ("mlm.", "nsp.")
            self.n_added = (tokenizer.beginning[:1] != (tokenizer.cls,)) + (tokenizer.eot != tokenizer.sep)
        elif self.lm_weight:
            self.names = ("loss", "label_loss", "lm_loss", "accuracy")
        else:
            self.idle = ("lm_head.",)

    def examples(self, data: PreparedData, split: str, *, evaluating: bool) -> RowTable:
        return data.rows[split].fit(self.config.context_length - self.n_added, self.config.data.too_long)

    def collate(self, rows: list[Row], numbers: np.ndarray) -> Batch:
        """Tokens (B, T) of the longest row's length, how many of them are each row's (B), and labels (B)."""
        texts = [row.tokens if self.ends is None else self._marked(row.tokens) for row in rows]
        tokens, lengths = filled(texts, self.pad)
        return {"tokens": tokens, "lengths": lengths, "labels": torch.tensor([row.label for row in rows])}

    def _marked(self, text: np.ndarray) -> np.ndarray:
        first, last = self.ends
        inner = text[int(text[0] == first) : len(text) - int(text[-1] == last)]
        return np.concatenate([[first], inner, [last]])

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        labels = {"labels": len(batch["labels"])}
        return labels | ({"words": batch["lengths"].sum() - len(batch["labels"])} if self.lm_weight else {})

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Term]:
        scores, hidden = self._scores(model, batch)
        labels = batch["labels"]
        label_loss = Term(F.cross_entropy(scores, labels, reduction="sum"), "labels")
        accuracy = Term((scores.argmax(-1) == labels).sum(), "labels", weight=0.0)
        added = auxiliary(model, len(labels), "labels") if self.ends is None else {}
        if not self.lm_weight:
            return {"loss": label_loss, "accuracy": accuracy, **added}
        targets = batch["tokens"][:, 1:].masked_fill(~_there(batch)[:, 1:], IGNORE_INDEX)
        lm_loss = linear_cross_entropy(hidden[:, :-1], model.output, targets)
        lm_term = Term(lm_loss, "words", weight=self.lm_weight)
        return {"label_loss": label_loss, "lm_loss": lm_term, "accuracy": accuracy, **added}

    def _scores(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the classes (B, C), and what they were told from (B, T, D)."""
        tokens = batch["tokens"]
        if self.ends is not None:
            hidden = model.hidden(tokens, mask=_there(batch))
            description = model.pooled(hidden)  # (B, D)
        else:
            hidden = model.hidden(tokens)
            description = hidden[torch.arange(len(tokens), device=tokens.device), batch["lengths"] - 1]
        return model.class_head(description).float(), hidden

    def show(self, shown: Shown) -> str:
        """A few texts with their labels, each beside the model's guess."""
        batch = shown.to_device(self.collate(shown.examples, np.arange(len(shown.examples))))
        scores, classes = self._scores(shown.model, batch)[0], self.config.data.classes
        lines = []
        for row, guess in zip(shown.examples, scores.argmax(-1).tolist(), strict=True):
            text = " ".join(shown.tokenizer.decode(row.tokens).split())[:SHOWN_CHARACTERS]
            lines.append(f"[{classes[row.label]} > {classes[guess]}] {text}")
        return "\n".join(lines)


def _there(batch: Batch) -> Tensor:
    """Where there is a token, (B, T)."""
    return torch.arange(batch["tokens"].shape[1], device=batch["tokens"].device) < batch["lengths"][:, None]
