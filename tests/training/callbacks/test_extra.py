"""Other people's callbacks, also from Python."""

import pytest
from lightning.pytorch.callbacks import Timer
from small_runs import small_run

from gptlab import UserError, train
from gptlab.training.callbacks.extra import build_extra

STOP = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss", "stopping_threshold": 1e9}


def test_a_callback_of_the_config_works_from_python_too(tmp_path):
    config = small_run(tmp_path / "run")
    config.callbacks.extra = {"stop": STOP}
    summary = train(config).summary
    assert summary["steps"] == 5 and not summary["finished"], "it stops after the first validation"


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
