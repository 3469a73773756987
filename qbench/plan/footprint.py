"""Memory and disk: what a run needs, in bytes, and whether a machine has it.

``peak_*`` is what a run is expected to need; a plan prints it and warns. ``least_*`` and ``needs`` are what it surely
needs, because these tensors exist at the same moment; only that is a reason to refuse a run.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from qbench.machine import Machine
from qbench.methods.base import Method
from qbench.models.checkpoint import OpenCheckpoint
from qbench.shape import BYTES, Shape, sequences_per_pass

GIB = 1 << 30
LOGIT_FLOATS = 2**25  # floats of logits that perplexity holds at once
RESOURCES = {  # what each is called, and what to do where there is too little
    "gpu": ("GPU memory", "use machine.hidden_device=cpu, a GPU with more memory, or machine=cpu"),
    "ram": ("CPU memory", "use a machine with more memory, or a smaller calib.n (hidden states wait there)"),
    "disk": ("disk space in machine.cache_dir", "free some space, or set machine.cache_dir to a larger disk"),
}


def hidden_bytes(shape: Shape, tokens: int, dtype: str = "bfloat16") -> int:
    """Hidden states of all calibration tokens between two layers."""
    return tokens * shape.hidden * BYTES[dtype]


def waiting_bytes(shape: Shape, tokens: int, dtype: str = "bfloat16") -> int:
    """Hidden states between two stages of a layer: the residual stream and what the widest stage reads."""
    return tokens * (shape.hidden + max(K for K, _, _ in shape.stages)) * BYTES[dtype]


def statistics_bytes(shape: Shape) -> int:
    """The Grams of all stages of all layers, which methods that see the unquantized model share on disk."""
    return shape.layers * sum(gram_bytes(K) for K, _, _ in shape.stages)


def gram_bytes(K: int) -> int:
    """A Gram matrix, float32."""
    return 4 * K * K


def stored_bytes(shape: Shape, method: Method) -> int:
    """Quantized weights as they lie on disk, the rest of each layer at 2 bytes; embedding and head are not copied."""
    rest = shape.layer_parameters - sum(N * K for N, K in shape.linears)
    return shape.layers * (sum(method.stored_bytes(N, K) for N, K in shape.linears) + 2 * rest)


def activation_bytes(shape: Shape, tokens: int, dtype: str = "bfloat16") -> int:
    """One layer's temporaries: residual and normed input, q, k, v and their rotated copies, gate, up and product."""
    attention = 2 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return tokens * BYTES[dtype] * (4 * shape.hidden + max(attention, 3 * shape.intermediate))


def peak_quantize(shape: Shape, grams: str, length: int, dtype="bfloat16", resting: int = 0) -> int:
    """Bytes on the device that quantizes: the layer and its dequantized successor; a forward pass with its float32
    input; the Grams (``grams``: "stage", one at a time, or "all" of a layer) and two matrices more while the largest is
    factored; five float32 copies of the largest stage; or the embedding. ``resting``: hidden states that wait there.
    """
    sizes = [gram_bytes(K) for K, _, _ in shape.stages]
    stats = (max(sizes) if grams == "stage" else sum(sizes)) + 2 * max(sizes)
    copies = 5 * 4 * max(sum(names.values()) * K for K, names, _ in shape.stages)
    width = max(K for K, _, _ in shape.stages)
    tokens = sequences_per_pass(length) * length
    flight = activation_bytes(shape, tokens, dtype) + 4 * tokens * width
    layer = 2 * shape.layer_parameters * BYTES[dtype]
    return max(layer + flight + stats + copies, shape.vocab * shape.hidden * BYTES[dtype]) + resting


def least_quantize(shape: Shape, dtype="bfloat16") -> int:
    """One layer, the largest Gram with the one it is factored into, one float32 copy of the largest linear; or the
    embedding."""
    layer = shape.layer_parameters * BYTES[dtype] + 2 * max(gram_bytes(K) for K, _, _ in shape.stages)
    return max(layer + 4 * max(N * K for N, K in shape.linears), shape.vocab * shape.hidden * BYTES[dtype])


def peak_evaluate(shape: Shape, length: int, dtype="bfloat16", float_head: bool = True) -> int:
    """The model, the head once more in float32 (perplexity), a forward pass, three chunks of float32 logits."""
    head = 4 * shape.vocab * shape.hidden if float_head else 0
    tokens = sequences_per_pass(length) * length
    return shape.weight_bytes(dtype) + head + activation_bytes(shape, tokens, dtype) + 3 * 4 * LOGIT_FLOATS


@dataclass(frozen=True)
class Bytes:
    """Bytes of GPU memory, CPU memory and disk; None: not known, or there is none."""

    gpu: int | None = None
    ram: int | None = None
    disk: int | None = None


def needs(shape: Shape, method: Method, device: str, dtype: str = "bfloat16") -> Bytes:
    """What a run certainly needs: the model, the quantization of one layer, and the quantized weights on disk."""
    memory, disk = shape.weight_bytes(dtype), 0
    if method.name != "none":
        memory, disk = max(memory, least_quantize(shape, dtype)), stored_bytes(shape, method)
    return Bytes(gpu=memory, disk=disk) if device.startswith("cuda") else Bytes(ram=memory, disk=disk)


def available(device: str, cache_dir: Path) -> Bytes:
    """What this machine has: all GPU and CPU memory (other processes may free theirs), and free disk."""
    gpu = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else None
    return Bytes(gpu=gpu, ram=memory(), disk=free(cache_dir))


def lacking(need: Bytes, has: Bytes) -> list[str]:
    """One text per resource that does not suffice: what is needed, what there is, what to do."""
    found = []
    for kind, (words, advice) in RESOURCES.items():
        wanted, there = getattr(need, kind), getattr(has, kind)
        if wanted is not None and there is not None and wanted > there:
            found.append(f"{wanted / GIB:.1f} GiB of {words}, but there are {there / GIB:.1f}; {advice}")
    return found


def check_room(ckpt: OpenCheckpoint, method: Method, machine: Machine, cell: str) -> None:
    """ValueError where ``cell`` certainly cannot run; layers spread over devices (max_memory) are not judged."""
    if machine.max_memory is None:
        need = needs(Shape.of(ckpt.config), method, machine.device, ckpt.model.dtype)
        if found := lacking(need, available(machine.device, machine.cache_dir)):
            raise ValueError(f"{cell} needs at least {found[0]}")


def memory() -> int:
    """Bytes of CPU memory of this machine, or of the control group that confines this process, if less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # there is no group, or it has no limit
        return total


def free(folder: str | Path) -> int:
    """Free bytes of the disk that holds ``folder``, or will."""
    path = Path(folder).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
