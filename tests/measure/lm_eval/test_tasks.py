"""Tasks through lm-eval: equal to lm_eval.simple_evaluate, in data order, quick the second time."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import DATA
from fakes.hub_data import mmlu_subjects
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from pyarrow import parquet
from transformers import Qwen3Config, Qwen3ForCausalLM

from qbench.measure.lm_eval import requests
from qbench.measure.lm_eval.local_files import Splits, load_whole, pages, pinned_data_sets
from qbench.measure.lm_eval.model import PrefixTreeLM
from qbench.measure.lm_eval.tasks import Tasks
from qbench.nano import world

ZEROSHOT = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq")


@pytest.fixture(scope="module")
def ctx(nano_context):
    return nano_context


@pytest.fixture(scope="module")
def model(tiny):
    return Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def nano(model, ctx):
    return Tasks("nano_world").run(model, ctx)


def reference(model, tokenizer, tasks, **kwargs):
    """lm-eval's own evaluation."""
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, softmax_dtype="float32")
    manager = requests.task_manager(tuple(tasks))
    return simple_evaluate(lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **kwargs)


def test_the_groups_hold_every_subject():
    index = requests.task_manager(("nano_world", "mmlu_hendrycks")).task_index
    assert index["nano_world"].cfg["task"] == [f"nano_{subject}" for subject in world.questions()]
    assert index["mmlu_hendrycks"].cfg["task"] == [f"mmlu_hendrycks_{subject}" for subject in sorted(mmlu_subjects())]
    assert len(mmlu_subjects()) == 57


def test_a_random_model_guesses(nano):
    metric = nano["nano_world/acc"]
    assert metric.n == sum(len(q) - 5 for q in world.questions().values())
    assert metric.higher_is_better
    assert metric.chance == nano["nano_town/acc"].chance == 0.25
    assert abs(metric.value - metric.chance) < 4 * metric.stderr
    assert metric.stderr == pytest.approx(math.sqrt(metric.value * (1 - metric.value) / (metric.n - 1)))


def test_a_group_is_its_questions_in_order(nano):
    metric = nano["nano_world/acc"]
    at = 0
    for subject in world.questions():
        part = nano[f"nano_{subject}/acc"]
        assert part.value == pytest.approx(sum(metric.samples[at : at + part.n]) / part.n)
        assert part.samples is None
        at += part.n
    assert at == metric.n == len(metric.samples)
    assert set(metric.samples) <= {0.0, 1.0}


@pytest.mark.parametrize("shots", [0, 3])
def test_nano_equals_lm_eval(model, ctx, shots):
    limits = dict(num_fewshot=shots, limit=12)
    expected = reference(model, ctx.tokenizer, ["nano_world"], **limits)
    got = Tasks(["nano_world"], **limits).run(model, ctx)
    for task, result in expected["results"].items():
        assert got[f"{task}/acc"].value == pytest.approx(result["acc,none"]), task
    each = [s["acc"] for items in expected["samples"].values() for s in items]
    assert got["nano_world/acc"].samples == each


def test_few_shot_prompts_show_held_out_questions(ctx):
    found = requests.build_requests(("nano_town",), 3, 2, None)
    prompt = found.tasks["nano_town"].instances[0].args[0]
    questions = world.questions()["town"]
    shown = [f"{world.prompt(q['question'])} {q['choices'][q['answer']]}" for q in questions[:3]]
    assert prompt == "\n\n".join([*shown, world.prompt(questions[5]["question"])])


def test_runs_agree_bit_for_bit_and_tasks_load_once(model, ctx, nano):
    before = requests.build_requests.cache_info().misses
    assert Tasks("nano_world").run(model, ctx) == nano
    assert Tasks("nano_world").science(ctx) == Tasks(("nano_world",)).science(ctx)
    assert requests.build_requests.cache_info().misses == before


