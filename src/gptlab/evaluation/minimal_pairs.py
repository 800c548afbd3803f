"""Minimal pairs of grammar: two sentences that differ in one place, of which one is acceptable English.

In the manner of BLiMP (Warstadt et al. 2020, arXiv:1912.00582), made of a vocabulary of our own, without a download. A
model is right where the acceptable sentence has the higher log-likelihood as a whole. In each category the acceptable
sentence is as often the shorter as the longer one, so a preference for short sentences is no success.
"""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gptlab.data.tokenizers.tokenizer import Tokenizer
from gptlab.errors import UserError
from gptlab.evaluation.config import MOST_PAIRS
from gptlab.evaluation.progress import progress
from gptlab.generation.scoring import Continuation, score_continuations
from gptlab.models.base import LanguageModel


class MinimalPair(NamedTuple):
    """Two sentences that differ in one place."""

    category: str
    acceptable: str
    unacceptable: str


# Singular and plural; of people with the reflexive pronoun of each.
NOUNS = [("dog", "dogs"), ("cat", "cats"), ("bird", "birds"), ("horse", "horses"), ("child", "children")]
NOUNS += [("teacher", "teachers"), ("doctor", "doctors"), ("farmer", "farmers"), ("friend", "friends")]
THINGS = [("book", "books"), ("house", "houses"), ("tree", "trees"), ("car", "cars"), ("letter", "letters")]
THINGS += [("picture", "pictures"), ("table", "tables"), ("river", "rivers"), ("box", "boxes"), ("apple", "apples")]
PEOPLE = [("boy", "himself"), ("man", "himself"), ("king", "himself"), ("father", "himself"), ("brother", "himself")]
PEOPLE += [
    ("girl", "herself"),
    ("woman", "herself"),
    ("queen", "herself"),
    ("mother", "herself"),
    ("sister", "herself"),
]
PLURALS = {"boy": "boys", "man": "men", "king": "kings", "father": "fathers", "brother": "brothers"}
PLURALS |= {"girl": "girls", "woman": "women", "queen": "queens", "mother": "mothers", "sister": "sisters"}
# Third person singular and plural, without an object.
VERBS = [("runs", "run"), ("sleeps", "sleep"), ("plays", "play"), ("sings", "sing"), ("waits", "wait")]
VERBS += [("is here", "are here"), ("was there", "were there"), ("has left", "have left"), ("does well", "do well")]
# Past and past participle, with an object that fits.
IRREGULAR = [("broke", "broken", "the cup"), ("wrote", "written", "a letter"), ("took", "taken", "the book")]
IRREGULAR += [("ate", "eaten", "an apple"), ("saw", "seen", "the house"), ("drove", "driven", "the car")]
IRREGULAR += [("gave", "given", "an answer"), ("knew", "known", "the way"), ("chose", "chosen", "a name")]
TRANSITIVE = [("saw", "sees"), ("liked", "likes"), ("found", "finds"), ("wanted", "wants"), ("loved", "loves")]
REFLEXIVE = ["saw", "hurt", "helped", "liked", "found", "washed", "asked", "loved", "blamed", "taught", "praised"]
# A verb that takes an object beside one of the same length that takes none.
WITH_AND_WITHOUT_OBJECT = [("found", "slept"), ("liked", "dozed"), ("opened", "smiled"), ("made", "fell")]
WITH_AND_WITHOUT_OBJECT += [("carried", "arrived"), ("visited", "laughed"), ("painted", "existed")]
WITH_AND_WITHOUT_OBJECT += [("cleaned", "coughed")]
NEAR = ["near", "behind", "beside", "in front of"]


def _agreement(draw: random.Random) -> tuple[str, str]:
    number = draw.randrange(2)
    noun, verb = draw.choice(NOUNS), draw.choice(VERBS)
    return (f"The {noun[number]} {verb[number]}.", f"The {noun[number]} {verb[1 - number]}.")


def _agreement_over_noun(draw: random.Random) -> tuple[str, str]:
    """The noun beside the verb has the other number."""
    number = draw.randrange(2)
    noun, verb, near = draw.choice(NOUNS), draw.choice(VERBS), draw.choice(THINGS)
    subject = f"The {noun[number]} {draw.choice(NEAR)} the {near[1 - number]}"
    return (f"{subject} {verb[number]}.", f"{subject} {verb[1 - number]}.")


def _determiner_noun(draw: random.Random) -> tuple[str, str]:
    number = draw.randrange(2)
    determiner = draw.choice((("this", "these"), ("that", "those")))[number]
    person, thing = draw.choice(PEOPLE)[0], draw.choice(THINGS)
    start = f"The {person} {draw.choice(TRANSITIVE)[0]} {determiner}"
    return (f"{start} {thing[number]}.", f"{start} {thing[1 - number]}.")


def _reflexive_gender(draw: random.Random) -> tuple[str, str]:
    person, pronoun = draw.choice(PEOPLE)
    other = {"himself": "herself", "herself": "himself"}[pronoun]
    start = f"The {person} {draw.choice(REFLEXIVE)}"
    return (f"{start} {pronoun}.", f"{start} {other}.")


