"""Numbers as a person reads them."""

import pytest

from gptlab.units import PETAFLOPS_DAY, bytes_text, duration, flops_text, plural, significant, table


def test_counts_and_sizes():
    assert (plural(1, "step"), plural(2000, "step")) == ("1 step", "2,000 steps")
    assert flops_text(8_650_752) == "8.7 MFLOP"
    assert flops_text(3.2e15) == "3.2 PFLOP"
    assert flops_text(3640 * PETAFLOPS_DAY) == "3,640.0 petaflop/s-days"
    assert (bytes_text(5 * 2**20), bytes_text(2**30), bytes_text(2**41)) == ("5.0 MiB", "1.00 GiB", "2.00 TiB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (86_400 * 3.2, "3.2 days"),
        (86_400 * 365.25 * 1500, "1,500.0 years"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_small_ratios_keep_two_digits():
    assert [significant(value) for value in (0, 0.00604, 0.5, 1, 20, 1234.56)] == [
        *("0.0", "0.006", "0.5", "1.0", "20.0", "1,234.6")
    ]


def test_a_table_aligns_numbers_at_their_end_and_details_at_their_beginning():
    rows = [("model", "1,234 parameters", "small"), ("memory", "5.0 MiB", "weights"), ("run", "", "runs/a")]
    assert table(rows).splitlines() == [
        "model   1,234 parameters  small",
        "memory    5.0 MiB         weights",
        "run     runs/a",
    ]
