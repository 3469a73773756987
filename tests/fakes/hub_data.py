"""Made-up rows of the paper's data sets, in the files and columns that they have on the Hub."""

import gzip
import io
import json
from pathlib import Path

import lm_eval.tasks
import pyarrow as pa
import pyarrow.parquet as pq

from qbench.data.sources import PINS, pinned
from qbench.nano import world

WIKI = "wikitext-2-raw-v1"


def add_data_sets(hub, subjects: tuple[str, ...] | None = None) -> None:
    """Adds every data set in ``PINS`` to ``hub`` at its pinned commit; MMLU with all its subjects, or some."""
    files: dict[str, dict[str, bytes]] = {repo: {"README.md": b"---\n---\n"} for repo in PINS}

    def add(repo: str, split: str, rows: list[dict], name: str | None = None):
        write = _json_gz if repo == "allenai/c4" else _parquet
        files[repo][pinned(repo, split, name).path] = write(rows)

    documents = [world.text("train", 24, seed=i) for i in range(40)]
    lines = [line for i in range(40) for line in ("", f" = Title {i} = \n", world.text("train", 3, seed=i) + "\n")]
    for split in ("train", "validation"):
        add("allenai/c4", split, [{"text": d, "timestamp": "2019", "url": "u"} for d in documents], "en")
    for split in ("train", "validation", "test"):
        add("Salesforce/wikitext", split, [{"text": line} for line in lines], WIKI)
        add("EleutherAI/wikitext_document_level", split, [{"page": d} for d in documents[:3]], WIKI)
        for name in ("ARC-Easy", "ARC-Challenge"):
            choices = {"text": ["Ulm", "Bonn", "Kiel", "Jena"], "label": list("ABCD")}
            row = {"id": "1", "question": "Where does Tova live?", "choices": choices, "answerKey": "B"}
            add("allenai/ai2_arc", split, [row] * 5, name)
    for split in ("train", "validation"):
        add("baber/piqa", split, [{"goal": "To rest", "sol1": "sit down.", "sol2": "run.", "label": 0}] * 5)
        hella = {"ind": 1, "activity_label": "Rest", "ctx_a": "He is here.", "ctx_b": "he", "ctx": "He is here. he"}
        hella |= {"endings": ["sits.", "flies.", "is blue.", "rains."], "source_id": "a", "split": split}
        add("Rowan/hellaswag", split, [hella | {"split_type": "indomain", "label": "0"}] * 5)
        row = {"sentence": "The cup hit the jar and the _ broke.", "option1": "cup", "option2": "jar", "answer": "2"}
        add("allenai/winogrande", split, [row] * 5, "winogrande_xl")
        row = {"question": "is it warm", "passage": "It is warm.", "idx": 0, "label": 1}
        add("aps/super_glue", split, [row] * 5, "boolq")
    for subject in subjects or mmlu_subjects():
        row = {"question": "Which is a town?", "subject": subject, "choices": ["Ulm", "tea", "red", "May"], "answer": 0}
        add("cais/mmlu", "dev", [row] * 5, subject)
        add("cais/mmlu", "test", [row] * 2, subject)
    for repo, content in files.items():
        hub.add("datasets", repo, content).commit = PINS[repo][0]


def mmlu_subjects() -> list[str]:
    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    return [path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml")]


def _parquet(rows: list[dict]) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), out := io.BytesIO())
    return out.getvalue()


def _json_gz(rows: list[dict]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
