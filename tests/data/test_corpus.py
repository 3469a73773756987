"""Text to token ids: the draws against independent loops, no BOS, and errors that say what to do."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import DATA
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import qbench
from qbench.data.corpus import Calibration, Corpus, sha256_of_tokens
from qbench.data.windows import windows
from qbench.nano import world


@pytest.fixture(scope="module")
def tokenizer(nano_tokenizer):
    return nano_tokenizer


@pytest.fixture
def encode(tokenizer):
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data_dir with 40 C4 documents, nano text of very different lengths, and WikiText-2 lines."""
    root = tmp_path_factory.mktemp("data")
    documents = [world.text("train", 1 + i % 7, seed=i) for i in range(40)]
    lines = [line for i in range(30) for line in ("", f" = Title {i} = \n", world.text("train", 2, seed=i) + "\n")]
    for name, texts in [("c4/c4-train", documents), ("c4/c4-validation", documents[:5])]:
        write(root / f"{name}.parquet", texts)
    for name in ("wikitext2/raw_train", "wikitext2/raw_test"):
        write(root / f"{name}.parquet", lines)
    return root


def write(file: Path, texts: list[str]) -> None:
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": texts}), file)


def texts(file: Path) -> list[str]:
    return pq.read_table(file)["text"].to_pylist()


def test_nano_calibration(tokenizer, encode):
    ids_BT = Calibration("nano").tokens(tokenizer)
    assert ids_BT.shape == (64, 256)
    assert ids_BT.dtype == torch.int64
    stream = encode(world.text("calib", 2000, seed=0))
    assert ids_BT.flatten().tolist() == stream[: 64 * 256]
    more = Calibration("nano", n=300, length=256).tokens(tokenizer)
    assert torch.equal(more[:64], ids_BT)
    assert not torch.equal(Calibration("nano", seed=1).tokens(tokenizer), ids_BT)


def test_c4_is_gptqs_draw_without_repetition(tokenizer, encode, folder):
    documents, rng, expected, used = texts(folder / "c4/c4-train.parquet"), random.Random(3), [], set()
    while len(expected) < 6:
        i = rng.randint(0, len(documents) - 1)
        ids = encode(documents[i])
        if i not in used and len(ids) > 200:
            start = rng.randint(0, len(ids) - 200 - 1)
            expected.append(ids[start : start + 200])
        used.add(i)
    got = Calibration("c4", n=6, length=200, seed=3).tokens(tokenizer, folder)
    assert got.tolist() == expected


