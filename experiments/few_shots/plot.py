"""Prints the accuracy over the number of examples and draws accuracy.png beside this file.

python experiments/few_shots/plot.py few_shots/*.json
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

from make_data import RULES, words
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

N_DRAWS = 4000
MARKERS = {"whole": "o", "reversed": "s", "first": "^", "last": "v"}


def main(results: list[Path]) -> None:
    """`results` are files that `gptlab evaluate to=` wrote, one per rule and named like it."""
    accuracy = {path.stem: read(path) for path in results}
    shots = sorted(next(iter(accuracy.values())))
    mean = {n: sum(of[n] for of in accuracy.values()) / len(accuracy) for n in shots}
    by_part = {
        part: {n: sum(of[n] for rule, of in accuracy.items() if rule.startswith(part)) / 4 for n in shots}
        for part in MARKERS
    }
    best = {n: best_accuracy(n) for n in shots}
    forms = read_forms(results)
    print("shots  " + "  ".join(["mean", *by_part, "form", "best"]))
    for n in shots:
        print(f"{n:5}  " + "  ".join(f"{of[n]:.3f}" for of in (mean, *by_part.values(), forms, best)))
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(shots))
    for part, marker in MARKERS.items():
        axes.plot(places, list(by_part[part].values()), marker, color="tab:orange", alpha=0.6, label=f"rules of {part}")
    axes.plot(places, list(mean.values()), "o-", color="tab:blue", label=f"all {len(accuracy)} rules")
    axes.plot(places, list(forms.values()), "x", color="tab:blue", label="right in case, mark and length")
    axes.plot(places, list(best.values()), "--", color="tab:green", label="upper bound from the examples")
    axes.axhline(1 / len(RULES), color="gray", linestyle=":", label="chance: one of the rules is guessed")
    axes.set_xticks(places, shots)
    axes.set_xlabel("examples before the question")
    axes.set_ylabel("exact answers")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.78))
    figure.savefig(Path(__file__).with_name("accuracy.png"), dpi=110)


def read(path: Path) -> dict[int, float]:
    """The fraction of exact answers by the number of examples."""
    (result,) = json.loads(path.read_text())["results"]
    names = [(name.split("/"), value) for name, value in result["numbers"].items()]
    return {int(parts[0].removeprefix("num_fewshot=")): value for parts, value in names if parts[-1] == "exact_match"}


def read_forms(results: list[Path]) -> dict[int, float]:
    """The fraction of answers with the right case, mark and length by the number of examples."""
    right: dict[int, list[bool]] = {}
    for path in results:
        for row in json.loads(path.read_text())["results"][0]["rows"]:
            for answer in row["answers"]:
                same = form(answer["text"].strip()) == form(row["reference"])
                right.setdefault(answer["num_fewshot"], []).append(same)
    return {n: sum(found) / len(found) for n, found in right.items()}


def form(text: str) -> tuple[bool, bool, int]:
    """Case, mark and length."""
    return text.isupper(), text.endswith("!"), len(text)


def best_accuracy(n_shots: int) -> float:
    """How often the most likely answer is right if all rules are known and the examples leave out some."""
    draw = random.Random(0)
    _, held_out = words(draw)
    right = 0.0
    for _ in range(N_DRAWS):
        rule = draw.choice(list(RULES.values()))
        *shown, asked = draw.sample(held_out, n_shots + 1)
        left = [other for other in RULES.values() if all(other(word) == rule(word) for word in shown)]
        answers = Counter(other(asked) for other in left)
        right += max(answers.values()) / len(left)
    return right / N_DRAWS


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
