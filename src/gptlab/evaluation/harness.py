"""Tasks of EleutherAI's lm-eval, run by its own library."""

import difflib
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.evaluation.progress import progress
from gptlab.evaluation.responses import Responder
from gptlab.generation.config import DecodingConfig
from gptlab.generation.prompt import has_encoder
from gptlab.generation.scoring import Continuation, score_continuations
from gptlab.models.base import LanguageModel

try:
    from lm_eval import evaluator
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:  # missing, or older than pyproject.toml asks for
    raise UserError(f'tasks= needs the lm-eval library ({error}); type: pip install "gptlab[evaluation]"') from error

MAX_NEW_TOKENS = 256  # of an answer, where a task has no limit of its own: lm-eval's default
BOOTSTRAP_DRAWS = 1000
ERROR_CHARACTERS = 300  # that are shown of an error of another library
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "num_beams")
ROLLING = "loglikelihood_rolling"


def evaluate_tasks(
    harness: "Harness", names: Sequence[str], *, num_fewshot: Sequence[int] | None = None, limit: int | None = None
) -> dict[str, Any]:
    """The metrics of each task, its version and its samples; `names` are tasks of lm-eval, or task files.

    Each value of `num_fewshot` replaces a task's own (None: the task's own). `limit` is the number of samples per task.
    UserError for a task that is unknown, cannot be loaded, or fixes its few-shot examples. A task file may name
    functions of Python files beside it, which are run: trust it as you would a program.
    """
    # Workers would be forks of a process with running threads.
    os.environ["DISABLE_MULTIPROC"] = "1"
    result: dict[str, Any] = {"numbers": {}, "standard_errors": {}, "samples": []}
    for n_fewshot in (None,) if num_fewshot is None else num_fewshot:
        with redirect_stdout(sys.stderr):
            tasks = load_tasks(names)  # again, since a task keeps the number of few-shot examples
            _refuse(tasks, harness, num_fewshot or ())
            found: Any = evaluator.simple_evaluate(  # None on other ranks than 0
                harness,
                tasks=tasks,
                num_fewshot=n_fewshot,
                limit=limit,
                bootstrap_iters=BOOTSTRAP_DRAWS,
                random_seed=harness.seed,
                numpy_random_seed=harness.seed % 2**32,
                torch_random_seed=harness.seed,
                fewshot_random_seed=harness.seed,
                task_manager=_manager(False),
            )
        prefix = "" if num_fewshot is None else f"num_fewshot={n_fewshot}/"
        for task, metrics in found["results"].items():
            for key, value in metrics.items():
                metric, _, choice = key.partition(",")  # acc,none
                if choice and not isinstance(value, str):
                    into = result["standard_errors" if metric.endswith("_stderr") else "numbers"]
                    name = f"{prefix}{task}/{metric.removesuffix('_stderr')}"
                    into[name if choice == "none" else f"{name}({choice})"] = value
        for task, samples in found["samples"].items():
            result["samples"] += [_sample(task, found["n-shot"][task], sample) for sample in samples]
    return result | {"task_versions": found["versions"], "n_truncated": harness.n_truncated}


def _refuse(tasks: Sequence[Any], harness: "Harness", num_fewshot: Sequence[int]) -> None:
    for task in _leaves(tasks):
        if any(num_fewshot) and task.get_config("num_fewshot") == 0:
            raise UserError(
                f"the task {task.task_name} is fixed at 0 examples; leave out num_fewshot={max(num_fewshot)} or "
                "the task"
            )
        if any(num_fewshot) and max(num_fewshot) > (available := _n_examples(task)):
            raise UserError(
                f"num_fewshot={max(num_fewshot)} needs {max(num_fewshot)} examples and the task {task.task_name} has "
                f"{available}; use fewer"
            )
        if harness.backend == "seq2seq" and task.OUTPUT_TYPE == ROLLING:
            raise UserError(
                f"the task {task.task_name} predicts each token of a text; use a model with the capability causal"
            )


def _n_examples(task: Any) -> int:
    """How many few-shot examples a task has for a sample; one of the evaluated split cannot be its own example."""
    own = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.config.test_split
    return len(task.sampler.fewshot_indices or task.sampler.df) - own


@cache
def _manager(everything: bool) -> TaskManager:
    """lm-eval's registry: `everything` that it ships, which takes seconds to list, or task files alone."""
    return TaskManager(include_defaults=everything)


