"""Optional copies of records in Weights & Biases: one run per record, named by its id. Nothing is read from there."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

from qbench.record import Measurement


@dataclass(frozen=True)
class Tracking:
    """``offline`` runs lie where wandb keeps them (WANDB_DIR), for ``wandb sync``."""

    mode: Literal["disabled", "offline", "online"]
    project: str

    def check(self) -> None:
        """ValueError where wandb is needed and not installed, or where ``online`` has no login."""
        if self.mode != "disabled" and find_spec("wandb") is None:
            raise ValueError(f"wandb.mode={self.mode} needs the package wandb: pip install 'qbench[wandb]'")
        if self.mode == "online":
            _log_in()

    def log(self, record: Measurement) -> None:
        if self.mode == "disabled":
            return
        import wandb

        science = record.science
        names = (science["model"]["name"], science["method"]["name"], (science["grid"] or {}).get("bits", ""))
        run = wandb.init(
            project=self.project,
            id=record.id,
            name=" ".join(map(str, (*names, science["eval"]["name"]))),
            config=science | {"provenance": record.provenance},
            mode=self.mode,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        values = {key: metric.value for key, metric in record.metrics.items()}
        values |= {f"{key}/stderr": m.stderr for key, m in record.metrics.items() if m.stderr is not None}
        run.log(values | {key: getattr(record, key) for key in ("nominal_bits", "stored_bits", "model_bytes")})
        run.finish()


@cache
def _log_in() -> None:
    import wandb

    try:
        wandb.login()
    except wandb.errors.Error as e:
        raise ValueError(f"wandb.mode=online: {e} Or set wandb.mode=offline") from e