def _reflexive_number(draw: random.Random) -> tuple[str, str]:
    person, pronoun = draw.choice(PEOPLE)
    verb = draw.choice(REFLEXIVE)
    if draw.randrange(2):
        return (f"The {PLURALS[person]} {verb} themselves.", f"The {PLURALS[person]} {verb} {pronoun}.")
    return (f"The {person} {verb} {pronoun}.", f"The {person} {verb} themselves.")


def _irregular_form(draw: random.Random) -> tuple[str, str]:
    past, participle, thing = draw.choice(IRREGULAR)
    person = draw.choice(PEOPLE)[0]
    if draw.randrange(2):
        return (f"The {person} has {participle} {thing}.", f"The {person} has {past} {thing}.")
    return (f"The {person} {past} {thing}.", f"The {person} {participle} {thing}.")


def _argument_structure(draw: random.Random) -> tuple[str, str]:
    """Only a verb that takes an object can stand before one."""
    person, thing = draw.choice(PEOPLE)[0], draw.choice(THINGS)[draw.randrange(2)]
    taking, alone = draw.choice(WITH_AND_WITHOUT_OBJECT)
    return (f"The {person} {taking} the {thing}.", f"The {person} {alone} the {thing}.")


def _negative_polarity(draw: random.Random) -> tuple[str, str]:
    """`ever` needs a negation."""
    noun, thing = draw.choice(NOUNS)[0], draw.choice(THINGS)[draw.randrange(2)]
    rest = f"{noun} has ever seen the {thing}."
    return (f"{draw.choice(('No', 'Not one'))} {rest}", f"{draw.choice(('The', 'This', 'Some', 'That'))} {rest}")


CATEGORIES: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "subject_verb_agreement": _agreement,
    "agreement_over_noun": _agreement_over_noun,
    "determiner_noun_agreement": _determiner_noun,
    "reflexive_gender": _reflexive_gender,
    "reflexive_number": _reflexive_number,
    "irregular_form": _irregular_form,
    "argument_structure": _argument_structure,
    "negative_polarity": _negative_polarity,
}


def minimal_pairs(n_pairs: int, seed: int) -> list[MinimalPair]:
    """`n_pairs` different pairs of each category, 100 at the most; the first ones are those of a smaller number."""
    if n_pairs > MOST_PAIRS:
        raise UserError(f"minimal_pairs={n_pairs} is more than the {MOST_PAIRS} that each category has; ask for fewer")
    return [pair for category in CATEGORIES for pair in _pairs(category, n_pairs, seed)]


def _pairs(category: str, n_pairs: int, seed: int) -> Iterator[MinimalPair]:
    draw, seen = random.Random(f"{seed} {category}"), set()
    while len(seen) < n_pairs:
        found = CATEGORIES[category](draw)
        if found not in seen:
            seen.add(found)
            yield MinimalPair(category, *found)


def encode_pairs(
    pairs: list[MinimalPair], tokenizer: Tokenizer, model: LanguageModel
) -> list[tuple[Continuation, Continuation]]:
    """The sentences of each pair after the beginning of a text; UserError where one does not fit the context.

    Without a beginning-of-text and an end-of-text token the first token is context alone, which both sentences have to
    share.
    """
    before = list(tokenizer.beginning) or ([] if tokenizer.eot is None else [tokenizer.eot])
    found = []
    for pair in pairs:
        texts = [tokenizer.encode(text).tolist() for text in (pair.acceptable, pair.unacceptable)]
        start = before
        if not start:
            if texts[0][0] != texts[1][0]:
                raise UserError(
                    "minimal pairs need a tokenizer with an end-of-text token, or whose first token of both sentences "
                    f"is the same, unlike {pair.acceptable!r} and {pair.unacceptable!r}"
                )
            start, texts = texts[0][:1], [text[1:] for text in texts]
        longest = len(start) + max(map(len, texts)) - 1
        if longest > model.config.context_length:
            raise UserError(
                f"minimal pairs have up to {longest} tokens with this tokenizer, and the context holds "
                f"{model.config.context_length}; raise model.context_length"
            )
        found.append((Continuation(start, texts[0]), Continuation(start, texts[1])))
    return found


def judge_pairs(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pairs: list[MinimalPair],
    *,
    show: bool = False,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The fraction of pairs whose acceptable sentence is the more likely one, in all and by category.

    Equally likely sentences are no success. `between` is called after each batch.
    """
    encoded = encode_pairs(pairs, tokenizer, model)
    continuations = [one for both in encoded for one in both]
    with progress("sentences", len(continuations), show=show, between=between) as advance:
        scores = iter(score_continuations(model, continuations, advance))
    samples: list[dict[str, Any]] = []
    for pair in pairs:
        log_p = [-math.fsum(next(scores).nats.tolist()) for _ in range(2)]
        samples.append({**pair._asdict(), "log_likelihood": log_p, "correct": log_p[0] > log_p[1]})
    numbers = {"accuracy": _accuracy(samples)}
    for category in dict.fromkeys(pair.category for pair in pairs):
        numbers[f"{category}/accuracy"] = _accuracy([one for one in samples if one["category"] == category])
    return {"numbers": numbers, "samples": samples}


def _accuracy(samples: list[dict[str, Any]]) -> float:
    return sum(sample["correct"] for sample in samples) / len(samples)
