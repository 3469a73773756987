"""Footnotes of tables: a letter per text. Texts that differ only in their numbers share a letter."""

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Footnotes:
    """Gives letters in the order in which texts first come."""

    def __init__(self):
        self._found: dict[str, tuple[str, list[str], list[int]]] = {}

    def mark(self, text: str, count: int = 0) -> str:
        """The letter of ``text``; ``count``: how many linears of a model it is about. Errors never share a letter."""
        key = text if text.startswith("failed") else _NUMBER.sub("#", text)
        letter, texts, counts = self._found.setdefault(key, (_letter(len(self._found)), [], []))
        texts.append(text)
        counts.append(count)
        return letter

    def texts(self) -> dict[str, str]:
        """Letter: its text, with the span of the numbers in which the texts differ."""
        out = {}
        for letter, texts, counts in self._found.values():
            text = _together(sorted(set(texts), key=lambda t: ([float(x) for x in _NUMBER.findall(t)], t)))
            if max(counts):
                text += f" (in {_span(map(str, counts))} linear{'s' * (max(counts) > 1)} of the model)"
            out[letter] = text
        return out


def _together(texts: list[str]) -> str:
    """Texts that differ only in numbers, as one: with a span if one number differs, else with each version in turn."""
    pieces = list(zip(*(re.split(f"({_NUMBER.pattern})", t) for t in texts)))
    differ = [i for i, same in enumerate(pieces) if len(set(same)) > 1]
    if len(texts) == 1:
        return texts[0]
    first, last = differ[0], differ[-1] + 1
    parts = dict.fromkeys("".join(pieces[i][k] for i in range(first, last)) for k in range(len(texts)))
    middle = _span(parts) if len(differ) == 1 else " or ".join(parts)
    return "".join(p[0] for p in pieces[:first]) + middle + "".join(p[0] for p in pieces[last:])


def _span(numbers: Iterable[str]) -> str:
    """The smallest and the largest of ``numbers`` as they are written, or one of them where all are the same."""
    ordered = sorted(numbers, key=float)
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


_LETTERS = "abcdefghijklmnoprstuvwxyz"  # Unicode has no raised q


def _letter(i: int) -> str:
    size = len(_LETTERS)
    return _LETTERS[i] if i < size else _letter(i // size - 1) + _letter(i % size)
