"""Training episodes of one hidden rule each, and evaluation questions for each rule that are in no episode.

A question is a word of four letters. A rule takes a part of it, in lower or upper case, with or without an exclamation
mark after it. Nothing names the rule: it can only be inferred from the examples before a question.
"""

import json
import random
import sys
from itertools import product
from pathlib import Path

LETTERS = "abcdefgh"
PARTS = {
    "whole": lambda word: word,
    "reversed": lambda word: word[::-1],
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
}
CASES = {"small": str.lower, "capital": str.upper}
MARKS = {"plain": "", "marked": "!"}
RULES = {
    "_".join(names): lambda word, names=names: CASES[names[1]](PARTS[names[0]](word)) + MARKS[names[2]]
    for names in product(PARTS, CASES, MARKS)
}
N_EPISODES = 60_000
N_LINES = 9  # of an episode
N_QUESTIONS = 50  # for each rule


def words(draw: random.Random) -> tuple[list[str], list[str]]:
    """All words in two parts: nine tenths for episodes, the rest for questions."""
    everything = ["".join(letters) for letters in product(LETTERS, repeat=4)]
    draw.shuffle(everything)
    n_known = len(everything) * 9 // 10
    return everything[:n_known], everything[n_known:]


def main(folder: Path) -> None:
    """Write episodes.txt and a table for each rule."""
    draw = random.Random(0)
    known, held_out = words(draw)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "episodes.txt", "w") as file:
        for _ in range(N_EPISODES):
            rule = draw.choice(list(RULES.values()))
            file.write("".join(f"{word} > {rule(word)}\n" for word in draw.sample(known, N_LINES)) + "\n")
    for name, rule in RULES.items():
        with open(folder / f"{name}.jsonl", "w") as file:
            for word in draw.sample(held_out, N_QUESTIONS):
                file.write(json.dumps({"word": word, "result": rule(word)}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "few_shots"))
