"""The words and phrasings of the embedded world, read from ``lexicon.yaml``."""

from pathlib import Path

import yaml

_told = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())

WOMEN, MEN, SURNAMES = (_told[kind].split() for kind in ("women", "men", "surnames"))
VALUES, PLACES = ({fact: words.split() for fact, words in _told[kind].items()} for kind in ("values", "places"))
STATEMENTS, PERSON_QUESTIONS = _told["statements"], _told["questions"]
PLACE_STATEMENTS, PLACE_QUESTIONS = _told["place_statements"], _told["place_questions"]
TOOLS = dict(zip(VALUES["trade"], _told["tools"].split()))
TOOL_STATEMENTS, TOOL_QUESTIONS = _told["tool_statements"], _told["tool_questions"]
