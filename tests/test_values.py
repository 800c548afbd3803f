"""One coercion for text and plain values."""

from enum import Enum

import pytest

from gptlab.errors import UserError
from gptlab.values import coerce


class Color(Enum):
    red = "r"
    blue = "b"


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        ("3", int, 3),
        (3, int, 3),
        (3, float, 3.0),
        ("3e-4", float, 3e-4),
        ("true", bool, True),
        ("False", bool, False),
        ("null", int | None, None),
        (None, float | None, None),
        ("null", str, "null"),
        ("null", str | None, None),
        ("1", str, "1"),
        ("r", Color, Color.red),
        (Color.blue, Color, Color.blue),
        ("b", Color | None, Color.blue),
        ("[1,2]", list[int], [1, 2]),
        ([1, "2"], list[int], [1, 2]),
        ("5", tuple[int, ...], (5,)),
        ("a", str | tuple[str, ...] | None, "a"),
        (["a"], str | tuple[str, ...] | None, ("a",)),
        ("2", int | str, 2),
        ("auto", int | str, "auto"),
        ("auto", int | str | list[int], "auto"),
        ("[0,1]", int | str | list[int], [0, 1]),
    ],
)
def test_values(value, hint, expected):
    found = coerce("key", value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "value, hint, message",
    [
        ("a", int, "key=a must be a whole number"),
        ("1e6", int, "key=1e6 must be a whole number; write key=1000000"),
        ("1.0", int, "key=1.0 must be a whole number; write key=1"),
        (2.0, int, "key=2.0 must be a whole number; write key=2"),
        (True, int, "key=true must be a whole number"),
        ("inf", int, "key=inf must be a whole number"),
        ("a", float, "key=a must be a number"),
        (True, float, "key=true must be a number"),
        ("", float, "key= must be a number"),
        ("yes", bool, "key=yes must be true or false"),
        (1, bool, "key=1 must be true or false"),
        (1, str, "key=1 must be text"),
        ("null", int, "key=null must be a whole number"),
        (None, float, "key=null must be a number"),
        ("green", Color, "key=green is unknown; known: r, b"),
        (["a"], list[int], "key=a must be a whole number"),
        ("[1", list[int], r"key=[1 is not a list of values; write key=[one,two]"),
    ],
)
def test_refusals(value, hint, message):
    with pytest.raises(UserError) as refused:
        coerce("key", value, hint)
    assert str(refused.value).startswith(message)
    if "; write" not in message and "known" not in message:
        assert str(refused.value) == message
