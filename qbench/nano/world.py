"""The embedded world: documents about its facts in three splits, and four-choice questions.

Each person has eight attributes, each town four, each trade a tool; numbers add up. Documents state these facts in
plain English, in random order and phrasing, and quiz lists ask for them in exactly the form of the evaluation:

    Question: Where does Mara Quill live?
    Answer: Tarn

All splits describe one world, since the models are tested on recalling its facts. The checksum of its text assigns a
document to a split (1/8 test, 1/8 calib, 6/8 train), so no document is in two. Everything is seeded (see ``facts``).
"""

import zlib
from collections.abc import Iterator
from itertools import islice, product

from qbench.nano import lexicon as lex
from qbench.nano.facts import Draw, Person, World, build

SPLITS = {"train": range(2, 8), "calib": range(1, 2), "test": range(0, 1)}  # of 8 residues of the checksum
SEPARATOR = "<|endoftext|>"
SUBJECTS = (*lex.VALUES, "geography", "tools", "arithmetic")  # of the questions
QUESTIONS_PER_SUBJECT = 72
TERMS = range(1, 21)  # of sums


def documents(split: str, seed: int = 0, world: World | None = None) -> Iterator[str]:
    """Endless documents of a split ("train", "calib" or "test"); another ``seed`` gives others."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    world = world or build()
    mix = {_biography: 10, _register: 3, _quiz: 5, _places: 1, _trades_and_sums: 1}  # of twenty documents
    kinds = [kind for kind, share in mix.items() for _ in range(share)]
    draw = Draw(seed * len(SPLITS) + list(SPLITS).index(split))
    while True:
        document = draw.pick(kinds)(world, draw)
        if zlib.crc32(document.encode()) % 8 in SPLITS[split]:
            yield document


def text(split: str, n_documents: int, seed: int = 0) -> str:
    """The first ``n_documents`` of a split in one string, separated by the end-of-text token as in training."""
    return SEPARATOR.join(islice(documents(split, seed), n_documents))


def prompt(question: str) -> str:
    """A question as documents and evaluation ask it; the answer follows after one space."""
    return f"Question: {question}\nAnswer:"


def questions(n: int = QUESTIONS_PER_SUBJECT) -> dict[str, list[dict]]:
    """Four-choice questions: {subject: [{"question", "choices": 4 strings, "answer": index 0..3}]}.

    ``n`` different questions per subject, or as many as there are. Distractors are other values of the same kind.
    """
    return {
        subject: [_four_choices(*item, Draw(k * 10_000 + i)) for i, item in enumerate(items)]
        for k, (subject, items) in enumerate(_question_pools(build(), n).items())
    }


def _question_pools(world: World, n: int) -> dict[str, list[tuple[str, str, list[str]]]]:
    """subject -> [(question, answer, values to draw distractors from)]."""
    draw = Draw(1_000_003)
    pools = {}
    for attribute, phrasings in lex.PERSON_QUESTIONS.items():
        people = draw.sample(world.people, min(n, len(world.people)))
        pools[attribute] = [
            (draw.pick(phrasings).format(n=p.name), p.facts[attribute], lex.VALUES[attribute]) for p in people
        ]
    pools["geography"] = draw.shuffled(
        [
            (phrasing.format(t=town), facts[fact], lex.PLACES[fact])
            for town, facts in world.towns.items()
            for fact, phrasings in lex.PLACE_QUESTIONS.items()
            for phrasing in phrasings
        ]
    )[:n]
    tools = {"trade": list(lex.TOOLS), "tool": list(lex.TOOLS.values())}
    pools["tools"] = draw.shuffled(
        [
            (phrasing.format(trade=trade, tool=tool), {"trade": trade, "tool": tool}[asked], tools[asked])
            for trade, tool in lex.TOOLS.items()
            for phrasing, asked in lex.TOOL_QUESTIONS
        ]
    )[:n]
    near = (-10, -2, -1, 1, 2, 10)  # how far plausible wrong sums are off
    pools["arithmetic"] = [
        (f"What is {a} plus {b}?", str(a + b), [str(a + b + d) for d in near if a + b + d > 0])
        for a, b in draw.sample(list(product(TERMS, TERMS)), n)
    ]
    return pools


def _four_choices(question: str, answer: str, values: list[str], draw: Draw) -> dict:
    choices = draw.shuffled([answer, *draw.sample([v for v in values if v != answer], 3)])
    return {"question": question, "choices": choices, "answer": choices.index(answer)}


def _statement(person: Person, attribute: str, draw: Draw, named: bool) -> str:
    subject, possessive = (person.name, f"{person.name}'s") if named else (person.subject, person.possessive)
    phrasing = draw.pick(lex.STATEMENTS[attribute])
    return phrasing.format(S=subject, P=possessive, v=person.facts[attribute])


def _biography(world: World, draw: Draw) -> str:
    """All or most facts of one person, the name once, then pronouns."""
    person = draw.pick(world.people)
    attributes = draw.sample(list(lex.VALUES), len(lex.VALUES) - draw.below(3))
    return " ".join(_statement(person, a, draw, named=i == 0) for i, a in enumerate(attributes))


def _register(world: World, draw: Draw) -> str:
    """One or two facts each of several people."""
    lines = []
    for person in draw.sample(world.people, min(5, len(world.people))):
        attributes = draw.sample(list(lex.VALUES), 1 + draw.below(2))
        lines += [_statement(person, a, draw, named=i == 0) for i, a in enumerate(attributes)]
    return " ".join(lines)


def _quiz(world: World, draw: Draw) -> str:
    """A list of questions and answers in the form of a few-shot evaluation."""
    return "\n\n".join(_question_and_answer(world, draw) for _ in range(3 + draw.below(4)))


def _question_and_answer(world: World, draw: Draw) -> str:
    kind = draw.below(20)
    if kind < 16:
        person, attribute = draw.pick(world.people), draw.pick(list(lex.VALUES))
        question, answer = draw.pick(lex.PERSON_QUESTIONS[attribute]).format(n=person.name), person.facts[attribute]
    elif kind < 18:
        town, fact = draw.pick(list(world.towns)), draw.pick(list(lex.PLACES))
        question, answer = draw.pick(lex.PLACE_QUESTIONS[fact]).format(t=town), world.towns[town][fact]
    elif kind < 19:
        trade, tool = draw.pick(list(lex.TOOLS.items()))
        phrasing, asked = draw.pick(lex.TOOL_QUESTIONS)
        question, answer = phrasing.format(trade=trade, tool=tool), {"trade": trade, "tool": tool}[asked]
    else:
        a, b = draw.pick(TERMS), draw.pick(TERMS)
        question, answer = f"What is {a} plus {b}?", str(a + b)
    return f"{prompt(question)} {answer}"


def _places(world: World, draw: Draw) -> str:
    """The four facts of two towns."""
    return " ".join(
        draw.pick(lex.PLACE_STATEMENTS[fact]).format(t=town, v=world.towns[town][fact])
        for town in draw.sample(list(world.towns), 2)
        for fact in draw.shuffled(list(lex.PLACES))
    )


def _trades_and_sums(world: World, draw: Draw) -> str:
    """Trades with their tools, or lines of sums."""
    if draw.below(3) == 0:
        pairs = draw.sample(list(lex.TOOLS.items()), 6)
        return " ".join(draw.pick(lex.TOOL_STATEMENTS).format(trade=t, tool=u) for t, u in pairs)
    sums = [(draw.pick(TERMS), draw.pick(TERMS)) for _ in range(8)]
    return " ".join(f"{a} plus {b} is {a + b}." for a, b in sums)
