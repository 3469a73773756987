import dataclasses
import gc
import json
import weakref

import pytest
import torch
from conftest import BIASED, FAMILIES, save_tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qbench import shape
from qbench.calibration import BlockCalibration, first_block_inputs
from qbench.grid import Grid
from qbench.methods.awq import AWQ
from qbench.methods.base import Method
from qbench.methods.billm import BiLLM
from qbench.methods.gptq import GPTQ
from qbench.methods.rtn import RTN
from qbench.methods.smoothquant import SmoothQuant
from qbench.models.checkpoint import Checkpoint
from qbench.models.quantized import QuantizedFolder
from qbench.statistics_cache import CachedStatistics
from qbench.stats import AbsMax, Gram, Statistic
from qbench.stream import quantize
from qbench.weights import FloatWeight, round_to_nearest

METHODS = [RTN(), GPTQ(), GPTQ(Grid(4, 64), act_order=True), AWQ(), AWQ(loss="module"), SmoothQuant(), BiLLM()]


@pytest.fixture
def small_passes(monkeypatch):
    """Six forward passes, the last with one sequence."""
    monkeypatch.setattr(shape, "PASS_TOKENS", 3 * 64)


def opened(folder, dtype="float32"):
    return Checkpoint("tiny", path=str(folder), dtype=dtype).open()


def inputs_of(ckpt, ids):
    """The inputs of the first block."""
    model = ckpt.embedding("cpu")
    return first_block_inputs(model, model.model.layers[0], ids, "cpu", "cpu")


def through(ckpt, method, ids, folder, **kwargs):
    folder = QuantizedFolder(folder)
    reports = quantize(ckpt, method, ids, folder, **kwargs)
    return folder.load(ckpt, method.acts, "cpu"), reports


class Shelf(QuantizedFolder):
    """Keeps blocks in memory, or does with them what the test says."""

    def __init__(self, save=lambda block, weights: None):
        super().__init__("nowhere")
        self.save = lambda block, weights, reports: save(block, weights)

    def save_hidden(self, index, x_BTD):
        pass


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_steps_of_a_block_are_its_forward_pass(every_family, ids, dtype, attention):
    ckpt = opened(every_family, dtype)
    ckpt.config._attn_implementation = attention
    block, (item,) = ckpt.block(1, "cpu"), inputs_of(ckpt, ids)
    state = (item.x_BTD,)
    for step in block.steps:
        state = step(block.module, state, item.kwargs)
    assert torch.equal(state[0], block.module(item.x_BTD, **item.kwargs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_identity_leaves_the_logits_bit_equal(every_family, tmp_path, ids, dtype, attention):
    ckpt = opened(every_family, dtype)
    ckpt.config._attn_implementation = attention
    model, reports = through(ckpt, Method(), ids, tmp_path)
    assert torch.equal(logits(model, ids[:3]), logits(ckpt.load("cpu"), ids[:3]))
    assert all(r.error == 0 and r.stored_bits == 16 for r in reports)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_streamed_blocks_see_what_the_model_sees(every_family, ids, attention, small_passes):
    """Hidden states carried from block to block are those of the model's own forward, causal under eager too."""
    ckpt = opened(every_family)
    ckpt.config._attn_implementation = attention
    model = ckpt.load("cpu")
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
    hidden = inputs_of(ckpt, ids)
    for index, block in enumerate(blocks(ckpt)):
        torch.testing.assert_close(torch.cat([h.x_BTD for h in hidden]), expected[index], rtol=1e-5, atol=1e-5)
        hidden = BlockCalibration(block, hidden, "cpu").outputs()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'loss', '')}")
def test_what_is_saved_is_what_was_quantized(tiny, tmp_path, ids, method):
    """The errors in the reports are those of the loaded weights, and a second run is bit-identical."""
    ckpt = opened(tiny)
    model, reports = through(ckpt, method, ids, tmp_path / "a")
    again, reports_again = through(ckpt, method, ids, tmp_path / "b")
    for (name, p), q in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(p, q), name
    assert [r.error for r in reports] == [r.error for r in reports_again]
    assert len(reports) == 21
    assert all(0 < r.error < 1 for r in reports)
    assert torch.isfinite(logits(model, ids[:2])).all()


