"""What happens to the words on the command line, through the real train.py."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab import composition
from gptlab.config import RunConfig, to_plain
from gptlab.training.config import OWNED, trainer_words

ROOT = Path(__file__).parents[1]

# words -> what the answer must say
REFUSED = {
    "model.n_embd=64": ["model.n_embd", "model.d_model"],
    "model.d_modl=64": ["model.d_modl", "did you mean model.d_model"],
    "+model.n_layr=3": ["model.n_layr", "did you mean model.n_layer"],
    "lr=1": ["did you mean optimizer.lr"],
    "model=gpt124": ["gpt124", "did you mean gpt124m"],
    "data=shakespear": ["did you mean shakespeare"],
    "model=null": ["not a preset", "gpt124m"],
    "model.norm=layrnorm": ["model.norm=layrnorm", "layernorm, rmsnorm", "did you mean layernorm"],
    "model.d_model=130": ["model.d_model=130", "not divisible by model.n_head=4", "multiple of 4"],
    "model.n_kv_head=3": ["model.n_kv_head=3", "[1, 2, 4]"],
    "model.attention_scale=0": ["model.attention_scale=0", "above 0"],
    "model.dropout=1.5": ["model.dropout=1.5", "[0, 1)"],
    "batch_tokens=1e5": ["batch_tokens=100000"],
    "batch_tokens=many": ["batch_tokens=many", "Integer"],
    "batch_tokens=1000": ["batch_tokens=1000", "not divisible by 128", "896 or 1024"],
    "trainer.devices=3 trainer.accelerator=cpu": ["batch_tokens=2048", "3 devices"],
    "data.context_length=4096": ["data.context_length=4096", "model.context_length=128"],
    "model=gpt124m tokenizer=bpe tokenizer.vocab_size=60000": ["60,000", "50,257"],
    "budget_steps=10 budget_tokens=100000": ["exactly one budget", "budget_steps=10", "budget_tokens=100000"],
    "budget_tokens=10": ["budget_tokens=10", "one step"],
    "budget_steps=0": ["budget_steps=0", "above 0"],
    "finetune=lora": ["finetune=lora", "stay random", "set model.init_from", "finetune=full"],
    "finetune=last_layers finetune.n_layer=null": ["finetune.n_layer=null", "at least 1"],
    "finetune=last_layers finetune.n_layer=5 model.init_from=x": [
        "finetune.n_layer=5",
        "the 4 blocks",
        "finetune=full",
    ],
    "finetune.rank=4": ["finetune.rank=4 needs finetune=lora"],
    "finetune.n_layer=1": ["finetune.n_layer=1 needs finetune=last_layers"],
    "finetune=last_layers finetune.target_modules=[attn.k]": ["finetune.target_modules=[attn.k] needs finetune=lora"],
    "finetune=lora finetune.rank=0": ["finetune.rank=0", "at least 1"],
    "finetune=lora finetune.alpha=0": ["finetune.alpha=0", "above 0"],
    "finetune=lora finetune.dropout=1": ["finetune.dropout=1", "[0, 1)"],
    "finetune=lora finetune.target_modules=[]": ["finetune.target_modules=[] names none", "[attn.q,attn.v]"],
    "finetune=lora finetune.target_modules=[attn.q,attn.q]": [
        "finetune.target_modules=[attn.q,attn.q] names one twice"
    ],
    "finetune=lora model.init_from=x finetune.target_modules=[attn.q,cross.q]": [
        "cross.q is no layer of this model's blocks; choose from attn.q, attn.k, attn.v, attn.out, ffn.up, ffn.down"
    ],
    "model=moe_small finetune=lora model.init_from=x finetune.target_modules=[ffn.up]": [
        "ffn.up is of experts, whose layers take no adapter; choose from attn.q, attn.k, attn.v, attn.out"
    ],
    "finetune=lora model.init_from=x strategy=tp trainer.accelerator=cpu trainer.devices=2": [
        "strategy=tp divides the matrices that finetune=lora adds to",
        "use strategy=ddp, zero1, zero2, fsdp or hsdp",
    ],
    "finetune=lori": ["did you mean lora"],
    "optimizer.lr=-1": ["optimizer.lr=-1", "above 0"],
    "optimizer.momentum=0.9": ["optimizer.momentum", "optimizer.algorithm=muon"],
    "tokenizer=byte tokenizer.vocab_size=300": ["tokenizer.vocab_size", "tokenizer.kind=bpe"],
    "trainer.max_steps=10": ["trainer.max_steps", "budget_steps"],
    "trainer.gradient_clip_val=1": ["optimizer.grad_clip"],
    "trainer.devices=two": ["trainer.devices=two", "auto"],
    "trainer.val_check_interval=1.5": ["trainer.val_check_interval=1.5", "at most 1.0"],
    "schedule.warmup_steps=1 schedule.warmup_tokens=100": ["schedule.warmup_steps", "schedule.warmup_tokens"],
    "logger.wandb.project=mine": ["logger=wandb"],
    "data.val_fraction=1.5": ["data.val_fraction=1.5"],
    "model=small,gpt124m": ["multirun"],
    "trainer.precision=fp16": ["trainer.precision=fp16", "16-mixed"],
    "trainer.accelerator=tpu": ["trainer.accelerator=tpu", "cpu"],
    "trainer.profiler=foo": ["trainer.profiler=foo", "simple"],
    "trainer.max_time=abc": ["DD:HH:MM:SS"],
    "trainer.limit_val_batches=abc": ["trainer.limit_val_batches=abc"],
    "trainer.num_sanity_val_steps=2": ["debug=smoke"],
    "data=text": ["data.path=FILE"],
    "data=table": ["data.path=FILE", "data.dataset=NAME"],
    "data=table data.path=my.csv": [
        "none is set",
        "data.label=COLUMN, data.response=TEMPLATE and data.messages=COLUMN",
    ],
    "data=functions": ["none is set", "data=function_packages"],
    "data=function_packages data.response=x": ["data.label=package and data.response=x", "leave one out"],
    "data=function_packages data.overlong=half": ["refuse, drop, cut"],
    "data=function_summaries data.stride=4": ["data.stride=4 is of sliding windows"],
    "data.chat.user=x": ["chat"],
    "tokenizer=file": ["tokenizer.path=FILE"],
    "tokenizer=file tokenizer.path=x tokenizer.special_tokens=[mine]": [
        "tokenizer=file has its own special words",
        "leave it out",
    ],
    "tokenizer=wordpiece tokenizer.special_tokens=[mine]": ["tokenizer=wordpiece has its own special words"],
    "tokenizer=byte tokenizer.special_tokens=[x1,x1]": ["special_tokens holds 'x1' twice"],
    "tokenizer.vocab_size=100": ["tokenizer.vocab_size=100", "257"],
    "resume=runs/sweep/seed=1/none.ckpt": ["resume=runs/sweep/seed=1/none.ckpt does not exist"],
    "model=bert_base objective=causal_lm": [
        "causal_lm does not fit a model with architecture=encoder;",
        "masked_lm or",
    ],
    "model=t5_small objective=masked_lm": ["masked_lm does not fit", "use objective=span_corruption or instruction"],
    "objective=span_corruption": ["architecture=decoder; use objective=causal_lm or classification or instruction"],
    "model=bert_laptop objective=instruction": ["instruction does not fit a model with architecture=encoder"],
    "model=bert_laptop model.heads=none": ["has no use for model.heads=none; use model.heads=pretraining"],
    "model=bert_laptop data.stride=8": ["data.stride=8 is of sliding windows", "objective.next_sentence=false"],
    "model=bert_laptop objective.mask_prob=0": ["objective.mask_prob=0.0 is outside (0, 1)"],
    "model=bert_laptop objective.masked=0.95": ["objective.masked=0.95", "their sum must not exceed 1"],
    "model=bert_laptop objective.random=1.5": ["objective.random=1.5 is outside [0, 1]"],
    "model=t5_laptop objective.mask_prob=1": ["objective.mask_prob=1.0 is outside (0, 1)"],
    "model=t5_laptop objective.mean_noise_span_length=0.5": ["objective.mean_noise_span_length=0.5 must be at least 1"],
    "model=t5_laptop callbacks.sample.prompt=x": [
        "callbacks.sample.prompt=x",
        "objective=span_corruption shows its own",
    ],
    "objective=classification": ["data=stdlib is text", "use data=table data.path=FILE", "function_packages"],
    "data=function_packages objective=instruction": [
        "does not read rows with data.label; use objective=classification"
    ],
    "data=function_summaries objective=causal_lm": ["does not read rows with data.response; use objective=instruction"],
    "data=function_packages objective.lm_weight=-1": ["objective.lm_weight=-1.0 must be 0 or more"],
    "model=bert_laptop data=function_packages objective=classification tokenizer=wordpiece objective.lm_weight=0.5": [
        "objective.lm_weight=0.5",
        "an encoder does not; set objective.lm_weight=0",
    ],
    "objective.mask_prob=0.2": ["objective.mask_prob does not belong", "objective.name=masked_lm or span_corruption"],
    "seed=-1": ["seed=-1"],
    "eval_train=true data.val_fraction=0": ["eval_train=true", "data.val_fraction"],
    "run_dir=": ["run_dir= is empty"],
    "~model": ["model"],
    "strategy=fdsp": ["strategy=fdsp", "did you mean fsdp"],
    "strategy=zero3": ["strategy=zero3", "did you mean zero"],
    "strategy=tp trainer.accelerator=cpu trainer.devices=3": ["3 devices", "model.n_head=4", "use 2 or 4 of them"],
    "strategy=tp model.d_ff=510 trainer.accelerator=cpu trainer.devices=4": ["model.d_ff=510", "use 2 of them"],
    "model=moe_small model.n_expert=6 strategy=tp trainer.accelerator=cpu trainer.devices=4": [
        "divides experts over 4 devices",
        "model.n_expert=6",
        "use 2 of them, or strategy=fsdp",
    ],
    "model=moe_small model.n_expert=5 strategy=fsdp_tp trainer.accelerator=cpu trainer.devices=4": [
        "divides experts over 2 devices",
        "model.n_expert=5",
        "use strategy=fsdp",
    ],
    "model=moe_small model.n_shared_expert=1 model.d_ff=255 strategy=tp trainer.accelerator=cpu trainer.devices=2": [
        "divides the shared experts over 2 devices",
        "model.n_shared_expert=1 times model.d_ff=255",
    ],
    "model.n_expert=4 model.n_expert_per_token=6": ["model.n_expert_per_token=6", "use 1 to 4"],
    "model.capacity_factor=1.25": ["model.capacity_factor=1.25", "set model.n_expert"],
    "model=moe_small model.n_experts=4": ["did you mean model.n_expert"],
    "strategy=hsdp trainer.accelerator=cpu": ["strategy=hsdp", "two or more"],
    "strategy=hsdp strategy.replicas=3 trainer.accelerator=cpu trainer.devices=4": [
        "strategy.replicas=3",
        "use 2 or 4",
    ],
    "strategy=fsdp_tp trainer.accelerator=cpu trainer.devices=3": ["strategy.tensor_parallel=2", "use 3"],
    "strategy=ddp strategy.tensor_parallel=2": ["strategy.tensor_parallel", "strategy=tp or fsdp_tp"],
    "strategy=ddp strategy.cpu_offload=true": ["strategy.cpu_offload=true", "fsdp"],
    "strategy.activation_checkpointing=some": ["none, full, selective"],
    "strategy.timeout_seconds=0": ["strategy.timeout_seconds=0"],
    "callbacks.checkpoint.every_minutes=0": ["callbacks.checkpoint.every_minutes=0"],
}


def command(*words: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA")}
    return subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("words", REFUSED)
def test_a_wrong_word_is_answered(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *words.split()])
    assert composition.run(lambda config: pytest.fail("the run started")) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in REFUSED[words]:
        assert part in err


def test_the_real_command_refuses_without_a_traceback_or_a_folder(tmp_path):
    before = set(ROOT.iterdir())
    done = command("model.n_embd=64")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: model.n_embd is not a word of the config; did you mean model.d_model?\n"
    assert set(ROOT.iterdir()) <= before | {ROOT / "runs"}


def test_showing_the_config_imports_neither_torch_nor_lightning():
    code = (
        "import sys; sys.argv = ['train.py', *{words}]\n"
        "from gptlab.cli.train import main\n"
        "assert main() == 0\n"
        "heavy = set(sys.modules) & {{'torch', 'lightning', 'numpy', 'tiktoken', 'datasets', 'wandb', 'matplotlib'}}\n"
        "assert not heavy, heavy\n"
    )
    for words in (["--cfg", "job"], ["--help"]):
        subprocess.run([sys.executable, "-c", code.format(words=words)], cwd=ROOT, check=True, capture_output=True)


def test_help_names_every_preset_and_the_words():
    shown = command("--help").stdout
    for names in composition.groups().values():
        assert all(name in shown for name in names)
    assert "budget_tokens:" in shown and "grad_clip:" in shown


def test_the_shell_completes_presets_and_words():
    def completed(line: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "train.py", "-sc", "query=bash"],
            cwd=ROOT,
            env={**os.environ, "COMP_LINE": line},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.split()

    assert "model=gpt124m" in completed("python train.py model=gpt1")
    assert "optimizer.lr=" in completed("python train.py optimizer.l")


def composed(monkeypatch, *words: str) -> RunConfig:
    seen = []
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert composition.run(seen.append) == 0
    return seen[-1]


def test_the_users_line(monkeypatch):
    config = composed(monkeypatch, "model=gpt124m", "trainer.devices=8", "strategy=fsdp")
    assert (config.model.n_layer, config.model.vocab_size, config.trainer.devices) == (12, 50_257, 8)
    assert config.strategy.name.value == "fsdp"
    assert config.tokenizer.kind == "bpe"  # the data chose one that needs no network
    assert config.folder().startswith("runs/gpt124m-stdlib-")


def test_the_data_choose_the_tokenizer_and_the_command_line_overrides_it(monkeypatch):
    assert composed(monkeypatch, "data=verdict").tokenizer.kind == "gpt2"
    assert composed(monkeypatch, "data=verdict", "tokenizer=byte").tokenizer.kind == "byte"
    assert composed(monkeypatch, "experiment=shakespeare_char_cpu").tokenizer.kind == "char"
    assert composed(monkeypatch, "experiment=shakespeare_char_cpu", "tokenizer=byte").tokenizer.kind == "byte"


def test_a_budget_on_the_command_line_replaces_the_presets(monkeypatch):
    config = composed(monkeypatch, "budget_steps=7", "schedule.warmup_steps=3")
    assert (config.schedule.warmup_steps, config.schedule.warmup_fraction) == (3, None)
    assert (config.budget_steps, config.budget_tokens, config.tokens_per_parameter) == (7, None, None)


def test_several_loggers_at_once(monkeypatch):
    config = composed(monkeypatch, "logger=[wandb,tensorboard]", "logger.wandb.project=mine")
    assert config.logger.wandb.project == "mine" and config.logger.tensorboard is not None


def test_the_run_folder_depends_on_what_is_learned_alone(monkeypatch):
    base = composed(monkeypatch).identity()
    for words in (["trainer.devices=2", "trainer.accelerator=cpu"], ["strategy=fsdp"], ["logger=wandb"], ["name=x"]):
        assert composed(monkeypatch, *words).identity() == base
    for word in (
        "seed=1",
        "optimizer.lr=0.1",
        "model.n_layer=3",
        "data.val_fraction=0.2",
        "trainer.precision=bf16-mixed",
    ):
        assert composed(monkeypatch, word).identity() != base


def test_a_sweep_gives_each_trial_its_folder_and_a_command_line_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "optimizer.lr=0.1,0.2", "seed=3"])
    assert composition.run(lambda config: seen.append((config, list(sys.argv)))) == 0
    folders = [Path(config.folder()) for config, _ in seen]
    assert [folder.name for folder in folders] == ["optimizer.lr=0.1", "optimizer.lr=0.2"]
    assert folders[0].parent == folders[1].parent and folders[0].parent.parent == Path("runs")
    for config, argv in seen:
        assert "-m" not in argv and f"optimizer.lr={config.optimizer.lr}" in argv and "seed=3" in argv
        assert f"run_dir='{config.run_dir}'" in argv
    assert sys.argv[1] == "-m"


def test_a_signal_ends_the_whole_sweep(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []

    class Interrupted(Exception):
        exit_code = 130

    def task(config):
        seen.append(config.seed)
        raise Interrupted("stopped")

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2"])
    assert composition.run(task) == 130 and seen == [1]


def test_a_failing_trial_does_not_end_the_sweep(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []

    def task(config):
        seen.append(Path(config.folder()).name)
        if config.seed == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "eval_train=false", "optimizer.lr=1e-3"])
    assert composition.run(task) == 1
    assert seen == ["seed=1", "seed=2"], "named by what differs alone"


def test_every_option_of_the_trainer_is_taken_or_answered():
    from lightning import Trainer

    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert set(trainer_words()) | set(OWNED) == options
    assert not set(trainer_words()) & set(OWNED)


def test_a_saved_config_reads_back(monkeypatch, tmp_path):
    import yaml

    config = composed(monkeypatch, "experiment=verdict", "logger=wandb")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_plain(config)))
    again = composition.load(path)
    assert again == config and type(again.data) is type(config.data)


def test_templates_are_typed_as_they_are(monkeypatch):
    prompt, answer, tool = "Q: {question}, it's\nA:", " {answer}", "<tool> {content}\n"
    rows = ("data=table", "data.path=a.csv", "objective=instruction")
    data = composed(monkeypatch, *rows, f"data.prompt={prompt}", f"data.response={answer}").data
    assert (data.prompt, data.response) == (prompt, answer)
    data = composed(monkeypatch, *rows, "data.messages=turns", f"data.chat.tool={tool}").data
    assert data.chat["tool"] == tool and list(data.chat) == ["system", "user", "assistant", "tool"]
    words = composed(monkeypatch, "tokenizer=byte", 'tokenizer.special_tokens=["<mask>","<pad>"]').tokenizer
    assert words.special_tokens == ["<mask>", "<pad>"] and words.known_vocab_size == 259
