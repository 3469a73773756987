"""What a metric is called, which way is better and with how many digits it is printed."""

import math
from dataclasses import dataclass

from qbench.printed.published import HEADERS, NAMES

METHODS = NAMES | {"none": "unquantized", "fp8": "FP8"}
COMPARISONS = ("kl", "kl_p50", "kl_p99", "kl_p99.9", "top1")  # with the unquantized model, by themselves

_DATA = HEADERS | {"wikitext2": "WikiText2", "c4": "C4", "nano_world": "nano tasks"}
_KINDS = {"acc": "", "acc_norm": "(norm)", "top1": "top-1", "kl": "KL", "ppl": "PPL"}
_KINDS |= {"kl_p50": "KL median", "kl_p99": "KL 99 %", "kl_p99.9": "KL 99.9 %"}
_KINDS |= {"word_perplexity": "word PPL", "byte_perplexity": "byte PPL", "perplexity": "PPL"}


@dataclass(frozen=True)
class Column:
    """A column of a table or a panel of a figure: one metric.

    ``higher_is_better`` is None where the measure does not say it, ``scale`` multiplies before printing (100 for per
    cent), ``log`` is for the axes of figures, ``delta`` says whether a difference to the unquantized model makes
    sense, and ``chance`` is what guessing gives.
    """

    key: str
    header: str
    higher_is_better: bool | None
    scale: float = 1.0
    log: bool = False
    delta: bool = True
    chance: float | None = None

    @property
    def titled(self) -> str:
        """The header with an arrow to the better side, and its unit."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return self.header + arrow + (", %" if self.scale == 100 else "")

    def text(self, value: float, stderr: float = math.nan, signed: bool = False) -> str:
        """``value`` ± ``stderr`` with the digits its error and size deserve; inf and nan as such."""
        value, stderr = value * self.scale, stderr * self.scale
        if not math.isfinite(value):
            return f"{value:+}" if signed and math.isinf(value) else str(value)
        if abs(value) >= 1e4:
            return f"{value:{'+' if signed else ''}.1e}".replace("e+0", "e").replace("e+", "e")
        if 0 < abs(value) < 1e-4 and not signed:
            return f"{value:.1e}" + ("" if math.isnan(stderr) else f" ± {stderr:.0e}")
        digits = 1 if self.scale == 100 or abs(value) >= 100 else 2 if abs(value) >= 10 else 3
        while digits < 5 and self.scale != 100 and 0 < stderr < 0.5 * 10**-digits:
            digits += 1
        body = f"{value:{'+' if signed else ''}.{digits}f}"
        return body if math.isnan(stderr) else f"{body} ± {stderr:.{digits}f}"

    def short(self, value: float) -> str:
        """``value`` in at most five characters."""
        value *= self.scale
        if not math.isfinite(value):
            return str(value)
        if abs(value) >= 1e4:
            return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
        if self.scale == 100 or 100 <= abs(value) < 1000:
            return f"{value:.1f}"
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def column(
    key: str, unit: str = "", header: str = "", higher_is_better: bool | None = None, chance: float | None = None
) -> Column:
    """The column of a metric such as ``wikitext2/ppl``, as its measure declares it; a loss has a log axis."""
    data, _, kind = key.rpartition("/")
    name = _DATA.get(data, data.removeprefix("nano_").replace("_", " ") if kind in ("acc", "acc_norm") else data)
    header = header or f"{name} {_KINDS.get(kind, kind)}".replace("_", " ").strip()
    scale, log = 100.0 if unit == "fraction" else 1.0, higher_is_better is not None and not higher_is_better
    return Column(key, header, higher_is_better, scale, log, kind not in COMPARISONS, chance)


def curve_name(method: str, act_bits: float, group_size: float, variant: str) -> str:
    """A method as figures name it, with activation bits below 16, groups and what else sets it apart."""
    acts = f" A{act_bits:.0f}" if act_bits < 16 else ""
    group = f" g{group_size:.0f}" if group_size > 0 else ""
    return f"{method}{acts}{group} {variant}".strip()


def method_order(name: str) -> tuple[int, str]:
    """The paper's order, methods it does not have behind."""
    return (list(METHODS).index(name) if name in METHODS else len(METHODS), name)
