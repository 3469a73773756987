"""Checkpoints as others release them, written with numpy from the formats' descriptions and none of our packing."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from qbench.grid import Grid
from qbench.models.checkpoint import NANO
from qbench.weights import UniformWeight, round_to_nearest

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
META = {"quantizer": ["gptqmodel:2.2.0"], "damp_percent": 0.01, "static_groups": False, "true_sequential": True}


def stream(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Codes [R, C] as int32 words along a row, lowest bit first."""
    found = ((codes[..., None] >> np.arange(bits)) & 1).reshape(len(codes), -1).astype(np.uint8)
    return torch.from_numpy(np.packbits(found, axis=1, bitorder="little").view(np.int32).copy())


def gptq(weight: UniformWeight, v2: bool = False) -> dict[str, torch.Tensor]:
    (_, K), G = weight.codes_NK.shape, weight.scale_NG.shape[1]
    zero_NG = weight.zeros().numpy().astype(np.uint8)
    return {
        "qweight": stream(weight.codes_NK.numpy(), weight.bits).T.contiguous(),
        "qzeros": stream(zero_NG.T - (not v2), weight.bits),
        "scales": weight.scale_NG.T.contiguous(),
        "g_idx": (torch.arange(K) // (K // G)).int(),
    }


def awq(weight: UniformWeight) -> dict[str, torch.Tensor]:
    def words(codes_RN):
        eights = codes_RN.numpy().astype(np.uint32).reshape(len(codes_RN), -1, 8)[:, :, AWQ_ORDER]
        found = (eights << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32)
        return torch.from_numpy(found.view(np.int32))

    return {
        "qweight": words(weight.codes_NK.T),
        "qzeros": words(weight.zero_NG.T),
        "scales": weight.scale_NG.T.contiguous(),
    }


def gptq_config(bits: int, **changes) -> dict:
    told = {"quant_method": "gptq", "bits": bits, "group_size": 64, "sym": True, "desc_act": False, "lm_head": False}
    return told | {"checkpoint_format": "gptq", "pack_dtype": "int32", "meta": META} | changes


def awq_config(**changes) -> dict:
    told = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    return told | {"modules_to_not_convert": None, "backend": "autoawq", "do_fuse": False} | changes


def release(
    folder: Path, made, tensors, told: dict, keep: tuple[str, ...] = (), source: Path = NANO / "nano-s"
) -> dict[str, UniformWeight]:
    """Writes the model in ``source`` with its linears rounded to the grid ``made``, or by that function, and stored by
    ``tensors``, but for those named in ``keep``; returns the weights by name."""
    weights, state = {}, {}
    shutil.copytree(source, folder)
    for path in folder.glob("*.safetensors*"):
        state |= load_file(path) if path.suffix == ".safetensors" else {}
        path.unlink()
    for key in [key for key in state if key.endswith("_proj.weight")]:
        name = key.removesuffix(".weight")
        if name not in keep:
            w_NK = state.pop(key)
            weights[name] = round_to_nearest(w_NK, made) if isinstance(made, Grid) else made(w_NK)
            state |= {f"{name}.{suffix}": t for suffix, t in tensors(weights[name]).items()}
    save_file({key: t.contiguous() for key, t in state.items()}, folder / "model.safetensors", {"format": "pt"})
    set_config(folder, quantization_config=told)
    return weights


def set_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
