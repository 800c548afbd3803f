"""Overrides as they are typed, and what to type instead of wrong ones."""

import inspect
from dataclasses import fields

import pytest

from gptlab import UserError, compose, composition
from gptlab.overrides import FOREIGN, as_typed, for_hydra, key_types
from gptlab.training.config import OWNED, TrainerConfig

REFUSED = {
    "model.n_embd=64": ["model.n_embd", "model.d_model"],
    "model.d_modl=64": ["model.d_modl", "did you mean model.d_model"],
    "+model.n_layr=3": ["model.n_layr", "did you mean model.n_layer"],
    "lr=1": ["did you mean optimizer.lr"],
    "model=gpt124": ["gpt124", "did you mean gpt124m"],
    "data=shakespear": ["did you mean shakespeare"],
    "model=null": ["not a preset", "gpt124m"],
    "model.norm=layrnorm": ["model.norm=layrnorm", "did you mean layernorm"],
    "model.d_model=130": ["model.d_model=130", "not divisible by model.n_head=4", "multiple of 4"],
    "model.n_kv_head=3": ["model.n_kv_head=3", "[1, 2, 4]"],
    "model.attention_scale=0": ["model.attention_scale=0", "above 0"],
    "model.dropout=1.5": ["model.dropout=1.5", "[0, 1)"],
    "batch_tokens=1e5": ["batch_tokens=100000"],
    "batch_tokens=many": ["batch_tokens=many must be a whole number"],
    "batch_tokens=1000": ["batch_tokens=1000", "not divisible by 128", "896 or 1024"],
    "trainer.devices=3 trainer.accelerator=cpu": ["batch_tokens=2048", "3 devices"],
    "data.context_length=4096": ["data.context_length=4096", "model.context_length=128"],
    "model=gpt124m tokenizer=bpe tokenizer.vocab_size=60000": ["60,000", "50,257"],
    "budget_steps=10 budget_tokens=100000": ["exactly one budget", "budget_steps=10", "budget_tokens=100000"],
    "budget_tokens=10": ["budget_tokens=10", "one step"],
    "budget_steps=0": ["budget_steps=0", "above 0"],
    "finetune=lora": ["finetune=lora", "stay random", "set model.init_from", "finetune=full"],
    "finetune=last_layers finetune.n_layer=null": ["finetune.n_layer=null", "at least 1"],
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
    "finetune=lora model.init_from=x strategy=tp trainer.accelerator=cpu trainer.devices=2": [
        "strategy=tp shards the matrices that finetune=lora adds to",
        "use strategy=ddp, zero1, zero2, fsdp or hsdp",
    ],
    "finetune=lori": ["did you mean lora"],
    "optimizer.lr=-1": ["optimizer.lr=-1", "above 0"],
    "optimizer.momentum=0.9": ["optimizer.momentum", "optimizer.type=muon"],
    "tokenizer=byte tokenizer.vocab_size=300": ["tokenizer.vocab_size", "tokenizer.type=bpe"],
    "trainer.max_steps=10": ["trainer.max_steps", "budget_steps"],
    "trainer.gradient_clip_val=1": ["optimizer.grad_clip"],
    "trainer.devices=two": ["trainer.devices=two", "auto"],
    "trainer.val_check_interval=1.5": ["trainer.val_check_interval=1.5", "at most 1.0"],
    "schedule.warmup_steps=1 schedule.warmup_tokens=100": ["schedule.warmup_steps", "schedule.warmup_tokens"],
    "logger.wandb.project=mine": ["logger=wandb"],
    "data.val_fraction=1.5": ["data.val_fraction=1.5"],
    "model=small,gpt124m": ["-m model=small,gpt124m"],
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
        "data.label_column=COLUMN, data.response=TEMPLATE, data.messages=COLUMN",
    ],
    "data=functions": ["none is set", "data=function_packages"],
    "data=function_packages data.response=x": ["data.label_column=package and data.response=x", "leave one out"],
    "data=function_packages data.overlong=half": ["error, drop, truncate"],
    "data=function_summaries data.stride=4": ["data.stride=4 is for sliding windows"],
    "data.chat.user=x": ["chat"],
    "tokenizer=file": ["tokenizer.path=FILE"],
    "tokenizer=file tokenizer.path=x tokenizer.special_tokens=[mine]": [
        "tokenizer=file has its own special tokens",
        "leave it out",
    ],
    "tokenizer=wordpiece tokenizer.special_tokens=[mine]": ["tokenizer=wordpiece has its own special tokens"],
    "tokenizer=byte tokenizer.special_tokens=[x1,x1]": ["special_tokens holds 'x1' twice"],
    "tokenizer.vocab_size=100": ["tokenizer.vocab_size=100", "257"],
    "resume=runs/sweep/seed=1/none.ckpt": ["resume=runs/sweep/seed=1/none.ckpt does not exist"],
    "model=bert_base objective=causal_lm": [
        "causal_lm does not fit a model of model.type=encoder;",
        "masked_lm or",
    ],
    "model=t5_small objective=masked_lm": ["masked_lm does not fit", "use objective=span_corruption or instruction"],
    "objective=span_corruption": ["model.type=decoder; use objective=causal_lm or classification or instruction"],
    "model=bert_laptop objective=instruction": ["instruction does not fit a model of model.type=encoder"],
    "model=bert_laptop model.heads=none": ["needs a model with mlm_head and nsp_head; set model.heads=pretraining"],
    "model=bert_laptop data.stride=8": ["data.stride=8 is for sliding windows", "objective.next_sentence=false"],
    "model=bert_laptop objective.mask_prob=0": ["objective.mask_prob=0.0 is outside (0, 1)"],
    "model=bert_laptop objective.mask_replace_prob=0.95": [
        "objective.mask_replace_prob=0.95",
        "their sum must not exceed 1",
    ],
    "model=bert_laptop objective.random_replace_prob=1.5": ["objective.random_replace_prob=1.5 is outside [0, 1]"],
    "model=t5_laptop objective.noise_density=1": ["objective.noise_density=1.0 is outside (0, 1)"],
    "model=t5_laptop objective.mean_noise_span_length=0.5": ["objective.mean_noise_span_length=0.5 must be at least 1"],
    "model=t5_laptop callbacks.sample.prompt=x": [
        "callbacks.sample.prompt=x",
        "objective=span_corruption shows its own",
    ],
    "objective=classification": ["data=stdlib is text", "use data=table data.path=FILE", "function_packages"],
    "data=function_packages objective=instruction": [
        "does not learn from examples with a label; use objective=classification"
    ],
    "data=function_summaries objective=causal_lm": [
        "does not learn from examples with a response; use objective=instruction"
    ],
    "data=function_packages objective.lm_weight=-1": ["objective.lm_weight=-1.0 must be at least 0"],
    "model=bert_laptop data=function_packages objective=classification tokenizer=wordpiece objective.lm_weight=0.5": [
        "objective.lm_weight=0.5",
        "set objective.lm_weight=0",
    ],
    "objective.mask_prob=0.2": ["objective.mask_prob does not belong", "objective.type=masked_lm"],
    "optimizer.type=muon": ["optimizer.type follows from the preset", "optimizer=muon"],
    "model.architecture=encoder": ["unknown config key model.architecture"],
    "model.num_hidden_layers=3": ["did you mean model.n_layer"],
    "trainer.max_epochs=3": ["trainer.max_epochs", "budget_steps"],
    "recipe=gpt": ["recipe=gpt is not a preset"],
    "seed=-1": ["seed=-1"],
    "seed": ["seed is not an override; write seed=VALUE"],
    "eval_train=true data.val_fraction=0": ["eval_train=true", "data.val_fraction"],
    "run_dir=": ["run_dir= is empty"],
    "~model": ["~model", "choose one with model=NAME"],
    "~optimizer.lr": ["~optimizer.lr", "optimizer.lr=null"],
    "=3": ["=3", "write KEY=VALUE"],
    "-m": ["-m", "gptlab train"],
    "model=[small,modern]": ["model=[small,modern]", "-m model=small,modern"],
    "model=": ["model= is not a preset", "known: bert_base"],
    "logger=wandb,tensorboard": ["-m logger=wandb,tensorboard", "logger=[wandb,tensorboard]"],
    "seed=1,2": ["seed=1,2", "-m seed=1,2"],
    "optimizer.lr=abc": ["optimizer.lr=abc must be a number"],
    "model.bias=maybe": ["model.bias=maybe must be true or false"],
    "data=text data.path=": ["data.path= is empty"],
    "resume=": ["resume= is empty"],
    "logger=null": ["no logger is the default; leave it out"],
    "callbacks.sample=null callbacks.sample.prompt=x": [
        "callbacks.sample.prompt has no effect with callbacks.sample=null"
    ],
    "optimizer.lr=inf": ["optimizer.lr=inf must be above 0 and finite"],
    "experiment=verdict logger.wandb.project=p": ["whose group is null", "logger=wandb"],
    "callbacks.extra.x=a!b(": ["callbacks.extra.x=a!b( cannot be read; quote the value"],
    "trainer.plugins.x=1": ["unknown config key trainer.plugins.x"],
    "data.chat.x=1": ["data.chat.x is not a key of the chosen presets"],
    "strategy=fdsp": ["strategy=fdsp", "did you mean fsdp"],
    "strategy=zero3": ["strategy=zero3", "did you mean zero"],
    "strategy=tp trainer.accelerator=cpu trainer.devices=3": ["3 devices", "model.n_head=4", "use 2 or 4 of them"],
    "strategy=tp model.d_ff=510 trainer.accelerator=cpu trainer.devices=4": ["model.d_ff=510", "use 2 of them"],
    "model=moe_small model.n_expert=6 strategy=tp trainer.accelerator=cpu trainer.devices=4": [
        "shards the model over 4 devices",
        "model.n_expert=6",
        "use 2 of them, or strategy=fsdp",
    ],
    "model=moe_small model.n_expert=5 strategy=fsdp_tp trainer.accelerator=cpu trainer.devices=4": [
        "shards the model over 2 devices",
        "model.n_expert=5",
        "use strategy=fsdp",
    ],
    "model=moe_small model.n_shared_expert=1 model.d_ff=255 strategy=tp trainer.accelerator=cpu trainer.devices=2": [
        "shards the model over 2 devices",
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


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_wrong_override_is_answered(overrides):
    with pytest.raises(UserError) as error:
        compose(*overrides.split())
    message = str(error.value)
    assert "\n" not in message
    for part in REFUSED[overrides]:
        assert part in message


MODEL = "# @package _global_\ndefaults:\n  - /schema/model/{schema}@model\nmodel:\n  {values}\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (MODEL.format(schema="decoder", values="n_layrs: 2"), ["unknown config key model.n_layrs", "model.n_layer?"]),
        (MODEL.format(schema="decoder", values="n_layer: two"), ["model.n_layer=two must be a whole number"]),
        (MODEL.format(schema="retnet", values="n_layer: 2"), ["no model is registered as retnet", "plugins=[MODULE]"]),
        ("# @package _global_\nmodel:\n  n_layer: 2\n", ["chooses no model", "/schema/model/NAME@model"]),
        ("model: [1\n", ["mine.yaml", "line 1, column 8"]),
    ],
)
def test_a_wrong_preset_of_a_user_is_named(tmp_path, text, parts):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        compose("model=mine", config_dir=tmp_path)
    for part in ["mine", *parts]:
        assert part in str(error.value)


def test_an_override_is_read_as_it_is_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/some one")
    for name in ("a=b", "a#b", "\u00e4", "it's", "a\\"):
        assert compose(f"name={name}").name == name
        assert as_typed(for_hydra(f"name={name}")) == f"name={name}", "as a message shows it"
    assert compose("run_dir=~/x").folder() == "/home/some one/x"
    assert compose("logger=[wandb, tensorboard]").logger.wandb is not None
    assert compose("~debug") == compose()


def test_every_option_of_the_trainer_is_taken_or_answered():
    from lightning import Trainer

    options = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    ours = {f.name for f in fields(TrainerConfig)}
    assert ours | set(OWNED) == options and not ours & set(OWNED)


def test_every_foreign_name_leads_to_a_key_of_ours():
    keys = {*dict(key_types()), *composition.preset_names()}
    assert set(FOREIGN.values()) <= keys
