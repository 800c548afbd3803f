"""Numbers with their units, as a person reads them."""

from collections.abc import Sequence

PETAFLOPS_DAY = 1e15 * 86_400


def plural(count: int, one: str) -> str:
    """`1 step`, `2,000 steps`."""
    return f"{count:,} {one}" + "s" * (count != 1)


def significant(value: float) -> str:
    """A number with two significant digits where it is small, and one decimal where it is not."""
    return f"{value:,.1f}" if float(f"{value:.2g}") >= 1 or value == 0 else f"{value:.2g}"


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Lines of a name, a quantity with its unit, and details, in columns; numbers are aligned at their end."""
    numbers = {quantity: quantity.partition(" ")[::2] for _, quantity, _ in rows}
    widths = [max(len(part) for part in column) for column in zip(*numbers.values(), strict=True)]
    names = max(len(name) for name, _, _ in rows)
    return "\n".join(
        f"{name:<{names}}  {numbers[q][0]:>{widths[0]}} {numbers[q][1]:<{widths[1]}}  {details}"
        if q
        else f"{name:<{names}}  {details}"
        for name, q, details in rows
    )


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], *, n_left: int = 1) -> str:
    """Lines of cells in columns under their names.

    Columns of numbers, and others that no cell of text is in, end at the right; the first `n_left` begin at the left.
    """
    cells = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    left = [i < n_left or any(cell[:1].isalpha() for cell in column[1:]) for i, column in enumerate(cells)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if begins else cell.rjust(width)
            for cell, width, begins in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in (header, *rows)
    )


def bytes_text(size: float) -> str:
    """A number of bytes in MiB, GiB or TiB."""
    if round(size / 2**30, 2) >= 1024:  # as it would be printed
        return f"{size / 2**40:,.2f} TiB"
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def flops_text(count: float) -> str:
    """A number of floating-point operations, a large one in petaflop/s-days."""
    if count >= PETAFLOPS_DAY / 10:
        return f"{count / PETAFLOPS_DAY:,.1f} petaflop/s-days"
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if round(1000 * count / size, 1) >= 1000:  # as it would be printed with the smaller prefix
            return f"{count / size:,.1f} {prefix}FLOP"
    return f"{count / 1e6:,.1f} MFLOP"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 10 min`, `3.2 days`, `1.5 years`."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if round(seconds) < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if round(seconds / 60) < 24 * 60:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days = seconds / 86_400
    return f"{days:,.1f} days" if round(days, 1) < 365 else f"{days / 365.25:,.1f} years"


def count_text(count: float) -> str:
    """A large number with three significant digits: `124M`, `1.50T`."""
    for size, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        value = float(f"{count / size:.3g}")  # rounded first: 999,600 is 1.00M, and not 1000k
        if value >= 1:
            return f"{value:,.{max(0, 3 - len(str(int(value))))}f}{prefix}"
    return f"{count:.0f}"
