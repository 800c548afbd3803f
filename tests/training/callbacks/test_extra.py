"""Other people's callbacks, also from Python."""

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from small_runs import small_run

from gptlab import UserError, train
from gptlab.training.callbacks.extra import REFUSED, build_extra, check_extra, stopped_early

STOP = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss", "stopping_threshold": 1e9}


def test_a_callback_of_the_config_works_from_python_too(tmp_path):
    config = small_run(tmp_path / "run")
    config.callbacks.extra = {"stop": STOP}
    summary = train(config).summary
    assert (summary["steps"], summary["finished"], summary["stopped_early"]) == (5, True, True), "the first validation"


def test_a_run_that_was_stopped_early_goes_on_only_when_asked(tmp_path, capsys):
    config = small_run(tmp_path / "run")
    config.callbacks.extra = {"stop": STOP}
    train(config)
    assert "(stopped early)" in capsys.readouterr().out
    again = train(config)
    assert "is finished after 5 steps (stopped early; resume=" in capsys.readouterr().out
    assert again.summary["steps"] == 5 and again.events()[-1]["event"] == "stopped early"
    config.callbacks.extra, config.resume = {}, str(tmp_path / "run")
    summary = train(config).summary
    assert (summary["steps"], summary["finished"], summary["stopped_early"]) == (10, True, False)


def test_a_limit_on_time_is_no_early_stop():
    timer = Timer(duration="00:00:00:01")
    timer._duration = 0
    own = EarlyStopping("val/loss")
    assert stopped_early([own], [], asked=True) and not stopped_early([own], [], asked=False)
    assert not stopped_early([own], [timer], asked=True), "trainer.max_time"
    assert not stopped_early([], [], asked=True) and not stopped_early([timer], [timer], asked=True)
    assert not stopped_early([Timer(duration="01:00:00:00")], [], asked=True), "Lightning's own doing"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_lightning_has_and_a_run_cannot_have_is_refused_by_name(kind):
    target = f"lightning.pytorch.callbacks.{kind.__name__}"
    with pytest.raises(UserError, match=f"callbacks.extra.x._target_={target} does not work in a run of gptlab: "):
        build_extra({"x": {"_target_": target, "made_up": 1}})


def test_every_callback_of_lightning_was_tried():
    import lightning.pytorch.callbacks as there

    work = {"Callback", "EarlyStopping", "LambdaCallback", "ModelSummary", "RichModelSummary", "Timer"}
    for name in set(there.__all__) - work:
        assert issubclass(getattr(there, name), tuple(REFUSED)), name


@pytest.mark.parametrize(
    ("options", "measured", "message"),
    [
        ({"monitor": "loss"}, ["train/loss", "val/loss"], "monitor=loss is not measured .* did you mean val/loss"),
        ({"monitor": "train/loss"}, ["train/loss", "val/loss"], "monitor=train/loss"),
        ({"monitor": "val/loss"}, ["train/loss"], "set data.val_fraction above 0"),
        ({"monitor": "val/loss", "check_on_train_epoch_end": True}, ["val/loss"], "leave it out"),
    ],
)
def test_early_stopping_that_would_never_come_is_refused(options, measured, message):
    with pytest.raises(UserError, match=message):
        check_extra([EarlyStopping(**options)], ["step", "perf/memory_gib", *measured])


def test_a_refusal_from_python_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"ModelCheckpoint does not work .* callbacks.checkpoint.every_steps"):
        train(small_run(tmp_path / "run"), callbacks=[ModelCheckpoint()])
    assert not (tmp_path / "run").exists()


def test_arguments_reach_the_class():
    (timer,) = build_extra({"clock": {"_target_": "lightning.pytorch.callbacks.Timer", "duration": "00:00:01:00"}})
    assert isinstance(timer, Timer) and timer.time_remaining() == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"_target_": "nothing.Nope"}, r"callbacks\.extra\.x\._target_=nothing\.Nope does not exist"),
        ({"_target_": "lightning.pytorch.callbacks.Nope"}, r"does not exist; write it as in an import"),
        ({"_target_": "lightning.pytorch.callbacks.Timer", "minutes": 3}, r"does not take these arguments: .*minutes"),
        ({"_target_": "collections.OrderedDict"}, r"is no Lightning callback"),
        ({"monitor": "val/loss"}, r"set callbacks\.extra\.x\._target_=module\.Class"),
    ],
)
def test_a_wrong_callback_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_extra({"x": options})