@pytest.mark.parametrize("method", [AWQ(), AWQ(loss="module"), SmoothQuant()], ids=["awq", "awq-module", "smoothquant"])
@pytest.mark.parametrize("kv", [2, 4])
@pytest.mark.parametrize("family", ["qwen3", *BIASED])
def test_transform_keeps_the_function(tmp_path, ids, method, kv, family):
    ckpt = opened(save_tiny(tmp_path, num_key_value_heads=kv, **FAMILIES[family]))
    model, hidden = ckpt.load("cpu"), inputs_of(ckpt, ids)
    before = logits(model, ids[:3])
    moved = 0
    for block in blocks(ckpt):
        gain = block["input_layernorm"].weight.clone()
        calib = BlockCalibration(block, hidden, "cpu")
        hidden = calib.observe((Gram, AbsMax))
        method.transform(block, calib)
        moved += not torch.equal(gain, block["input_layernorm"].weight)
        again = BlockCalibration(block, calib.inputs, "cpu")
        again.observe((Gram, AbsMax))
        for stage in block.stages:  # the statistics followed the scales
            for kind, field in ((Gram, "gram_KK"), (AbsMax, "absmax_K")):
                got, expected = (getattr(c.stats[stage][kind], field) for c in (calib, again))
                torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        model.model.layers[block.index] = block.module
    assert moved == 3
    torch.testing.assert_close(logits(model, ids[:3]), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'loss', '')}")
@pytest.mark.parametrize("family", BIASED)
def test_biases_survive_every_method(tmp_path, ids, method, family):
    """Bit for bit where no scale folds into the linear, else divided by it; each block from the cache."""
    ckpt = opened(save_tiny(tmp_path / "model", num_key_value_heads=4, **FAMILIES[family]))
    model, _ = through(ckpt, method, ids, tmp_path / "quantized")
    hidden, seen = inputs_of(ckpt, ids), 0
    for block in blocks(ckpt):
        before = {name: p.clone() for name, p in block.module.named_parameters() if name.endswith("bias")}
        calib = BlockCalibration(block, hidden, "cpu")
        hidden = calib.observe((Gram, AbsMax))
        if method.calibrates_on == "float":
            method.transform(block, calib)
        for name, old in before.items():
            bias, folded = model.model.layers[block.index].get_parameter(name), block.module.get_parameter(name)
            assert torch.equal(bias, folded), name
            folds = isinstance(method, AWQ) and name.split(".")[1] in ("v_proj", "up_proj")
            assert torch.equal(bias, old) != folds, name
            seen += 1
    assert seen == 3 * (3 if family == "qwen2" else 7)


def test_smoothquant_scales_are_the_papers(tiny, ids):
    ckpt = opened(tiny)
    hidden = inputs_of(ckpt, ids)
    block = ckpt.block(0, "cpu")
    gain = block["input_layernorm"].weight.clone()
    w = torch.cat([block[f"self_attn.{n}_proj"].weight for n in "qkv"]).abs().amax(0)
    calib = BlockCalibration(block, hidden, "cpu")
    calib.observe((AbsMax,))
    x = calib.stats[block.stages[0]][AbsMax].absmax_K.clone()
    SmoothQuant(alpha=0.7).transform(block, calib)
    torch.testing.assert_close(gain / block["input_layernorm"].weight, x**0.7 / w**0.3)


def test_smoothquant_without_alpha_is_plain_rounding(tiny, tmp_path, ids):
    ckpt = opened(tiny)
    model, _ = through(ckpt, SmoothQuant(alpha=None), ids, tmp_path)
    w = ckpt.block(1, "cpu")["mlp.up_proj"].weight
    got = model.model.layers[1].mlp.up_proj
    assert torch.equal(got.weight, round_to_nearest(w, Grid(8, -1, True)).dequantize())
    assert got.acts.bits == 8


def test_awq_takes_the_scale_with_the_least_loss(tiny, ids):
    """Against twenty real forward passes of the linears."""
    ckpt, method = opened(tiny), AWQ(grid=Grid(3, 64))
    hidden = inputs_of(ckpt, ids)
    block = ckpt.block(0, "cpu")
    x = block["input_layernorm"](hidden[0].x_BTD).flatten(0, 1)
    weights = [block[f"self_attn.{n}_proj"].weight.clone() for n in "qkv"]
    best = None
    for i in range(20):
        s = x.abs().mean(0).pow(i / 20).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        loss = sum(((round_to_nearest(w * s, method.grid).dequantize() / s - w) @ x.T).square().sum() for w in weights)
        if best is None or loss < best[0]:
            best = loss, s
    gain = block["input_layernorm"].weight.clone()
    calib = BlockCalibration(block, hidden, "cpu")
    calib.observe((Gram,))
    method.transform(block, calib)
    torch.testing.assert_close(gain / block["input_layernorm"].weight, best[1], rtol=1e-3, atol=1e-4)


