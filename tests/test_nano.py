"""The embedded world, its tokenizer, its models and their outliers."""

import copy
import hashlib
import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.nano_training import outliers, quiz, train
from experiments.nano_training.trainings import TRAININGS, Training
from qbench.models.checkpoint import NANO
from qbench.nano import lexicon, world
from qbench.nano.facts import WAVE, Draw, build

PINNED = {
    "train": "28b5db7e051d0e6e941d589473b1e063cf4726fb4086e951139b15a987eedff4",
    "calib": "a7c3f36c7d863f151855948ac931df189e03ac9018aebc2998bcad1ff0f200fe",
    "test": "530e291465b2bad3a3c58d771322d82700f15c614329fb1211fd4a25bacfb552",
    "questions": "20df09e5ab884f98daf123730b253a23b0a44f678ed9676a3ef3df3381e074f6",
}
SUBJECTS = [*lexicon.VALUES, "geography", "tools", "arithmetic"]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load(size: str):
    folder = NANO / f"nano-{size}"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def models():
    return {size: load(size) for size in TRAININGS}


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small run no faster on more, and far slower on cores that are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("split", list(world.SPLITS))
def test_the_text_of_a_split_is_pinned(split):
    assert sha256(world.text(split, 200)) == PINNED[split]


def test_the_questions_are_pinned():
    assert sha256(json.dumps(world.questions(), sort_keys=True)) == PINNED["questions"]


def test_no_document_is_in_two_splits_and_another_seed_gives_others():
    train, calib, test = (set(islice(world.documents(s), n)) for s, n in zip(world.SPLITS, (20_000, 1000, 1000)))
    assert train.isdisjoint(calib)
    assert test.isdisjoint(train | calib)
    assert world.text("test", 20, seed=1) != world.text("test", 20)


def test_questions_have_four_different_choices_and_cover_every_subject():
    questions = world.questions()
    assert list(questions) == SUBJECTS
    for subject, items in questions.items():
        assert len(items) == world.QUESTIONS_PER_SUBJECT, subject
        assert len({q["question"] for q in items}) == len(items), subject
        assert all(len(set(q["choices"])) == 4 for q in items), subject
        assert {q["answer"] for q in items} == {0, 1, 2, 3}, subject


def test_answers_are_the_facts_of_the_world():
    facts = {p.name: p.facts for p in build().people}
    questions = world.questions()
    for attribute in lexicon.VALUES:
        for q in questions[attribute]:
            (name,) = [n for n in facts if n in q["question"]]
            assert q["choices"][q["answer"]] == facts[name][attribute]
    for q in questions["arithmetic"]:
        a, b = (int(word.strip("?")) for word in q["question"].split() if word.strip("?").isdigit())
        assert q["choices"][q["answer"]] == str(a + b)
    towns = build().towns
    for q in questions["geography"]:
        (town,) = [t for t in towns if f" {t} " in q["question"] or f" {t}?" in q["question"]]
        assert q["choices"][q["answer"]] in towns[town].values()
    for q in questions["tools"]:
        answer = q["choices"][q["answer"]]
        tool = lexicon.TOOLS.get(answer, answer)
        trade = next(t for t, u in lexicon.TOOLS.items() if u == tool)
        assert f" {tool} " in q["question"].replace("?", " ?") or f" {trade} " in q["question"].replace("?", " ?")


def test_documents_state_the_facts_of_the_world():
    checked = 0
    for document in islice(world.documents("test"), 50):
        named = [p for p in build().people if p.name in document]
        if len(named) == 1 and "Question" not in document:
            stated = sum(value in document for value in named[0].facts.values())
            assert document.count(".") <= stated
            checked += 1
    assert checked > 10


def test_a_larger_world_holds_the_smaller_one():
    small, large = build(people=300), build(people=WAVE + 200)
    assert large.people[:300] == small.people
    assert large.towns == small.towns
    assert len({p.name for p in large.people}) == WAVE + 200


def test_unknown_split_and_too_many_people_are_refused():
    with pytest.raises(ValueError, match="unknown split 'dev'; use one of train, calib, test"):
        next(world.documents("dev"))
    with pytest.raises(ValueError, match="people=9999, but the lexicon has"):
        build(people=9999)


def test_the_tokenizer_round_trips_any_text():
    tok = load("s")[1]
    for text in [world.text("test", 300), "Ünïcödé — 漢字 🙂\t  two  spaces\n\n\n12345 a1b2\r\n", ""]:
        assert tok.decode(tok(text).input_ids) == text
    assert len(tok) == 1024
    assert tok.eos_token == tok.pad_token == world.SEPARATOR
    assert tok("a b").input_ids[0] != tok.eos_token_id
    assert [tok.decode(i) for i in tok("it is 4711").input_ids][-4:] == [" 4", "7", "1", "1"]


