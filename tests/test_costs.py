"""What is counted, against real modules, real parameters and real loops."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes.oracles import binary_weight_bytes, integer_bytes, weight_only_bytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from experiments import random_weights as shapes
from qbench import costs
from qbench.calibration import BlockCalibration, first_block_inputs
from qbench.grid import Grid
from qbench.methods.awq import AWQ
from qbench.methods.billm import SALIENT_LAUNCHES, SALIENT_PASSES, SPLIT_LAUNCHES, SPLIT_PASSES, BiLLM
from qbench.methods.fp8 import FP8
from qbench.methods.gptq import GPTQ
from qbench.methods.rtn import RTN
from qbench.models.checkpoint import Checkpoint
from qbench.plan import footprint
from qbench.shape import QWEN2_5_7B, QWEN3, RELEASED, Shape, linear_flops
from qbench.stats import Gram

PARAMETERS = {
    "0.6b": 596_049_920,
    "1.7b": 1_720_574_976,
    "4b": 4_022_468_096,
    "8b": 8_190_735_360,
    "14b": 14_768_307_200,
    "32b": 32_762_123_264,
}


@pytest.fixture
def ckpt(tiny):
    return Checkpoint("tiny", path=str(tiny), dtype="float32").open()


@pytest.fixture
def shape(ckpt):
    return Shape.of(ckpt.config)


def counted(work) -> int:
    """Operations of all matrix products; attention is taken apart into its products, so that they count too."""
    in_place = {torch.ops.aten.addmm_: lambda sum, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("size", PARAMETERS)
def test_shapes_are_qwen3s(size):
    config = shapes.config(f"qwen3-{size}")
    assert Shape.of(config) == QWEN3[size]
    assert QWEN3[size].parameters == PARAMETERS[size]
    assert QWEN3[size].weight_bytes("bfloat16") == 2 * PARAMETERS[size]


def test_the_shape_of_smollm2_has_its_parameters():
    """The number is that of the Hub's page of HuggingFaceTB/SmolLM2-135M."""
    assert RELEASED["smollm2-135m"].parameters == 134_515_008


