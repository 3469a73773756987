"""Random quantized weights, and their way into a format and back."""

import torch

from qbench.formats.base import Part, Source
from qbench.grid import Grid
from qbench.weights import UniformWeight, round_to_nearest

SHAPES = {"square": (64, 256), "ragged": (40, 384), "odd": (5, 64)}


def weight_of(bits, symmetric, group_size, N, K, zero_free=True):
    """Rounded random numbers; with ``zero_free`` every group has both signs, so that no zero is 0."""
    w_NK = torch.randn(N, K, generator=torch.Generator().manual_seed(bits))
    weight = round_to_nearest(w_NK, Grid(bits, group_size, symmetric))
    if zero_free and not symmetric:
        weight = UniformWeight(**weight.state() | {"zero_NG": weight.zero_NG.clamp(min=1)}, bits=bits)
    return weight


def same(a, b) -> bool:
    mine, theirs = a.state(), b.state()
    is_alike = type(a) is type(b) and a.settings() == b.settings() and mine.keys() == theirs.keys()
    return is_alike and all(
        t.dtype == theirs[k].dtype and torch.equal(bits(t), bits(theirs[k])) for k, t in mine.items()
    )


def bits(t):
    return t.contiguous().view(torch.uint8)  # torch compares no float8


def there_and_back(format, weight, acts=None):
    format.check({"a.q_proj": weight.outline()}, acts)
    format.check({"a.q_proj": weight}, acts)
    tensors = format.tensors(weight, acts, torch.bfloat16)
    outline = format.tensors(weight.outline(), acts, torch.bfloat16)
    assert {k: (t.shape, t.dtype) for k, t in outline.items()} == {k: (t.shape, t.dtype) for k, t in tensors.items()}
    assert format.size(weight, acts, torch.bfloat16) == sum(t.nbytes for t in tensors.values())
    config = format.config({"a.q_proj": weight.outline()}, acts)
    return format.read("a.q_proj", tensors, config)


def written(format, ckpt, method, folder):
    """Writes ``ckpt`` quantized by ``method``, which needs no calibration, into the new ``folder``; the model with the
    measured weights."""
    folder.mkdir()
    model = ckpt.load("cpu")
    weights = {name: method.quantize(model.get_submodule(name).weight, None, name) for name in ckpt.linears}
    rest = {k: p.detach() for k, p in model.named_parameters() if k.removesuffix(".weight") not in weights}
    outlines = {name: method.outline(*shape) for name, shape in ckpt.linears.items()}
    format.check(outlines, method.acts)
    format.check_model(ckpt.folder)
    format.write(Source(ckpt.folder, lambda: iter([Part(rest, weights)]), outlines, method.acts, ckpt.dtype), folder)
    for name, weight in weights.items():
        model.get_submodule(name).weight.data = weight.dequantize().to(ckpt.dtype)
    return model
