"""Episodes of one rule each to learn from, and questions for each rule that no episode has.

A question is a word of four letters, its answer a letter. The rule picks a letter of the word, and gives it or the one
after it. Nothing names the rule: it can only be told from the examples before a question.
"""

import json
import random
import sys
from pathlib import Path

LETTERS = "abcdefghij"
PICKS = {
    "first": lambda word: word[0],
    "second": lambda word: word[1],
    "third": lambda word: word[2],
    "last": lambda word: word[3],
    "smallest": min,
    "largest": max,
}


def after(letter: str) -> str:
    """The next letter; after the last comes the first."""
    return LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)]


RULES = {name: pick for name, pick in PICKS.items()}
RULES |= {f"after_{name}": lambda word, pick=pick: after(pick(word)) for name, pick in PICKS.items()}
N_EPISODES = 120_000
N_LINES = 9  # of an episode; with the blank line 64 characters, which is the model's context
N_QUESTIONS = 100  # for each rule


def words(draw: random.Random) -> tuple[list[str], list[str]]:
    """All words in two parts: nine tenths for episodes, the others for questions."""
    everything = [a + b + c + d for a in LETTERS for b in LETTERS for c in LETTERS for d in LETTERS]
    draw.shuffle(everything)
    n_known = len(everything) * 9 // 10
    return everything[:n_known], everything[n_known:]


def main(folder: Path) -> None:
    draw = random.Random(0)
    known, held_out = words(draw)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "episodes.txt", "w") as file:
        for _ in range(N_EPISODES):
            rule = draw.choice(list(RULES.values()))
            file.write("".join(f"{word}>{rule(word)}\n" for word in draw.sample(known, N_LINES)) + "\n")
    for name, rule in RULES.items():
        with open(folder / f"{name}.jsonl", "w") as file:
            for word in draw.sample(held_out, N_QUESTIONS):
                file.write(json.dumps({"word": word, "letter": rule(word)}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "few_shots"))