def test_examples_are_dropped_from_the_end_while_a_prompt_is_too_long(ctx):
    def length(prompt):
        return len(ctx.tokenizer.encode(prompt))

    free = requests.build_requests(("nano_town", "nano_trade"), 4, 6, None).tasks
    for subject, task in free.items():
        questions = world.questions()[subject.removeprefix("nano_")]
        shown = [f"{world.prompt(q['question'])} {q['choices'][q['answer']]}" for q in questions[:4]]
        asked = [r.args[0] for r in task.instances[::4]]
        for most in (length(asked[0]), length(asked[0]) - 1, length(asked[0]) // 2, 3):
            expected = []
            for question in questions[5:11]:
                prompts = ["\n\n".join([*shown[:k], world.prompt(question["question"])]) for k in range(5)]
                expected.append(max((p for p in prompts if length(p) <= most), key=len, default=prompts[0]))
            measure = Tasks(subject, num_fewshot=4, limit=6, max_prompt=most)
            assert [r.args[0] for r in measure.requests(ctx).tasks[subject].instances[::4]] == expected


def test_few_shot_draws_are_kept_when_examples_are_dropped(ctx):
    """Fewer examples are the first of those drawn at random, not a draw of their own."""

    class Sampler:
        def sample(self, n, eval_doc=None):
            self.draws = getattr(self, "draws", 0) + 1
            return [f"{self.draws}{letter}" for letter in "abcde"[:n]]

    class Prompts:
        sampler = Sampler()

        def fewshot_context(self, doc, num_fewshot):
            return "".join(self.sampler.sample(n=num_fewshot, eval_doc=doc))

    class Characters:
        ids = staticmethod(list)

    task = Prompts()
    requests.drop_examples(task, 4, Characters)
    assert [task.fewshot_context({}, num_fewshot=n) for n in (3, 1)] == ["1a1b", "2a"]


def test_science(ctx):
    science = Tasks("nano_world", limit=3).science(ctx)
    assert json.loads(json.dumps(science)) == science
    assert science["tasks"] == {"nano_world": "1.0"}
    other = (Tasks("nano_world"), Tasks("nano_world", num_fewshot=2, limit=3), Tasks("nano_town", limit=3))
    other = (*other, Tasks("nano_world", limit=3, max_prompt=2048), Tasks("nano_world", limit=3, max_length=2048))
    assert len({json.dumps(t.science(ctx)) for t in other} | {json.dumps(science)}) == 6


def test_a_model_of_nan_has_no_score(tiny, ctx):
    model = Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ArithmeticError, match="outputs are nan for 4 of 4 items"):
        Tasks("nano_town", limit=4).run(model, ctx)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(tasks=[]), "eval.tasks is empty"),
        (dict(tasks="nano_world", num_fewshot=-1), "eval.num_fewshot must be a whole number of at least 0"),
        (dict(tasks="nano_world", limit=0), "eval.limit must be a whole number of at least 1"),
        (dict(tasks="nano_world", max_prompt=0), "eval.max_prompt must be a whole number of at least 1"),
        (dict(tasks="nano_world", num_fewshot=9), "asked for 9 examples per prompt, but its few-shot split has 5"),
    ],
)
def test_bad_fields(ctx, fields, message):
    with pytest.raises(ValueError, match=message):
        Tasks(**fields).science(ctx)


def test_an_unknown_task_names_its_neighbours(ctx, monkeypatch):
    smallest = requests.task_manager(("nano_world",))
    monkeypatch.setattr(requests, "_index", lambda _: smallest)
    with pytest.raises(ValueError, match=r"knows no task 'nano_wrold'; near names: nano_world"):
        Tasks("nano_wrold").science(ctx)


def test_a_task_without_its_file(ctx, tmp_path):
    here = replace(ctx, data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"baber/piqa \(validation\) .* has no zeroshot/piqa_validation"):
        Tasks("piqa").science(here)
    with pytest.raises(ValueError, match=r"lambada_openai \(default\), for which machine.data_dir has no place"):
        Splits(tmp_path, "EleutherAI/lambada_openai", "default")


def test_a_task_without_the_hub(ctx, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"piqa at revision 142f.* is not completely in .*set machine.data_dir"):
        Tasks("piqa").science(ctx)
    with pytest.raises(FileNotFoundError, match=r"org/never-seen is not completely in .* HF_HUB_OFFLINE is set"):
        load_whole("org/never-seen", None)  # `datasets` has words of its own for it


def test_wikitext_pages():
    lines = ["", " = One = \n", "", " = = Part = = \n", "text \n", " = Two = \n", "more \n"]
    assert pages(lines) == [" = One = \n \n = = Part = = \ntext ", " = Two = \nmore \n"]


@pytest.fixture(scope="module")
def qwen3(qwen3_tokenizer, nano_context):
    """A tiny random Qwen3 with the real tokenizer, and the real data."""
    shape = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=151936, num_hidden_layers=1, tie_word_embeddings=True, **shape)
    return Qwen3ForCausalLM(config).eval(), replace(nano_context, tokenizer=qwen3_tokenizer, data_dir=DATA)


@pytest.mark.data
def test_mmlu_over_all_subjects(qwen3):
    model, ctx = qwen3
    metrics = Tasks("mmlu", num_fewshot=5, limit=2).run(model, ctx)
    assert len(metrics) == 1 + 57
    assert metrics["mmlu/acc"].n == 57 * 2
    found = requests.build_requests(("mmlu",), 5, 2, str(DATA))
    prompt = found.tasks["mmlu_anatomy"].instances[0].args[0]
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\n")
    assert prompt.count("\nAnswer:") == 6
    assert found.tasks["mmlu_anatomy"].instances[1].args[1] == " B"


def hendrycks_prompt(subject: str, shots: list[dict], question: dict) -> str:
    """The prompt of the benchmark's authors, built anew from the rows of the data."""
    blocks = []
    for row in [*shots, question]:
        options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True))
        blocks.append(f"{row['question']}{options}\nAnswer:")
    for i, row in enumerate(shots):
        blocks[i] += " " + "ABCD"[row["answer"]]
    head = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}."
    return "\n\n".join([head, *blocks])