def test_the_shape_of_qwen2_5_is_the_models():
    """The number of parameters is that of the Hub's page of Qwen/Qwen2.5-7B."""
    sizes = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28)
    sizes |= dict(num_key_value_heads=4, vocab_size=152064, max_position_embeddings=131072)
    config = Qwen2Config(**sizes, sliding_window=131072)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert Shape.of(config) == QWEN2_5_7B
    assert QWEN2_5_7B.parameters == sum(p.numel() for p in model.parameters()) == 7_615_616_512


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_linears_are_the_models(every_family, tied):
    ckpt = Checkpoint("tiny", path=str(every_family), dtype="float32").open()
    config = copy.deepcopy(ckpt.config)
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = Shape.of(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.layer_parameters == sum(p.numel() for p in model.model.layers[0].parameters())
    of_layer = {name.split(".")[-1]: NK for name, NK in ckpt.linears.items() if ".layers.0." in name}
    assert {name: (N, K) for K, names, _ in shape.stages for name, N in names.items()} == of_layer
    assert shape.linear_parameters == sum(N * K for N, K in ckpt.linears.values())
    folds = [stage.fold is not None for stage in ckpt.anatomy.stages]
    assert [fold for _, _, fold in shape.stages] == folds


@pytest.mark.parametrize(("B", "T"), [(1, 16), (3, 40)])
def test_forward_is_what_torch_counts(ckpt, shape, B, T):
    model = ckpt.load("cpu")
    ids = torch.zeros(B, T, dtype=torch.int64)
    with torch.no_grad():
        found = counted(lambda: model(ids, use_cache=False))
    masked = costs.pair_flops(shape, B * sum(T - i - 1 for i in range(T)))  # this attention computes them too
    assert found == costs.forward_flops(shape, B, T) + masked + costs.head_flops(shape, B * T)


@pytest.mark.parametrize("K", [512, 1024])
def test_gram_and_energy_are_what_stats_does(K):
    gram, x, w = Gram(K, "cpu"), torch.randn(32, K), torch.randn(48, K)
    assert counted(lambda: gram.update(x)) == costs.gram_flops(K, 32)
    assert counted(lambda: gram.energy(w)) == costs.energy_flops(48, K)
    assert counted(lambda: gram.relative_error(w, 2 * w)) == costs.error_flops(48, K)
    assert K * (K + 1) * 32 < costs.gram_flops(K, 32) < counted(lambda: x.T @ x)


def test_factor():
    """The products by halves, plus the small triangles, which torch does not count."""
    K, gram = 1024, Gram(1024, "cpu")
    gram.update(torch.randn(2048, K))
    inside = counted(lambda: gram.inverse_cholesky(0.01))
    leaves = 16 * costs.factor_flops(64)
    assert inside == pytest.approx(costs.factor_flops(K) - leaves, rel=1e-6)


def work(method, N: int, K: int):
    """What a method does to a layer of one linear."""
    return method.work(SimpleNamespace(stages=[(K, {"w": N}, False)], linears=[(N, K)], layers=1), n=1, length=1)


def column_flops(method, N: int, K: int) -> float:
    return work(method, N, K).float32 - costs.factor_flops(K)


def test_column_updates_by_a_plain_count():
    N, K, block = 3, 40, 16
    assert column_flops(GPTQ(Grid(4, -1)), N, K) == sum(2 * N * (K - 1 - i) for i in range(K))
    spans = [range(i, min(i + block, K)) for i in range(0, K, block)]
    expected = sum(2 * N * (K - span[-1] - 1) for span in spans for _ in span)
    assert column_flops(BiLLM(block_size=block, max_salient=7), N, K) == expected


def test_column_updates_are_billms():
    N, K = 32, 384
    gram = Gram(K, "cpu")
    gram.update(torch.randn(1024, K))
    gram.inverse_cholesky(0.01)
    method, w = BiLLM(), torch.randn(N, K)
    assert counted(lambda: method.quantize(w, gram, "w")) == column_flops(method, N, K)


class Traffic(TorchDispatchMode):
    """Elements of float32 that operations other than views read and write, and how many operations there are."""

    elements, operations = 0, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if not op.is_view and op is not torch.ops.aten.detach.default:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.elements += sum(t.numel() * t.element_size() / 4 for t in tensors)
            self.operations += 1
        return out


def test_candidates_of_billms_searches():
    """One more candidate of the search for salient columns; nearly all the rest is the search for the split."""
    w, found = torch.randn(2048, 128), []
    gram = Gram(128, "cpu")
    gram.update(torch.randn(1024, 128))
    gram.inverse_cholesky(0.01)
    for most in (1, 49):
        with Traffic() as traffic:
            BiLLM(max_salient=most).quantize(w, gram, "w")
        found.append((traffic.elements / w.numel(), traffic.operations))
    (one, few), (all, many) = found
    assert (all - one) / 48 == pytest.approx(SALIENT_PASSES, rel=0.03)
    assert one / 81 == pytest.approx(SPLIT_PASSES, rel=0.05)
    assert (few / 81, (many - few) / 48) == pytest.approx((SPLIT_LAUNCHES, SALIENT_LAUNCHES), rel=0.05)


def test_clip_search_products():
    N, K, g = 8, 256, 64
    d, gram = torch.randn(K // g, N, g), torch.randn(K // g, g, g)
    assert counted(lambda: d @ gram) * 10 == work(AWQ(Grid(4, g)), N, K).float32


@pytest.mark.parametrize("group_size", [64, -1])
def test_stored_bytes_are_the_tensors(ckpt, shape, group_size):
    block = ckpt.block(0, "cpu")
    weights = [RTN(Grid(4, group_size)).quantize(block[n].weight, None, n) for s in block.stages for n in s.linears]
    found = sum(t.numel() * t.element_size() for w in weights for t in w.state().values())
    norms = 2 * (2 * shape.hidden + 2 * shape.head_dim)
    assert footprint.stored_bytes(shape, RTN(Grid(4, group_size))) == shape.layers * (found + norms)


def test_binary_bytes_are_the_tensors(ckpt, shape):
    block, found = ckpt.block(0, "cpu"), 0
    for stage in block.stages:
        for name in stage.linears:
            gram = Gram(block[name].weight.shape[1], "cpu")
            gram.update(torch.randn(512, gram.K))
            weight = BiLLM().quantize(block[name].weight, gram, name)
            found += sum(t.numel() * t.element_size() for t in weight.state().values())
    norms = 2 * (2 * shape.hidden + 2 * shape.head_dim)
    assert footprint.stored_bytes(shape, BiLLM()) == shape.layers * (found + norms)


@pytest.mark.parametrize("scales", ["bfloat16", "float32"])
@pytest.mark.parametrize(("N", "K"), [(128, 256), (130, 200)])
def test_fp8_bytes_are_the_tensors(N, K, scales):
    weight = FP8(scales=scales).quantize(torch.randn(N, K), None, "w")
    assert FP8(scales=scales).stored_bytes(N, K) == sum(t.numel() * t.element_size() for t in weight.state().values())


def test_hidden_and_grams_are_the_tensors(ckpt, shape, ids):
    model = ckpt.embedding("cpu")
    inputs = first_block_inputs(model, model.model.layers[0], ids, "cpu", "cpu")
    x = sum(i.x_BTD.numel() * i.x_BTD.element_size() for i in inputs)
    assert x == footprint.hidden_bytes(shape, ids.numel(), "float32")
    calib = BlockCalibration(ckpt.block(0, "cpu"), inputs, "cpu")
    calib.observe([GPTQ.statistic])
    grams = [stats[Gram].gram_KK for stats in calib.stats.values()]
    assert sum(g.numel() * g.element_size() for g in grams) * shape.layers == footprint.statistics_bytes(shape)
    walk, most = BlockCalibration(ckpt.block(0, "cpu"), inputs, "cpu"), 0
    for _ in calib.stats:
        walk.advance(())
        most = max(most, sum(t.numel() * t.element_size() for state in walk._states for t in state))
    assert most == footprint.waiting_bytes(shape, ids.numel(), "float32")


@pytest.mark.parametrize("size", PARAMETERS)
def test_peaks_are_at_least_what_is_certain(size):
    shape = QWEN3[size]
    for grams in ("stage", "all"):
        assert footprint.peak_quantize(shape, grams, 2048) > footprint.least_quantize(shape)
    assert footprint.peak_evaluate(shape, 2048) > 2 * shape.parameters
    stage, whole = (footprint.peak_quantize(shape, grams, 2048) for grams in ("stage", "all"))
    assert stage < whole < footprint.peak_quantize(shape, "all", 4096)
    assert footprint.peak_quantize(shape, "all", 2048, resting=10) == whole + 10
    deeper = replace(shape, layers=2 * shape.layers)
    assert footprint.peak_quantize(deeper, "all", 2048) == whole, "memory must not grow with depth"


def test_peak_of_8b_is_near_a_hand_count():
    """16.4 GB of weights, 2.5 GB of float32 head and a few hundred MB in flight."""
    peak = footprint.peak_evaluate(QWEN3["8b"], 2048)
    assert 16.38e9 + 2.49e9 < peak < 20e9


# -- one product


def test_a_linear_is_what_torch_counts():
    x, w = torch.randn(3, 40), torch.randn(24, 40)
    assert counted(lambda: torch.nn.functional.linear(x, w)) == linear_flops(3, 24, 40)


def test_fused_products_are_the_linears():
    for shape in (*QWEN3.values(), QWEN2_5_7B):
        assert sum(N * K for N, K in shape.fused.values()) == sum(N * K for N, K in shape.linears)
    assert QWEN3["32b"].fused == {
        "qkv_proj": (10240, 5120),
        "o_proj": (5120, 8192),
        "gate_up_proj": (51200, 5120),
        "down_proj": (5120, 25600),
    }


def test_bytes_of_a_product_by_hand():
    """4-bit, N=6144, K=4096, groups of 128, one token: 12,582,912 of codes, 393,216 of scales, 196,608 of zeros, 8,192
    of inputs, 12,288 of outputs."""
    assert weight_only_bytes(1, 6144, 4096, 4) == 12_582_912 + 393_216 + 196_608 + 8_192 + 12_288
    assert weight_only_bytes(0, 6144, 4096, 4, symmetric=True) == 12_582_912 + 393_216
    assert weight_only_bytes(0, 10, 300, 3, group=-1) == 10 * 384 * 3 // 8 + 10 * 3
    assert integer_bytes(2, 64, 256, 8) == 64 * 256 + 64 * 2 + 2 * 2 * (64 + 256)
    assert binary_weight_bytes(0, 64, 256) == 2 * 64 * 256 // 8 + 256 + 64 * 2 * 8 * 2


@pytest.mark.parametrize(("N", "K"), [(96, 256), (70, 160), (64, 384)])
def test_bytes_of_a_weight_are_the_packed_buffers(N, K):
    packed = pytest.importorskip("qbench.kernels.packed", reason="needs triton")
    for bits in range(1, 9):
        for group in (32, -1, *([128] if K % 128 == 0 else [])):
            for symmetric in (True, False):
                layer = packed.PackedUniform.random(N, K, bits, group, symmetric, device="cpu")
                assert layer.weight_bytes == weight_only_bytes(0, N, K, bits, group, symmetric)
        layer = packed.PackedInteger.random(N, K, bits, device="cpu")
        assert layer.weight_bytes == integer_bytes(0, N, K, bits)
    assert packed.PackedBinary.random(N, K, device="cpu").weight_bytes == binary_weight_bytes(0, N, K)
