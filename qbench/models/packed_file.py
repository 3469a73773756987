"""A packed model in one safetensors file, as large on disk as on the GPU.

Linears are stored as the buffers that kernels read, everything else in the model's dtype. The metadata has, per linear,
the kind of packed weight, its settings and the quantization of activations.
"""

import copy
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.types import Device

from qbench.grid import ActQuant
from qbench.linear import QuantLinear
from qbench.models.checkpoint import OpenCheckpoint
from qbench.models.files import metadata, save_tensors


def save_packed(model: nn.Module, path: Path) -> None:
    """Writes a model whose quantized linears have ``path="packed"``; ValueError for one without any."""
    linears = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear) and m.packed is not None}
    if not linears:
        raise ValueError('nothing in this model is packed; load it with QuantizedFolder.load(..., path="packed")')
    about = {
        name: {
            "kind": type(m.packed).__name__,
            "settings": m.packed.settings,
            "acts": m.acts and m.acts.bits,
            "buffers": [None if b is None else key for key, b in m.packed.stored().items()],
        }
        for name, m in linears.items()
    }
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    save_tensors(state, Path(path), {"linears": json.dumps(about)})


def load_packed(ckpt: OpenCheckpoint, path: Path, device: Device) -> nn.Module:
    """The model that ``save_packed`` wrote; of ``ckpt`` only the shapes are read, and no weights.

    Raises: ValueError for a damaged file or one of another model.
    """
    from qbench.kernels import packed  # needs Triton

    model, kinds = copy.deepcopy(ckpt.skeleton), {cls.__name__: cls for cls in packed.Packed.__subclasses__()}
    try:
        about, state = json.loads(metadata(path)["linears"]), load_file(path, str(device))
        for name, what in about.items():
            buffers = [key and state.pop(f"{name}.packed.{key}") for key in what["buffers"]]
            kernel = kinds[what["kind"]](*buffers, **what["settings"])
            linear, bias = model.get_submodule(name), state.get(f"{name}.bias")
            if (linear.out_features, linear.in_features) != (kernel.N, kernel.K):
                raise ValueError(
                    f"{name} is [{kernel.N}, {kernel.K}], this model's is [{linear.out_features}, {linear.in_features}]"
                )
            if (bias is None) != (linear.bias is None):
                raise ValueError(f"the file has {'no' if bias is None else 'a'} bias of {name}")
            acts = what["acts"] and ActQuant(what["acts"])
            model.set_submodule(name, QuantLinear.of(kernel, bias, acts))
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is not this model packed, or damaged ({type(e).__name__}: {e}); pack it again") from e
    missing = model.load_state_dict(state, strict=False, assign=True).missing_keys
    tied = {"lm_head.weight"} if ckpt.config.tie_word_embeddings else set()
    left = [key for key in missing if key not in tied and ".packed." not in key]
    if left:
        raise ValueError(f"{path} lacks {', '.join(left[:3])}; it was packed from another model")
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(ckpt.config).to(device)
    return model.requires_grad_(False).eval()
