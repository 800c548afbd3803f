"""Tasks of EleutherAI's lm-eval, through its own library."""

import difflib
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.evaluation.progress import progress
from gptlab.evaluation.prompts import answers_anew
from gptlab.evaluation.responses import Writer
from gptlab.generation.config import GenerateConfig
from gptlab.generation.scoring import Continuation, continuation_costs

try:
    from lm_eval import evaluator
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:  # not there, or older than pyproject.toml asks for
    raise UserError(f'tasks= needs the lm-eval library ({error}); type: pip install "gptlab[evaluation]"') from error

MAX_TOKENS = 256  # of an answer, where a task says nothing: lm-eval's own
BOOTSTRAP_DRAWS = 1000
TOLD = 300  # characters of an error of another library
SETTINGS = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "num_beams": "beams"}
ROLLING = "loglikelihood_rolling"


def evaluate_tasks(
    harness: "Harness", names: Sequence[str], *, shots: Sequence[int] | None = None, n_rows: int | None = None
) -> dict[str, Any]:
    """The metrics of each task, its version and its rows; `names` are names that lm-eval knows, or task files.

    Each of `shots` replaces the number of examples that a task says (None: the task's own). ValueError for a task that
    is not known, that cannot be loaded, or that fixes its examples. A task file may name functions of Python files
    beside it, which are carried out: it is to be trusted like a program.
    """
    # Workers would be forks of a process with running threads.
    os.environ["DISABLE_MULTIPROC"] = "1"
    told: dict[str, Any] = {"numbers": {}, "standard_errors": {}, "rows": []}
    for n_shots in (None,) if shots is None else shots:
        with redirect_stdout(sys.stderr):
            tasks = load_tasks(names)  # anew, since it keeps the shots of before
            _refuse(tasks, harness, shots or ())
            found = evaluator.simple_evaluate(
                harness,
                tasks=tasks,
                num_fewshot=n_shots,
                limit=n_rows,
                bootstrap_iters=BOOTSTRAP_DRAWS,
                random_seed=harness.seed,
                numpy_random_seed=harness.seed % 2**32,
                torch_random_seed=harness.seed,
                fewshot_random_seed=harness.seed,
                task_manager=_manager(False),
            )
        prefix = "" if shots is None else f"shots={n_shots}/"
        for task, metrics in found["results"].items():
            for key, value in metrics.items():
                metric, _, choice = key.partition(",")  # acc,none
                if choice and not isinstance(value, str):
                    into = told["standard_errors" if metric.endswith("_stderr") else "numbers"]
                    name = f"{prefix}{task}/{metric.removesuffix('_stderr')}"
                    into[name if choice == "none" else f"{name}({choice})"] = value
        for task, samples in found["samples"].items():
            told["rows"] += [_row(task, found["n-shot"][task], sample) for sample in samples]
    return told | {"task_versions": found["versions"], "n_cut": harness.n_cut}


def _refuse(tasks: Sequence[Any], harness: "Harness", shots: Sequence[int]) -> None:
    for task in _leaves(tasks):
        if any(shots) and task.get_config("num_fewshot") == 0:
            raise UserError(
                f"the task {task.task_name} is fixed at 0 examples; leave out shots={max(shots)} or the task"
            )
        if any(shots) and max(shots) > (there := _n_examples(task)):
            raise UserError(
                f"shots={max(shots)} needs {max(shots)} examples and the task {task.task_name} has {there}; use fewer"
            )
        if harness.backend == "seq2seq" and task.OUTPUT_TYPE == ROLLING:
            raise UserError(f"the task {task.task_name} predicts a text from its beginning; name a decoder")


def _n_examples(task: Any) -> int:
    """How many examples a task has for a row; where they are of the split that is asked about, the row is none."""
    own = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.config.test_split
    return len(task.sampler.fewshot_indices or task.sampler.df) - own


@cache
def _manager(everything: bool) -> TaskManager:
    """What finds tasks: `everything` that lm-eval brings, which takes seconds to list, or files alone."""
    return TaskManager(include_defaults=everything)


