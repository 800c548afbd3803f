"""`gptlab plan`, in this process."""

import json

import pytest

TINY = ["model=small", "model.n_layer=2", "model.d_model=32", "model.n_head=2", "tokenizer=byte"]


def test_a_plan_for_a_person(say):
    out = say(*TINY, "device=h100", "trainer.devices=2", "price_per_hour=2")
    for line in ("model ", "compute ", "memory ", "time ", "energy ", "cost ", "KV cache", "20 tokens per parameter"):
        assert line in out
    assert "assumed" in out and "2 x h100" in out
    cpu = say(*TINY)
    assert "unknown" in cpu and "tokens_per_second=" in cpu and "process" in cpu


def test_a_plan_as_json_is_that_of_python(say):
    found = json.loads(say(*TINY, "device=a100", "output=json"))
    assert found["parameters"]["total"] == sum(
        n for name, n in found["parameters"].items() if name not in ("total", "active", "trained")
    )
    assert found["memory"]["weights"] == 6 * found["parameters"]["total"]  # float32, and the copy that autocast keeps


def test_layers_and_comparisons(say):
    assert say(*TINY, "layers=true").splitlines()[2].split()[:6] == "blocks.0 Block 1 x 128 x".split()
    out = say(*TINY, "device=a10g", "trainer.devices=4", "compare=[precision,strategy]")
    for name in ("bf16-mixed", "int8", "zero1", "fsdp", "fits"):
        assert name in out
    found = json.loads(say(*TINY, "device=a10g", "trainer.devices=4", "compare=strategy", "output=json"))
    assert list(found["strategy"]) == ["ddp", "zero1", "zero2", "fsdp"]
    paper = say(*TINY, "device=a10g", "trainer.devices=4", "strategy=zero1", "accounting=zero_paper")
    assert "2 + 2 + 12" in paper


def test_a_proposal_can_be_typed(say):
    out = say(*TINY, "device=a10g", "trainer.devices=4", "strategy=?", "memory_gb=0.001")
    assert "none fits" in out and "of the device's memory" in out
    found = json.loads(say(*TINY, "device=a10g", "trainer.devices=4", "strategy=?", "output=json"))
    assert found[-1]["fits"] and found[-1]["overrides"][0] == "strategy=ddp"
    assert "up to 4 fit" in say(*TINY, *found[-1]["overrides"], "device=a10g", "trainer.devices=4")


def test_what_needs_no_config(say):
    assert "Chinchilla" in say("compute=1e21") and "DeepSeek-V2" in say("known=true")
    assert {one["name"] for one in json.loads(say("known=true", "output=json"))} >= {"GPT-3", "Chinchilla"}


def test_a_device_of_the_users_own(say):
    found = json.loads(say(*TINY, "device=mine", "peak_tflops=10", "memory_gb=8", "watts=50", "mfu=0.5", "output=json"))
    assert found["device"] == {"name": "mine", "count": 1, "memory": 8 * 10**9, "watts": 50.0}
    flops = found["compute"]["flops"]
    assert found["time"]["seconds"] == pytest.approx(flops / (0.5 * 10e12))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["device=h10"], ["device=h10", "did you mean h100", "peak_tflops="]),
        (["compare=presicion"], ["compare=presicion", "precision"]),
        (["accounting=deepspeed"], ["accounting=deepspeed", "zero_paper"]),
        (["compare="], ["compare= is unknown", "precision"]),
        (["compare=[precision"], ["compare=[precision is unknown", "[precision,strategy]"]),
        (["known=true", "model=small"], ["known=true", "leave out model=small"]),
        (["known=true", "device=h100"], ["known=true is about no device", "leave out device="]),
        (["compute=1e21", "price_per_hour=3"], ["compute= is about no device", "leave out price_per_hour="]),
        (["--config-dir"], ["--config-dir needs a value"]),
        (["mfu=1.5"], ["mfu=1.5"]),
        (["model.n_lyer=3"], ["n_lyer", "did you mean"]),
        (["tokenizer=char", "model=small"], ["tokenizer=char", "model.vocab_size=N"]),
        (["strategy=?", "model=small"], ["memory of device=cpu", "memory_gb=N"]),
        (["compare=strategy", "model=small"], ["trainer.devices=8"]),
        (["model=small", "layers=true", "strategy=?"], ["layers=true and strategy=?", "one at a time"]),
        (["model=small", "mfu=0.3", "tokens_per_second=9"], ["mfu=", "tokens_per_second=", "leave one out"]),
        (["model=small", "device=h100", "compare=precision", "accounting=zero_paper"], ["zero_paper", "leave it out"]),
        (["--known"], ["--known", "gptlab plan --help"]),
        (["price_per_hour=-1"], ["price_per_hour"]),
        (["memory_gb=1e300"], ["memory_gb=1e+300 is outside"]),
    ],
)
def test_wrong_input(say, arguments, parts):
    message = say(*arguments, expect=2)
    assert all(part in message for part in parts), message


def test_a_count_never_starts_a_run(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    say("model=gpt3_125m", "device=h100")
    say(*TINY, "layers=true")
    assert list(tmp_path.iterdir()) == []
