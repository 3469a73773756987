"""The sentences below a table of the paper: settings and data of the records behind it, as the records tell them."""

from collections import defaultdict

from qbench.protocol import NOT_STORED, OWN, name_of
from qbench.record import Measurement
from qbench.report.quality.variants import method_of
from qbench.report.reproduction.measured_cells import printed_metrics

EVALUATION = ("window", "logits", "draw", "limit", "num_fewshot", "max_prompt")


def settings_of(used: list[Measurement]) -> list[str]:
    """Calibration, evaluation, and in what the methods differ from the protocol ``paper``."""
    said: dict[str, set[str]] = defaultdict(set)
    for m in used:
        method, calib, ev = method_of(m.science)["name"], m.science.get("calib"), m.science["eval"]
        if calib:
            words = "{source}, {n} × {length} tokens, seed {seed}, drawn as {draw}".format_map(calib)
            said[f"Calibration: {words}"].add(method)
        words = ", ".join(f"{name} {ev[name]}" for name in EVALUATION if ev.get(name) is not None)
        said[f"Evaluation: {words}"].update(printed_metrics(m.metrics))
        for field in m.protocol["deviations"]["paper"]:
            if not field.startswith("eval."):
                said[f"Differs from paper: {field}"].add(method)
    return [f"{words} ({', '.join(sorted(of))})." for words, of in sorted(said.items())]


def data_of(used: list[Measurement]) -> list[str]:
    """Revisions of the models and digests of the evaluation data, shortened."""
    models = {(m.science["model"]["name"], str(m.science["model"].get("revision"))) for m in used}
    data = {(key, str(m.science["eval"].get("data"))[:8]) for m in used for key in printed_metrics(m.metrics)}
    lines = [f"Models: {', '.join(f'{name} @ {revision[:8]}' for name, revision in sorted(models))}."] if models else []
    return lines + ([f"Data: {', '.join(f'{key} {digest}' for key, digest in sorted(data))}."] if data else [])


def left_out(candidates: list[Measurement], protocol: str) -> list[str]:
    """Records of the table's cells that follow no protocol, or do not say which."""
    own = [m.protocol["deviations"].get(protocol, []) for m in candidates if name_of(m.protocol) == OWN]
    old = sum(name_of(m.protocol) == NOT_STORED for m in candidates)
    lines = []
    if own:
        fields = ", ".join(sorted({field for found in own for field in found}))
        lines.append(f"Left out, with settings of their own ({fields}): {len(own)} record{'s' * (len(own) > 1)}.")
    if old:
        lines.append(f"Left out, measured before protocols were stored: {old} record{'s' * (old > 1)}.")
    return lines
