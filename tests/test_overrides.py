"""Overrides as they are typed, and what to type instead of wrong ones."""

import inspect
from dataclasses import fields

import pytest

from gptlab import UserError, compose, composition
from gptlab.overrides import FOREIGN, as_typed, for_hydra, key_types, refuse_of_hydra, trial_name
from gptlab.quoting import quote
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
    "trainer.precision=fp16": ["trainer.precision=fp16", "did you mean 16-mixed?"],
    "precision=bf16": ["did you mean trainer.precision=bf16-mixed?"],
    "fp16=true": ["did you mean trainer.precision=16-mixed?"],
    "epochs=ten": ["unknown config key epochs; did you mean budget_tokens?", "N epochs are N times"],
    "+epochs=3": ["unknown config key epochs; did you mean budget_tokens?", "3 epochs are 3 times"],
    "~epochs": ["unknown config key epochs; did you mean budget_tokens?"],
    "budget_epochs=3": ["did you mean budget_tokens?"],
    "epochs=10": ["did you mean budget_tokens?", "10 epochs are 10 times the tokens of the training split"],
    "trainer.max_epochs=10": ["trainer.max_epochs is decided by gptlab", "budget_tokens?", "10 epochs are 10 times"],
    "batch_size=8": ["did you mean batch_tokens?", "micro_batch_size"],
    "gradient_accumulation_steps=4": ["did you mean micro_batch_size?", "batch_tokens / (context length"],
    "gpus=2": ["did you mean trainer.devices?"],
    "wandb=true": ["did you mean logger=wandb?"],
    "data.weights=[1,2]": ["has to say of which source; write data.weights.NAME=[1,2]"],
    "do_sample=false": ["did you mean callbacks.sample.temperature?", "0 is greedy"],
    "resume=true": ["resume=true is read as a path", "resume=auto"],
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
    "trainer.max_epochs=3": ["trainer.max_epochs", "budget_tokens"],
    "recipe=gpt": ["recipe=gpt is not a preset"],
    "seed=-1": ["seed=-1"],
    "seed": ["seed is not an override; write seed=VALUE"],
    "eval_train=true data.val_fraction=0": ["eval_train=true", "data.val_fraction"],
    "run_dir=": ["run_dir= is empty"],
    f"name={'a' * 256}": ["name=aaa", "too long"],
    "name=???": ["name=???", "still missing"],
    "name=${foo}": ["name=${foo}", "foo", "for the characters"],
    "name=${": ["name=${", "for the characters"],
    "data.class_names=[a,,b]": ["data.class_names=[a,,b] is not a list", '["one, too",two]'],
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
    "data=mixture data.sources.a=stdlib data.sources.a.weight=0.5": ["write data.weights.a=0.5"],
    "data=mixture data.sources.a=stdlib data.sources.a.schedule=[[0,1]]": ["write data.schedule.a=[[0,1]]"],
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
    "strategy.activation_checkpointing=some": ["none, full, selective, budget"],
    "strategy.memory_budget_gib=8": ["strategy.memory_budget_gib", "strategy.activation_checkpointing=budget"],
    "strategy.activation_checkpointing=budget strategy.memory_budget_gib=0": ["memory_budget_gib=0", "above 0"],
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
    for ours in FOREIGN.values():
        key, _, value = ours.partition("; ")[0].partition("=")
        assert key in keys, ours
        if value:
            assert compose(f"{key}={value}", "trainer.accelerator=cpu", "trainer.devices=1")


