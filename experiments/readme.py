"""Puts what results/ has between its marks in the README: python experiments/readme.py"""

import json
import re
from pathlib import Path

from qbench.files import write_atomic
from qbench.report import summary
from qbench.report.latency.rows import load
from qbench.report.latency.targets import headlines

README = Path(__file__).parent.parent / "README.md"


def sections(results: Path) -> dict[str, str]:
    """Mark: what stands between <!-- mark --> and <!-- /mark -->."""
    tables = {"nano_summary": f"```text\n{summary(results)}```"}
    return tables | {"speed": "\n".join(speed(results)), "latency": "\n".join(latency(results))}


def latency(results: Path) -> list[str]:
    """The main figures of each GPU in results/latency with the notes of its record, or that there is none."""
    found = [f"* {line}" for r in load(results) for line in (*headlines(r), *(f"Note: {note}" for note in r.notes))]
    return found or [
        "The kernels are proven under Triton's interpreter and compiled for sm_90; no GPU has measured them yet. "
        "`python experiments/latency.py` does."
    ]


def speed(results: Path) -> list[str]:
    """A line for each thing that was timed, from results/speed and results/full_size, as far as they are there."""
    files = (p for room in ("speed", "full_size") for p in (results / room).glob("*.json"))
    found, lines = {p.stem: json.loads(p.read_text()) for p in files}, []
    for name, tell in (
        ("quantization", quantization),
        ("scoring", scoring),
        ("whole", whole),
        ("mmlu", mmlu),
        ("killed", killed),
        ("large", large),
    ):
        lines += tell(found[name]) if name in found else []
    return [f"* {line}" for line in lines] or ["* nothing timed yet"]


def quantization(q) -> list[str]:
    ours, r, e = q["runs"]["gptq W4 g128"]["seconds"], q["ratios"], q["error"]
    where = f"{q['provenance']['device']}, {q['provenance']['threads']} threads"
    text = f"**GPTQ W4 g128** of {q['model']} on {q['tokens']:,} tokens ({where}): {ours:.0f} s"
    if "peer" in q:
        text += f", llm-compressor {q['peer']['llmcompressor']} {q['peer']['seconds']:.0f} s in the same run: "
        text += f"**{r['peer / ours']:.1f}×**; error of all layers {e['ours']['layers']:.4f} against "
        text += (
            f"{e['peer']['layers']:.4f}, of the last output {e['ours']['output']:.4f} against {e['peer']['output']:.4f}"
        )
    floor = sum(q["gptq_floor_seconds"].values())
    text += f". The counted operations, at this machine's rates for large products, take {floor:.0f} s."
    further = [100 * r[f"{m} further / first"] for m in ("awq", "smoothquant")]
    return [
        text,
        f"**AWQ** takes {r['awq / gptq']:.2f}× GPTQ's time, a further bit-width {further[0]:.0f} % of its first; "
        f"SmoothQuant {r['smoothquant / gptq']:.2f}× and {further[1]:.0f} %.",
    ]


def scoring(found) -> list[str]:
    s, n = found["total"], len(found["subjects"])
    return [
        f"**MMLU**, {s['questions']} 5-shot questions of {n} subjects, random weights of Qwen3-0.6B's shape: "
        f"{s['hflm']['seconds']:.0f} s with lm-eval's HFLM, {s['qbench']['seconds']:.0f} s with ours, in turns: "
        f"**{s['seconds_ratio']:.1f}×** ({s['hflm']['tokens']:,} tokens and {s['qbench']['tokens']:,}). "
        f"Log-likelihoods differ by {s['mean_difference']:.3f} in the mean (bfloat16); {s['other_answers']} answers "
        f"are others, between choices at most {s['largest_gap']:.3f} apart."
    ]


def whole(w) -> list[str]:
    return [
        "**The whole of Qwen3-0.6B's shape** (random weights, 28 layers): GPTQ, perplexity on 8 windows "
        f"and one MMLU subject of {w['mmlu_marketing/acc']['n']} questions in {w['minutes']:.1f} minutes, "
        f"{w['peak_mib'] / 1024:.1f} GiB at most."
    ]


def mmlu(m) -> list[str]:
    minutes = f"{m['seconds'] / 60:.1f} minutes"
    return [f"All {m['subjects']} MMLU subjects, {m['questions']} questions, with that quantized model: {minutes}."]


def killed(k) -> list[str]:
    n = k["blocks"]
    return [
        f"Killed after {k['blocks_before_the_kill']} of {n} blocks and started again: "
        f"{k['equal_to_the_uninterrupted_run']} of {n} blocks are bit-identical to the uninterrupted run's, the "
        f"{k['of_them_untouched']} that were there were not done again."
    ]


def large(found) -> list[str]:
    trace = [f"{x / 1024:.2f}" for x in found["peak_mib_at_each_block"]]
    return [
        f"**Qwen3-8B's shape**, {len(trace)} blocks in shards: peak memory up to each block {', '.join(trace)} GiB."
    ]


if __name__ == "__main__":
    text = README.read_text()
    for mark, shown in sections(README.parent / "results").items():
        pattern = re.compile(f"<!-- {mark} -->.*?<!-- /{mark} -->", re.DOTALL)
        text = pattern.sub(lambda _, m=mark, s=shown: f"<!-- {m} -->\n{s}\n<!-- /{m} -->", text)
    write_atomic(README, text)
