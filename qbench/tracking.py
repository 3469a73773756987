"""Optional copies of records in Weights & Biases: one run a record, named by its id. The JSON files stay the truth."""

from dataclasses import asdict

from qbench.record import Measurement


def log(record: Measurement, mode: str, project: str) -> None:
    """``mode`` is disabled, offline or online. Raises ImportError, saying what to install, where wandb is missing."""
    if mode == "disabled":
        return
    if mode not in ("offline", "online"):
        raise ValueError(f"wandb.mode must be disabled, offline or online, got {mode!r}")
    try:
        import wandb
    except ImportError as e:
        raise ImportError(f"wandb.mode={mode} needs the package wandb: pip install 'qbench[wandb]'") from e
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
