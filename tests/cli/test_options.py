"""Options of commands, parsed by their types."""

import sys
from dataclasses import dataclass, replace
from enum import Enum

import pytest
from small_runs import write_run

from gptlab import plugins
from gptlab.cli import amend, convert, embed, evaluate, generate, inspect, reproduce, verify
from gptlab.cli.options import carry_out, load_plugins, read, refuse_bare_run, without_last_line_end
from gptlab.errors import UserError
from gptlab.fields import bounded
from gptlab.quoting import unescaped
from gptlab.runs import checkpoint


class Color(Enum):
    red = "r"
    blue = "b"


HINTS = {
    "name": str,
    "n": int | None,
    "share": float,
    "color": Color,
    "sure": bool,
    "stop": list[str],
    "num_fewshot": tuple[int, ...] | None,
    "choices": str | tuple[str, ...] | None,
}


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("", {}),
        (
            "name=a=b n=3 share=1e-3 color=b sure=true",
            {"name": "a=b", "n": 3, "share": 1e-3, "color": Color.blue, "sure": True},
        ),
        ("n=null name=null", {"n": None, "name": "null"}),
        ("stop=a stop=[b]", {"stop": ["a", "[b]"]}),
        ("num_fewshot=[0,1,5]", {"num_fewshot": (0, 1, 5)}),
        ("num_fewshot=5", {"num_fewshot": (5,)}),
        ("num_fewshot=[]", {"num_fewshot": ()}),
        ("num_fewshot=null", {"num_fewshot": None}),
        ("choices=column", {"choices": "column"}),
        ("choices=[yes,no,3]", {"choices": ("yes", "no", "3")}),  # not YAML's booleans
        ("choices=[\"a,b\",'c']", {"choices": ("a,b", "c")}),
        ("choices=[[a],1.10,on,0x1,null]", {"choices": ("[a]", "1.10", "on", "0x1", "null")}),
    ],
)
def test_values(arguments, expected):
    assert read(arguments.split(), HINTS, "gptlab test") == expected


@pytest.mark.parametrize(
    "argument, message",
    [
        ("nmae=a", "unknown option nmae of gptlab test; did you mean name?"),
        ("n_samples=3", "unknown option n_samples of gptlab test; did you mean n?"),
        ("name", "name needs a value; write name="),
        ("num_fewshot=[0,a]", "num_fewshot=a must be a whole number"),
        ("num_fewshot=[0", "num_fewshot=[0 is not a list of values"),
        ("choices=[a,,b]", "choices=[a,,b] is not a list of values"),
    ],
)
def test_refusals(argument, message):
    with pytest.raises(UserError) as refused:
        read([argument], HINTS, "gptlab test", {"n_samples": "n"})
    assert message in str(refused.value)


def test_an_option_is_given_once():
    with pytest.raises(UserError, match="n= is given twice"):
        read(["n=1", "n=2"], HINTS, "gptlab test")


def test_items_are_nothing_but_text():
    values = read(["choices=[!!python/name:os.system x, !!int 3]"], HINTS, "gptlab test")["choices"]
    assert values == ("!!python/name:os.system x", "!!int 3")


@pytest.mark.parametrize("command", [generate, evaluate, convert], ids=lambda command: command.__name__)
def test_names_of_other_programs_lead_to_ours(command, capsys):
    assert command.main(["zzz=1"]) == 2
    known = capsys.readouterr().err.partition("known: ")[2].strip().split(", ")
    for theirs, ours in command.FOREIGN.items():
        assert ours in known and theirs not in known
        assert command.main([f"{theirs}=1"]) == 2
        assert capsys.readouterr().err.endswith(f"; did you mean {ours}?\n")