@pytest.mark.data
@pytest.mark.parametrize("subject", ["anatomy", "high_school_us_history", "moral_scenarios", "abstract_algebra"])
def test_mmlu_hendrycks_is_the_authors_prompt(qwen3, subject):
    _, ctx = qwen3
    rows = {
        split: parquet.read_table(DATA / "mmlu" / f"{split}.parquet", filters=[("subject", "==", subject)]).to_pylist()
        for split in ("dev", "test")
    }
    measure = Tasks(f"mmlu_hendrycks_{subject}", num_fewshot=5, limit=3)
    task = measure.requests(ctx).tasks[f"mmlu_hendrycks_{subject}"]
    lm = PrefixTreeLM(qwen3[0], ctx, None)
    for i, question in enumerate(rows["test"][:3]):
        choices = task.instances[4 * i : 4 * i + 4]
        prompt = hendrycks_prompt(subject, rows["dev"], question)
        assert [r.args for r in choices] == [(prompt, letter) for letter in "ABCD"]
        ids = ctx.tokenizer(prompt)["input_ids"]
        assert [lm._encode_pair(*r.args) for r in choices] == [(ids, [token]) for token in (32, 33, 34, 35)]
        assert task.doc_to_target(choices[0].doc) == question["answer"]
    if subject == "high_school_us_history":
        cut = replace(measure, max_prompt=2048).requests(ctx).tasks[task.task_name].instances[::4]
        assert [len(ctx.tokenizer(r.args[0])["input_ids"]) <= 2048 for r in cut] == [True] * 3
        fewer = [[hendrycks_prompt(subject, rows["dev"][:k], q) for k in range(5)] for q in rows["test"][:3]]
        assert all(r.args[0] in prompts for r, prompts in zip(cut, fewer, strict=True))


@pytest.mark.data
def test_mmlu_hendrycks_through_the_harness(qwen3, model, ctx):
    """By lm-eval's own evaluation: with our model, and with HFLM where no token spans the colon and a letter."""
    name, limits = "mmlu_hendrycks_virology", dict(num_fewshot=5, limit=6)
    manager = requests.task_manager((name,))
    with pinned_data_sets(DATA):
        own = reference(model, ctx.tokenizer, [name], **limits)
        ours = simple_evaluate(
            PrefixTreeLM(*qwen3, None), tasks=[name], task_manager=manager, bootstrap_iters=0, **limits
        )
    nano = Tasks(name, **limits).run(model, replace(ctx, data_dir=DATA))
    assert nano[f"{name}/acc"].value == own["results"][name]["acc,none"]
    real = Tasks(name, **limits).run(*qwen3)
    assert real[f"{name}/acc"].samples == [s["acc"] for s in ours["samples"][name]]


@pytest.mark.data
def test_zero_shot_tasks(qwen3):
    model, ctx = qwen3
    metrics = Tasks(ZEROSHOT, limit=1).run(model, ctx)
    normed = ("piqa", "arc_easy", "arc_challenge", "hellaswag")
    assert set(metrics) == {f"{t}/acc" for t in ZEROSHOT} | {f"{t}/acc_norm" for t in normed}
    tasks = requests.build_requests(ZEROSHOT, 0, 1, str(DATA)).tasks
    sizes = dict(piqa=1838, arc_easy=2376, arc_challenge=1172, hellaswag=1916, winogrande=1267, boolq=3270)
    tasks = tasks | requests.build_requests(("wikitext",), 0, 1, str(DATA)).tasks
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == sizes | dict(wikitext=62)
    with pytest.raises(ValueError, match="piqa was asked for 2 examples per prompt, but its few-shot split has 0"):
        Tasks("piqa", num_fewshot=2).science(ctx)


@pytest.mark.data
@pytest.mark.parametrize(
    ("names", "shots", "limit"),
    [(ZEROSHOT, 0, 5), (("mmlu_anatomy", "mmlu_virology"), 5, 5), (("wikitext", "c4"), 0, 2)],
)
def test_real_tasks_equal_lm_eval(model, ctx, names, shots, limit):
    if not DATA.is_dir():
        pytest.skip("no real data in QBENCH_TEST_DATA or ../shared/data")
    settings = dict(num_fewshot=shots, limit=limit)
    got = Tasks(names, **settings).run(model, replace(ctx, data_dir=DATA))
    with pinned_data_sets(DATA):
        expected = reference(model, ctx.tokenizer, names, **settings)
    for task, result in expected["results"].items():
        found = {key.removesuffix(",none"): value for key, value in result.items() if key.endswith(",none")}
        found = {key: value for key, value in found.items() if "stderr" not in key}
        assert found
        for metric, value in found.items():
            assert got[f"{task}/{metric}"].value == pytest.approx(value, rel=1e-4), (task, metric)
    for task in names:
        if (metric := got.get(f"{task}/word_perplexity")) is not None:
            assert math.exp(sum(metric.samples) / metric.n) == pytest.approx(metric.value)
            assert len(metric.samples) == metric.n == limit
