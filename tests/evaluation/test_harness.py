"""lm-eval through gptlab's model, held against its own model for transformers on the exported folder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import write_run

from gptlab.cli import convert
from gptlab.data.tokenizers.bpe import BPETokenizer
from gptlab.data.tokenizers.char import CharTokenizer
from gptlab.models.build import build_model
from gptlab.models.config import Feedforward
from gptlab.models.decoder.config import Position
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.runs.load import load_model

pytest.importorskip("lm_eval", reason='needs lm-eval: pip install "gptlab[evaluation]"')

import datasets
import tokenizers
import transformers
from interop.external import T5S, own_code
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from gptlab.evaluation.harness import Harness, evaluate_tasks, load_tasks

CONTEXT = 48
# Of lm-eval's own libraries, on this or that Python.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

CHOICES = """
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.jsonl}}
test_split: test
output_type: multiple_choice
fewshot_split: test
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITE = """
task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}} "
doc_to_target: "{{written}}"
generation_kwargs: {until: ["the"], max_gen_toks: 9}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""


def asked(text, **how):
    """A request for an answer, as lm-eval makes it."""
    return SimpleNamespace(args=(text, how))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("harness")


@pytest.fixture(scope="module")
def run(folder, request):
    """A run that is exported as transformers' GPT-2, and one that goes with code of its own."""
    kind, options = getattr(request, "param", "gpt2"), {"position": Position.learned}
    if kind == "gptlab":
        options = {"position": Position.rotary, "qk_norm": True, "feedforward": Feedforward.relu2, "logit_softcap": 9.0}
    text = "the cat and the dog sat on the mat, and then the bird flew over that house in the morning " * 20
    tokenizer = BPETokenizer.train(300, [text])
    return write_run(folder / kind, tokenizer=tokenizer, context_length=CONTEXT, **options)


@pytest.fixture(scope="module")
def tasks(folder, run):
    """A task of each kind; the reference is what the model generates for every other row."""
    model, tokenizer, ends = load_model(str(run))
    harness = Harness(model, tokenizer, ends)
    words = "cat dog bird house mat morning".split()
    rows = []
    for i in range(12):
        question = f"where did the {words[i % 6]} {'sit and stay and ' * (i % 3)}go{'?' * (i % 2)}"
        rows.append({"question": question, "choices": [f"{w} {'and so on' * (i % 2)}" for w in words[i % 3 :][:3]]})
    written = harness.generate_until([asked(f"{row['question']} ", until=["the"], max_gen_toks=9) for row in rows])
    for i, (row, text) in enumerate(zip(rows, written, strict=True)):
        row |= {"label": i % 3, "written": text if i % 2 else "other"}
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = ["the cat sat", "over that house in the morning " * 9, "é", "the bird flew " * 30]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, content in (("choices", CHOICES), ("write", WRITE), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(content.replace("FOLDER", str(folder)))
    return [str(folder / f"{name}.yaml") for name in ("choices", "write", "rolling")]


@pytest.fixture(scope="module")
def theirs(folder, run):
    """lm-eval's own model of the same weights, exported."""
    exported, options = folder / f"{run.name}_exported", {"device": "cpu", "dtype": "float32", "batch_size": 3}
    assert convert.main([f"from={run}", f"to={exported}"]) == 0
    with own_code(folder / "code"):
        return HFLM(pretrained=str(exported), max_length=CONTEXT, trust_remote_code=True, **options)


def by_theirs(model, tasks, n_fewshot):
    manager = TaskManager(include_defaults=False)
    found = evaluator.simple_evaluate(
        model, tasks=list(tasks), num_fewshot=n_fewshot, bootstrap_iters=0, fewshot_random_seed=1, task_manager=manager
    )
    return {
        f"{task}/{key.split(',')[0]}": value
        for task, metrics in found["results"].items()
        for key, value in metrics.items()
        if "," in key and "stderr" not in key
    }, found


@pytest.mark.parametrize(
    "run, n_fewshot",
    [("gpt2", None), ("gpt2", 1), ("gpt2", 2), ("gptlab", None), ("gptlab", 2)],
    indirect=["run"],
    scope="module",
)
def test_numbers_are_those_of_the_exported_model(run, tasks, theirs, n_fewshot):
    chosen = tasks if n_fewshot is None else tasks[:1]
    expected, found = by_theirs(theirs, chosen, n_fewshot)
    ours = evaluate_tasks(
        Harness(*load_model(str(run)), seed=1), chosen, num_fewshot=None if n_fewshot is None else [n_fewshot]
    )
    prefix = "" if n_fewshot is None else f"num_fewshot={n_fewshot}/"
    assert ours["numbers"] == pytest.approx({f"{prefix}{name}": value for name, value in expected.items()}, rel=1e-5)
    assert len(expected) == (2 if n_fewshot else 6)
    for own, task in ((own, own["task"]) for own in ours["samples"]):
        (sample,) = [sample for sample in found["samples"][task] if sample["doc_id"] == own["doc_id"]]
        if task == "local_write":
            assert own["answer"] == sample["filtered_resps"]
        elif task == "local_choices":
            assert [v for v, _ in own["answer"]] == pytest.approx([v for v, _ in sample["filtered_resps"]], abs=1e-4)
            assert [best for _, best in own["answer"]] == [best for _, best in sample["filtered_resps"]]
    if n_fewshot == 2:
        assert ours["n_truncated"] > 0  # and the numbers are the same nevertheless
    if n_fewshot is None:
        assert expected["local_write/exact_match"] == 0.5 and 0 < expected["local_choices/acc"] < 1


@pytest.mark.slow
def test_tasks_that_cannot_be_had(run, tasks, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="tasks=hellaswagg is neither a task of lm-eval nor a file; did you mean hell"):
        load_tasks(["hellaswagg"])
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"the task hellaswag cannot be loaded .*there is no network for it"
    ) as refused:
        load_tasks(["hellaswag"])
    assert "HF_HOME" in str(refused.value) and "data_files of your own" in str(refused.value)
    broken = tmp_path / "broken.yaml"
    broken.write_text(CHOICES.replace("FOLDER/choices.jsonl", str(tmp_path / "none.jsonl")))
    with pytest.raises(ValueError, match=r"broken.yaml cannot be loaded \(FileNotFoundError"):
        load_tasks([str(broken)])
    fixed = tmp_path / "fixed.yaml"
    fixed.write_text(Path(tasks[0]).read_text() + "num_fewshot: 0\n")
    with pytest.raises(ValueError, match="local_choices is fixed at 0 examples; leave out num_fewshot=2"):
        evaluate_tasks(Harness(*load_model(str(run))), [str(fixed)], num_fewshot=[0, 2])
    broken.write_text("task: [one,\ntwo")
    with pytest.raises(ValueError, match=r"broken.yaml cannot be loaded .*line 1, column 7"):
        load_tasks([str(broken)])


