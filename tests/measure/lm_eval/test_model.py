"""PrefixTreeLM gives HFLM's answers for a fraction of the tokens; the plan behind it forwards every token once."""

import random
from dataclasses import replace
from functools import cache

import lm_eval.utils
import numpy as np
import pytest
import torch
from conftest import DATA
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from qbench.grid import ActQuant, Grid
from qbench.linear import QuantLinear
from qbench.measure.lm_eval import model as lm_model
from qbench.measure.lm_eval import prefix_tree as prefix
from qbench.measure.lm_eval.model import PrefixTreeLM
from qbench.measure.lm_eval.prefix_tree import Tree
from qbench.measure.lm_eval.requests import build_requests
from qbench.methods.rtn import RTN
from qbench.nano import world


@pytest.fixture(scope="module")
def ctx(nano_context):
    return nano_context


@pytest.fixture(scope="module")
def model(tiny):
    return Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture
def small_packs(monkeypatch):
    """Packs so small that tiny trees are cut and their prefixes kept."""
    monkeypatch.setitem(lm_model.PACK, "cpu", 48)
    monkeypatch.setattr(prefix, "FORWARD", 4)


def random_sequences(seed: int) -> list[list[int]]:
    """Sequences grown from one another at random: forks at any depth, nested ones, equal ones, one of length 1."""
    rng = random.Random(seed)
    sequences = [[rng.randrange(1024)]]
    for _ in range(40):
        old = rng.choice(sequences)
        kept = old[: rng.randint(0, len(old))] if rng.random() < 0.8 else []
        sequences.append(kept + [rng.randrange(3 if rng.random() < 0.5 else 1024) for _ in range(rng.randint(0, 30))])
    return [s for s in sequences if s] + sequences[:2]


def forwarded(tree: Tree, step: prefix.Step) -> int:
    return tree.tokens(step.first, step.last, step.start) if step.stop is None else step.stop - step.start


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1, 20, 100, 10_000])
def test_a_plan_covers_every_row_behind_its_own_prefix(seed, budget, monkeypatch):
    monkeypatch.setattr(prefix, "FORWARD", 4)
    sequences = random_sequences(seed)
    tree = Tree(sequences)
    assert [tree.rows[r].tolist() for r in tree.row] == sequences
    cache, finished = [], []
    for step in tree.plan(budget):
        pack = tree.pack(step)
        cache = cache[: step.start]
        assert len(pack.ids_Q) == forwarded(tree, step)
        for r, path in zip(range(step.first, step.last), pack.paths, strict=True):
            row = tree.rows[r].tolist()
            assert cache == row[: step.start]
            assert pack.ids_Q[path].tolist() == row[step.start : step.stop]
            assert pack.depth_Q[path].tolist() == list(range(step.start, step.stop or len(row)))
            for i, place in enumerate(path if pack.sees_QQ is not None else []):
                assert sorted(np.flatnonzero(pack.sees_QQ[place])) == sorted(path[: i + 1])
        if step.stop is None:
            finished += range(step.first, step.last)
            assert len(pack.ids_Q) <= budget or step.last == step.first + 1
        else:
            cache = cache + pack.ids_Q.tolist()
    assert finished == list(range(len(tree.rows)))


def test_a_plan_that_fits_one_pack_forwards_each_node_once():
    sequences = random_sequences(3)
    tree = Tree(sequences)
    nodes = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    (step,) = tree.plan(10_000)
    assert len(tree.pack(step).ids_Q) == len(nodes)


def test_a_prefix_is_kept_only_where_it_pays():
    shared, tails = list(range(500)), [[600 + i] * 60 for i in range(8)]
    tree = Tree([shared + tail for tail in tails])
    assert sum(len(tree.pack(s).ids_Q) for s in tree.plan(128)) == 500 + 8 * 60
    tree = Tree([[7, *tail] for tail in tails])
    steps = list(tree.plan(128))
    assert all(s.stop is None for s in steps)
    assert sum(len(tree.pack(s).ids_Q) for s in steps) == 8 * 60 + len(steps)


def request(*arguments: str) -> Instance:
    return Instance("loglikelihood", {}, arguments, 0)


def many_requests(tokenizer) -> list[Instance]:
    """Shared long prefixes, answers of one and many tokens, prompts beyond 200 tokens, empty contexts, repetitions."""
    questions = world.questions()["town"]
    shots = "\n\n".join(f"{world.prompt(q['question'])} {q['choices'][q['answer']]}" for q in questions[:5])
    zero = tokenizer.decode([0])
    contexts = [f"{shots}\n\n{world.prompt(q['question'])}" for q in questions[5:12]]
    contexts += [shots, shots[:50], "", zero * 5, "He ", shots * 4, shots * 4 + " He", " a" * 300]
    endings = [" x", " y", " Ulm is here", " Ulm is there", zero, zero * 3 + " u", " a b c d e f g h i j k l m n"]
    asked = [request(c, e) for c in contexts for e in endings if (c, e) != ("", zero)]  # which HFLM cannot score
    random.Random(0).shuffle(asked)
    return asked + asked[:9]


