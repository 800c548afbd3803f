"""What is inspected: a trained model with its tokenizer, and a text as the model reads it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.data.prepare import known_tokens, prepare
from gptlab.data.tokenizers.pieces import Piece, pieces, special_spellings, visible
from gptlab.data.tokenizers.tokenizer import Tokenizer, split_at
from gptlab.errors import UserError
from gptlab.evaluation.subject import open_trained
from gptlab.generation.fill_mask import enclosed
from gptlab.generation.prompt import encode_text, has_encoder
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability
from gptlab.nn.attention_record import AttentionRecord, recorded_attention
from gptlab.nn.loss import IGNORE_INDEX
from gptlab.runs.run import Run
from gptlab.units import plural

N_TOKENS = 128  # of a text that are read
N_GENERATED = 24  # of a target that is not given
USUAL_TEXT = "The quick brown fox jumps over the lazy dog. The dog was asleep, and the fox was gone before it woke up."
MASKED_EVERY = 6  # of an encoder's text, for its loss


@dataclass(kw_only=True, slots=True)
class Subject:
    """A model in eval mode, and a text as it reads it, on the model's device; what is None is unknown."""

    name: str  # as the user typed it
    model: LanguageModel
    tokenizer: Tokenizer
    tokens: Tensor  # (1, T), which the blocks before the head read: a decoder's own, or an encoder's
    source: Tensor | None = None  # (1, S), which the encoder of an encoder-decoder reads
    targets: Tensor | None = None  # (1, T), predicted at each position; None where the model predicts no tokens
    masked: Tensor | None = None  # (1, T), an encoder's tokens with masks where `targets` are predicted
    text_from: str = "prompt"  # where the text is from
    run: Run | None = None
    folder: Path | None = None  # of the run
    checkpoint: Path | None = None
    step: int | None = None
    notes: list[str] = field(default_factory=list)  # for a person
    _texts: dict[int, str] = field(default_factory=dict)
    _attention: list[AttentionRecord] | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """What `hidden_states` takes beside the tokens."""
        return {} if self.source is None else {"source": self.source}

    @property
    def read(self) -> Tensor:
        """What is read where targets are predicted: the tokens, an encoder's with masks in place of the targets."""
        return self.tokens if self.masked is None else self.masked

    @property
    def is_causal(self) -> bool:
        """Whether each position predicts the next token."""
        return Capability.causal in self.model.config.capabilities or self.source is not None

    @property
    def has_head(self) -> bool:
        """Whether the model's hidden states are scored over the vocabulary."""
        return self.is_causal or Capability.mlm_head in self.model.config.capabilities

    @property
    def attention(self) -> list[AttentionRecord]:
        """What each attention layer computes from the text, in the order of the model; made once."""
        if self._attention is None:
            with torch.no_grad(), recorded_attention(self.model) as found:
                self.model.hidden_states(self.tokens, **self.inputs)
            self._attention = found
        return self._attention

    def block_names(self) -> list[str]:
        """The names of the model's blocks, in the order in which they run."""
        return self.model.block_names

    def reads_source(self, name: str) -> bool:
        """Whether a module reads the encoder's tokens, in an encoder-decoder."""
        if self.source is None:
            return False
        own = {id(block) for block in self.model.output_blocks}
        inside = [block for block in self.model.blocks if id(block) not in own]
        modules = {id(module) for block in inside for module in block.modules()}
        return id(self.model.get_submodule(name)) in modules

    def head_states(self, hidden: Tensor) -> Tensor:
        """What the head reads of hidden states (..., D)."""
        return hidden if self.is_causal else self.model.mlm_transform(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the whole vocabulary from hidden states (..., D) -> (..., V), in float32."""
        return self.model.head.logits(self.head_states(hidden)).float()

    def loss(self) -> Tensor | None:
        """The mean loss of the targets in nats, to be differentiated; None where there are none."""
        if self.targets is None or not (self.targets != IGNORE_INDEX).any():
            return None
        logits = self.logits(self.model.hidden_states(self.read, **self.inputs))  # (1, T, V)
        return F.cross_entropy(logits.flatten(0, 1), self.targets.flatten(), ignore_index=IGNORE_INDEX)

    def labels(self, tokens: Tensor | None = None) -> list[str]:
        """The text of each token of a sequence (1, T), as it is shown; None: of `tokens`."""
        ids = (self.tokens if tokens is None else tokens)[0].tolist()
        if max(ids, default=0) >= self.tokenizer.vocab_size:
            return [self.text_of(token) for token in ids]
        return [_label(piece) for piece in pieces(self.tokenizer, ids)]

    def text_of(self, token: int) -> str:
        """The text of a token by itself, as it is shown; a vocabulary may have more ids than its tokenizer."""
        if token not in self._texts:
            if not self._texts:
                self._texts |= special_spellings(self.tokenizer)
            known = token in self._texts or token < self.tokenizer.vocab_size
            self._texts.setdefault(token, _bare(self.tokenizer.decode([token])) if known else f"<token {token}>")
        return self._texts[token]


def open_subject(
    name: str,
    *,
    prompt: str | None = None,
    target: str | None = None,
    checkpoint: int | str | None = None,
    device: torch.device | str = "cpu",
) -> Subject:
    """The model at a path or of a hub name, and a text for it.

    `prompt` None is the first document of the validation split of the model's run, where its tokens are at hand, else a
    fixed sentence. An encoder-decoder reads it with its encoder, and the decoder reads `target` (None: what the model
    writes itself). A mask or a sentinel may be spelled in either. `checkpoint` is of a run folder: a step, "last" or
    "best". UserError for a model that cannot be read, a text that cannot be encoded, and a target of a model that has
    no encoder.
    """
    from gptlab.runs.run import open_run

    found = open_trained(name if checkpoint is None else str(open_run(name).checkpoint(checkpoint)))
    model, tokenizer, _ = found.trained
    if target is not None and not has_encoder(model):
        raise UserError(f"target is what the decoder of an encoder-decoder reads, and run={name} has no encoder")
    text_from = "prompt"
    if prompt is None:
        prompt, text_from = _usual_text(found.run)
    subject = subject_of(model.to(device), tokenizer, prompt, target=target)
    subject.name, subject.text_from = name, text_from
    subject.run, subject.folder, subject.checkpoint, subject.step = (
        found.run,
        found.folder,
        found.checkpoint,
        found.step,
    )
    return subject


def subject_of(model: LanguageModel, tokenizer: Tokenizer, prompt: str, *, target: str | None = None) -> Subject:
    """A model that is at hand, in eval mode and on its device, and texts for it, as `open_subject` has them."""
    subject = Subject(
        name=model.config.type, model=model, tokenizer=tokenizer, tokens=torch.empty(1, 0, dtype=torch.long)
    )
    _read(subject, prompt, target, next(model.parameters()).device)
    return subject


def _read(subject: Subject, prompt: str, target: str | None, device: torch.device) -> None:
    """Encode the texts as the model reads them."""
    model, tokenizer = subject.model, subject.tokenizer
    capabilities = model.config.capabilities
    ids = _encoded(prompt, tokenizer, "prompt")
    if has_encoder(model):
        ends = [] if tokenizer.eot is None else [tokenizer.eot]
        ids = [*tokenizer.beginning, *_cut(subject, ids, N_TOKENS - len(ends)), *ends]
        subject.source = torch.tensor([ids], device=device)
        start = model.config.decoder_start_token_id
        if target is None:
            written = _written(subject, start)
            subject.notes.append(
                "the decoder reads what the model itself writes, by greedy decoding; target=... sets it"
            )
        else:
            written = _cut(subject, _encoded(target, tokenizer, "target"), N_TOKENS - 1)
        subject.tokens = torch.tensor([[start, *written]], device=device)
        subject.targets = torch.tensor([[*written, *(ends or [IGNORE_INDEX])]], device=device)
    elif Capability.causal in capabilities:
        ids = _cut(subject, [*tokenizer.beginning, *ids], min(N_TOKENS, model.config.context_length))
        subject.tokens = torch.tensor([ids], device=device)
        subject.targets = torch.tensor([[*ids[1:], IGNORE_INDEX]], device=device)
    else:
        n_special = len(enclosed([], tokenizer))
        ids = _cut(subject, ids, min(N_TOKENS, model.config.context_length) - n_special)
        subject.tokens = torch.tensor([enclosed(ids, tokenizer)], device=device)
        # A mask that was spelled has no known target.
        if Capability.mlm_head in capabilities and tokenizer.mask is not None and tokenizer.mask not in ids:
            special = torch.tensor([sorted(tokenizer.specials)], device=device)
            ordinary = (subject.tokens[..., None] != special).all(-1)  # (1, T)
            chosen = ordinary & (ordinary.cumsum(-1) % MASKED_EVERY == min(MASKED_EVERY, int(ordinary.sum())) // 2)
            subject.masked = subject.tokens.masked_fill(chosen, tokenizer.mask)
            subject.targets = subject.tokens.masked_fill(~chosen, IGNORE_INDEX)


def _encoded(text: str, tokenizer: Tokenizer, name: str) -> list[int]:
    """A text's tokens, masks and sentinels as they are spelled among them."""
    spelled = special_spellings(tokenizer)
    ids = {spelled[token]: token for token in (tokenizer.mask, *tokenizer.sentinels) if token is not None}
    parts = [[ids[part]] if part in ids else encode_text(part, tokenizer, name) for part in split_at(ids, text)]
    return [token for part in parts for token in part] or encode_text(text, tokenizer, name)


def _cut(subject: Subject, ids: list[int], limit: int) -> list[int]:
    if len(ids) > limit:
        subject.notes.append(f"of {plural(len(ids), 'token')} of the text the first {limit:,} are read")
    return ids[: max(1, limit)]


@torch.no_grad()
def _written(subject: Subject, start: int) -> list[int]:
    """What an encoder-decoder writes, by greedy decoding."""
    ids: list[int] = []
    assert subject.source is not None
    for _ in range(N_GENERATED):
        tokens = torch.tensor([[start, *ids]], device=subject.source.device)
        hidden = subject.model.hidden_states(tokens, **subject.inputs)[0, -1]
        token = int(subject.logits(hidden)[: subject.tokenizer.vocab_size].argmax())
        if token in (subject.model.end_ids or ()):
            break
        ids.append(token)
    return ids


def _usual_text(run: Run | None) -> tuple[str, str]:
    """A text for a model of this run, and where it is from."""
    usual = USUAL_TEXT, "a fixed sentence; prompt=... gives another"
    if run is None:
        return usual
    try:
        for corpus in run.config.data.corpora.values():
            if known_tokens(corpus, run.config.tokenizer) is not None:
                data = prepare(corpus, run.config.tokenizer, progress=False)
                if data.val is None:
                    continue
                ids = [int(token) for token in data.val.tokens[: min(N_TOKENS, run.config.context_length)]]
                end = next((i for i, token in enumerate(ids) if i and token == data.tokenizer.eot), len(ids))
                text = data.tokenizer.decode([token for token in ids[:end] if token != data.tokenizer.eot])
                if text.strip():
                    return text, f"the validation split of {data.description}"
    except (UserError, OSError):  # the text has gone, or was changed
        pass
    return usual


def _label(piece: Piece) -> str:
    return _bare(piece.text) + ("" if piece.n_parts == 1 else f" {piece.part}/{piece.n_parts}")


def _bare(text: str) -> str:
    return visible(text)[1:-1]
