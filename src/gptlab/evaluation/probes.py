"""What `callbacks.evaluate` measures of a model while it trains: prepared before the run, measured in place."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.evaluation.choices import choose, encode_choices
from gptlab.evaluation.config import EVALUATIONS, PREFIX, EvaluateConfig, Kind, probe_config
from gptlab.evaluation.measure import open_corpus, read_prompts
from gptlab.evaluation.minimal_pairs import CATEGORIES, encode_pairs, judge_pairs, minimal_pairs
from gptlab.evaluation.perplexity import encode, perplexity
from gptlab.evaluation.prompts import check_fit
from gptlab.generation.config import MAX_NEW_TOKENS, SEED, DecodingConfig
from gptlab.models.base import LanguageModel
from gptlab.models.config import Capability

GREEDY = "temperature=0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One of `callbacks.evaluate`, with its texts read."""

    name: str
    every_steps: int | None  # None: with each validation
    config: EvaluateConfig
    tokenizer: Tokenizer
    content: Any  # an EncodedText, Prompts, or minimal pairs
    context_length: int
    by_document: bool = False  # attention, as the run learns it

    @property
    def key(self) -> str:
        """Its config key."""
        return f"{EVALUATIONS}{self.name}"

    @property
    def columns(self) -> list[str]:
        """The columns of metrics.csv that it fills."""
        return [f"{PREFIX}{self.name}/{name}" for name in _names(self)]

    def fingerprint(self) -> str:
        """A SHA-256 of the texts, and of the options that change a number."""
        config, content = self.config, self.content
        measured: dict[str, Any] = {"kind": config.kind.value}
        if config.kind is Kind.perplexity:
            measured |= {"text": content.sha256, "stride": config.stride}
            measured |= {"by_document": True} if self.by_document else {}
        elif config.kind is Kind.pairs:
            measured["pairs"] = content
        else:
            counts = config.fewshot_counts
            texts = [[content.text(i, n) for n in counts] for i in range(len(content.items))]
            measured |= {"prompts": texts, "answers": [[item.answer, item.choices] for item in content.items]}
            measured |= {"num_fewshot": counts, "delimiter": content.delimiter}
            if config.kind is Kind.answers:
                ends = [content.separator] if config.stop is None else config.stop
                measured |= {"stop": ends, "max_new_tokens": config.max_new_tokens or MAX_NEW_TOKENS}
        return sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()

    def check(self, model: LanguageModel) -> None:
        """UserError where a text does not fit `model`, whose parameters need not exist."""
        config, tokenizer, content = self.config, self.tokenizer, self.content
        if config.kind is Kind.pairs:
            encode_pairs(content, tokenizer, model)
        elif config.kind is not Kind.perplexity:
            counts, most = config.fewshot_counts, max(config.fewshot_counts)
            lengths = [config.max_new_tokens or MAX_NEW_TOKENS] * len(content.items)
            if config.kind is Kind.choices:
                numbers = range(len(content.items))
                lengths = [max(map(len, encode_choices(content, i, most, tokenizer, model))) for i in numbers]
            check_fit(content, counts, lengths, tokenizer, model)

    def measure(self, model: LanguageModel, between: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Its columns, of a model in eval mode; `between` is called between two batches, and may raise to end it."""
        config, tokenizer, content = self.config, self.tokenizer, self.content
        if config.kind is Kind.perplexity:
            context_length = self.context_length
            found = perplexity(
                model,
                tokenizer,
                content,
                stride=config.stride,
                context_length=context_length,
                separator=tokenizer.eot if self.by_document else None,
                between=between,
            )
        elif config.kind is Kind.pairs:
            found = judge_pairs(model, tokenizer, content, between=between)["numbers"]
        elif config.kind is Kind.choices:
            found = choose(model, tokenizer, content, config.fewshot_counts, between=between)["numbers"]
        else:
            from gptlab.evaluation.responses import Responder, respond_to_all

            ends = frozenset() if tokenizer.eot is None else frozenset({tokenizer.eot})
            settings = {GREEDY: DecodingConfig(temperature=0.0, max_new_tokens=config.max_new_tokens or MAX_NEW_TOKENS)}
            responder = Responder(model, tokenizer, ends)
            found = respond_to_all(
                responder, content, config.fewshot_counts, settings, stop=config.stop, between=between
            )["numbers"]
        return dict(zip(self.columns, (float(found[name]) for name in _measured(self)), strict=True))


def open_probes(
    evaluate: Mapping[str, Any],
    tokenizer: Tokenizer,
    model: LanguageModel,
    *,
    context_length: int,
    by_document: bool = False,
    speaks: bool,
) -> list[Probe]:
    """The probes of `callbacks.evaluate`; UserError where one cannot work with this tokenizer and model.

    `model` is one of the shapes alone; `by_document`: it learns from documents that do not see each other. `speaks`:
    this process prints what a person should know.
    """
    found = []
    for name, options in evaluate.items():
        every_steps, config = probe_config(name, options)
        try:
            found.append(_open(name, every_steps, config, tokenizer, model, context_length, by_document))
        except UserError as error:
            raise UserError(f"callbacks.evaluate.{name}: {error}") from None
        lost = getattr(found[-1].content, "lost_text", None)
        if lost is not None and speaks:
            print(
                f"warning: callbacks.evaluate.{name} has no bits per byte: the tokenizer does not give the text back "
                f"({lost})",
                file=sys.stderr,
                flush=True,
            )
    return found


def _open(
    name: str,
    every_steps: int | None,
    config: EvaluateConfig,
    tokenizer: Tokenizer,
    model: LanguageModel,
    context_length: int,
    by_document: bool,
) -> Probe:
    _check_model(config.kind, model)
    if config.kind is Kind.perplexity:
        content: Any = encode(open_corpus(config.corpus), tokenizer)
        if len(content.tokens) + len(tokenizer.beginning) < 2:
            raise UserError(f"{content.description}: there is no token to predict; give a longer text")
    elif config.kind is Kind.pairs:
        content = minimal_pairs(config.minimal_pairs or 0, SEED if config.seed is None else config.seed)
    else:
        content = read_prompts(config)
    probe = Probe(
        name=name,
        every_steps=every_steps,
        config=config,
        tokenizer=tokenizer,
        content=content,
        context_length=context_length,
        by_document=by_document,
    )
    probe.check(model)
    return probe


def _check_model(kind: Kind, model: LanguageModel) -> None:
    capabilities = model.config.capabilities
    causal = Capability.causal in capabilities
    if not causal and (kind in (Kind.perplexity, Kind.pairs) or Capability.encoder_decoder not in capabilities):
        raise UserError(
            f"a model of type {model.config.type} does not predict the next token of a text; leave it out, or use one "
            "with the capability causal"
        )


def _measured(probe: Probe) -> list[str]:
    """The numbers of an evaluation that are columns."""
    config = probe.config
    if config.kind is Kind.perplexity:
        per_byte = ["bits_per_byte"] if probe.content.lost_text is None else []
        return ["loss", "perplexity", *per_byte]
    if config.kind is Kind.pairs:
        return ["accuracy", *(f"{category}/accuracy" for category in CATEGORIES)]
    metrics, within = ["accuracy", "accuracy_per_byte"], ""
    if config.kind is Kind.answers:
        from gptlab.evaluation.rouge import KEYS

        metrics, within = [*KEYS, "exact_match"], f"{GREEDY}/"
    return [f"num_fewshot={n}/{within}{metric}" for n in config.fewshot_counts for metric in metrics]


def _names(probe: Probe) -> list[str]:
    """The same without what all of them share."""
    names = [name.replace(f"{GREEDY}/", "") for name in _measured(probe)]
    if len(probe.config.fewshot_counts) == 1:
        return [name.rpartition("/")[2] if name.startswith("num_fewshot=") else name for name in names]
    return [re.sub("num_fewshot=([0-9]+)", r"\1_shot", name) for name in names]  # loggers take no =
