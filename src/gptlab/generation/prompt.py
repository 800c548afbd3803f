"""What a model is prompted with: the tokens of a text, and where its answer begins."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability, ModelConfig

WRITES = frozenset({Capability.causal, Capability.encoder_decoder})  # either lets a model generate text


def has_encoder(model: LanguageModel) -> bool:
    """Whether an encoder reads the prompt and a decoder starts a text of its own, instead of continuing the prompt."""
    return Capability.encoder_decoder in model.config.capabilities


def pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences of any lengths as one tensor (B, T) with zeros at the end, and a mask (B, T), True on their tokens."""
    tensors = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    tokens = pad_sequence(tensors, batch_first=True).to(device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    return tokens, torch.arange(tokens.shape[1], device=device) < lengths[:, None]


def check_generates(config: ModelConfig, what: str) -> None:
    """Refuse a model that generates no text; `what` names it in the error, as "run=PATH"."""
    if not WRITES & config.capabilities:
        other = "; gptlab fill-mask fills its masked positions" if Capability.mlm_head in config.capabilities else ""
        raise UserError(
            f"{what} is a model of type {config.type}, which generates no text; use a model with one of the "
            f"capabilities {', '.join(sorted(capability.value for capability in WRITES))}{other}"
        )


def encode_prompt(text: str, tokenizer: Tokenizer, model: LanguageModel, name: str = "the prompt") -> list[int]:
    """A prompt's tokens after the tokenizer's beginning-of-text token; an encoder's end with the end-of-text token, as
    T5 was trained.

    UserError where it is empty or cannot be encoded; `name` is how the error refers to it.
    """
    ids = encode_text(text, tokenizer, name)
    ends = [tokenizer.eot] if has_encoder(model) and tokenizer.eot is not None else []
    return [*tokenizer.beginning, *ids, *ends]


def encode_text(text: str, tokenizer: Tokenizer, name: str) -> list[int]:
    """A text's tokens and no others; UserError where it is empty or cannot be encoded, which calls it `name`."""
    try:
        ids = tokenizer.encode(text).tolist()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if not ids:
        raise UserError(f"{name} is empty; give it at least one character")
    return ids


def check_length(ids: list[int], model: LanguageModel, name: str = "the prompt") -> None:
    """Refuse a prompt longer than the context of a model that continues it; an encoder's has no limit."""
    limit = model.config.context_length
    if not has_encoder(model) and len(ids) > limit:
        raise UserError(
            f"{name} has {len(ids):,} tokens and the model's context holds {limit:,}; leave out at least "
            f"{len(ids) - limit:,} of them"
        )


def beyond_training(encoded: Sequence[Sequence[int]], model: LanguageModel) -> str | None:
    """A warning where an encoder reads prompts longer than the texts that it was trained on; None where it does not.

    Its positions are relative, so that any length can be read, but distances that it has never seen make it worse.
    """
    limit = model.config.context_length
    lengths = [len(prompt) for prompt in encoded]
    n_beyond = sum(length > limit for length in lengths)
    if not has_encoder(model) or not n_beyond:
        return None
    what = f"the prompt has {max(lengths):,} tokens"
    if len(lengths) > 1:
        what = (
            f"{n_beyond:,} of {len(lengths):,} prompts are longer than {limit:,} tokens, the longest has "
            f"{max(lengths):,}"
        )
    return (
        f"{what}, and the model was trained on texts of up to {limit:,}: expect worse answers, the more so the longer "
        "the prompt; shorten it"
    )


def cut_by_window(lengths: Sequence[int], model: LanguageModel) -> str | None:
    """A note where texts, of so many tokens with their prompts, outgrew the context, and their beginning was forgotten;
    None where they did not."""
    limit = model.config.context_length
    n_beyond = sum(length > limit for length in lengths)
    if has_encoder(model) or not n_beyond:
        return None
    what = "the text" if len(lengths) == 1 else f"{n_beyond:,} of {len(lengths):,} texts"
    return (
        f"{what} grew beyond the context of {limit:,} tokens: later tokens were predicted from the last "
        f"{max(1, limit // 2):,} to {limit:,} alone; lower max_new_tokens= to keep the whole text in view"
    )
