"""Perplexity and divergence against plain float64 loops over the model's own logits."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from qbench import shape
from qbench.data.corpus import Corpus
from qbench.data.windows import windows
from qbench.measure import perplexity
from qbench.measure.base import mean_metric
from qbench.measure.divergence import Divergence, NoiseFloor, quantiles
from qbench.measure.perplexity import Perplexity
from qbench.plan.sweep import configs


@pytest.fixture
def model(tiny):
    return Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture
def other(tiny):
    """The same model with its linears disturbed, the output head left alone."""
    model = Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.add_(0.05 * torch.randn(128, 256, generator=generator))
    return model


@pytest.fixture
def ctx(nano_context, tiny, tmp_path):
    def reference():
        return Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()

    return replace(nano_context, cache_dir=tmp_path, reference=reference)


def log_probs(model, ids_BT):
    """The naive way: all logits of every window, float64."""
    with torch.no_grad():
        return torch.stack([model(ids[None]).logits[0, :-1].double().log_softmax(-1) for ids in ids_BT])


@pytest.mark.parametrize("chunk", [2**26, 7 * 1024])
def test_perplexity_is_the_papers(model, ctx, monkeypatch, chunk):
    monkeypatch.setattr(perplexity, "CHUNK_FLOATS", chunk)
    ids_BT = windows(Corpus("nano").tokens(ctx.tokenizer), 100, 6)
    picked = log_probs(model, ids_BT).gather(-1, ids_BT[:, 1:, None])[..., 0]
    nll = -picked.mean(1)
    metric = Perplexity(window=100, limit=6).run(model, ctx)["nano/ppl"]
    assert metric.value == pytest.approx(nll.mean().exp().item(), rel=1e-5)
    assert metric.samples == pytest.approx(nll.tolist(), rel=1e-5)
    assert metric.n == 6
    assert metric.stderr == pytest.approx(metric.value * (nll.std() / math.sqrt(6)).item(), rel=1e-4)
    assert metric.value == pytest.approx(math.exp(sum(metric.samples) / 6))


def test_logits_in_the_models_dtype_are_rounded(tiny, ctx):
    """As the papers' code: bfloat16 logits and a bfloat16 loss a window, so the samples are bfloat16 numbers."""
    model = Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).eval()
    fine, coarse = (
        Perplexity(window=100, limit=6, logits=logits).run(model, ctx)["nano/ppl"] for logits in ("float32", "model")
    )
    ids_BT = windows(Corpus("nano").tokens(ctx.tokenizer), 100, 6)
    with torch.no_grad():
        expected = [torch.nn.functional.cross_entropy(model(i[None]).logits[0, :-1], i[1:]).item() for i in ids_BT]
    assert coarse.samples == expected
    assert all(torch.tensor(x).bfloat16().item() == x for x in coarse.samples)
    assert coarse.samples != fine.samples
    assert coarse.value == pytest.approx(fine.value, rel=0.03)  # a loss of 7 in steps of 1/32
    with pytest.raises(ValueError, match=r"eval.logits must be float32 or model"):
        Perplexity(logits="bfloat16")


def test_passes_of_another_size_change_nothing_that_matters(model, ctx, monkeypatch):
    many = Perplexity(limit=5).run(model, ctx)["nano/ppl"]
    monkeypatch.setattr(shape, "PASS_TOKENS", 1)
    assert Perplexity(limit=5).run(model, ctx)["nano/ppl"].value == pytest.approx(many.value, rel=1e-5)


def test_same_machine_same_numbers(model, ctx):
    measures = Perplexity(limit=4), Divergence(limit=4)
    assert all(m.run(model, ctx) == m.run(model, ctx) for m in measures)


def test_a_diverged_model_is_recorded_as_it_is(model, ctx):
    model.lm_head.weight.data.mul_(1e18)
    metric = Perplexity(limit=2).run(model, ctx)["nano/ppl"]
    assert metric.value == math.inf
    assert metric.stderr is None


@pytest.mark.parametrize("measure", [Perplexity(limit=2), Divergence(limit=2)])
def test_nan_is_no_measurement(model, ctx, measure):
    measure.prepare(ctx)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ArithmeticError, match="outputs are nan for 2 of 2 items"):
        measure.run(model, ctx)


