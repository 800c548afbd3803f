"""A command in this process."""

import importlib

import pytest


@pytest.fixture
def say(request, capsys):
    """The verb that the test's file is named after, with these arguments: what it prints, or its error."""
    verb = request.path.stem.removeprefix("test_")

    def say(*arguments, expect=0):
        code = importlib.import_module(f"gptlab.cli.{verb}").main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == expect, err
        return out if expect == 0 else err

    return say
