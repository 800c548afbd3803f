"""Numbers as a person reads them."""

import pytest

from gptlab.units import PETAFLOPS_DAY, bytes_text, count_text, duration, flops_text, plural, significant, table


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


def test_a_number_that_is_rounded_up_takes_the_next_unit():
    assert [duration(s) for s in (59.4, 59.6, 3599.4, 3599.6, 86_369, 86_371)] == [
        *("59 s", "1 min", "59 min 59 s", "1 h", "23 h 59 min", "1.0 days")
    ]
    assert [count_text(n) for n in (999.4, 999.6, 9_996, 999_400, 999_600, 999_600_000, 124_439_808, 1.5e12)] == [
        *("999", "1.00k", "10.0k", "999k", "1.00M", "1.00B", "124M", "1.50T")
    ]
    assert [flops_text(n) for n in (999.94e6, 999.96e6, 999.96e12)] == ["999.9 MFLOP", "1.0 GFLOP", "1.0 PFLOP"]
    assert [bytes_text(n * 2**30) for n in (1023.99, 1023.999)] == ["1,023.99 GiB", "1.00 TiB"]
    assert [significant(n) for n in (0.94, 0.994, 0.996)] == ["0.94", "0.99", "1.0"]


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