def test_more_examples_than_a_task_has(run, tasks, monkeypatch):
    """12 rows, none of which is its own example."""
    monkeypatch.setattr(Harness, "_loglikelihood_tokens", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(
        ValueError, match="num_fewshot=12 needs 12 examples and the task local_choices has 11; use fewer"
    ):
        evaluate_tasks(Harness(*load_model(str(run))), tasks[:1], num_fewshot=[0, 12])


def test_as_many_examples_as_a_task_has(run, tasks, tmp_path):
    rows = [{"question": f"is {i} even?", "choices": ["yes", "no"], "label": i % 2} for i in range(3)]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(CHOICES.replace("FOLDER", str(tmp_path)))
    found = evaluate_tasks(Harness(*load_model(str(run))), [str(tmp_path / "task.yaml")], num_fewshot=[2])
    assert set(found["numbers"]) == {"num_fewshot=2/local_choices/acc", "num_fewshot=2/local_choices/acc_norm"}


def test_what_a_task_needs_and_a_model_lacks(run, small_characters):
    harness = Harness(*load_model(str(run)))
    with pytest.raises(ValueError, match="asks for up to 48 tokens and the model's context holds 48; set max_gen_toks"):
        harness.generate_until([asked("the cat", until=["."], max_gen_toks=48)])
    with pytest.raises(ValueError, match=r"have typical_p=0\.5, which gptlab does not support"):
        harness.generate_until([asked("the cat", until=["."], max_gen_toks=4, typical_p=0.5)])
    with pytest.raises(ValueError, match="has an answer of 60 tokens and the model's context holds 48"):
        harness._loglikelihood_tokens([(None, [1], [2] * 60)])
    with pytest.raises(ValueError, match="the tokenizer has no token to start from"):
        _ = Harness(*small_characters).prefix_token_id


def test_beams_and_draws(run):
    harness = Harness(*load_model(str(run)), seed=3)
    texts = ["the cat", "over that house"]
    one = harness.generate_until([asked(text, until=["x"], max_gen_toks=6, num_beams=1) for text in texts])
    assert one == harness.generate_until([asked(text, until=["x"], max_gen_toks=6) for text in texts])
    drawn = [asked(text, until=["x"], max_gen_toks=6, do_sample=True, temperature=1.0) for text in texts]
    assert harness.generate_until(drawn) == harness.generate_until(drawn) != one
    assert len(harness.generate_until([asked(text, until=["x"], max_gen_toks=6, num_beams=3) for text in texts])) == 2


@pytest.fixture
def small_characters():
    tokenizer = CharTokenizer("abc")
    config = EncoderDecoderConfig(n_layer=1, n_head=2, d_model=8)
    return build_model(config, 3, seed=0).eval(), tokenizer, frozenset()


def test_an_encoder_decoder_scores_what_its_decoder_writes(small_characters):
    """-log p of the answer's tokens given the prompt, with rows of different lengths read together."""
    model, *_ = small_characters
    harness = Harness(*small_characters)
    pairs = [("ab", "ca"), ("abcabca", "b"), ("c", "aabb")]
    found = harness.loglikelihood([SimpleNamespace(args=pair) for pair in pairs], disable_tqdm=True)
    for (prompt, answer), (log_p, best) in zip(pairs, found, strict=True):
        source, ids = ([["abc".index(letter) for letter in text]] for text in (prompt, answer))
        logits = model(
            torch.tensor([[model.config.decoder_start_token_id, *ids[0][:-1]]]), source=torch.tensor(source)
        )[0]
        expected = torch.log_softmax(logits, -1)[range(len(answer)), ids[0]].sum().item()
        assert log_p == pytest.approx(expected, abs=1e-4)
        assert best == (logits.argmax(-1).tolist() == ids[0])


def test_an_encoder_decoder_gives_the_numbers_of_transformers(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz ?."
    words = {"<pad>": 0, "</s>": 1} | {letter: i for i, letter in enumerate(letters, 2)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    library.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=library, eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(T5S["t5"].save(tmp_path))
    theirs = HFLM(pretrained=str(tmp_path), backend="seq2seq", device="cpu", dtype="float32", batch_size=2)
    ours = Harness(*load_model(str(tmp_path)))
    pairs = [("where did the cat go?", "home"), ("so ", "it is not so. but"), ("a longer question, it was?", "no")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    for (value, best), (their_value, their_best) in zip(found, expected, strict=True):
        assert value == pytest.approx(their_value, rel=1e-5) and best == their_best