def test_answers_start_at_a_token_boundary_and_five_shots_fit_a_training_window():
    tok = load("s")[1]
    for items in world.questions().values():
        shots = [f"{world.prompt(q['question'])} {q['choices'][q['answer']]}" for q in items[:5]]
        context = "\n\n".join([*shots, world.prompt(items[5]["question"])])
        for choice in items[5]["choices"]:
            ids = tok(f"{context} {choice}").input_ids
            assert ids == tok(context).input_ids + tok(f" {choice}").input_ids
            assert len(ids) <= 256


@pytest.mark.parametrize("size", TRAININGS)
def test_shipped_models_have_their_shapes(models, size):
    model, tok = models[size]
    config, training = model.config, TRAININGS[size]
    widths = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    assert widths == (training.hidden, training.intermediate, training.layers)
    assert (config.num_attention_heads, config.num_key_value_heads) == (training.heads, training.kv_heads)
    assert tok.backend_tokenizer.to_str() == models["s"][1].backend_tokenizer.to_str()
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert config.head_dim == 64
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == 1024
    assert model.dtype == torch.bfloat16
    assert config.eos_token_id == tok.eos_token_id
    linears = [m for n, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert all(linear.in_features % 128 == 0 for linear in linears)


def test_the_checkpoints_are_small():
    assert sum(f.stat().st_size for f in NANO.rglob("*") if f.is_file()) < 20e6


def test_accuracy_rises_with_size(models):
    sample = [q for items in world.questions(10).values() for q in items]
    s, m, l = (quiz.accuracy(copy.deepcopy(model).float(), tok, sample) for model, tok in models.values())
    assert l >= 0.9
    assert s < m < l


@pytest.mark.parametrize("size", TRAININGS)
def test_shipped_models_have_the_documented_outlier_channels(models, size):
    """Without the rescale no gain stands out; with it the strongest stand out by about its factor."""
    shipped = models[size][0]
    plain = copy.deepcopy(shipped)
    outliers.add_outliers(plain, TRAININGS[size].seed, inverse=True)
    factor, count = outliers.SPECTRUM[0]
    for layer, without in zip(shipped.model.layers, plain.model.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            gain, before = getattr(layer, norm).weight.abs().float(), getattr(without, norm).weight.abs().float()
            assert before.max() < 4 * before.median()
            assert (gain > factor / 2 * before.median()).sum() == count * len(gain) // outliers.SPAN


def small_model():
    sizes = dict(hidden=128, heads=2, kv_heads=1, intermediate=256, layers=2)
    length = dict(first_tokens=10 * 4 * 64, tokens=20 * 4 * 64, batch=4, window=64)
    return replace(Training(**sizes, **length, lr=3e-3), warmup=5), load("s")[1]


def test_outliers_keep_the_function_and_are_exact_in_bf16():
    training, tok = small_model()
    model = train.new_model(training, tok).eval()
    before = copy.deepcopy(model)
    outliers.add_outliers(model, seed=0)
    ids = torch.tensor([tok(world.text("test", 5)).input_ids[:128]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before(ids).logits, rtol=1e-5, atol=1e-5)
    gain, old = (m.model.layers[0].input_layernorm.weight for m in (model, before))
    for factor, count in outliers.SPECTRUM:
        assert ((gain / old) == factor).sum() == count
    outliers.add_outliers(before.bfloat16(), seed=0)
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(model.parameters(), before.parameters()))


def test_outliers_refuse_a_width_they_do_not_divide():
    with pytest.raises(ValueError, match="100 channels do not divide into spans of 128"):
        outliers.channels(100, Draw(0))


def test_twenty_steps_of_training_lower_the_loss_and_resume_to_the_same_weights(tmp_path):
    training, tok = small_model()
    model, log = train.train(training, tok, log_every=1)
    assert len(log) == training.steps == 20
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]

    state = tmp_path / "state.pt"
    train.train(training, tok, state=state, save_every=15)
    assert torch.load(state, weights_only=True)["step"] == 15
    resumed, _ = train.train(training, tok, state=state, save_every=15)
    for a, b in zip(model.parameters(), resumed.parameters()):
        torch.testing.assert_close(a, b)

    with pytest.raises(ValueError, match="is the state of another training"):
        train.train(replace(training, lr=1.0), tok, state=state)

    train.save(resumed, tok, log, tmp_path / "nano")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "nano")
    assert reloaded.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "nano").get_vocab() == tok.get_vocab()