def test_divergence_is_the_definition(model, other, ctx):
    measure = Divergence(window=50, limit=5)
    p, q = (log_probs(m, measure.windows(ctx)) for m in (model, other))
    kl = (p.exp() * (p - q)).sum(-1).mean(1)
    same = (p.argmax(-1) == q.argmax(-1)).double().mean(1)
    metrics = measure.run(other, ctx)
    assert metrics["nano/kl"].samples == pytest.approx(kl.tolist(), rel=1e-3)
    assert metrics["nano/kl"].value > 0.001
    assert (metrics["nano/kl"].higher_is_better, metrics["nano/top1"].higher_is_better) == (False, True)
    assert metrics["nano/top1"].samples == pytest.approx(same.tolist())
    assert metrics["nano/kl"].stderr == pytest.approx((kl.std() / math.sqrt(5)).item(), rel=1e-3)


def test_quantiles_are_of_the_sorted_tokens(model, other, ctx):
    measure = Divergence(window=51, limit=4)
    p, q = (log_probs(m, measure.windows(ctx)) for m in (model, other))
    tokens = sorted((p.exp() * (p - q)).sum(-1).flatten().tolist())
    metrics = measure.run(other, ctx)
    for name, place in (("p50", 100), ("p99", 198), ("p99.9", 200)):  # of 200, counted from 1
        found = metrics[f"nano/kl_{name}"]
        assert found.value == pytest.approx(tokens[place - 1], rel=1e-3)
        assert (found.n, found.samples, found.higher_is_better) == (4, None, False)
        assert found.stderr > 0


def test_the_error_of_a_quantile_is_the_spread_over_other_windows():
    """Windows of a heavy-tailed outcome with a level of their own; 400 other draws of as many windows are the truth."""
    rng = np.random.default_rng(5)
    draws = [rng.lognormal(rng.normal(0, 0.3, (40, 1)), 1, (40, 100)) for _ in range(400)]
    shares = [0.5, 0.99]
    truth = np.std([[np.sort(x.ravel())[int(share * x.size) - 1] for share in shares] for x in draws], axis=0)
    found = np.mean([[stderr for _, stderr in quantiles(x, shares)] for x in draws[:20]], axis=0)
    assert found == pytest.approx(truth, rel=0.2)


def test_quantiles_without_an_error():
    assert quantiles(np.array([[3.0, 1.0, 2.0, 4.0]]), [0.5, 0.99]) == [(2, None), (4, None)]
    assert quantiles(np.array([[1.0, math.inf], [1.0, 2.0]]), [0.5, 0.99]) == [(1, None), (math.inf, None)]


def test_the_noise_floor_is_that_of_rounding_alone(model, tiny, ctx):
    """The oracle loads the checkpoint in both types, as a run with model.dtype does."""
    measure = NoiseFloor(window=50, limit=5)
    rounded = Qwen3ForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).eval()
    ids_BT = measure.windows(ctx)
    with torch.no_grad():
        hidden = rounded.model(input_ids=ids_BT).last_hidden_state[:, :-1].double()
    q = (hidden @ model.lm_head.weight.double().T).log_softmax(-1)
    p = log_probs(model, ids_BT)
    kl = (p.exp() * (p - q)).sum(-1).mean(1)
    before = model.dtype
    metrics = measure.run(model, ctx)
    assert metrics["nano/kl"].samples == pytest.approx(kl.tolist(), rel=1e-2)
    assert 0 < metrics["nano/kl_p50"].value < metrics["nano/kl_p99.9"].value
    assert 0.5 < metrics["nano/top1"].value <= 1
    assert model.dtype == before
    assert measure.run(rounded, ctx)["nano/kl"].samples == pytest.approx(kl.tolist(), rel=1e-2), "from either type"
    assert NoiseFloor(window=50, limit=5, dtype="float16").run(model, ctx)["nano/kl"].value < metrics["nano/kl"].value
    with pytest.raises(ValueError, match=r"eval.dtype must be bfloat16 or float16, got 'float32'"):
        NoiseFloor(dtype="float32")


def test_divergence_gives_perplexitys_perplexity(other, ctx):
    both = Divergence(limit=5, perplexity=True)
    got = both.run(other, ctx)["nano/ppl"]
    expected = Perplexity(limit=5).run(other, ctx)["nano/ppl"]
    assert got.samples == pytest.approx(expected.samples, rel=1e-6)
    assert got.value == pytest.approx(expected.value)
    assert got.stderr == pytest.approx(expected.stderr)
    assert both.reference_file(ctx) == Divergence(limit=5).reference_file(ctx)