def load_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks and groups of those names or files, with their data; ValueError says which cannot be had."""
    manager = _manager(not all(Path(name).is_file() for name in names))
    loaded = []
    for name in names:
        if not Path(name).is_file() and name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"tasks={name} is neither a task of lm-eval nor a file{hint}")
        try:
            found = manager.load([name])
        except Exception as error:  # hub, network, YAML, the task's own code: each has its own
            raise UserError(f"the task {name} cannot be loaded ({_told(error)}){_advice(error)}") from error
        groups = found["groups"].values()
        within = {task.task_name for group in groups for task in group.get_all_tasks()}
        inner = {child for children in found["group_map"].values() for child in children}
        loaded += [group for group in groups if group.name not in inner]
        loaded += [task for key, task in found["tasks"].items() if key not in within]
    return loaded


def _leaves(tasks: Sequence[Any]) -> list[Any]:
    return [task for item in tasks for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item])]


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:TOLD]


def _advice(error: BaseException) -> str:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ConnectionError) or "offline" in str(link).lower() or "reach" in str(link):
            return (
                ": its data is not on this machine and there is no network for it; load the task once on a machine "
                "with one and carry the folder of HF_HOME over, or give a task file with data_files of your own"
            )
        link = link.__cause__ or link.__context__
    return ""


def _row(task: str, n_shots: int, sample: dict[str, Any]) -> dict[str, Any]:
    told = {"task": task, "shots": n_shots, "row": sample["doc_id"], "reference": sample["target"]}
    metrics = {metric: sample[metric] for metric in sample["metrics"] if metric in sample}
    return told | {"answer": sample["filtered_resps"], **metrics}


class Harness(TemplateLM):
    """A model as lm-eval asks it; the numbers are those of its own model for transformers.

    `n_cut` counts the requests that lost their beginning because the context does not hold them: lm-eval's way, which a
    caller has to tell.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, ends: Collection[int], *, seed: int = 0, show: bool = False
    ):
        super().__init__()
        self.model, self.words, self.seed, self.show = model, tokenizer, seed, show
        self.writer = Writer(model, tokenizer, ends)
        self.backend = "seq2seq" if answers_anew(model) else "causal"
        self.max_length = model.config.context_length
        self.n_cut = 0

    @property
    def eot_token_id(self) -> int | None:
        return self.words.eot

    @property
    def prefix_token_id(self) -> int:
        """What goes before a text that has nothing before it."""
        before = [*self.words.beginning[-1:], *([] if self.words.eot is None else [self.words.eot])]
        if not before:
            raise UserError(
                "the task predicts a text from its beginning and the tokenizer has no word for that; use a model with "
                "an end-of-text word, or a task with prompts"
            )
        return before[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        ids = self.words.encode(string).tolist()
        if add_special_tokens is False:
            return ids
        ends = [self.words.eot] if self.backend == "seq2seq" and self.words.eot is not None else []
        return [*self.words.beginning, *ids, *ends]

    def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
        asked = [self._continuation(context, tokens) for _, context, tokens in requests]
        with self._progress("likelihoods", len(asked)) as advance:
            costs = continuation_costs(self.model, asked, advance)
        return [(-cost.nats.sum().item(), cost.is_greedy) for cost in costs]

    def _continuation(self, context: list[int], tokens: list[int]) -> Continuation:
        if self.backend == "seq2seq":
            return Continuation(context, tokens)  # positions are relative: there is no limit
        room = self.max_length + 1 - len(tokens)
        if room < 1:
            raise UserError(
                f"the task has an answer of {len(tokens):,} tokens and the model's context holds {self.max_length:,}; "
                "use another task or a model with a longer context"
            )
        self.n_cut += len(context) > room
        return Continuation(context[-room:], tokens)

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
            for rows in by_setting.values():
                setting, n_tokens, stop = self._setting(requests[rows[0]].args[1])
                prompts = [self._prompt(requests[row].args[0], n_tokens) for row in rows]
                found = self.writer.write(
                    prompts, setting, n_tokens=n_tokens, stop=stop, seed=self.seed, advance=advance
                )
                for row, text in zip(rows, found, strict=True):
                    texts[row] = text
        return texts

    def _setting(self, said: dict[str, Any]) -> tuple[GenerateConfig, int, list[str]]:
        """How a task wants to have written: the setting, at most how many tokens, and what ends a text."""
        said = dict(normalize_gen_kwargs(dict(said), MAX_TOKENS))
        stop, n_tokens, draws = said.pop("until"), said.pop("max_gen_toks"), said.pop("do_sample")
        if not draws:
            said["temperature"] = 0.0
        unknown = sorted(set(said) - set(SETTINGS))
        if unknown:
            raise UserError(
                f"the task asks to write with {unknown[0]}={said[unknown[0]]}, which gptlab does not know; it knows "
                f"until, max_gen_toks, do_sample, {', '.join(SETTINGS)}"
            )
        setting = GenerateConfig(**{SETTINGS[word]: value for word, value in said.items()})
        if setting.beams is not None:
            setting.temperature = None
            setting.beams = setting.beams if setting.beams > 1 else None
        if setting.beams is None and not draws:
            setting.temperature = 0.0
        return setting, n_tokens, [text for text in stop if text]

    def _prompt(self, text: str, n_tokens: int) -> list[int]:
        ids = self.tok_encode(text)
        if not ids:
            raise UserError("the task has an empty prompt, and the tokenizer has no word for the beginning of a text")
        room = self.max_length - n_tokens
        if self.backend == "seq2seq":
            return ids
        if room < 1:
            raise UserError(
                f"the task asks for up to {n_tokens:,} tokens and the model's context holds {self.max_length:,}; set "
                "max_gen_toks in the task's generation_kwargs, or use a model with a longer context"
            )
        self.n_cut += len(ids) > room
        return ids[-room:]

    def _progress(self, what: str, total: int):
        return progress(what, total, show=self.show)