def test_gptq_sees_the_quantized_predecessors(tiny, ids):
    """Stage by stage: down_proj's Gram is that of the block whose other linears are quantized."""
    seen = {}

    class Spy(GPTQ):
        def quantize(self, w_NK, stat, name):
            for part in name.split(", "):
                seen.setdefault(part, stat.gram_KK.clone())
            return super().quantize(w_NK, stat, name)

    ckpt, blocks = opened(tiny), []
    quantize(ckpt, Spy(), ids, Shelf(lambda b, w: blocks.append(b)))
    hidden = inputs_of(ckpt, ids)
    calib = BlockCalibration(blocks[0], hidden, "cpu")
    calib.observe((Gram,))
    torch.testing.assert_close(seen["mlp.down_proj"], calib.stats[blocks[0].stages[3]][Gram].gram_KK)


def test_one_factorisation_serves_a_stage(tiny, ids, monkeypatch):
    count = [0]
    factor = Gram._factor

    def counted(self, *args):
        count[0] += 1
        return factor(self, *args)

    monkeypatch.setattr(Gram, "_factor", counted)
    quantize(opened(tiny), GPTQ(act_order=True), ids, Shelf())
    assert count[0] == 3 * 4


def test_only_one_block_is_alive(tiny, ids):
    """Peak memory is flat over blocks: each block's module is gone before the third from it is loaded."""
    alive, most = weakref.WeakSet(), []

    def save(block, weights):
        alive.add(block.module)
        gc.collect()
        most.append(len(alive))

    quantize(opened(tiny), GPTQ(), ids, Shelf(save))
    assert len(most) == 3
    assert max(most) <= 2


def test_awq_says_that_value_heads_were_not_scaled(tiny, ids, tmp_path):
    _, reports = through(opened(tiny), AWQ(), ids, tmp_path)
    notes = {r.name: r.notes for r in reports}
    assert "grouped-query attention" in notes["self_attn.o_proj"][0]
    assert notes["mlp.down_proj"] == ()


# --- stopped and started again ---


class Killed(BaseException):
    """What nobody catches."""


def counted(method):
    """The method, and a list of the linears it quantized."""
    done = []

    class Counted(type(method)):
        def quantize_stage(self, weights, stat):
            done.extend(weights)
            return super().quantize_stage(weights, stat)

    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return Counted(**fields), done


def killed_at(folder, block, moment):
    """A folder that dies with ``block``: before or after its file is written, or after its hidden states are."""

    class Dying(QuantizedFolder):
        def save(self, b, *rest):
            if (b.index, moment) == (block, "before"):
                raise Killed
            super().save(b, *rest)
            if (b.index, moment) == (block, "after"):
                raise Killed

        def save_hidden(self, index, x_BTD):
            super().save_hidden(index, x_BTD)
            if (index, moment) == (block + 1, "hidden"):
                raise Killed

    return Dying(folder)


@pytest.mark.parametrize("moment", ["before", "after", "hidden"])
@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'loss', '')}")
def test_a_killed_quantization_goes_on_bit_identical(tiny, tmp_path, ids, method, moment, remember, small_passes):
    ckpt = opened(tiny, "bfloat16")
    whole = QuantizedFolder(tmp_path / "whole")
    reports = quantize(ckpt, method, ids, whole)
    spied, done = counted(method)
    notes = CachedStatistics(tmp_path / "statistics") if remember else None
    with pytest.raises(Killed):
        quantize(ckpt, spied, ids, killed_at(tmp_path / "cut", 1, moment), statistics=notes)
    again = QuantizedFolder(tmp_path / "cut")
    resumed = quantize(ckpt, spied, ids, again, statistics=notes)
    linears = 7 * (4 if moment == "before" else 3)  # the block that died unwritten is the only one done again
    assert len(done) == linears
    for index in range(3):
        a, b = (folder.read(ckpt, index, "cpu") for folder in (whole, again))
        for name, weight in a[1].items():
            for field, tensor in weight.state().items():
                assert torch.equal(tensor, b[1][name].state()[field]), (index, name, field)
        for (name, p), q in zip(a[0].module.named_parameters(), b[0].module.parameters()):
            assert p.is_meta or torch.equal(p, q), name
    assert [(r.block, r.name, r.error) for r in reports] == [(r.block, r.name, r.error) for r in resumed]
    assert again.hidden() is None