def test_divergence_from_itself_is_zero(model, ctx):
    metrics = Divergence(limit=5).run(model, ctx)
    assert metrics["nano/kl"].value == metrics["nano/kl_p99.9"].value == 0
    assert metrics["nano/top1"].value == 1


def test_divergence_resolves_less_than_8_bits_cost(model, ctx):
    """An 8-bit model is some 1e-5 nats away or more; a tenth of that is still measured to a few per cent."""
    near = Qwen3ForCausalLM(model.config).eval()
    near.load_state_dict(model.state_dict())
    for layer in near.model.layers:
        layer.mlp.down_proj.weight.data.mul_(1 + 2**-7)
    measure = Divergence(window=50, limit=5)
    p, q = (log_probs(m.double(), measure.windows(ctx)) for m in (model, near))
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert 5e-7 < kl < 5e-6
    assert measure.run(near.float(), ctx)["nano/kl"].value == pytest.approx(kl, abs=5e-8)


def test_the_reference_is_read_once_and_a_damaged_cache_again(model, other, ctx):
    loads = []
    counted = replace(ctx, reference=lambda: loads.append(1) or ctx.reference())
    measure = Divergence(limit=3)
    measure.prepare(counted)
    first = measure.run(other, counted)
    assert measure.run(other, counted) == first
    assert len(loads) == 1
    file = measure.reference_file(ctx)
    assert file.parent == ctx.cache_dir / "reference"
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    file.write_bytes(file.read_bytes()[:100])
    assert measure.run(other, counted) == first
    assert len(loads) == 2


def test_another_model_id_is_another_reference(ctx):
    files = {Divergence(limit=3).reference_file(replace(ctx, model_id=i)) for i in "ab"}
    assert len(files) == 2


def test_another_output_head_is_refused(model, ctx):
    Divergence(limit=2).prepare(ctx)
    model.lm_head.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="the output head differs"):
        Divergence(limit=2).run(model, ctx)


def test_identity_is_the_data_not_the_place(ctx, tmp_path):
    text = Corpus("nano").tokens(ctx.tokenizer)[:2000]
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(ctx.tokenizer.decode(text))
    a, b = (Perplexity(path=str(tmp_path / n), window=256).science(ctx) for n in ("a.txt", "b.txt"))
    assert a == b
    assert json.loads(json.dumps(a)) == a
    assert a["source"] == "text"
    assert Perplexity(path=str(tmp_path / "a.txt"), window=256, limit=2).science(ctx) != a
    assert Perplexity(path=str(tmp_path / "a.txt"), window=128).science(ctx) != a


@pytest.mark.parametrize("evaluation", ["ppl", "kl", "noise_floor"])
@pytest.mark.parametrize("model", ["nano-s", "qwen3-0.6b"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (["eval.source=nano"], (256, 64)),
        (["eval.source=nano", "eval.limit=100"], (256, 100)),
        (["eval.source=wikitext2"], (2048, None)),
        (["eval.path=a.txt", "eval.window=256"], (256, None)),
    ],
)
def test_windows_by_default_follow_the_text_and_not_the_model(model, evaluation, text, expected):
    ((config,), _) = configs([f"model={model}", "method=rtn", f"eval={evaluation}", *text])
    assert (config.eval[""].window, config.eval[""].limit) == expected


def test_bad_input_before_any_weights(ctx, tmp_path):
    (tmp_path / "short.txt").write_text("He is here.")
    with pytest.raises(ValueError, match=r"eval.window must be a whole number of at least 2"):
        Perplexity(window=1)
    with pytest.raises(ValueError, match=r"eval.limit must be a whole number of at least 1 or null"):
        Divergence(limit=0)
    with pytest.raises(ValueError, match=r"eval.source must be nano, c4, wikitext2, text or null, got 'pile'"):
        Perplexity("pile")
    with pytest.raises(ValueError, match=r"windows of 64 tokens, but the text has only \d+ tokens"):
        Perplexity(path=str(tmp_path / "short.txt"), window=64).science(ctx)


def test_mean_metric():
    metric = mean_metric([1.0, 2.0, 4.0], "x")
    assert metric.value == pytest.approx(7 / 3)
    assert metric.stderr == pytest.approx(torch.tensor([1.0, 2, 4]).std().item() / math.sqrt(3))
    assert mean_metric([1.0], "x").stderr is None
    assert mean_metric([1.0, math.inf], "x").stderr is None
