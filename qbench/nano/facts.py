"""The facts of the embedded world, and the seeded draws behind everything in it.

Every draw uses ``random.Random(int).random()``, whose stream Python guarantees: a seed gives the same world and the
same text on every version and platform.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qbench.nano import lexicon as lex

SEED = 2026
WAVE = 500
PEOPLE = 750


class Draw:
    """Seeded choices that use ``random()`` alone."""

    def __init__(self, seed: int):
        self.random = random.Random(seed).random

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.random() * n)

    def pick(self, items: Sequence) -> Any:
        """One of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence, n: int) -> list:
        """``n`` different items, in random order (a partial Fisher-Yates shuffle)."""
        pool = list(items)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def shuffled(self, items: Sequence) -> list:
        """All items, in random order."""
        return self.sample(items, len(items))


@dataclass(frozen=True)
class Person:
    """``subject`` and ``possessive`` are the pronouns of the first name; ``facts``: one value per attribute."""

    name: str
    subject: str
    possessive: str
    facts: dict[str, str]


@dataclass(frozen=True)
class World:
    """``towns`` maps a town to {river, region, goods, sight}."""

    people: tuple[Person, ...]
    towns: dict[str, dict[str, str]]


@cache
def build(people: int = PEOPLE) -> World:
    """The world; ValueError if ``people`` exceeds the number of names.

    People are drawn in waves of ``WAVE``, so a larger world contains the smaller one, on which training starts.
    """
    first_names = [(n, "She", "Her") for n in lex.WOMEN] + [(n, "He", "His") for n in lex.MEN]
    names = [(f"{first} {last}", s, p) for first, s, p in first_names for last in lex.SURNAMES]
    if not 1 <= people <= len(names):
        raise ValueError(f"people={people}, but the lexicon has {len(names)} names; use 1..{len(names)}")
    population: list[Person] = []
    towns: dict[str, dict[str, str]] = {}
    for wave in range(-(-people // WAVE)):
        draw = Draw(SEED + wave)
        population += [
            Person(name, subject, possessive, {fact: draw.pick(values) for fact, values in lex.VALUES.items()})
            for name, subject, possessive in draw.sample(names, min(WAVE, len(names)))
        ]
        towns = towns or {
            town: {fact: draw.pick(values) for fact, values in lex.PLACES.items()} for town in lex.VALUES["town"]
        }
        taken = {person.name for person in population}
        names = [name for name in names if name[0] not in taken]
    return World(tuple(population[:people]), towns)