def test_statistics_are_shared_by_methods_and_bits(tiny, tmp_path, ids, monkeypatch):
    """The second method and every further bit-width run no forward pass, and give the same weights."""
    ckpt, notes = opened(tiny, "bfloat16"), CachedStatistics(tmp_path / "statistics")
    quantize(ckpt, AWQ(Grid(4, 64)), ids, QuantizedFolder(tmp_path / "first"), statistics=notes)
    for method in (AWQ(Grid(3, 64)), SmoothQuant(), RTN(Grid(2, 64))):
        fresh, shared = QuantizedFolder(tmp_path / f"{method.name}-fresh"), QuantizedFolder(tmp_path / method.name)
        expected = quantize(ckpt, method, ids, fresh)
        with monkeypatch.context() as m:
            m.setattr(BlockCalibration, "observe", lambda *a: pytest.fail("the model was run again"))
            m.setattr(BlockCalibration, "outputs", lambda *a: pytest.fail("the model was run again"))
            got = quantize(ckpt, method, ids, shared, statistics=notes)
        assert [r.error for r in got] == [r.error for r in expected]
        for index in range(3):
            assert torch.equal(
                shared.block(ckpt, index, method.acts, "cpu")["mlp.down_proj"].weight,
                fresh.block(ckpt, index, method.acts, "cpu")["mlp.down_proj"].weight,
            )


def blocks(ckpt):
    return (ckpt.block(index, "cpu") for index in range(ckpt.config.num_hidden_layers))


def own_statistic(name):
    """A statistic that counts tokens, under any name."""

    class Count(Statistic):
        tokens = 0

        def update(self, x_TK):
            self.tokens += len(x_TK)

        def is_finite(self):
            return True

    Count.__name__ = Count.__qualname__ = name
    return Count


@pytest.mark.parametrize("name", ["Count", "Gram"])
def test_a_method_sees_its_own_statistic_where_others_are_remembered(tiny, tmp_path, ids, name):
    seen = []

    class Own(Method):
        statistic = own_statistic(name)

        def quantize(self, w_NK, stat, name):
            seen.append((type(stat), stat.tokens))
            return super().quantize(w_NK, stat, name)

    ckpt, notes = opened(tiny), CachedStatistics(tmp_path / "statistics")
    for method in (RTN(), Own(), RTN(), Own()):
        quantize(ckpt, method, ids, Shelf(), statistics=notes)
    assert seen == 2 * 21 * [(Own.statistic, ids.numel())]


@pytest.mark.parametrize("method", [RTN(), GPTQ(), BiLLM()], ids=lambda m: m.name)
def test_what_is_damaged_in_the_cache_is_named_and_made_again(tiny, tmp_path, ids, method):
    """A block and the hidden states of a later one: the same numbers as without the damage."""
    ckpt, folder, shelf = opened(tiny), QuantizedFolder(tmp_path / "cut"), QuantizedFolder(tmp_path / "whole")
    reports = quantize(ckpt, method, ids, shelf)
    with pytest.raises(Killed):
        quantize(ckpt, method, ids, killed_at(folder.path, 1, "hidden"))
    cut_short(folder.block_path(1))
    with pytest.warns(UserWarning, match=r"block-00001.safetensors is damaged .*; it is removed and made again"):
        again = quantize(ckpt, method, ids, folder)
    assert [r.error for r in again] == [r.error for r in reports]
    folder.block_path(2).unlink()
    folder.save_hidden(2, torch.zeros(16, 64, 128))
    cut_short(folder.path / "hidden.safetensors")
    with pytest.warns(UserWarning, match=r"hidden.safetensors is damaged"):
        again = quantize(ckpt, method, ids, folder)
    assert [r.error for r in again] == [r.error for r in reports]


