"""compressed-tensors files, judged by the library itself."""

import pytest
import torch
from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from fakes.quantized import SHAPES, same, there_and_back, weight_of

from qbench.formats import format_of
from qbench.grid import ActQuant, Grid
from qbench.weights import UniformWeight, round_to_nearest

FORMAT = format_of("compressed-tensors")()


def scheme_of(weight, acts=None):
    """The library's own reading of our config.json."""
    config = QuantizationConfig(**FORMAT.config({"a.q_proj": weight.outline()}, acts)["quantization_config"])
    (scheme,) = config.config_groups.values()
    return scheme


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group_size", [64, -1])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_library_decompresses_the_same_numbers(bits, symmetric, group_size, shape):
    weight = weight_of(bits, symmetric, group_size, *SHAPES[shape], zero_free=False)
    found = PackedQuantizationCompressor.decompress(FORMAT.tensors(weight, None, torch.bfloat16), scheme_of(weight))
    assert torch.equal(found["weight"], weight.dequantize().half())


@pytest.mark.parametrize(("bits", "acts"), [(8, 8), (4, 8), (4, 4), (1, 8)])
def test_weights_beside_quantized_activations(bits, acts):
    weight, acts = weight_of(bits, True, -1, 40, 384), ActQuant(acts)
    assert same(there_and_back(FORMAT, weight, acts), weight)
    scheme = scheme_of(weight, acts)
    assert (scheme.input_activations.num_bits, scheme.input_activations.dynamic) == (acts.bits, True)
    found = IntQuantizationCompressor.decompress(FORMAT.tensors(weight, acts, torch.bfloat16), scheme)
    assert torch.equal(found["weight"], weight.dequantize().half())


@pytest.mark.parametrize(("symmetric", "group_size"), [(False, -1), (True, 64)])
def test_activations_need_symmetric_rows(symmetric, group_size):
    weight = weight_of(8, symmetric, group_size, 32, 128)
    with pytest.raises(ValueError, match=r"8-bit activations need symmetric weights with one scale per row, not Grid"):
        FORMAT.check({"a": weight.outline()}, ActQuant(8))


def test_words_by_hand():
    """4 bits: q + 2^3 of the library is our unsigned q, zeros run along N: z of rows 0 and 1 in the lowest byte."""
    codes_NK = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [0] * 7 + [15]], dtype=torch.uint8)
    zero_NG = torch.tensor([[9], [6]], dtype=torch.uint8)
    weight = UniformWeight(codes_NK, torch.ones(2, 1).half(), 4, zero_NG)
    found = FORMAT.tensors(weight, None, torch.bfloat16)
    assert found["weight_packed"].tolist() == [[0x87654321 - 2**32], [0xF0000000 - 2**32]]
    assert found["weight_zero_point"].tolist() == [[0x69]]
    assert found["weight_shape"].tolist() == [2, 8]


def test_one_symmetric_bit_is_stored_as_two():
    weight = weight_of(1, True, 64, 4, 64)
    found = FORMAT.tensors(weight, None, torch.bfloat16)
    assert found["weight_packed"].shape == (4, 4)
    tiny = UniformWeight(weight.codes_NK, torch.full((4, 1), 2.0**-24).half(), 1)
    with pytest.raises(ValueError, match="too small to be halved"):
        FORMAT.check({"a": tiny}, None)


def test_linears_of_different_grids():
    weights = {
        "model.layers.0.q_proj": weight_of(4, False, 64, 32, 128),
        "model.layers.0.k_proj": weight_of(3, True, 64, 32, 128),
        "model.layers.0.v_proj": weight_of(2, True, 64, 32, 128),
        "model.layers.0.o_proj": weight_of(1, True, 64, 32, 128),
        "model.layers.0.up_proj": round_to_nearest(torch.randn(32, 64), Grid(4, 64)),  # one group is the whole row
    }
    config = FORMAT.config({name: w.outline() for name, w in weights.items()}, None)
    groups = QuantizationConfig(**config["quantization_config"]).config_groups
    assert next(g.targets for g in groups.values()) == ["model.layers.0.q_proj", "model.layers.0.up_proj"]
    assert len(groups) == 4
    for name, weight in weights.items():
        assert same(FORMAT.read(name, FORMAT.tensors(weight, None, torch.bfloat16), config), weight)
    for name in ("gptq", "awq"):
        with pytest.raises(ValueError, match=f"format={name} has one grid for all linears, not Grid"):
            format_of(name)().config(weights, None)