@pytest.mark.parametrize("command", [generate, evaluate, convert, amend], ids=lambda command: command.__name__)
def test_every_command_loads_plugins(command, tmp_path, monkeypatch, capsys):
    name = f"plugin_of_{command.__name__.rpartition('.')[2]}"
    (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('imported').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr(plugins, "_named", set())
    assert command.main([f"plugins=[{name}]"]) == 2  # something else is missing
    assert (tmp_path / "imported").is_file()
    assert "plugins" not in capsys.readouterr().err
    assert command.main(["plugins=no_such_module"]) == 2
    assert "plugins=no_such_module: there is no module of that name" in capsys.readouterr().err
    assert load_plugins([f"plugins={name}", "n=1"]) == ["n=1"]


@pytest.mark.parametrize(
    "command, options",
    [
        (generate, ["run={run}", "prompt=a"]),
        (evaluate, ["run={run}", "corpus={run}/tokenizer.json"]),
        (convert, ["from={run}", "to={run}-out"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_with_plugins_needs_them_given_again(command, options, tmp_path, monkeypatch, capsys):
    run, module = write_run(tmp_path / "run"), f"needed_by_{command.__name__.rpartition('.')[2]}"
    path = run / "checkpoints" / "best.ckpt"
    saved = checkpoint.load(path)
    state = replace(saved.state, config=saved.state.config | {"plugins": [module]})
    checkpoint.save(path, state, saved.model)
    (tmp_path / f"{module}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setattr(plugins, "_named", set())
    arguments = [option.format(run=run) for option in options]
    assert command.main(arguments) == 2
    assert f"needs the plugins {module}" in (error := capsys.readouterr().err) and f"plugins=[{module}]" in error
    assert module not in sys.modules
    assert command.main([*arguments, f"plugins=[{module}]"]) == 0
    assert module in sys.modules


def test_text_is_unescaped_once_for_every_command():
    assert unescaped(r"a\nb\tc") == "a\nb\tc"
    assert unescaped(r"a\\nb") == r"a\nb"  # a backslash, and an n
    assert unescaped([r"\n", 1]) == ["\n", 1] and unescaped((r"\\",)) == ("\\",) and unescaped(None) is None
    assert without_last_line_end("a\r\n") == without_last_line_end("a\n") == "a"
    assert without_last_line_end("a\n\n") == "a\n"


@dataclass(kw_only=True, slots=True)
class Own:
    n: int = bounded(1, ge=1)
    to: str = ""


@pytest.mark.parametrize(
    "arguments, code, printed",
    [
        (["n=3", "model.n_layer=2", "to=a b", "-m"], 0, "3 a b ['model.n_layer=2', '-m']"),
        ([], 0, "the help"),
        (["n=3", "--help"], 0, "the help"),
        (["n=0"], 2, "n=0 must be at least 1"),
        (["n=x"], 2, "n=x must be a whole number"),
        (["to=a", "to=b"], 2, "to= is given twice"),
        (["target=a"], 2, "unknown option target of gptlab some; did you mean to?"),
        (["to=refused"], 2, "no such place"),
    ],
)
def test_own_options_beside_overrides(arguments, code, printed, capsys):
    def action(own: Own, overrides: list[str]) -> None:
        if own.to == "refused":
            raise UserError("no such place")
        print(own.n, own.to, overrides)

    found = carry_out(arguments, Own, action, of="gptlab some", help="the help\n", foreign={"target": "to"})
    out, err = capsys.readouterr()
    assert found == code and printed in (out if code == 0 else err)
    assert carry_out([], Own, action, of="gptlab some", help=lambda: "made when asked\n") == 0
    assert capsys.readouterr().out == "made when asked\n"


@pytest.mark.parametrize("command", [verify, reproduce])
def test_an_infinite_tolerance_would_confirm_everything(command, capsys):
    assert command.main(["runs/a", "tolerance=inf"]) == 2
    assert "tolerance=inf must be finite" in capsys.readouterr().err


@pytest.mark.parametrize("command", [amend, embed, evaluate, generate, inspect], ids=lambda command: command.__name__)
def test_a_run_without_its_key_is_answered_with_it(command, tmp_path, capsys):
    folder = tmp_path / "a run"
    folder.mkdir()
    assert command.main([str(folder), "seed=1"]) == 2
    assert capsys.readouterr().err == f"error: {folder} lacks its key; write 'run={folder}'\n"


def test_a_folder_of_presets_is_no_run(tmp_path):
    for option in ("--config-dir", "-cd"):
        refuse_bare_run([option, str(tmp_path), "prompt=a"], {"run", "prompt"})
    with pytest.raises(UserError, match="lacks its key"):
        refuse_bare_run(["--config-dir", str(tmp_path), str(tmp_path)], {"run"})
