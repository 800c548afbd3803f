"""A command in this process."""

import pytest


@pytest.fixture
def say(request, capsys):
    """The module's `main` with these arguments: what it prints, or its error where another code is expected."""

    def say(*arguments, expect=0):
        code = request.module.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == expect, err
        return out if expect == 0 else err

    return say
