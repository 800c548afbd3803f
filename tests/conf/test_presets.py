"""Every YAML file composes, and every model among them can be built."""

from functools import cache
from importlib.resources import files

import pytest
from omegaconf import OmegaConf

import gptlab
from gptlab import UserError, composition
from gptlab.config import RunConfig
from gptlab.costs import parameter_counts, training_pass
from gptlab.distributed.config import Sharding, StrategyConfig
from gptlab.models.build import shape_model
from gptlab.models.encoder_decoder.config import EncoderDecoderConfig
from gptlab.training.config import FinetuneConfig, Finetuning
from gptlab.training.finetune import prepare_finetuning

compose = cache(gptlab.compose)  # takes a fifth of a second; no test alters what it gives
NAMES = composition.preset_names()
PRESETS = [(group, name) for group, names in composition.preset_names().items() for name in names]
COUNTS = {
    "gpt1": 116_534_784,
    "gpt124m": 124_439_808,
    "gpt355m": 354_823_168,
    "gpt774m": 774_030_080,
    "gpt1558m": 1_557_611_200,
    "gpt3_125m": 125_226_240,
    "gpt3_350m": 355_871_744,
    "gpt3_760m": 760_300_032,
    "gpt3_1.3b": 1_315_723_264,
    "gpt3_2.7b": 2_651_553_280,
    "gpt3_6.7b": 6_658_404_352,
    "gpt3_13b": 12_853_386_240,
    "gpt3_175b": 174_604_259_328,
    "gpt4_rumoured": 1_832_491_648_512,
    "llama_150m": 151_872_000,
    "llama_1b": 1_235_814_400,
    "llama_3b": 3_212_749_824,
    "llama_8b": 8_030_261_248,
    # with the heads of pretraining; BERT is counted up to the pooler below
    "bert_base": 110_106_428,
    "bert_large": 336_226_108,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_v1.1_small": 76_961_152,
    "t5_v1.1_base": 247_577_856,
    "t5_v1.1_large": 783_150_080,
    "t5_v1.1_xl": 2_849_757_184,
    "t5_v1.1_xxl": 11_135_332_352,
}


NEEDED = {
    "data=text": ["data.path=my.txt"],
    "data=shards": ["data.path=shards"],
    "data=mixture": ["data.sources.code=stdlib", "data.sources.prose=verdict", "data.weights.code=0.5"],
    "tokenizer=shards": ["data.path=shards"],
    "tokenizer=file": ["tokenizer.path=tokenizer.json"],
    "data=table": ["data.path=my.csv", "data.label_column=kind", "data.class_names=[a,b]", "objective=classification"],
    "data=functions": ["data.response={summary}", "objective=instruction"],
    "objective=masked_lm": ["model=bert_laptop"],
    "objective=span_corruption": ["model=t5_laptop"],
    "objective=classification": ["data=function_packages"],
    "objective=instruction": ["data=function_summaries"],
    "experiment=finetuning": ["tokenizer.path=tokenizer.json"],
    "finetune=last_layers": ["model.init_from=my.ckpt"],
    "finetune=lora": ["model.init_from=my.ckpt"],
}


@pytest.mark.parametrize(("group", "name"), PRESETS, ids=[f"{g}={n}" for g, n in PRESETS])
def test_it_composes_and_builds(group, name):
    config = compose(f"{group}={name}", *NEEDED.get(f"{group}={name}", []))
    vocab_size = config.model.vocab_size or config.tokenizer.known_vocab_size or 100
    model = shape_model(config.model, vocab_size, config.n_class)
    n_parameters = sum(p.numel() for p in model.parameters())
    assert n_parameters == parameter_counts(model)["total"]
    if group == "model" and name in COUNTS:
        assert n_parameters == COUNTS[name]
    if group == "recipe":
        own = compose("model=small")
        assert (config.model, config.objective, config.tokenizer) == (own.model, own.objective, own.tokenizer)
    if group == "model":
        finetune = FinetuneConfig(type=Finetuning.lora)
        prepare_finetuning(model, finetune)
        counts = parameter_counts(model)
        assert counts["total"] == sum(p.numel() for p in model.parameters())
        assert counts["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert counts["trained"] < 0.02 * n_parameters


@pytest.mark.slow  # of the default model every recipe is composed above
@pytest.mark.parametrize("model", NAMES["model"])
def test_a_model_composes_with_every_recipe(model):
    own = compose(f"model={model}")
    for recipe in NAMES["recipe"]:
        config = compose(f"model={model}", f"recipe={recipe}", "batch_tokens=1048576", "micro_batch_size=1")
        assert (config.model, config.objective, config.tokenizer) == (own.model, own.objective, own.tokenizer)


def test_a_recipe_says_how_and_a_model_says_what():
    for group, forbidden in (("model", {"optimizer", "schedule"}), ("recipe", {"model", "objective", "tokenizer"})):
        for name in NAMES[group]:
            content = OmegaConf.load(files("gptlab.conf") / group / f"{name}.yaml")
            assert not forbidden & set(content), f"{group}={name}"
    assert set(NAMES["recipe"]) == {*NAMES["model"], "default", "speedrun"}


@pytest.mark.parametrize(("name", "n_parameters"), [("bert_base", 109_482_240), ("bert_large", 335_141_888)])
def test_bert_as_it_is_published(name, n_parameters):
    config = compose(f"model={name}", "model.heads=none", "objective=classification", "data=function_packages").model
    assert parameter_counts(shape_model(config, config.vocab_size))["total"] == n_parameters
    assert sum(p.numel() for p in shape_model(config, config.vocab_size).parameters()) == n_parameters


def test_every_file_says_in_its_name_what_it_is():
    for name in composition.preset_names()["model"]:
        assert compose(f"model={name}").model_tag == name
    for name in composition.preset_names()["data"]:
        assert compose(f"data={name}", *NEEDED.get(f"data={name}", [])).data_tag == name
    for name in composition.preset_names()["experiment"]:
        overrides = NEEDED.get(f"experiment={name}", [])
        assert compose(f"experiment={name}", *overrides).model_tag == name


def test_the_books_model():
    config = compose("experiment=verdict")
    assert parameter_counts(shape_model(config.model, 50_257))["total"] == 162_419_712
    assert (config.optimizer.lr, config.optimizer.grad_clip, config.optimizer.decay.value) == (4e-4, None, "all")


# Layers, width, heads, width of a head, batch and learning rate: table 2.1 of arXiv 2005.14165, where it agrees with
# itself. XL is printed with 24 heads and 13B with 5140 channels.
GPT3 = {
    "gpt3_125m": (12, 768, 12, 64, 0.5e6, 6.0e-4),
    "gpt3_350m": (24, 1024, 16, 64, 0.5e6, 3.0e-4),
    "gpt3_760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4),
    "gpt3_1.3b": (24, 2048, 16, 128, 1e6, 2.0e-4),
    "gpt3_2.7b": (32, 2560, 32, 80, 1e6, 1.6e-4),
    "gpt3_6.7b": (32, 4096, 32, 128, 2e6, 1.2e-4),
    "gpt3_13b": (40, 5120, 40, 128, 2e6, 1.0e-4),
    "gpt3_175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4),
}


@pytest.mark.parametrize("name", GPT3)
def test_gpt3s_recipe(name):
    config = compose(f"model={name}")
    model, optimizer, schedule = config.model, config.optimizer, config.schedule
    *sizes, batch_tokens, lr = GPT3[name]
    assert [model.n_layer, model.d_model, model.n_head, model.head_width] == sizes
    assert (model.vocab_size, model.context_length) == (50_257, 2048)
    assert config.batch_tokens == pytest.approx(batch_tokens, rel=0.05)
    assert (optimizer.type, optimizer.lr) == ("adamw", lr)
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.grad_clip, optimizer.weight_decay) == (1.0, 0.1)
    assert (schedule.type, schedule.min_lr_ratio) == ("cosine", 0.1)
    assert (schedule.warmup_tokens, schedule.decay_tokens, config.budget_tokens) == (
        375 * 10**6,
        260 * 10**9,
        300 * 10**9,
    )
    windows = [model.window_of(block) for block in range(4)]
    assert windows == [None, 256, None, 256]


