"""What docs/speed.md says of results/latency, results/speed and results/full_size; experiments/readme.py writes it."""

import math
from pathlib import Path

from experiments.paper.other_records import records
from qbench.latency.record import BF16, Kernel
from qbench.report.latency.speeds import FUSED, LARGE, Speeds, geomean, load

W4 = Kernel("wna16", 4, 128)


def latency(results: Path) -> list[str]:
    """The main figures of each GPU in results/latency with the notes of its record, or that there is none."""
    found = [f for r in load(results) for f in (*headlines(r), *(f"Note: {note}" for note in r.record.notes))]
    return found or ["No GPU has been measured yet. `python experiments/latency.py` measures one."]


def headlines(s: Speeds) -> list[str]:
    """The main numbers of a GPU, one line each. A mean with a product missing is left out."""
    out = [f"**{s.gpu}**, W4A16 (groups of 128), geometric means over the products of {', '.join(LARGE)}:"]
    for M, over, of in ((1, "bf16", s.gain), (1, "the best peer", s.over_peer), (16, "bf16", s.gain)):
        gains = [of(model, layer, M, W4) for model in LARGE for layer in FUSED]
        if not any(map(math.isnan, gains)):
            out.append(
                f"M = {M}: **{geomean(gains):.2f}** times as fast as {over} ({min(gains):.2f} to {max(gains):.2f})"
            )
    step = {r.kernel: r for r in s.models if (r.model, r.what, r.batch) == ("qwen3-8b", "decode", 1) and r.ms}
    if W4 in step and BF16 in step:
        gain, floor = step[BF16].ms / step[W4].ms, step[W4].floor_ms / step[W4].ms
        out.append(
            f"decoding with Qwen3-8B, one sequence: **{gain:.2f}** times as fast, {floor:.0%} of the memory floor"
        )
    return out


def speed(results: Path) -> list[str]:
    """One line for each thing that was timed, from results/speed and results/full_size, as far as they exist."""
    found = dict(pair for room in ("speed", "full_size") for pair in records(results / room))
    tell = {
        "quantization": quantization,
        "scoring": scoring,
        "whole": whole,
        "mmlu": mmlu,
        "killed": killed,
        "large": large,
    }
    return [line for name, lines in tell.items() if name in found for line in lines(found[name])]


def quantization(q: dict) -> list[str]:
    runs, ratio, error, where = q["runs"], q["ratios"], q["error"], q["provenance"]
    lines = [
        f"**GPTQ, 4 bits, groups of 128**, {q['model']}, {q['tokens']:,} calibration tokens, on {where['device']} with "
        f"{where['threads']} threads: {runs['gptq W4 g128']['seconds']:.0f} s. The counted operations alone take "
        f"{sum(q['gptq_floor_seconds'].values()):.0f} s at the rates this machine reaches for large products."
    ]
    if peer := q.get("peer"):
        ours, theirs = error["ours"], error["peer"]
        lines.append(
            f"llm-compressor {peer['llmcompressor']} takes {peer['seconds']:.0f} s for the same work, timed in turns "
            f"with ours: **{ratio['peer / ours']:.1f} times as long**. The relative error is {ours['layers']:.4f} "
            f"(theirs {theirs['layers']:.4f}) over all layers and {ours['output']:.4f} ({theirs['output']:.4f}) for "
            "the last output."
        )
    (awq, awq2), (smooth, smooth2) = (
        (ratio[f"{name} / gptq"], 100 * ratio[f"{name} further / first"]) for name in ("awq", "smoothquant")
    )
    lines.append(
        f"**AWQ** takes {awq:.2f} times as long as GPTQ, **SmoothQuant** {smooth:.2f} times. A second bit-width takes "
        f"{awq2:.0f} % and {smooth2:.0f} % of the first's time, as the unquantized model's statistics are kept."
    )
    return lines


def scoring(found: dict) -> list[str]:
    s = found["total"]
    ours, hflm = s["qbench"], s["hflm"]
    return [
        f"**MMLU**, {s['questions']} questions of {len(found['subjects'])} subjects, 5-shot, random weights of "
        f"Qwen3-0.6B's shape: {ours['seconds']:.0f} s, where lm-eval's HFLM takes {hflm['seconds']:.0f} s, timed in "
        f"turns: **{s['seconds_ratio']:.1f} times as fast** ({ours['tokens']:,} tokens instead of {hflm['tokens']:,}). "
        f"The log-likelihoods differ by {s['mean_difference']:.3f} on average (bfloat16). {s['other_answers']} answers "
        f"change, between choices that are at most {s['largest_gap']:.3f} apart."
    ]


def whole(w: dict) -> list[str]:
    questions, gib = w["mmlu_marketing/acc"]["n"], w["peak_mib"] / 1024
    return [
        f"**All of Qwen3-0.6B's shape** (random weights, 28 blocks): GPTQ, perplexity on 8 windows and one MMLU "
        f"subject of {questions} questions take {w['minutes']:.1f} minutes and at most {gib:.1f} GiB."
    ]


def mmlu(m: dict) -> list[str]:
    return [
        f"All {m['subjects']} MMLU subjects, {m['questions']} questions, with that quantized model take "
        f"{m['seconds'] / 60:.1f} minutes."
    ]


def killed(k: dict) -> list[str]:
    all_of_them = k["blocks"]
    return [
        f"**A killed run**: killed after {k['blocks_before_the_kill']} of {all_of_them} blocks and started again, it "
        f"kept the {k['of_them_untouched']} finished blocks. {k['equal_to_the_uninterrupted_run']} of {all_of_them} "
        "blocks are bit-identical to those of an uninterrupted run."
    ]


def large(found: dict) -> list[str]:
    trace = ", ".join(f"{x / 1024:.2f}" for x in found["peak_mib_at_each_block"])
    return [f"**Memory over blocks**: peaks up to each of the first blocks of Qwen3-8B's shape are {trace} GiB."]
