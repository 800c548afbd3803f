"""What runs and tables are read as, and what a fit says as text."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import write_trained

import gptlab
from gptlab import UserError
from gptlab.costs import parameter_counts
from gptlab.data.sources.config import TextConfig
from gptlab.lab.scaling import FitConfig, ParameterCount, bias_text, count_of, observe, optima, text
from gptlab.lab.scaling_law import fit_law, isoflops
from gptlab.models.build import shape_model
from gptlab.models.decoder.config import DecoderConfig

RUNS = Path(__file__).with_name("chinchilla_runs.csv")


def loss(n, d):
    return 1.5 + 20 / n**0.3 + 300 / d**0.4


def write_ladder(folder, **given):
    """Run folders whose losses lie on a law; N is what their summaries say."""
    for n in (1000, 4000, 16000):
        for steps in (10, 40, 160):
            rows = [{"step": steps, "tokens": 128 * steps, "train/loss": 9.0, "val/loss": loss(n, 128 * steps)}]
            summary = {"parameters": n, "flops_per_token": 7.0 * n}
            write_trained(folder / f"n={n},steps={steps}", rows=rows, summary=summary, budget_steps=steps, **given)
    return folder


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    return write_ladder(tmp_path_factory.mktemp("runs") / "my ladder")


def test_runs_are_observed(ladder):
    found, notes = observe([ladder], FitConfig())
    assert len(found) == 9 and not notes
    assert found.losses == pytest.approx(loss(found.parameters, found.tokens))
    assert found.compute == pytest.approx(7 * found.parameters * found.tokens)
    law = gptlab.fit_scaling_law(str(ladder), FitConfig(bootstrap=20))
    assert law.constants["E"].value == pytest.approx(1.5, rel=1e-3) and law.flops_per_token == pytest.approx((7, 1))
    few, notes = observe([f"{ladder}/*"], FitConfig(min_tokens_per_parameter=1))
    assert len(few) == (found.tokens >= found.parameters).sum() and f"{9 - len(few)} runs of fewer" in notes[0]


def test_runs_that_have_not_finished_are_left_out_and_named(tmp_path):
    folder = write_ladder(tmp_path / "runs")
    write_trained(folder / "going", [3.0], summary={})
    found, notes = observe([folder], FitConfig())
    assert len(found) == 9 and "going (interrupted" in notes[0]
    with pytest.raises(UserError, match="none of these runs has finished"):
        observe([folder / "going"], FitConfig())


def test_runs_of_other_texts_and_metrics_are_refused(tmp_path, ladder):
    other = write_trained(tmp_path / "other", data=TextConfig(path="other.txt"), content="e" * 64)
    with pytest.raises(UserError, match=r"differ in data\.path"):
        observe([ladder, other], FitConfig())
    with pytest.raises(UserError, match=r"has no val/nothing; use metric= with one of .*val/loss"):
        observe([ladder], FitConfig(metric="val/nothing"))
    with pytest.raises(UserError, match="loss_column= is of a CSV file"):
        observe([ladder], FitConfig(loss_column="loss"))


def test_parameters_are_counted_as_asked():
    sizes = {"n_layer": 2, "n_head": 2, "d_model": 32, "context_length": 16}
    tied, untied = (
        parameter_counts(shape_model(DecoderConfig(**sizes, tie_embeddings=tie), 100, None)) for tie in (True, False)
    )
    # 2 blocks of attention (4 D^2) and feedforward (8 D^2) with biases, norms: what neither table has a part in.
    body = 2 * (12 * 32**2 + 13 * 32) + 2 * 32
    assert count_of(tied, ParameterCount.non_embedding) == count_of(untied, ParameterCount.non_embedding)
    assert count_of(tied, ParameterCount.total) == 100 * 32 + 16 * 32 + count_of(tied, ParameterCount.non_embedding)
    assert count_of(tied, ParameterCount.non_embedding) == pytest.approx(body, rel=0.01)
    assert count_of(untied, ParameterCount.total) - count_of(tied, ParameterCount.total) == 100 * 32
    moe = parameter_counts(shape_model(DecoderConfig(**sizes, n_expert=4, n_expert_per_token=1), 100, None))
    assert count_of(moe, ParameterCount.active) < count_of(moe, ParameterCount.total)


def test_other_counts_are_read_from_the_runs_models(tmp_path):
    from gptlab.data.tokenizers.byte import ByteTokenizer

    folder = write_ladder(tmp_path / "runs")
    for run in folder.glob("n=*"):
        ByteTokenizer().save(run / "tokenizer.json")
    found, _ = observe([folder], FitConfig(parameters=ParameterCount.non_embedding))
    model = shape_model(
        DecoderConfig(n_layer=2, n_head=2, d_model=32, context_length=16), ByteTokenizer().vocab_size, None
    )
    assert set(found.parameters) == {count_of(parameter_counts(model), ParameterCount.non_embedding)}


def write_table(path, header, columns, *, comment=""):
    lines = [",".join(header), *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    path.write_text(comment + "\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_tables_are_read_by_their_columns(tmp_path):
    n, d = (values.ravel() for values in np.meshgrid([1e6, 4e6, 2e7], [1e8, 1e9, 1e10]))
    known = write_table(tmp_path / "a b.csv", ["Model Size", "loss", "Training FLOP"], [n, loss(n, d), 6 * n * d])
    found, _ = observe([known], FitConfig())
    assert found.tokens == pytest.approx(d) and found.flops is None and found.names[0] == "line 2"
    other = write_table(tmp_path / "b.csv", ["size", "seen", "nats"], [n, d, loss(n, d)], comment="# from a paper\n")
    names = {"parameters_column": "size", "tokens_column": "seen", "loss_column": "nats"}
    again, _ = observe([other], FitConfig(**names))
    assert again.parameters == pytest.approx(n) and again.losses == pytest.approx(found.losses)
    assert again.names[0] == "line 3"
    with pytest.raises(UserError, match="found none of them among size, seen, nats"):
        observe([other], FitConfig())
    with pytest.raises(UserError, match="no column nat; loss_column= has to be one of size, seen, nats"):
        observe([other], FitConfig(**names | {"loss_column": "nat"}))
    both = write_table(tmp_path / "c.csv", ["N", "D", "C", "L"], [n, d, 8 * n * d, loss(n, d)])
    assert observe([both], FitConfig())[0].compute == pytest.approx(8 * n * d)
    twice = write_table(tmp_path / "d.csv", ["N", "params", "D", "L"], [n, n, d, loss(n, d)])
    with pytest.raises(UserError, match="say which it is with parameters_column=N"):
        observe([twice], FitConfig())
    bad = write_table(tmp_path / "e.csv", ["N", "D", "L"], [["1e6", "x"], [1, 2], [3, 4]], comment="# one\n# two\n")
    with pytest.raises(UserError, match="line 5 has 'x' as N"):
        observe([bad], FitConfig())
    with pytest.raises(UserError, match="several columns N; rename"):
        observe([write_table(tmp_path / "f.csv", ["N", "N", "D", "L"], [n, n, d, loss(n, d)])], FitConfig())
    for arguments, message in (
        ([bad, known], "fitted alone"),
        ([tmp_path / "none.csv"], "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            observe(arguments, FitConfig())
    (tmp_path / "empty.csv").write_text("N,D,L\n")
    with pytest.raises(UserError, match="no rows"):
        observe([tmp_path / "empty.csv"], FitConfig())
    with pytest.raises(UserError, match="metric=val/x is of runs"):
        observe([known], FitConfig(metric="val/x"))


@pytest.mark.parametrize("value", ["nan", "0", "-3", "inf", ""])
@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("header", [["N", "D", "L"], ["N", "C", "L"], ["D", "C", "L"]])
def test_a_cell_that_is_no_number_above_0_is_an_error(tmp_path, value, column, header):
    rows = [["1e6", "1e8", "3"], ["2e6", "1e8", "3"]]
    rows[1][column] = value
    table = write_table(tmp_path / "a.csv", header, zip(*rows, strict=True))
    with pytest.raises(UserError, match=f"line 3 has '{value}' as {header[column]}; give a number above 0"):
        observe([table], FitConfig())


@pytest.mark.parametrize("settings", [FitConfig(), FitConfig(loss_column="zz")])
def test_a_row_with_more_cells_than_columns_is_an_error(tmp_path, settings):
    (tmp_path / "a.csv").write_text("N,D,L\n1e6,1e8,3\n2e6,1e8,3,\n")
    with pytest.raises(UserError, match="line 3 has more cells"):
        observe([tmp_path / "a.csv"], settings)


def test_a_run_and_its_reproduction_count_once(tmp_path):
    folder = write_ladder(tmp_path / "runs")
    rows = [{"step": 10, "tokens": 1280, "train/loss": 9.0, "val/loss": loss(1000, 1280)}]
    summary = {"parameters": 1000, "flops_per_token": 7000.0}
    given = {"rows": rows, "summary": summary, "budget_steps": 10}
    write_trained(folder / "n=1000,steps=10-again", **given)
    found, notes = observe([folder], FitConfig())
    assert len(found) == 9 and notes == ["left out: n=1000,steps=10-again (the same run as n=1000,steps=10)"]
    write_trained(folder / "n=1000,steps=10,seed=1", **given, seed=1)
    assert len(observe([folder], FitConfig())[0]) == 10


def test_a_fit_as_text():
    found, notes = observe([RUNS], FitConfig(min_tokens_per_parameter=0.43))
    law = fit_law(found.parameters, found.tokens, found.losses, n_bootstrap=20)
    iso = isoflops(found, law)
    out = text(law, iso, [5.76e23])
    for said in ("240 runs", "standard error", "1.817", "0.3473", "total parameters", "C = 6 N D", "5.76e+23"):
        assert said in out
    assert "biased even without noise (arXiv:2603.22339)" in out and f"{iso.bias:+.0%}" in bias_text(iso)
    assert "7e+03 N^0.5" in optima(law, [1e18], (7000, 0.5))
    assert json.dumps(law.plain()) and notes
    nothing = isoflops(found.only(np.array([0, 1, 2])))
    assert "no isoFLOP profiles" in text(law, nothing, [1e20])