def test_lines_are_short_documents_joined_and_cut(tokenizer, encode, folder):
    documents, rng = texts(folder / "c4/c4-train.parquet"), random.Random(42)
    rng.shuffle(documents)
    short = [ids for text in documents if len(ids := encode(text.strip())) <= 150][:9]
    stream = [token for ids in short for token in ids]
    got = Calibration("c4", n=9, length=150, seed=42, draw="lines").tokens(tokenizer, folder)
    assert got.flatten().tolist() == stream[: len(stream) // 150 * 150]
    nano = Calibration("nano", n=20, length=64, draw="lines")
    assert len(nano.tokens(tokenizer)) < 20
    assert nano.science(tokenizer)["draw"] == "lines"
    with pytest.raises(ValueError, match=r"asked for 40 calibration documents of at most 50 tokens, but there are"):
        Calibration("c4", n=40, length=50, draw="lines").tokens(tokenizer, folder)
    with pytest.raises(ValueError, match=r"calib.draw=lines needs documents"):
        Calibration("wikitext2", draw="lines")


def test_released_c4_windows_start_where_the_study_said(tokenizer, encode, tmp_path):
    places = json.loads((Path(qbench.__file__).parent / "data" / "released_c4_windows.json").read_text())
    assert len(places["document"]) == len(places["offset"]) == 256
    assert max(places["document"]) == 45219
    assert len(set(places["document"])) == 231
    documents = [world.text("train", 1, seed=i % 50) * (60 if i % 50 == 31 else 1) for i in range(45220)]
    (tmp_path / "c4").mkdir()
    write(tmp_path / "c4/c4-validation.parquet", documents)
    ids = Corpus("c4", c4="released").tokens(tokenizer, tmp_path)
    expected = []
    for document, offset in zip(places["document"], places["offset"]):
        expected += encode(documents[document])[offset : offset + 2048]
    assert ids.tolist() == expected
    write(tmp_path / "c4/c4-validation.parquet", documents[:100])
    with pytest.raises(ValueError, match=r"document 45219 .* but this part of C4 has 100 documents"):
        Corpus("c4", c4="released").tokens(tokenizer, str(tmp_path) + "/.")


def test_c4_with_too_few_long_documents(tokenizer, encode, folder):
    found = sum(len(encode(d)) > 400 for d in texts(folder / "c4/c4-train.parquet"))
    with pytest.raises(ValueError, match=rf"asked for 40 .* longer than 400 .* has {found} among 40; lower calib.n"):
        Calibration("c4", n=40, length=400).tokens(tokenizer, folder)


def test_wikitext2_windows_are_gptqs(tokenizer, encode, folder):
    ids = encode("\n\n".join(texts(folder / "wikitext2/raw_train.parquet")))
    rng = random.Random(0)
    starts = [rng.randint(0, len(ids) - 65) for _ in range(5)]
    got = Calibration("wikitext2", n=5, length=64).tokens(tokenizer, folder)
    assert got.tolist() == [ids[s : s + 64] for s in starts]


def test_text_windows_are_disjoint(tokenizer, encode, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(world.text("train", 30))
    chunks = windows(torch.tensor(encode(file.read_text())), 32).tolist()
    got = Calibration("text", n=len(chunks), length=32, path=str(file)).tokens(tokenizer).tolist()
    assert got != chunks
    assert sorted(got) == sorted(chunks)


def test_file_formats_agree_and_an_edited_file_is_read_again(tokenizer, tmp_path):
    documents = [world.text("test", 3, seed=i) for i in range(4)]
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": d, "url": ""}) for d in documents))
    write(tmp_path / "a.parquet", documents)
    ids = [Corpus(path=str(tmp_path / f"a{s}")).tokens(tokenizer) for s in (".txt", ".jsonl", ".parquet")]
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[0], ids[2])
    (tmp_path / "a.txt").write_text(documents[0] + "!")
    assert len(Corpus(path=str(tmp_path / "a.txt")).tokens(tokenizer)) < len(ids[0])


def test_a_path_is_read_instead_of_the_source(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(world.text("test", 50))
    assert Corpus("wikitext2", path=str(tmp_path / "a.txt")).source == "text"
    science = Calibration("c4", n=4, length=64, path=str(tmp_path / "a.txt")).science(tokenizer)
    assert science["source"] == "text"
    assert str(tmp_path) not in json.dumps(science)


def test_no_bos_is_added(tokenizer):
    bos = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    special = [("<|endoftext|>", bos.eos_token_id)]
    template = TemplateProcessing(single="<|endoftext|> $A", special_tokens=special)
    bos.backend_tokenizer.post_processor = template
    assert bos("He")["input_ids"][0] == bos.eos_token_id
    assert torch.equal(Corpus("nano").tokens(bos), Corpus("nano").tokens(tokenizer))


def test_corpora_from_a_folder(tokenizer, encode, folder):
    wikitext = Corpus("wikitext2").tokens(tokenizer, folder)
    assert wikitext.tolist() == encode("\n\n".join(texts(folder / "wikitext2/raw_test.parquet")))
    c4 = Corpus("c4").tokens(tokenizer, folder)
    assert c4.tolist() == encode(" ".join(texts(folder / "c4/c4-validation.parquet")))


@pytest.mark.parametrize("place", ["c4", "c4/en"])
def test_c4s_own_shards_in_a_folder(tokenizer, folder, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    for split, shard in (("train", "train.00000-of-01024"), ("validation", "validation.00000-of-00008")):
        documents = [{"text": t, "timestamp": "2019", "url": "u"} for t in texts(folder / f"c4/c4-{split}.parquet")]
        lines = "".join(json.dumps(d) + "\n" for d in documents)
        (tmp_path / place / f"c4-{shard}.json.gz").write_bytes(gzip.compress(lines.encode()))
    for draw in ("windows", "lines"):
        calib = Calibration("c4", n=4, length=150, draw=draw)
        assert torch.equal(calib.tokens(tokenizer, tmp_path), calib.tokens(tokenizer, folder))
    assert torch.equal(Corpus("c4").tokens(tokenizer, tmp_path), Corpus("c4").tokens(tokenizer, folder))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: gzip.compress(b'{"body": "x"}'), lambda _: b"x"]
)
def test_a_damaged_shard_of_c4(tokenizer, tmp_path, damage):
    (tmp_path / "c4").mkdir()
    content = gzip.compress("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(9999)).encode())
    (tmp_path / "c4/c4-validation.00000-of-00008.json.gz").write_bytes(damage(content))
    with pytest.raises(
        ValueError, match=r"00008.json.gz is not a JSON lines file with a `text` column, or it is damaged"
    ):
        Corpus("c4").tokens(tokenizer, tmp_path)


def test_windows():
    ids = torch.arange(10)
    assert windows(ids, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows(ids, 4, limit=1).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="windows of 11 tokens, but the text has only 10"):
        windows(ids, 11)


def test_hash_depends_on_values_and_shape_only():
    ids = torch.arange(12)
    assert sha256_of_tokens(ids) == sha256_of_tokens(ids.to(torch.int32))
    assert sha256_of_tokens(ids) != sha256_of_tokens(ids.view(3, 4))
    assert sha256_of_tokens(ids) != sha256_of_tokens(ids + 1)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (dict(source="pile"), ValueError, "calib.source must be nano, c4, wikitext2 or text, got 'pile'"),
        (dict(source="text"), ValueError, "needs calib.path"),
        (dict(source="nano", n=0), ValueError, "calib.n must be a whole number of at least 1 or null, got 0"),
        (dict(source="text", path="missing.txt"), FileNotFoundError, "no such text file: missing.txt"),
    ],
)
def test_bad_calibration(tokenizer, fields, error, message):
    with pytest.raises(error, match=message):
        Calibration(**fields).tokens(tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "asked for 128 calibration windows of 2048 tokens, but .*a.txt has only 0 tokens"),
        ("a.txt", b"He is here. " * 50, "has only .* tokens, 0 windows; use a longer text, or lower calib.n"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"body": "x"}', "is not a JSON lines file with a `text` column, or it is damaged"),
        ("a.parquet", b"nothing", "is not a parquet file with a `text` column, or it is damaged"),
    ],
)
def test_bad_files(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Calibration("text", path=str(tmp_path / name)).tokens(tokenizer)


def test_an_empty_evaluation_text(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match="holds no text"):
        Corpus(path=str(tmp_path / "a.txt")).tokens(tokenizer)


def test_what_is_not_in_the_folder(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"wikitext \(train\) .* has no wikitext2/raw_train\*.parquet; add"):
        Calibration("wikitext2").tokens(tokenizer, tmp_path)


@pytest.mark.data
def test_wikitext2_with_the_qwen3_tokenizer(qwen3_tokenizer):
    ids = Corpus("wikitext2").tokens(qwen3_tokenizer, DATA)
    assert len(ids) == 299_078
    assert windows(ids, 2048).shape == (146, 2048)


@pytest.mark.data
def test_c4_with_the_qwen3_tokenizer(qwen3_tokenizer, tmp_path):
    assert len(Corpus("c4").tokens(qwen3_tokenizer, DATA)) == 515_494
    with pytest.raises(FileNotFoundError, match=r"has no c4/\*train\*.parquet"):
        Calibration("c4", n=4).tokens(qwen3_tokenizer, DATA)
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "train.parquet").symlink_to(next(DATA.resolve().glob("c4/*.parquet")))
    assert Calibration("c4", n=4).tokens(qwen3_tokenizer, tmp_path).shape == (4, 2048)