def plain(model, ctx, max_length=None) -> HFLM:
    """lm-eval's own, one request at a time, so that it pads nothing."""
    settings = dict(add_bos_token=False, softmax_dtype="float32", max_length=max_length)
    return HFLM(pretrained=model, tokenizer=ctx.tokenizer, batch_size=1, **settings)


def difference(got, expected) -> np.ndarray:
    assert len(got) == len(expected)
    return np.abs(np.array([ll for ll, _ in got]) - np.array([ll for ll, _ in expected]))


@pytest.mark.parametrize(("max_length", "pack"), [(None, 1), (None, 48), (None, 256), (200, 48)])
def test_answers_are_the_harness_s_in_float32(model, ctx, small_packs, monkeypatch, max_length, pack):
    monkeypatch.setitem(lm_model.PACK, "cpu", pack)
    asked = many_requests(ctx.tokenizer)
    expected = plain(model, ctx, max_length).loglikelihood(asked, disable_tqdm=True)
    ours = PrefixTreeLM(model, ctx, max_length)
    got = ours.loglikelihood(asked)
    assert difference(got, expected).max() < 1e-4
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert all(isinstance(ll, float) and isinstance(greedy, bool) for ll, greedy in got)


@pytest.mark.parametrize("window", [None, 200])
def test_answers_are_the_harness_s_in_every_family(every_family, ctx, small_packs, window):
    """Also where windows slide that are as long as the longest text."""
    model = AutoModelForCausalLM.from_pretrained(every_family, dtype=torch.float32).eval()
    if window is not None:
        if not hasattr(model.config, "sliding_window"):
            pytest.skip("its attention has no windows")
        sliding = dict(sliding_window=window, use_sliding_window=True, layer_types=["sliding_attention"] * 3)
        model = type(model)(type(model.config)(**model.config.to_dict() | sliding)).eval()
    asked = many_requests(ctx.tokenizer)[:60]
    expected = plain(model, ctx, window).loglikelihood(asked, disable_tqdm=True)
    assert difference(PrefixTreeLM(model, ctx, window).loglikelihood(asked), expected).max() < 1e-4


def test_answers_are_the_harness_s_in_bfloat16(model, tiny, ctx, small_packs):
    """Both round; ours may not be farther from the float32 answers than lm-eval's own in bfloat16."""
    asked = many_requests(ctx.tokenizer)
    half = Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).eval()
    exact = plain(model, ctx).loglikelihood(asked, disable_tqdm=True)
    theirs = difference(plain(half, ctx).loglikelihood(asked, disable_tqdm=True), exact)
    ours = difference(PrefixTreeLM(half, ctx, None).loglikelihood(asked), exact)
    assert 0 < theirs.max() < 1
    assert ours.mean() < 1.25 * theirs.mean()
    assert ours.max() < 1.5 * theirs.max()


def test_quantized_weights_and_activations_change_nothing(tiny, ctx, small_packs):
    """Activations are quantized a token at a time, so a token's companions do not matter."""
    model = Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = getattr(layer.self_attn, name)
            weight = RTN(grid=Grid(bits=4, group_size=32)).quantize(linear.weight.data, None, name)
            setattr(layer.self_attn, name, QuantLinear(weight, None, ActQuant(8), torch.float32))
    asked = many_requests(ctx.tokenizer)
    expected = plain(model, ctx).loglikelihood(asked, disable_tqdm=True)
    apart = difference(PrefixTreeLM(model, ctx, None).loglikelihood(asked), expected)
    assert np.median(apart) < 1e-4  # a value next to a rounding boundary may fall on its other side
    assert apart.max() < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_random_trees_equal_full_forward_passes(model, ctx, small_packs, seed):
    rng = random.Random(seed)
    asked = []
    for sequence in random_sequences(seed):
        whole = [*sequence, rng.randrange(1024)]
        at = rng.randint(1, len(whole) - 1)
        asked.append((None, whole[:at], whole[at:]))
    got = PrefixTreeLM(model, ctx, None)._loglikelihood_tokens(asked)
    for (_, context, continuation), (likelihood, greedy) in zip(asked, got, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
        target = torch.tensor(continuation)
        assert likelihood == pytest.approx(logits.log_softmax(-1)[range(len(target)), target].sum().item(), abs=1e-4)
        assert greedy == torch.equal(logits.argmax(-1), target)


def test_a_greedy_answer_is_recognised(model, ctx, small_packs):
    """Random answers are all but never greedy; this one is what the model itself would say."""
    ids = [5, 6, 7]
    with torch.inference_mode():
        for _ in range(4):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    other = [*ids[:-1], (ids[-1] + 1) % 1024]
    answers = PrefixTreeLM(model, ctx, None)._loglikelihood_tokens(
        [(None, ids[:3], ids[3:]), (None, ids[:3], other[3:])]
    )
    assert [greedy for _, greedy in answers] == [True, False]


def test_rolling_likelihoods_are_the_harness_s(model, ctx):
    texts = [Instance("loglikelihood_rolling", {}, (world.text("test", 3, seed=s),), 0) for s in range(3)]
    expected = plain(model, ctx, 64).loglikelihood_rolling(texts, disable_tqdm=True)
    assert PrefixTreeLM(model, ctx, 64).loglikelihood_rolling(texts) == pytest.approx(expected, abs=1e-3)


def test_the_head_reads_a_bounded_number_of_positions(model, ctx, monkeypatch):
    asked = [request("He", " a b c d e f g h i j k l m n")]
    whole = PrefixTreeLM(model, ctx, None).loglikelihood(asked)
    monkeypatch.setattr(lm_model, "HEAD_FLOATS", 3 * model.config.vocab_size)
    read = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: read.append(len(out)))
    assert difference(PrefixTreeLM(model, ctx, None).loglikelihood(asked), whole).max() < 1e-5
    hook.remove()
    assert max(read) == 3
    assert len(read) > 3


