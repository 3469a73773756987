"""What is checked before a run starts: that it fits, that kernels can run it, and that its model is that of the records
which exist."""

from qbench.machine import Machine
from qbench.methods.base import Method
from qbench.models.checkpoint import OpenCheckpoint
from qbench.plan import fits
from qbench.shape import Shape
from qbench.store import Store


def check_revision(store: Store, ckpt: OpenCheckpoint) -> None:
    """ValueError where records exist of another revision of this model: in one results folder a model name stands for
    one revision."""
    others = store.revisions(ckpt.model.name) - {ckpt.revision}
    if others:
        back = f"model.revision={min(others)} takes the former again, or " if ckpt.model.repo else ""
        raise ValueError(
            f"model {ckpt.model.name} is now revision {ckpt.revision}, but the records in {store.root} are of revision "
            f"{', '.join(sorted(others))}; {back}set machine.results_dir to another folder, or model.name"
        )


def check_packable(method: Method, linears: dict[str, tuple[int, int]]) -> None:
    """ValueError where no kernel multiplies with the weights that ``method`` makes of ``linears``, {name: (N, K)}."""
    from qbench.kernels import binary, wna8  # needs Triton

    if method.grid and method.acts:
        for _, K in linears.values():
            wna8.check(K, method.grid.group_size)
    if method.grid is None and (block := getattr(method, "block_size", None)):
        binary.check_block(block)


def check_room(ckpt: OpenCheckpoint, method: Method, machine: Machine, cell: str) -> None:
    """ValueError where memory or disk certainly cannot hold this run; layers spread over devices are not judged."""
    if machine.max_memory is not None:
        return
    need = fits.needs(Shape.of(ckpt.config), method, machine.device, ckpt.model.dtype)
    fits.check_fits(need, fits.available(machine.device, machine.cache_dir), cell)
