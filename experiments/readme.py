"""Fills the generated sections of README.md and docs/ from results/.

    python experiments/readme.py                                    # writes
    python experiments/readme.py --check                            # exit code 1 where a section is out of date
    python experiments/readme.py --print SECTION [--results DIR]    # one section, of any results folder

A section stands between ``<!-- name -->`` and ``<!-- /name -->``.
"""

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from experiments.paper.other_records import records
from qbench.files import write_atomic
from qbench.latency.record import BF16, Kernel
from qbench.report import Report, frame, load
from qbench.report.latency.speeds import FUSED, LARGE, Speeds, geomean
from qbench.report.latency.speeds import load as load_latency

ROOT = Path(__file__).resolve().parent.parent

# The table of the README: perplexity and accuracy of one small model at five bit-widths
MODEL, BITS = "nano-m", (8, 4, 3, 2, 1)
PPL, ACC = "nano/ppl", "nano_world/acc"
METHODS = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant, 8-bit activations"}
W4 = Kernel("wna16", 4, 128)
REAL, REAL_PPL, REAL_KL = "smollm2-135m", "wikitext2/ppl", "wikitext2/kl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", dest="section", choices=[name for names in PAGES.values() for name in names])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    if options.section:
        print(SECTIONS[options.section](options.results))
        return 0
    stale = []
    for page, text in pages(options.results).items():
        if (ROOT / page).read_text() != text:
            stale.append(page)
            if not options.check:
                write_atomic(ROOT / page, text)
    if options.check and stale:
        print(f"out of date: {', '.join(stale)}; run python experiments/readme.py")
        return 1
    return 0


def pages(results: Path) -> dict[str, str]:
    """Path: the page as it should be. ValueError for a page without its section."""
    full = {}
    for page, names in PAGES.items():
        text = (ROOT / page).read_text()
        for name in names:
            shown = SECTIONS[name](results).rstrip("\n") + "\n"
            pattern = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
            text, found = pattern.subn(lambda _, s=shown: s, text)
            if found != 1:
                raise ValueError(f"{page} has {found} sections <!-- {name} -->, not one")
        full[page] = text
    return full


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(wrapped(line, "* ") for line in lines)


def wrapped(text: str, mark: str = "") -> str:
    """At most 100 columns wide."""
    rest = " " * len(mark)
    return textwrap.fill(
        text, 100, initial_indent=mark, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def results_table(results: Path) -> str:
    """Perplexity and accuracy of one model: unquantized, four methods over bits, and BiLLM at its own bits."""
    df = frame(*load(results))
    df = df[(df.model == MODEL) & df.metric.isin([PPL, ACC])]
    df = df[(df.method == "billm") | df.bits.isin([*BITS, 16])]
    unquantized, billm = df[df.method == "none"], df[df.method == "billm"]
    (nominal,), (stored,) = billm.nominal_bits.unique(), billm.stored_bits.unique()
    heads = [f"{bits} bit{'s' if bits > 1 else ''}" for bits in BITS]
    lines = [f"| {MODEL}: perplexity ↓, accuracy ↑ | {' | '.join(heads)} |", "|---|" + "---:|" * len(BITS)]
    lines.append(row("unquantized", pd.concat(unquantized.assign(bits=bits) for bits in BITS)))
    lines += [row(shown, df[df.method == method]) for method, shown in METHODS.items()]
    lines.append(row(f"BiLLM, {nominal:.2f} bits ({stored:.2f} stored)", billm.assign(bits=1)))
    ppl, acc = df[df.metric == PPL], df[df.metric == ACC]
    relative, points = 100 * ppl.stderr / ppl.value, 100 * acc.stderr
    note = (
        f"Perplexity on {int(ppl.n.max())} windows and accuracy on {int(acc.n.max())} questions (guessing gives 25 %); "
        f"RTN, GPTQ and AWQ with groups of 128. Standard errors: {relative.min():.1f} to {relative.max():.1f} % of a "
        f"perplexity, {points.min():.1f} to {points.max():.1f} points of accuracy."
    )
    return "\n".join([*lines, "", wrapped(note)])


def real_table(results: Path) -> str:
    """Perplexity and divergence of the real model, as far as measured."""
    df = frame(*load(results))
    df = df[(df.model == REAL) & df.metric.isin([REAL_PPL, REAL_KL])]
    full = df[(df.method == "none") & (df.metric == REAL_PPL)]
    if not len(full):
        return "The real model, SmolLM2-135M, is not measured yet."
    heads = [f"{bits} bit{'s' if bits > 1 else ''}" for bits in BITS]
    lines = [f"| {REAL}: perplexity ↓, KL ↓ | {' | '.join(heads)} |", "|---|" + "---:|" * len(BITS)]
    for method, shown in METHODS.items():
        values = df[df.method == method].set_index(["metric", "bits"])["value"]
        cells = [
            f"{short(values[REAL_PPL, b])}, {values[REAL_KL, b]:.3g}" if (REAL_PPL, b) in values.index else "–"
            for b in BITS
        ]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    billm = df[df.method == "billm"]
    if len(billm):
        ppl, kl = (billm[billm.metric == metric].iloc[0] for metric in (REAL_PPL, REAL_KL))
        name = f"BiLLM, {ppl.nominal_bits:.2f} bits ({ppl.stored_bits:.2f} stored)"
        lines.append(f"| {name} |{'  |' * (len(BITS) - 1)} {short(ppl.value)}, {kl.value:.3g} |")
    note = (
        f"WikiText-2, {int(full.n.iloc[0])} windows of 2,048 tokens; unquantized {short(full.value.iloc[0])}. "
        "KL in nats per token from the unquantized model. Its weights come from a 4-bit file (Q4_1 GGUF), so 5 bits "
        "and more lose little by construction. Groups of 64; calibrated on 32 x 512 tokens of a sample of C4."
    )
    return "\n".join([*lines, "", wrapped(note)])


def row(name: str, cells: pd.DataFrame) -> str:
    """One line of the table; a bit-width that was not measured stays empty."""
    values = {(metric, bits): value for metric, bits, value in zip(cells.metric, cells.bits, cells.value)}
    shown = [f"{short(values[PPL, b])}, {values[ACC, b]:.1%}" if (PPL, b) in values else "" for b in BITS]
    return f"| {name} | {' | '.join(shown)} |"


def short(perplexity: float) -> str:
    if perplexity >= 1e5:
        return f"{perplexity:.1e}".replace("e+0", "e")
    digits = 3 if perplexity < 10 else 2 if perplexity < 100 else 0
    return f"{perplexity:,.{digits}f}"


def latency(results: Path) -> str:
    """The main figures of each GPU in results/latency with the notes of its record, or that there is none."""
    found = [f for r in load_latency(results) for f in (*headlines(r), *(f"Note: {note}" for note in r.record.notes))]
    return bullets(found or ["No GPU has been measured yet. `python experiments/latency.py` measures one."])


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


def speed(results: Path) -> str:
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
    return bullets(line for name, lines in tell.items() if name in found for line in lines(found[name]))


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


def nano_summary(results: Path) -> str:
    return f"```text\n{Report(results).summary()}```"


SECTIONS = {
    "results": results_table,
    "real": real_table,
    "nano_summary": nano_summary,
    "speed": speed,
    "latency": latency,
}
PAGES = {"README.md": ["results", "real"], "docs/results.md": ["nano_summary"], "docs/speed.md": ["speed", "latency"]}

if __name__ == "__main__":
    sys.exit(main())
