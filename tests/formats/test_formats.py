"""Every format holds a weight to the last bit or refuses it; packings against words written by hand."""

import numpy as np
import pytest
import torch
from fakes.quantized import SHAPES, same, there_and_back, weight_of

from qbench.formats import format_of, formats
from qbench.formats.bits import pack, unpack
from qbench.grid import ActQuant
from qbench.weights import BinaryWeight, FloatWeight, UniformWeight

HOLDS = {  # (bits, symmetric, N, K) -> whether a format holds such a weight, by name and options
    "gptq": lambda bits, symmetric, N, K: bits in (2, 3, 4, 8) and not (N * bits % 32 or K * bits % 32),
    "awq": lambda bits, symmetric, N, K: bits == 4 and not symmetric and N % 8 == 0,
    "compressed-tensors": lambda bits, symmetric, N, K: True,
}
CASES = [("gptq", {"version": 1}), ("gptq", {"version": 2}), ("awq", {}), ("compressed-tensors", {})]
PLACES = [(shape, g) for shape, (_, K) in SHAPES.items() for g in (128, 64, -1) if K % g == 0]


@pytest.mark.parametrize(("shape", "group_size"), PLACES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_weight_comes_back_or_is_refused(name, options, bits, symmetric, group_size, shape):
    N, K = SHAPES[shape]
    format, weight = format_of(name)(**options), weight_of(bits, symmetric, group_size, N, K)
    if HOLDS[name](bits, symmetric, N, K):
        assert same(there_and_back(format, weight), weight)
    else:
        with pytest.raises(ValueError, match=rf"format={name} cannot hold a.q_proj: .*; use "):
            format.check({"a.q_proj": weight.outline()}, None)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("C", [1, 31, 64, 100])
def test_bit_stream_against_numpy(bits, C):
    codes = torch.randint(0, 2**bits, (3, C), dtype=torch.uint8)
    stream = ((codes.numpy()[..., None] >> np.arange(bits)) & 1).reshape(3, -1).astype(np.uint8)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    assert np.array_equal(pack(codes, bits).numpy(), np.packbits(stream, axis=1, bitorder="little").view("<i4"))
    assert torch.equal(unpack(pack(codes, bits), bits, C), codes)


def test_words_of_gptq():
    """Words by hand: k = 8 r + i in bits 4 i of word r; z - 1 = 7 in every field of version 1, z = 8 in version 2."""
    codes_NK = torch.zeros(8, 16, dtype=torch.uint8)
    codes_NK[0, :8] = torch.arange(1, 9)
    codes_NK[0, 15] = 15
    weight = UniformWeight(codes_NK, torch.ones(8, 2).half(), 4)
    first, second = (format_of("gptq")(version=v).tensors(weight, None, torch.bfloat16) for v in (1, 2))
    assert first["qweight"][:, 0].tolist() == [0x87654321 - 2**32, 0xF0000000 - 2**32]
    assert first["qweight"].shape == (2, 8)
    assert first["qzeros"].tolist() == [[0x77777777]] * 2
    assert second["qzeros"].tolist() == [[0x88888888 - 2**32]] * 2
    assert first["g_idx"].tolist() == [0] * 8 + [1] * 8


def test_a_code_in_two_words():
    """3 bits: code 10 lies in bits 30 and 31 of the first word and bit 0 of the second."""
    codes = torch.zeros(1, 32, dtype=torch.uint8)
    codes[0, 10] = 0b101
    codes[0, 31] = 0b110
    assert pack(codes, 3).tolist() == [[1 << 30, 1, (0b110 << 29) - 2**32]]


def test_words_of_awq():
    """A word by hand: from the lowest bits up it holds the output channels 0, 2, 4, 6, 1, 3, 5, 7."""
    codes_NK = torch.zeros(16, 2, dtype=torch.uint8)
    codes_NK[:8, 0] = torch.arange(8)
    codes_NK[15, 1] = 15
    weight = UniformWeight(codes_NK, torch.ones(16, 1).half(), 4, torch.full((16, 1), 3, dtype=torch.uint8))
    found = format_of("awq")().tensors(weight, None, torch.bfloat16)
    assert found["qweight"].tolist() == [[0x75316420, 0], [0, 0xF0000000 - 2**32]]
    assert found["qzeros"].tolist() == [[0x33333333, 0x33333333]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hf_holds_the_measured_numbers(dtype):
    format = format_of("hf")()
    for weight in (weight_of(3, False, 64, 40, 384), FloatWeight(torch.randn(5, 7))):
        format.check({"a": weight.outline()}, None)
        back = format.read("a", format.tensors(weight, None, dtype), format.config({"a": weight}, None))
        assert torch.equal(back.w_NK, weight.dequantize().to(dtype))


def test_gptq_zeros_that_version_1_loses():
    weight = weight_of(2, False, 64, 32, 128)
    weight.zero_NG[3, 1] = 0
    weight.zero_NG[7, 0] = 0
    with pytest.raises(ValueError, match=r"stores z - 1, and 2 groups have z = 0; use format.version=2"):
        format_of("gptq")().check({"a": weight}, None)
    assert same(there_and_back(format_of("gptq")(version=2), weight), weight)


def test_gptq_keeps_moving_groups():
    weight = weight_of(4, False, 64, 32, 256)
    moved = torch.randperm(256, generator=torch.Generator().manual_seed(0)) // 64
    weight = UniformWeight(**weight.state(), bits=4, group_K=moved.short())
    for version in (1, 2):
        format = format_of("gptq")(version=version)
        assert same(there_and_back(format, weight), weight)
        config = format.config({"a": weight.outline()}, None)["quantization_config"]
        assert config["desc_act"]
        assert "GPTQModel" in format.notes({"a": weight.outline()}, None)[0]
    for name in ("awq", "compressed-tensors"):
        with pytest.raises(ValueError, match=r"neighbouring columns; use method.static_groups=true, or format=gptq"):
            format_of(name)().check({"a": weight.outline()}, None)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_activations_are_refused(name):
    with pytest.raises(ValueError, match="how activations are quantized; use format=compressed-tensors"):
        format_of(name)().check({"a": weight_of(4, False, -1, 32, 128).outline()}, ActQuant(8))


def test_what_no_grid_holds_is_refused():
    plane, salient = torch.zeros(32, 128, dtype=torch.bool), torch.zeros(128, dtype=torch.bool)
    binary = BinaryWeight(plane, plane, salient, plane, torch.zeros(32, 1, 4, 2).half(), 128)
    for name, cls in formats().items():
        if name != "hf":
            for weight in (binary, FloatWeight(torch.zeros(32, 128))):
                with pytest.raises(ValueError, match=f"not a {type(weight).__name__}; use format=hf"):
                    cls().check({"a": weight.outline()}, None)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"format=gpt is unknown; did you mean .*gptq"):
        format_of("gpt")
