"""MLX files: words by hand, and MLX itself as the judge where it is installed (mlx and mlx-cpu)."""

import pytest
import torch
from fakes.quantized import there_and_back, weight_of

from qbench.formats import format_of
from qbench.grid import Grid
from qbench.weights import UniformWeight, round_to_nearest

FORMAT = format_of("mlx")()


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_weight_comes_back(bits, symmetric, group_size):
    weight = weight_of(bits, symmetric, group_size, 6, 256, zero_free=False)
    back = there_and_back(FORMAT, weight)
    assert torch.equal(back.codes_NK, weight.codes_NK)
    assert torch.equal(back.scale_NG, weight.scale_NG)
    assert torch.equal(back.zeros(), weight.zeros())
    assert torch.equal(back.dequantize(), weight.dequantize())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_dequantizes_the_same_numbers(bits, symmetric):
    mx = pytest.importorskip("mlx.core", reason="needs mlx")
    weight = weight_of(bits, symmetric, 64, 6, 256, zero_free=False)
    stored = {name: mx.array(t.numpy()) for name, t in FORMAT.tensors(weight, None, torch.bfloat16).items()}
    found = mx.dequantize(stored["weight"], stored["scales"], stored["biases"], group_size=64, bits=bits)
    assert torch.equal(torch.tensor(found.tolist()), weight.dequantize())


def test_words_by_hand():
    """4 bits: code k in bits 4 k of its word; biases are -s z, -s 8 on the symmetric grid."""
    codes_NK = torch.zeros(1, 32, dtype=torch.uint8)
    codes_NK[0, :8] = torch.arange(1, 9)
    for zero_NG, bias in ((torch.tensor([[3]]).byte(), -1.5), (None, -4.0)):
        found = FORMAT.tensors(
            UniformWeight(codes_NK, torch.full((1, 1), 0.5).half(), 4, zero_NG), None, torch.bfloat16
        )
        assert found["weight"].dtype == torch.uint32
        assert found["weight"].tolist() == [[0x87654321, 0, 0, 0]]
        assert (found["scales"].item(), found["biases"].item()) == (0.5, bias)


@pytest.mark.parametrize(
    ("bits", "group_size", "says"),
    [
        (1, 64, "it has 2, 3, 4, 5, 6 or 8 bits, not 1; use format=compressed-tensors"),
        (7, 64, "it has 2, 3, 4, 5, 6 or 8 bits, not 7; use"),
        (4, 256, "groups are 32, 64 or 128 columns, not 256; use grid.group_size=64"),
        (4, -1, "groups are 32, 64 or 128 columns, not 512; use grid.group_size=64"),
    ],
)
def test_what_does_not_fit_is_refused(bits, group_size, says):
    with pytest.raises(ValueError, match=f"format=mlx cannot hold a: .*{says}"):
        FORMAT.check({"a": weight_of(bits, False, group_size, 6, 512).outline()}, None)


def test_one_grid_for_all():
    weights = {str(bits): round_to_nearest(torch.randn(4, 64), Grid(bits, 64)) for bits in (3, 4)}
    with pytest.raises(ValueError, match="one grid for all linears, not 2"):
        FORMAT.config(weights, None)
