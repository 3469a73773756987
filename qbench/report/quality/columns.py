"""What a metric is called, which way is better and with how many digits it is printed."""

import math
from dataclasses import dataclass

_DATA = {"wikitext2": "WikiText2", "c4": "C4", "mmlu": "MMLU"}
_DATA |= {"piqa": "PIQA", "arc_easy": "ARC-e", "arc_challenge": "ARC-c", "hellaswag": "HellaSwag"}
_DATA |= {"winogrande": "WinoGrande", "boolq": "BoolQ"}
_CHANCE = {"piqa": 0.5, "boolq": 0.5, "winogrande": 0.5}
_CHANCE |= {"arc_easy": 0.25, "arc_challenge": 0.25, "hellaswag": 0.25}


@dataclass(frozen=True)
class Column:
    """A column of a table or a panel of a figure.

    ``key`` is a metric, or any name where ``mean_of`` lists several metrics to average.
    ``scale`` multiplies before printing (100 for per cent), ``delta`` says whether a difference to the
    unquantized model makes sense, ``chance`` is the value of guessing.
    """

    key: str
    header: str
    higher_is_better: bool
    scale: float = 1.0
    log: bool = False
    delta: bool = True
    chance: float | None = None
    mean_of: tuple[str, ...] = ()

    @property
    def titled(self) -> str:
        return f"{self.header} {'↑' if self.higher_is_better else '↓'}{', %' if self.scale == 100 else ''}"

    def better(self, a: float, b: float) -> bool:
        return a > b if self.higher_is_better else a < b

    def text(self, value: float, stderr: float = math.nan, signed: bool = False) -> str:
        """``value`` ± ``stderr`` with the digits its error and size deserve; inf and nan as such."""
        value, stderr = value * self.scale, stderr * self.scale
        if not math.isfinite(value):
            return f"{value:+}" if signed and math.isinf(value) else str(value)
        if abs(value) >= 1e4:
            return f"{value:{'+' if signed else ''}.1e}".replace("e+0", "e").replace("e+", "e")
        digits = 1 if self.scale == 100 or abs(value) >= 100 else 2 if abs(value) >= 10 else 3
        while digits < 5 and self.scale != 100 and 0 < stderr < 0.5 * 10**-digits:
            digits += 1
        body = f"{value:{'+' if signed else ''}.{digits}f}"
        return body if math.isnan(stderr) else f"{body} ± {stderr:.{digits}f}"


def column(key: str) -> Column:
    """The column of a metric key such as ``wikitext2/ppl`` or ``nano_town/acc``."""
    data, _, kind = key.rpartition("/")
    name = _DATA.get(data, data.replace("_", " "))
    if kind in ("acc", "acc_norm"):
        chance = _CHANCE.get(data, 0.25 if data.startswith(("mmlu", "nano")) else None)
        if data.startswith("nano_"):
            name = "nano tasks" if data == "nano_world" else data.removeprefix("nano_").replace("_", " ")
        return Column(key, name + (" (norm)" if kind == "acc_norm" else ""), True, 100.0, chance=chance)
    if kind == "top1":
        return Column(key, f"{name} top-1".strip(), True, 100.0, delta=False)
    if kind == "kl":
        return Column(key, f"{name} KL".strip(), False, log=True, delta=False)
    if kind.endswith(("ppl", "perplexity")):
        unit = kind.removesuffix("ppl").removesuffix("perplexity").replace("_", " ")
        return Column(key, f"{name} {unit}PPL", False, log=True)
    return Column(key, f"{name} {kind.replace('_', ' ')}", kind.startswith(("acc", "exact", "f1", "mcc")))


METHODS = {"none": "unquantized", "rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ"}
METHODS |= {"smoothquant": "SmoothQuant", "billm": "BiLLM"}


def method_order(name: str) -> tuple[int, str]:
    """The paper's order, methods it does not have behind."""
    return (list(METHODS).index(name) if name in METHODS else len(METHODS), name)