def test_gpt4s_rumour():
    """120 layers, 16 experts of 111B each of which 2 are seen, 55B of attention, about 280B active of 1.8T."""
    config = compose("model=gpt4_rumoured")
    model = config.model
    network = shape_model(model, model.vocab_size)
    counts = parameter_counts(network)
    assert (model.n_layer, model.n_expert, model.n_expert_per_token, model.context_length) == (120, 16, 2, 8192)
    assert counts["feedforward"] / 16 == pytest.approx(111e9, rel=0.01)
    assert counts["attention"] == pytest.approx(55e9, rel=0.02)
    assert counts["active"] == pytest.approx(280e9, rel=0.01)
    assert training_pass(network, 8192).flops_per_token_6n == pytest.approx(6 * 280e9, rel=0.01)


def test_moe_small_computes_what_small_does():
    small, sparse = (compose(f"model={name}") for name in ("small", "moe_small"))
    dense, experts = (parameter_counts(shape_model(config.model, 4096)) for config in (small, sparse))
    router = 4 * 8 * 128
    assert experts["active"] == dense["total"] + router and experts["total"] > 1.8 * dense["total"]
    assert (small.batch_tokens, small.budget_tokens) == (sparse.batch_tokens, sparse.budget_tokens)


@pytest.mark.parametrize("name", [name for name in COUNTS if name.startswith(("gpt3", "llama", "gpt1"))])
def test_names_give_the_size(name):
    size = name.removeprefix("gpt3_").removeprefix("llama_").removeprefix("gpt")
    if size != "1":
        millions = float(size[:-1]) * {"m": 1, "b": 1000}[size[-1]]
        assert COUNTS[name] == pytest.approx(millions * 1e6, rel=0.25)


@pytest.mark.parametrize(
    "name", ["gpt1", *GPT3, "llama_150m", "llama_1b", "llama_3b", "llama_8b", "bert_large", "t5_11b", "t5_v1.1_xl"]
)
def test_each_model_can_be_smoked(name):
    config = compose(f"model={name}", "debug=smoke")
    assert (config.model.n_layer, config.context_length, config.budget_steps) == (2, 64, 3)
    config.check(devices=1)


def test_the_laptops_models_are_of_the_size_of_small():
    sizes = {}
    for name in ("small", "bert_laptop", "t5_laptop"):
        config = compose(f"model={name}")
        counts = parameter_counts(shape_model(config.model, config.tokenizer.known_vocab_size or 4096))
        sizes[name] = counts["attention"] + counts["feedforward"]
    assert max(sizes.values()) < 1.01 * min(sizes.values()), sizes


def test_an_override_replaces_the_presets_alternative():
    config = compose("model=gpt3_125m", "schedule.warmup_steps=10", "budget_steps=20")
    assert (config.schedule.warmup_tokens, config.budget_tokens) == (None, None)


def test_tensor_parallelism_does_not_fit_biases_of_positions():
    config = RunConfig(model=EncoderDecoderConfig(), strategy=StrategyConfig(type=Sharding.tp))
    with pytest.raises(UserError, match=r"strategy=tp .*encoder_decoder does not support; use strategy=fsdp"):
        config._check_tensor_parallel(2)