TEXTS = [
    *("2024_01_15", "1.10", "0x1F", "010", "1e3", "true", "on", "NULL", "~", "inf", ".5", "20231101.10"),
    *(
        "a=b",
        "(x)",
        "[INST] {q}",
        '"hi" you',
        "'hi",
        "a, b",
        "#x",
        "x: y",
        "why?",
        "a\\",
        "trail ",
        "\u65e5\u672c",
        "it's",
    ),
    "runs/sw5/optimizer.lr=0.001",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_stays_as_it_was_typed(text):
    assert compose(f"name={text}").name == text
    assert as_typed(for_hydra(f"name={text}")) == f"name={text}", "as a message shows it"
    assert as_typed(for_hydra(for_hydra(f"++name={text}"))).lstrip("+") == f"name={text}", "as a trial repeats it"
    (swept,) = {for_hydra(f"name={quote(text)}", multirun=True), for_hydra(f"name={text}")}
    assert swept.startswith("name="), "in a sweep, where a comma needs quotes"


def test_every_key_of_type_text_takes_any_text(tmp_path):
    text = "1_0 (a=b), [c]: #d?"
    keys = [key for key, hint in key_types() if hint in (str, str | None) and not key.endswith("type")]
    assert {"tokenizer.path", "model.init_from", "data.subset", "logger.wandb.name", "resume"} <= set(keys)
    for key in keys:
        assert for_hydra(f"{key}={text}") == f"{key}='{text}'", key
    assert for_hydra("data.text_column=null") == "data.text_column='null'", "where null is nothing but text"
    config = compose("name=null", "logger=wandb", "logger.wandb.tags=[1.10,on,null]", "model.init_from=~/1_0")
    assert (config.name, config.logger.wandb.tags) == (None, ["1.10", "on", "null"])
    table = ("data=table", "data.path=x.csv", "objective=classification", "data.label_column=1_0")
    for typed in ("data.class_names=[true,false]", "++data.class_names=['true',false]"):
        assert compose(*table, typed).data.class_names == ["true", "false"]
    chat = compose(
        "data=table", "data.path=x", "data.messages=m", "objective=instruction", "data.chat={user: 1.10}"
    ).data.chat
    assert chat["user"] == "1.10"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("name=1_0,'b, c',x", "name='1_0','b, c',x"),
        ("name=choice(1_0,a)", "name=choice('1_0',a)"),
        ("name=shuffle(list=[a,b])", "name=shuffle(list=[a,b])"),
        ("seed=range(1,3)", "seed=range(1,3)"),
        ("data.extensions=[.txt],[.md,1_0]", "data.extensions=[.txt],[.md,'1_0']"),
    ],
)
def test_a_sweep_over_texts(typed, expected):
    assert for_hydra(typed, multirun=True) == expected


def test_the_folder_of_a_trial():
    assert trial_name(["optimizer.lr=0.001", "name='1_0'"]) == "optimizer.lr=0.001,name=1_0"
    assert trial_name([r"callbacks.extra.x.y=a\:b"]).startswith("callbacks.extra.x.y=a_b-"), "Windows takes no colon"
    a, b = (trial_name([f"model.init_from=runs{sign}x"]) for sign in "/:")
    assert a.startswith("model.init_from=runs_x-") and b.startswith("model.init_from=runs_x-") and a != b
    umlauts = "\u00e4" * 260
    long = {trial_name([f"callbacks.sample.prompt='{umlauts}{i}'", f"data.path='{'b' * 260}'"]) for i in range(9)}
    assert len(long) == 9 and all(len(name.encode()) <= 200 for name in long)


TYPES = {
    "name: 2024_01_15": 'name is text, and YAML reads 2024_01_15 as the number 20240115; quote it: name: "2024_01_15"',
    "name: on": 'the truth value true; quote it: name: "on"',
    "seed: ???": "seed: ??? is no value",
    "tokenizer: {special_tokens: [a, 0x1F]}": "tokenizer.special_tokens is text, and YAML reads 0x1F as the number 31",
}


@pytest.mark.parametrize("line", TYPES)
def test_a_preset_says_what_it_seems_to_say(tmp_path, line):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{line}\n")
    (tmp_path / "experiment" / "derived.yaml").write_text("# @package _global_\ndefaults: [mine]\n")
    for name in ("mine", "derived"):
        with pytest.raises(UserError) as error:
            compose(f"experiment={name}", config_dir=tmp_path)
        assert "experiment/mine.yaml: " in str(error.value) and TYPES[line] in str(error.value)


