"""Optional copies of records in Weights & Biases: one run a record, named by its id. The JSON files stay the truth."""

from dataclasses import asdict
from importlib.util import find_spec

from qbench.record import Measurement


def check(mode: str) -> None:
    """ValueError if ``mode`` is not one of disabled, offline, online, or wandb is needed and not installed."""
    if mode not in ("disabled", "offline", "online"):
        raise ValueError(f"wandb.mode must be disabled, offline or online, got {mode!r}")
    if mode != "disabled" and find_spec("wandb") is None:
        raise ValueError(f"wandb.mode={mode} needs the package wandb: pip install 'qbench[wandb]'")


def log(record: Measurement, mode: str, project: str) -> None:
    """``mode`` as in ``check``; offline runs lie where wandb keeps them (WANDB_DIR), for ``wandb sync``."""
    if mode == "disabled":
        return
    import wandb

    science = record.science
    grid = science["grid"] or {}
    run = wandb.init(
        project=project,
        id=record.id,
        name=f"{science['model']['name']} {science['method']['name']} {grid.get('bits', '')} {science['eval']['name']}",
        config=science | {"provenance": record.provenance},
        mode=mode,
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    values = {key: metric.value for key, metric in record.metrics.items()}
    values |= {f"{key}/stderr": m.stderr for key, m in record.metrics.items() if m.stderr is not None}
    sizes = {k: v for k, v in asdict(record).items() if k in ("nominal_bits", "stored_bits", "model_bytes")}
    run.log(values | sizes)
    run.finish()
