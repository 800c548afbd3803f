"""`gptlab scaling` and `gptlab plan law=`, in this process."""

import json
from pathlib import Path

import pytest
import yaml

from gptlab.cli import plan
from gptlab.lab.scaling_law import read_law

RUNS = Path(__file__).parents[1] / "lab" / "chinchilla_runs.csv"
FIT = ["fit", RUNS, "min_tokens_per_parameter=0.43", "bootstrap=20"]
SIZES = ["model=small", "tokenizer=byte", "model.n_layer=1", "model.n_head=1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "my scaling"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def test_a_table_is_fitted_drawn_and_planned_with(say, folder, capsys):
    out = say(*FIT, "compute=[5.76e23,1e25]", "plots=law.svg", "html=.")
    for said in ("fitted to 240 runs", "standard error", "5.76e+23", "1e+25", "biased even without noise", "next: "):
        assert said in out
    law = read_law("law.json")
    assert f"{law.constants['E'].value:.4g}" in out and law.counted == "total"
    assert "biased even without noise" in (folder / "law.svg").read_text()
    page = (folder / "scaling.html").read_text()
    assert "fitted to 240 runs" in page and "data:image/png;base64," in page and "default-src 'none'" in page
    assert sorted(path.name for path in folder.iterdir()) == ["law.json", "law.svg", "scaling.html"]

    def planned(*arguments, expect=0):
        code = plan.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == expect, err
        return out if expect == 0 else err

    assert "Chinchilla" in planned("compute=1e21")
    found = json.loads(planned("compute=5.76e23", "law=law.json", "output=json"))
    assert found["parameters"]["low"] < 70e9 < found["parameters"]["high"]
    assert "optimal by law.json" in planned("compute=5.76e23", "law=law.json")
    out = planned(*SIZES, "law=law.json", "device=h100")
    assert "expected loss" in out and "optimal size" in out and "extrapolated: parameters 1/" in out
    assert "of the smallest that it was fitted to" in out
    said = json.loads(planned(*SIZES, "law=law.json", "output=json"))
    one, compute = said["scaling_law"], said["compute"]
    n = said["parameters"]["total"]
    assert one["parameters"] == n and one["tokens"] == compute["tokens"]
    assert one["loss"]["value"] == pytest.approx(float(law.loss(n, compute["tokens"])))
    # The optimum costs as many FLOPs, by what this model costs per parameter and token.
    best = one["optimum"]
    each = compute["flops_per_token"] / n
    assert each * best["parameters"]["value"] * best["tokens"]["value"] == pytest.approx(compute["flops"])
    assert best["loss"]["value"] <= one["loss"]["value"]
    assert "extrapolated: parameters" in planned("model=gpt3_175b", "law=law.json")
    assert "leave one of them out" in planned(*SIZES, "law=law.json", "layers=true", expect=2)
    assert "gptlab scaling fit" in planned(*SIZES, "law=none.json", expect=2)
    for arguments in (SIZES, ["compute=1e21"]):
        assert "law= is empty" in planned(*arguments, "law=", expect=2)


def test_a_fit_as_json_alone(say, folder):
    found = json.loads(say(*FIT, "output=json", "law=null", "parameters=non_embedding"))
    assert found["n_runs"] == 240 and found["parameters"] == "non_embedding" and not list(folder.iterdir())
    assert found["optima"][0]["flops"] == pytest.approx(1.29560e22, rel=1e-4)
    assert found["isoflops"]["profiles"] and "law" not in found
    assert found["constants"]["E"]["low"] < 1.817 < found["constants"]["E"]["high"]


def test_bad_input_of_a_fit(say, folder):
    for arguments, message in (
        (["fit"], "needs runs"),
        (["fit", "none"], "none does not exist"),
        ([*FIT, "plots=picture.pdf"], "ends in neither .png nor .svg"),
        ([*FIT, "plots=none/picture.png"], "create none"),
        ([*FIT, "law=law.txt"], "a file ending in .json"),
        ([*FIT, "law="], "law= is empty"),
        ([*FIT, "compute="], "compute= is no number of FLOPs"),
        ([*FIT, "compute=much"], "compute=much is no number of FLOPs"),
        (["fit", RUNS, "bootstrap=1"], "bootstrap=1"),
        ([*FIT, "n_bootstrap=5"], "did you mean bootstrap?"),
        ([*FIT, "ladder=x.yaml"], "gptlab scaling without fit"),
        ([*FIT, "parameters=all"], "total, non_embedding, active"),
        (["runs"], "gptlab scaling fit runs"),
        (["bootstrap=5"], "ladder= is missing"),
        (["ladder=none.yaml"], "ladder=none.yaml cannot be read"),
        (["ladder="], "ladder= is empty"),
        (["ladder=none.yaml", "plots=x.png"], "plots= is of gptlab scaling fit"),
        (["ladder=none.yaml", "--force"], "--force is not an option"),
        (["ladder=none.yaml", "n_bootstrap=5"], "did you mean bootstrap?"),
    ):
        assert message in say(*arguments, expect=2), arguments
    assert not list(folder.iterdir())
    assert "gptlab scaling ladder=" in say("--help")


def test_a_ladder_is_listed_before_it_is_trained(say, folder):
    ladder = {
        "overrides": [*SIZES, "data=stdlib"],
        "sizes": {"a": ["model.d_model=8"]},
        "budgets": {"tokens": ["4096", "8192"]},
    }
    (folder / "my ladder.yaml").write_text(yaml.safe_dump(ladder))
    found = json.loads(say("ladder=my ladder.yaml", "dry_run=true", "output=json", "name=x"))
    assert [one["tokens"] for one in found] == [4096, 8192] and found[0]["folder"] == "runs/x/ladder/a,tokens=4096"
    assert "2 runs" in say("ladder=my ladder.yaml", "dry_run=true", "seed=3")
    assert [path.name for path in folder.iterdir()] == ["my ladder.yaml"]
