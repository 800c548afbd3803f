"""Words of commands, read by their types."""

from enum import Enum

import pytest

from gptlab.cli.options import read


class Colour(Enum):
    red = "r"
    blue = "b"


HINTS = {
    "name": str,
    "n": int | None,
    "share": float,
    "color": Colour,
    "sure": bool,
    "stop": list[str],
    "shots": tuple[int, ...] | None,
    "choices": str | tuple[str, ...] | None,
}


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", {}),
        ("name=a=b n=3 share=1e-3 color=b sure=true", {"name": "a=b", "n": 3, "share": 1e-3, "color": Colour.blue}),
        ("n=null name=null", {"n": None, "name": "null"}),
        ("stop=a stop=[b]", {"stop": ["a", "[b]"]}),
        ("shots=[0,1,5]", {"shots": (0, 1, 5)}),
        ("shots=5", {"shots": (5,)}),
        ("shots=[]", {"shots": ()}),
        ("shots=null", {"shots": None}),
        ("choices=column", {"choices": "column"}),
        ("choices=[yes,no,3]", {"choices": ("yes", "no", "3")}),  # no YAML truth
        ("choices=[\"a,b\",'c']", {"choices": ("a,b", "c")}),
    ],
)
def test_values(words, expected):
    if "sure" in words:
        expected = expected | {"sure": True}
    assert read(words.split(), HINTS, "gptlab test") == expected


@pytest.mark.parametrize(
    "word, message",
    [
        ("nmae=a", "nmae is not a word of gptlab test; did you mean name?"),
        ("name", "name needs a value; write name="),
        ("n=a", "n=a must be a whole number"),
        ("n=1.0", "n=1.0 must be a whole number"),
        ("share=a", "share=a must be a number"),
        ("color=green", "color=green is unknown; known: r, b"),
        ("sure=yes", "sure=yes must be true or false"),
        ("shots=[0,a]", "shots=a must be a whole number"),
        ("shots=[0", "shots=[0 is not a list of values"),
        ("choices=[[a],b]", "choices=[[a],b] is not a list of values"),
    ],
)
def test_refusals(word, message):
    with pytest.raises(ValueError) as told:
        read([word], HINTS, "gptlab test")
    assert message in str(told.value)


def test_said_twice():
    with pytest.raises(ValueError, match="n= is said twice"):
        read(["n=1", "n=2"], HINTS, "gptlab test")


def test_tags_of_yaml_make_nothing_but_text():
    values = read(["choices=[!!python/name:os.system x, !!int 3]"], HINTS, "gptlab test")["choices"]
    assert values == ("x", "3")