@pytest.mark.parametrize("damage", ["cut", "without a tensor", "another shape"])
def test_damaged_statistics_are_named_and_observed_again(tiny, tmp_path, ids, damage):
    ckpt, notes = opened(tiny), CachedStatistics(tmp_path / "statistics")
    reports = quantize(ckpt, AWQ(), ids, QuantizedFolder(tmp_path / "a"), statistics=notes)
    path = notes.folder / "block-00001.safetensors"
    tensors = load_file(path)
    if damage == "cut":
        cut_short(path)
    else:
        gram = tensors.pop("1/Gram/_sum_KK")
        save_file(tensors | ({"1/Gram/_sum_KK": gram[:3, :3].clone()} if damage == "another shape" else {}), path)
    with pytest.warns(UserWarning, match=r"block-00001.safetensors is damaged and made again"):
        again = quantize(ckpt, AWQ(), ids, QuantizedFolder(tmp_path / "b"), statistics=notes)
    assert [r.error for r in again] == [r.error for r in reports]
    assert load_file(path).keys() == tensors.keys() | {"1/Gram/_sum_KK"}


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_a_block_file_chooses_no_code(tiny, tmp_path, ids, monkeypatch):
    """Its metadata names a class of weights; anything else is damage, and is not called or imported."""
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a file ran a program"))
    ckpt, folder = opened(tiny), QuantizedFolder(tmp_path)
    quantize(ckpt, RTN(), ids, folder)
    about = {"mlp.up_proj": {"class": "subprocess.Popen", "settings": {"args": ["true"]}}}
    with pytest.raises(OSError, match=r"block-00000.safetensors did not hold this block .no class of"):
        rewritten(folder, about).read(ckpt, 0, "cpu")
    quantize(ckpt, RTN(), ids, folder)
    rewritten(folder, about)
    with pytest.warns(UserWarning, match="no class of quantized weights is called subprocess.Popen"):
        assert not folder.has(0)


def rewritten(folder, about):
    """``folder`` with other metadata in block 0."""
    path = folder.block_path(0)
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata() | {"weights": json.dumps(about)}
    save_file(load_file(path), path, metadata)
    return folder


def test_a_block_without_a_norm_is_removed(tiny, tmp_path, ids):
    ckpt, folder = opened(tiny), QuantizedFolder(tmp_path)
    quantize(ckpt, RTN(), ids, folder)
    path = folder.block_path(1)
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata()
    save_file({k: t for k, t in load_file(path).items() if k != "input_layernorm.weight"}, path, metadata)
    with pytest.raises(OSError, match=r"block-00001.safetensors did not hold this block .* and is removed"):
        folder.block(ckpt, 1, None, "cpu")
    assert not folder.has(1)


class Halved(FloatWeight):
    """A method's own kind of weight."""


def test_a_weight_class_of_ones_own_is_read_back(tiny, tmp_path, ids):
    class Own(Method):
        name = "own"

        def quantize_stage(self, weights, stat):
            return {name: Halved(w_NK / 2) for name, w_NK in weights.items()}

    ckpt, folder = opened(tiny), QuantizedFolder(tmp_path)
    quantize(ckpt, Own(), ids, folder)
    assert all(type(w) is Halved for w in folder.read(ckpt, 0, "cpu")[1].values())


# --- bad numbers ---


def broken(tmp_path, change):
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path), dtype=torch.float32)
    with torch.no_grad():
        change(model.model.layers[1])
    model.save_pretrained(tmp_path / "broken")
    return opened(tmp_path / "broken")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named(tmp_path, ids, value):
    def change(layer):
        layer.mlp.gate_proj.weight[3, 4] = value

    ckpt = broken(tmp_path, change)
    for read in (lambda: quantize(ckpt, GPTQ(), ids, Shelf()), lambda: ckpt.load("cpu")):
        with pytest.raises(ValueError, match=r"NaN or inf in model.layers.1.mlp.gate_proj.weight as float32"):
            read()


def test_a_method_that_makes_nan_is_named(tiny, ids):
    class Hole(Method):
        name = "hole"

        def quantize(self, w_NK, stat, name):
            return FloatWeight(torch.where(w_NK == w_NK[0, 0], torch.nan, w_NK) if name == "mlp.up_proj" else w_NK)

    with pytest.raises(ValueError, match=r"model.layers.0.mlp.up_proj: NaN or inf in the weight that the method hole"):
        quantize(opened(tiny), Hole(), ids, Shelf())


@pytest.mark.parametrize("method", [RTN(), GPTQ(), BiLLM(), SmoothQuant()], ids=lambda m: m.name)
def test_broken_activations_are_named(tmp_path, ids, method):
    def change(layer):
        layer.post_attention_layernorm.weight[0] = 3e38

    with pytest.raises(ArithmeticError, match=r"NaN or inf in the input of model.layers.1.mlp.gate_proj"):
        quantize(broken(tmp_path, change), method, ids, Shelf())
