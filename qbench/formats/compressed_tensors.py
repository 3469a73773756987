"""compressed-tensors files, which vLLM and transformers read: words along K for weights alone ("pack-quantized"), int8
for weights with quantized activations ("int-quantized").

Since release 0.18 of the library a code may lie in two words; files of 3, 5, 6 and 7 bits of earlier releases differ.
One bit on a symmetric grid, +-s/2, is stored as two bits: codes 1 and 3 around the zero 2 with the scale s/2. The name
of its config group says so.
Sources: compressed_tensors/compressors/pack_quantized/base.py, naive_quantized/base.py, quantization/quant_scheme.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from qbench.formats.base import Format, Stored, check_halves, grids, is_signs
from qbench.formats.bits import pack, unpack
from qbench.grid import ActQuant, Grid
from qbench.weights import UniformWeight

SIGNS = "signs"  # start of the name of a config group with one symmetric bit
TRANSFORMERS_NOTE = (
    "transformers decompresses symmetric weights when it loads them. With releases 0.18 to 0.20 of compressed-tensors "
    "it fails to load asymmetric ones."
)
ACTS_NOTE = (
    "transformers divides the largest activation of a token by 127.5 to get its step, qbench and vLLM by 127, so the "
    "measured numbers do not hold exactly in transformers."
)


@dataclass(frozen=True)
class CompressedTensors(Format):
    """Everything on a uniform grid whose groups are neighbouring columns; activations with one scale per row."""

    name: ClassVar[str] = "compressed-tensors"
    holds_acts = True

    @classmethod
    def stored(cls, told, shapes) -> Stored:
        outlines, acts = {}, set()
        for key, group in told["config_groups"].items():
            w, a = group["weights"], group.get("input_activations")
            acts.add(mine := ActQuant(a["num_bits"]) if a else None)
            size = w["group_size"] if w["strategy"] == "group" else -1
            grid = Grid(1 if key.startswith(SIGNS) else w["num_bits"], size, w["symmetric"])
            for part, numbers in group_of(grid, mine).items():
                found = group.get(part) or {}
                if differ := {k: found.get(k) for k, v in (numbers or {}).items() if found.get(k) != v}:
                    raise ValueError(f"{part} of {key} are {differ}; supported: {numbers}")
            names = tuple(shapes) if group["targets"] == ["Linear"] else group["targets"]
            if shapes and (unknown := sorted(set(names) - set(shapes))):
                raise ValueError(f"targets of {key} are Linear or names of linears, not {unknown[0]}")
            outlines |= UniformWeight.outlines(grid, {name: shapes[name] for name in names if name in shapes})
        for key in ("transform_config", "kv_cache_scheme"):
            if told.get(key):
                raise ValueError(f"{key} is not supported, and is {told[key]}")
        if left := sorted(set(shapes) - set(outlines)):
            raise ValueError(f"no config group says how {left[0]} is stored")
        if len(acts) > 1:
            raise ValueError("its config groups have several kinds of input_activations; supported: one")
        return Stored(cls(), outlines, acts.pop())

    def refuse(self, weight, acts):
        super().refuse(weight, acts)
        grid = weight.grid
        if acts and not (grid.symmetric and grid.group_size == -1):
            raise ValueError(
                f"{acts.bits}-bit activations need symmetric weights with one scale per row, not {grid}; "
                "use grid=per_row grid.symmetric=true"
            )
        check_halves(weight)

    def tensors(self, weight, acts, dtype):
        bits, codes_NK, scale_NG = weight.bits, weight.codes_NK, weight.scale_NG
        if is_signs(weight):
            bits, codes_NK, scale_NG = 2, 2 * codes_NK + 1, scale_NG / 2
        if acts:
            return {"weight": (codes_NK.short() - 2 ** (bits - 1)).to(torch.int8), "weight_scale": scale_NG}
        found = {"weight_packed": pack(codes_NK, bits), "weight_scale": scale_NG}
        found["weight_shape"] = torch.tensor(codes_NK.shape, device=codes_NK.device)
        if weight.zero_NG is not None:
            found["weight_zero_point"] = pack(weight.zero_NG.T, bits).T.contiguous()
        return found

    def config(self, weights, acts):
        stored, groups = "int-quantized" if acts else "pack-quantized", {}
        for grid, names in (found := grids(weights)).items():
            has_signs = grid.symmetric and grid.bits == 1
            groups[f"{SIGNS if has_signs else 'group'}_{len(groups)}"] = {
                "targets": ["Linear"] if len(found) == 1 else names,
                **group_of(grid, acts),
                "output_activations": None,
                "format": stored,
            }
        return {
            "dtype": "float16",  # that of the scales, which readers convert to it
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": stored,
                "quantization_status": "compressed",
                "config_groups": groups,
                "ignore": ["lm_head"],
                "kv_cache_scheme": None,
                "global_compression_ratio": None,
            },
        }

    def read(self, name, tensors, config):
        groups = config["quantization_config"]["config_groups"]
        (key,) = (k for k, g in groups.items() if name in g["targets"] or g["targets"] == ["Linear"])
        bits, scale_NG, zero_NG = groups[key]["weights"]["num_bits"], tensors["weight_scale"], None
        if "weight" in tensors:
            codes_NK = (tensors["weight"].short() + 2 ** (bits - 1)).byte()
        else:
            N, K = tensors["weight_shape"].tolist()
            codes_NK = unpack(tensors["weight_packed"], bits, K)
            if "weight_zero_point" in tensors:
                zero_NG = unpack(tensors["weight_zero_point"].T, bits, N).T.contiguous()
        if key.startswith(SIGNS):
            bits, codes_NK, scale_NG = 1, codes_NK // 2, scale_NG * 2
        return UniformWeight(codes_NK, scale_NG, bits, zero_NG)

    def notes(self, weights, acts):
        if acts:
            readers = "vLLM reads this file if weights and activations have 8 bits, and so does transformers."
            return [readers, ACTS_NOTE]
        return ["vLLM has kernels for 2 to 8 bits on GPUs.", TRANSFORMERS_NOTE]


def group_of(grid: Grid, acts: ActQuant | None) -> dict[str, dict | None]:
    """The library's description of weights and activations."""
    bits = 2 if grid.symmetric and grid.bits == 1 else grid.bits
    size = {"strategy": "channel"} if grid.group_size == -1 else {"strategy": "group", "group_size": grid.group_size}
    tokens = {"type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    return {
        "weights": {"num_bits": bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False} | size,
        "input_activations": {"num_bits": acts.bits} | tokens if acts else None,
    }
