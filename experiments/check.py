"""Run what experiments/claims.yaml claims again, and print the claimed beside the obtained numbers.

    python experiments/check.py                       the claims that take up to five minutes each
    python experiments/check.py --minutes 20          those that take longer too
    python experiments/check.py shakespeare_char_cpu  these claims alone
    python experiments/check.py --list                what there is, without a run
    python experiments/check.py verdict_val -- data.path=FILE     with overrides, as of a text that is not to be fetched

Runs are kept in runs/claims, so that a second call only reads them; `gptlab verify runs/claims/NAME` checks one.
Exit code 1 where a number is off by more than its tolerance, or a run failed.
"""

import argparse
import json
import platform
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import yaml

FIELDS = {"overrides", "metric", "claimed", "tolerance", "minutes"}


def read_claims(path: Path) -> dict[str, dict]:
    claims = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, claim in claims.items():
        if not FIELDS <= claim.keys() <= FIELDS | {"python"}:
            sys.exit(f"error: {path}: {name} needs {', '.join(sorted(FIELDS))}, and may have python")
    return claims


def carry_out(claim: dict, folder: Path, overrides: list[str]) -> float | None:
    """The claim's metric of its run, which is trained where it has not been; None where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    typed = [*claim["overrides"], *overrides]
    # Claims about one run share it.
    run = folder / sha256(json.dumps(typed).encode()).hexdigest()[:8]
    command = [sys.executable, "-m", "gptlab.cli.main", "train", *typed, f"run_dir={run}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    if done.returncode:
        return None
    return json.loads((run / "summary.json").read_text()).get(claim["metric"])


def row(name: str, claim: dict, obtained: float | None) -> tuple[list[str], bool | None]:
    """A line of the table, and whether the claim holds; None where it is not to be expected here."""
    python = claim.get("python")
    expected = python in (None, platform.python_version())
    if obtained is None:
        return [name, claim["metric"], f"{claim['claimed']:.4f}", "none", "", f"{claim['tolerance']}", "failed"], False
    off = obtained - claim["claimed"]
    holds = abs(off) <= claim["tolerance"]
    verdict = "holds" if holds else "DOES NOT HOLD" if expected else f"other text: claimed with Python {python}"
    numbers = [f"{claim['claimed']:.4f}", f"{obtained:.4f}", f"{off:+.4f}", f"{claim['tolerance']}"]
    return [name, claim["metric"], *numbers, verdict], holds if expected else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="claims; all by default")
    parser.add_argument("--minutes", type=float, default=5.0, help="leave out claims that take longer")
    parser.add_argument("--claims", type=Path, default=Path(__file__).with_name("claims.yaml"))
    parser.add_argument("--to", type=Path, default=Path("runs/claims"), help="where the runs are kept")
    parser.add_argument("--list", action="store_true", help="show the claims without a run")
    typed = sys.argv[1:]
    end = typed.index("--") if "--" in typed else len(typed)
    given, overrides = parser.parse_args(typed[:end]), typed[end + 1 :]
    claims = read_claims(given.claims)
    if unknown := set(given.names) - set(claims):
        parser.error(f"unknown claim {', '.join(sorted(unknown))}; known: {', '.join(claims)}")
    short = [name for name, claim in claims.items() if claim["minutes"] <= given.minutes]
    chosen = {name: claim for name, claim in claims.items() if name in (given.names or short)}
    if given.list:
        for name, claim in claims.items():
            print(f"{name}: {claim['metric']} {claim['claimed']} +- {claim['tolerance']}, {claim['minutes']} minutes")
        return 0
    table, held = [["claim", "metric", "claimed", "obtained", "off by", "tolerance", ""]], []
    for name, claim in chosen.items():
        print(f"{name}: gptlab train {' '.join([*claim['overrides'], *overrides])}", file=sys.stderr, flush=True)
        line, holds = row(name, claim, carry_out(claim, given.to, overrides))
        table.append(line)
        held.append(holds)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    left = len(claims) - len(chosen)
    print(f"{sum(h is True for h in held)} of {len(held)} claims hold; {left} left out")
    return int(any(h is False for h in held))


if __name__ == "__main__":
    sys.exit(main())