def test_one_token_answers_share_a_forward(model, ctx):
    prompt = ctx.tokenizer.encode("Answer:")
    letters = [c for c in "abcdefgh" if len(ctx.tokenizer.encode("Answer: " + c)) == len(prompt) + 1]
    assert len(letters) > 2
    lm = PrefixTreeLM(model, ctx, None)
    lm.loglikelihood([request("Answer:", " " + c) for c in letters])
    assert lm.tokens == len(ctx.tokenizer.encode("Answer: " + letters[0])) - 1


def test_long_prompts_are_cut_to_what_the_model_reads(model, ctx):
    assert PrefixTreeLM(model, ctx, None).max_length == model.config.max_position_embeddings
    assert PrefixTreeLM(model, ctx, 100).max_length == 100


def test_tokens_are_counted(model, ctx, small_packs):
    seen = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    asked = many_requests(ctx.tokenizer)
    lm = PrefixTreeLM(model, ctx, None)
    lm.loglikelihood(asked)
    hook.remove()
    assert lm.tokens == sum(seen)
    whole = {(*c, *t) for c, t in (lm._encode_pair(*r.args) for r in asked if r.args[0])}
    assert 2 * lm.tokens < sum(map(len, whole))


def test_what_cannot_be_scored_is_said(model, ctx):
    with pytest.raises(ValueError, match="has 1 tokens of context and 0 of continuation"):
        PrefixTreeLM(model, ctx, None)._loglikelihood_tokens([(("a", ""), [1], [])])
    with pytest.raises(ValueError, match=r"has 1 tokens of context and 9 of continuation, but needs .* 1 to 8"):
        PrefixTreeLM(model, ctx, 8)._loglikelihood_tokens([(("a", "b"), [1], [2] * 9)])


@pytest.mark.data
def test_mmlu_takes_a_seventh_of_the_tokens(qwen3_tokenizer, monkeypatch):
    """Examples and question are encoded apart for speed; the total shows that this changes no token."""
    monkeypatch.setattr(lm_eval.utils.env, "from_string", cache(lm_eval.utils.env.from_string))
    sequences = []
    for task in build_requests(("mmlu",), 5, 2, str(DATA)).tasks.values():
        questions = [task.doc_to_text(doc) for doc in task.eval_docs]
        (examples,) = {r.args[0].removesuffix(q) for r, q in zip(task.instances[::4], questions)}
        start = qwen3_tokenizer(examples)["input_ids"]
        sequences += [start + ids for ids in qwen3_tokenizer(questions)["input_ids"]]
    assert sum(map(len, sequences)) == 9_776_186
    tree = Tree(sequences)
    total = sum(forwarded(tree, step) for step in tree.plan(lm_model.PACK["cpu"]))
    assert 1_336_050 <= total < 1_350_000
    assert tree.tokens(0, len(tree.rows), 0) == 1_336_050


@pytest.mark.data
def test_letters_that_merge_with_the_colon_are_encoded_apart(model, ctx, qwen3_tokenizer):
    lm = PrefixTreeLM(model, replace(ctx, tokenizer=qwen3_tokenizer), None)
    for letter, token in zip("ABCD", (32, 33, 34, 35), strict=True):
        assert HFLM._encode_pair(lm, "x\nAnswer:", letter)[1] == []
        assert lm._encode_pair("x\nAnswer:", letter) == ([87, 198, 16141, 25], [token])
        assert lm._encode_pair("x\nAnswer:", f" {letter}") == HFLM._encode_pair(lm, "x\nAnswer:", f" {letter}")
