"""Free answers: what a model writes to a prompt, held against a reference."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.evaluation.progress import progress
from gptlab.evaluation.prompts import Prompts, answers_anew, check_fit, encode_prompt
from gptlab.evaluation.rouge import KEYS, rouge
from gptlab.generation.beam import beam_search
from gptlab.generation.config import GenerateConfig
from gptlab.generation.decode import decode, seeded
from gptlab.generation.decoding_state import DecodingState
from gptlab.generation.sampling import Sampling
from gptlab.generation.scoring import BATCH_TOKENS
from gptlab.generation.text import TextStream

N_TOKENS = 100


class Writer:
    """A model that writes answers to encoded prompts, each up to `stop` or a word of `ends`."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, ends: Collection[int]):
        self.model, self.tokenizer, self.ends = model, tokenizer, ends

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        setting: GenerateConfig,
        *,
        n_tokens: int,
        stop: Sequence[str] = (),
        seed: int = 0,
        advance: Callable[[int], None] = lambda n: None,
    ) -> list[str]:
        """One answer to each prompt, as `setting` says. What a prompt draws does not depend on those beside it."""
        streams = [self._stream(prompt, stop) for prompt in prompts]
        with torch.no_grad():
            if setting.beams is not None:
                for prompt, stream in zip(prompts, streams, strict=True):
                    self._search(prompt, stream, setting, n_tokens, stop)
                    advance(1)
            else:
                self._draw(prompts, streams, Sampling.of(setting), n_tokens, seed, advance)
        return [stream.text for stream in streams]

    def _stream(self, prompt: Sequence[int], stop: Sequence[str]) -> TextStream:
        return TextStream(self.tokenizer, [] if answers_anew(self.model) else prompt, stop=stop, ends=self.ends)

    def _draw(self, prompts, streams, sampling, n_tokens, seed, advance) -> None:
        generators = seeded(seed, len(prompts), next(self.model.parameters()).device)
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while order:
            n_rows = max(1, BATCH_TOKENS // (len(prompts[order[0]]) + n_tokens))
            rows, order = order[:n_rows], order[n_rows:]
            reader = DecodingState(
                self.model, [prompts[row] for row in rows], n_more=n_tokens, vocab_size=self.tokenizer.vocab_size
            )

            def ended(i: int, token: int, rows=rows) -> bool:
                stream = streams[rows[i]]
                stream.feed(token)
                return stream.finished is not None

            for _ in decode(reader, n_tokens, sampling, generators=[generators[row] for row in rows], ends=ended):
                pass
            for row in rows:
                streams[row].close()
            advance(len(rows))

    def _search(self, prompt, stream, setting, n_tokens, stop) -> None:
        def completes(tokens: list[int]) -> bool:
            if tokens[-1] in self.ends:
                return True
            if not stop:  # reading a text again for each candidate takes time
                return False
            return self._fed(self._stream(prompt, stop), tokens).finished is not None

        (best,) = beam_search(
            self.model,
            prompt,
            n_tokens,
            n_beams=setting.beams,
            length_penalty=1.0 if setting.length_penalty is None else setting.length_penalty,
            ends=completes,
            vocab_size=self.tokenizer.vocab_size,
        )
        self._fed(stream, best.tokens).close()

    @staticmethod
    def _fed(stream: TextStream, tokens: list[int]) -> TextStream:
        for token in tokens:
            stream.feed(token)
            if stream.finished:
                break
        return stream


def answer(
    writer: Writer,
    prompts: Prompts,
    shots: Sequence[int],
    settings: dict[str, GenerateConfig],
    *,
    n_tokens: int = N_TOKENS,
    stop: Sequence[str] | None = None,
    show: bool = False,
) -> dict[str, Any]:
    """ROUGE and exact matches of what is written with each number of shots and each setting, by its name.

    An answer ends at `stop` (None: at the separator, with which the next example would begin). Spaces around a text do
    not count. ValueError where a prompt does not fit, before any work.
    """
    rooms = [n_tokens] * len(prompts.rows)
    check_fit(prompts, shots, rooms, writer.tokenizer, writer.model, advice="lower n_tokens=")
    stop = (prompts.separator,) if stop is None else stop
    numbers: dict[str, float] = {}
    rows = [{"row": row.where, "prompt": row.prompt, "reference": row.answer, "answers": []} for row in prompts.rows]
    for n_shots in shots:
        encoded = [
            encode_prompt(prompts.text(i, n_shots), row.where, writer.tokenizer, writer.model)
            for i, row in enumerate(prompts.rows)
        ]
        for name, setting in settings.items():
            with progress(f"{n_shots} shots, {name}", len(rows), show=show) as advance:
                texts = writer.write(encoded, setting, n_tokens=n_tokens, stop=stop, seed=prompts.seed, advance=advance)
            scores = [
                rouge(text, row.answer) | {"exact_match": float(text.strip() == row.answer)}
                for text, row in zip(texts, prompts.rows, strict=True)
            ]
            for told, text, score in zip(rows, texts, scores, strict=True):
                told["answers"].append({"shots": n_shots, "setting": name, "text": text.strip(), **score})
            for key in (*KEYS, "exact_match"):
                numbers[f"shots={n_shots}/{name}/{key}"] = sum(score[key] for score in scores) / len(scores)
    return {"numbers": numbers, "rows": rows}