def test_keys_of_hydra_that_do_nothing_are_refused():
    for override, remedy in (
        ("hydra.run.dir=x", "run_dir=DIR"),
        ("hydra.mode=MULTIRUN", "write -m"),
        ("hydra/launcher=basic", "add -m"),
        ("hydra.sweep.dir=x", "add -m"),
    ):
        with pytest.raises(UserError, match=remedy):
            compose(override)
    refuse_of_hydra(["hydra.sweep.dir=x", "hydra/launcher=basic"], multirun=True)
    with pytest.raises(UserError, match="not an override; write each as text"):
        compose(["seed=1"])  # pyright: ignore[reportArgumentType]


def test_entries_of_a_mixture_stay_as_they_were_typed():
    for typed, sent in (
        ("data.sources.a=text", "++data.sources.a.preset=text"),
        ("data.sources.a.path=2024", "++data.sources.a.path='2024'"),
        ("data.sources.a.val_fraction=0.2", "++data.sources.a.val_fraction=0.2"),
        ("data.sources.a.paths=[1.10,b]", "++data.sources.a.paths=['1.10',b]"),
        ("data.weights.a=0.5", "++data.weights.a=0.5"),
        ("data.schedule.a=[[0,0.1],[1000,0.5]]", "++data.schedule.a=[[0,0.1],[1000,0.5]]"),
    ):
        assert for_hydra(typed) == sent and as_typed(sent) == typed
        assert for_hydra(as_typed(sent)) == sent, "as a trial repeats it"
    assert for_hydra("data.sources.a=text,stdlib", multirun=True) == "++data.sources.a.preset=text,stdlib"
    assert for_hydra("data.sources.a.path=1,2", multirun=True) == "++data.sources.a.path='1','2'"
    assert (
        trial_name(["++data.weights.a=0.5", "++data.sources.a.preset=text"]) == "data.weights.a=0.5,data.sources.a=text"
    )


def test_filters_of_a_corpus_and_of_a_mixtures_sources():
    given = ["data=text", "data.path=x", "filters=[gopher,length]", "data.filters.length.max_words=9_000"]
    texts = ["data.filters.source.deny=[wiki,1.10,true]", "data.filters.addresses.column=on"]
    texts += ["data.filters.addresses.deny_domains=[a.org]", "data.filters.gopher_quality=null"]
    config = compose(*given, *texts).data
    assert config.filters == {
        "gopher_quality": None,
        "gopher_repetition": {},
        "length": {"min_characters": 512, "max_words": 9000},
        "source": {"deny": ["wiki", "1.10", "true"]},
        "addresses": {"column": "on", "deny_domains": ["a.org"]},
    }
    mixture = [
        "data=mixture",
        "data.sources.a=stdlib",
        "data.sources.b=text",
        "data.sources.b.path=x",
        "data.weights.a=0.5",
    ]
    config = compose(*mixture, "data.sources.b.filters.length.min_words=3", "data.sources.b.filters.length.max_words=5")
    assert config.data.corpora["b"].filters == {"length": {"min_words": 3, "max_words": 5}}
    for options, what in (
        (
            ["data.sources.b.filters.length.min_wrds=3"],
            r"data\.sources\.b\.filters\.length\.min_wrds.*did you mean min_words",
        ),
        (["data.sources.b.filters.lenth.min_words=3"], "there is no filter lenth"),
        (["filters=length"], r"as data\.sources\.NAME\.filters"),
    ):
        with pytest.raises(UserError, match=what):
            compose(*mixture, *options)


def test_filters_are_part_of_a_runs_identity_where_there_are_any():
    plain = compose("data=text", "data.path=x")
    assert "filters" not in plain.identity_fields()["data"]
    assert compose("data=text", "data.path=x", "filters=c4").run_id() != plain.run_id()
