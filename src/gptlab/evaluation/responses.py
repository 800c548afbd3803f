"""Open-ended answers: generated text against a reference."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.evaluation.progress import progress
from gptlab.evaluation.prompts import Prompts, check_fit
from gptlab.evaluation.rouge import KEYS, rouge
from gptlab.generation.config import DecodingConfig
from gptlab.generation.text import Generation, generate_encoded
from gptlab.models.base import LanguageModel

TOKENS_BETWEEN = 16  # two moments at which an evaluation may be ended


class Responder:
    """A model that answers encoded prompts, each up to a stop text or a token of `end_ids`."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, end_ids: Collection[int]):
        self.model, self.tokenizer, self.end_ids = model, tokenizer, end_ids

    def respond(
        self,
        prompts: Sequence[Sequence[int]],
        setting: DecodingConfig,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        seed: int = 0,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[str]:
        """One answer to each prompt, decoded by `setting`. What a prompt draws does not depend on the others.

        `advance` is called with 1 for each answer that is whole, and with 0 now and then between two tokens.
        """
        pieces = count(1)

        def on_text(result: Generation, piece: str) -> None:
            if result.finished is not None:
                advance(1)
            elif next(pieces) % TOKENS_BETWEEN == 0:
                advance(0)

        own = replace(
            setting,
            max_new_tokens=max_new_tokens,
            stop=list(stop),
            seed=seed if setting.num_beams is None else None,
            num_return_sequences=1,
        )
        results = generate_encoded(self.model, self.tokenizer, prompts, own, end_ids=self.end_ids, on_text=on_text)
        return [result.text for result in results]


def respond_to_all(
    responder: Responder,
    prompts: Prompts,
    num_fewshot: Sequence[int],
    settings: dict[str, DecodingConfig],
    *,
    stop: Sequence[str] | None = None,
    show: bool = False,
    between: Callable[[], None] = lambda: None,
    on_part: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """ROUGE and exact matches of answers, for each number of few-shot examples and each of the named settings.

    An answer ends at `stop` (None: at the separator, which would precede the next example) or with the setting's
    `max_new_tokens`. Surrounding spaces do not count. `on_part` is called with what is measured so far after each
    setting, `between` after every some tokens. UserError where a prompt does not fit, before any work.
    """
    model, tokenizer = responder.model, responder.tokenizer
    lengths = [max(setting.max_new_tokens for setting in settings.values())] * len(prompts.items)
    check_fit(prompts, num_fewshot, lengths, tokenizer, model, advice="lower max_new_tokens=")
    stop = (prompts.separator,) if stop is None else stop
    numbers: dict[str, float] = {}
    samples: list[dict[str, Any]] = [
        prompts.composed(i, num_fewshot) | {"answers": []} for i in range(len(prompts.items))
    ]
    for n in num_fewshot:
        encoded = [prompts.encoded(i, n, tokenizer, model) for i in range(len(prompts.items))]
        for name, setting in settings.items():
            with progress(f"num_fewshot={n}, {name}", len(samples), show=show, between=between) as advance:
                texts = responder.respond(
                    encoded,
                    setting,
                    max_new_tokens=setting.max_new_tokens,
                    stop=stop,
                    seed=prompts.seed,
                    advance=advance,
                )
            scores = [
                rouge(text, item.answer) | {"exact_match": float(text.strip() == item.answer)}
                for text, item in zip(texts, prompts.items, strict=True)
            ]
            for sample, text, score in zip(samples, texts, scores, strict=True):
                sample["answers"].append({"num_fewshot": n, "setting": name, "text": text.strip(), **score})
            for key in (*KEYS, "exact_match"):
                numbers[f"num_fewshot={n}/{name}/{key}"] = sum(score[key] for score in scores) / len(scores)
            on_part({"numbers": numbers, "samples": samples})
    return {"numbers": numbers, "samples": samples}