def load_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks and groups of those names or files, with their data; UserError for one that cannot be loaded."""
    names = [str(Path(name).expanduser()) if name.startswith("~") else name for name in names]
    manager = _manager(not all(Path(name).is_file() for name in names))
    loaded = []
    for name in names:
        if not Path(name).is_file() and name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"tasks={name} is neither a task of lm-eval nor a file{hint}")
        try:
            found: Any = manager.load([name])
        except Exception as error:  # hub, network, YAML, the task's own code: each has its own
            raise UserError(f"the task {name} cannot be loaded ({_shortened(error)}){_advice(error)}") from error
        groups = found["groups"].values()
        within = {task.task_name for group in groups for task in group.get_all_tasks()}
        inner = {child for children in found["group_map"].values() for child in children}
        loaded += [group for group in groups if group.name not in inner]
        loaded += [task for key, task in found["tasks"].items() if key not in within]
    return loaded


def _leaves(tasks: Sequence[Any]) -> list[Any]:
    return [task for item in tasks for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item])]


def _shortened(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:ERROR_CHARACTERS]


def _advice(error: BaseException) -> str:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ConnectionError) or "offline" in str(link).lower() or "reach" in str(link):
            return (
                ": its data is not on this machine and there is no network for it; load the task once on a machine "
                "with one and copy the folder HF_HOME, or give a task file with data_files of your own"
            )
        link = link.__cause__ or link.__context__
    return ""


def _sample(task: str, n_fewshot: int, sample: dict[str, Any]) -> dict[str, Any]:
    facts = {"task": task, "num_fewshot": n_fewshot, "doc_id": sample["doc_id"], "reference": sample["target"]}
    metrics = {metric: sample[metric] for metric in sample["metrics"] if metric in sample}
    return facts | {"answer": sample["filtered_resps"], **metrics}


class Harness(TemplateLM):
    """A model behind lm-eval's interface; the numbers are those of its own model for transformers.

    `n_truncated` counts the requests that were truncated on the left because the context does not hold them, as lm-eval
    does.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, end_ids: Collection[int], *, seed: int = 0, show: bool = False
    ):
        super().__init__()
        self.model, self.tokens, self.seed, self.show = model, tokenizer, seed, show
        self.responder = Responder(model, tokenizer, end_ids)
        self.backend = "seq2seq" if has_encoder(model) else "causal"
        self.max_length = model.config.context_length
        self.n_truncated = 0

    @property
    def eot_token_id(self) -> int | None:
        return self.tokens.eot

    @property
    def prefix_token_id(self) -> int:
        """The token that the first one of a text is predicted from."""
        before = [*self.tokens.beginning[-1:], *([] if self.tokens.eot is None else [self.tokens.eot])]
        if not before:
            raise UserError(
                "the task predicts a text from its beginning and the tokenizer has no token to start from; use a model "
                "with an end-of-text token, or a task with prompts"
            )
        return before[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        ids = self.tokens.encode(string).tolist()
        if add_special_tokens is False:
            return ids
        ends = [self.tokens.eot] if self.backend == "seq2seq" and self.tokens.eot is not None else []
        return [*self.tokens.beginning, *ids, *ends]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs
    ) -> list[tuple[float, bool]]:
        continuations = [self._continuation(context, tokens) for _, context, tokens in requests]
        with self._progress("likelihoods", len(continuations)) as advance:
            scores = score_continuations(self.model, continuations, advance)
        return [(-score.nats.sum().item(), score.is_greedy) for score in scores]

    def _continuation(self, context: list[int], tokens: list[int]) -> Continuation:
        if self.backend == "seq2seq":
            return Continuation(context, tokens)  # positions are relative: there is no limit
        n_context = self.max_length + 1 - len(tokens)
        if n_context < 1:
            raise UserError(
                f"the task has an answer of {len(tokens):,} tokens and the model's context holds {self.max_length:,}; "
                "use another task or a model with a longer context"
            )
        self.n_truncated += len(context) > n_context
        return Continuation(context[-n_context:], tokens)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        sums = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            sums.append(sum(value for value, _ in self._loglikelihood_tokens(parts)))
        return sums

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        by_setting: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_setting.setdefault(repr(request.args[1]), []).append(i)
        texts = [""] * len(requests)
        with self._progress("answers", len(requests)) as advance:
            for indices in by_setting.values():
                setting, max_new_tokens, stop = self._setting(requests[indices[0]].args[1])
                prompts = [self._prompt(requests[i].args[0], max_new_tokens) for i in indices]
                found = self.responder.respond(
                    prompts, setting, max_new_tokens=max_new_tokens, stop=stop, seed=self.seed, advance=advance
                )
                for i, text in zip(indices, found, strict=True):
                    texts[i] = text
        return texts

    def _setting(self, generation_kwargs: dict[str, Any]) -> tuple[DecodingConfig, int, list[str]]:
        """A task's decoding settings, its number of new tokens, and the texts that end an answer."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(generation_kwargs), MAX_NEW_TOKENS))
        stop, max_new_tokens, samples = options.pop("until"), options.pop("max_gen_toks"), options.pop("do_sample")
        if not samples:
            options["temperature"] = 0.0
        unknown = sorted(set(options) - set(SETTINGS))
        if unknown:
            raise UserError(
                f"the task's generation_kwargs have {unknown[0]}={options[unknown[0]]}, which gptlab does not support; "
                f"it supports until, max_gen_toks, do_sample, {', '.join(SETTINGS)}"
            )
        setting = DecodingConfig(**options)
        if setting.num_beams is not None:
            setting.temperature = None
            setting.num_beams = setting.num_beams if setting.num_beams > 1 else None
        if setting.num_beams is None and not samples:
            setting.temperature = 0.0
        return setting, max_new_tokens, [text for text in stop if text]

    def _prompt(self, text: str, max_new_tokens: int) -> list[int]:
        ids = self.tok_encode(text)
        if not ids:
            raise UserError("the task has an empty prompt, and the tokenizer has no beginning-of-text token")
        n_prompt = self.max_length - max_new_tokens
        if self.backend == "seq2seq":
            return ids
        if n_prompt < 1:
            raise UserError(
                f"the task asks for up to {max_new_tokens:,} tokens and the model's context holds {self.max_length:,}; "
                "set max_gen_toks in the task's generation_kwargs, or use a model with a longer context"
            )
        self.n_truncated += len(ids) > n_prompt
        return ids[-n_prompt:]

    def _progress(self, what: str, total: int):
        return progress(what, total, show=self.show)
