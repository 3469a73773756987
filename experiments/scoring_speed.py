"""How much faster qbench scores MMLU than plain lm-eval does: python experiments/scoring_speed.py --data DIR

Both score the same 5-shot questions with the same random model of Qwen3-0.6B's shape in bfloat16: lm-eval's own HFLM
at the fastest of a few batch sizes, tried first, and qbench's PrefixTreeLM. They take turns subject by subject, so
that other work on the machine slows both alike. Answers are compared one by one; a random model is a hard case, since
its four letters are close. DIR is machine.data_dir with mmlu/*.parquet and qwen3_tokenizer.tar.gz.
"""

import argparse
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from random_weights import write_random
from transformers import AutoModelForCausalLM, AutoTokenizer

from qbench import provenance
from qbench.files import write_json
from qbench.measure.base import Context
from qbench.measure.lm_eval.model import PACK, PrefixTreeLM, without_warnings
from qbench.measure.lm_eval.requests import build_requests

ROOT = Path(__file__).parent.parent
SUBJECTS = ("world_religions", "anatomy", "abstract_algebra", "marketing", "moral_scenarios")
TRIAL = ("moral_scenarios", 8)  # the questions on which batch sizes are tried


class PlainHFLM(HFLM):
    """lm-eval's own scorer; `tokens` counts what it forwards, padding included."""

    tokens = 0

    def _model_call(self, inps, *args, **kwargs):
        self.tokens += inps.numel()
        return super()._model_call(inps, *args, **kwargs)


def requests(subject: str, count: int, data: str) -> list:
    """The requests, four a question, of the subject's first questions."""
    return build_requests((f"mmlu_{subject}",), 5, count, data).tasks[f"mmlu_{subject}"].instances


def measured(lm: HFLM, asked: list) -> tuple[np.ndarray, dict]:
    """Log-likelihoods [questions, 4] and what they cost; tokenization is done before the clock starts."""
    tokens = [(r.args, *lm._encode_pair(*r.args)) for r in asked]
    before, wall, cpu = lm.tokens, time.perf_counter(), time.process_time()
    answers = lm._loglikelihood_tokens(tokens, disable_tqdm=True)
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    cost = dict(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu, tokens=lm.tokens - before)
    return np.array([likelihood for likelihood, _ in answers]).reshape(-1, 4), cost


def compared(plain: np.ndarray, ours: np.ndarray) -> dict:
    """Where the answers differ: a tie is a question whose two letters are equal for one of the scorers."""
    theirs, mine, row = plain.argmax(1), ours.argmax(1), np.arange(len(plain))
    other = theirs != mine
    gaps = np.minimum(plain[row, theirs] - plain[row, mine], ours[row, mine] - ours[row, theirs])[other]
    apart = np.abs(plain - ours)
    return dict(
        max_difference=float(apart.max()),
        mean_difference=float(apart.mean()),
        other_answers=int(other.sum()),
        of_them_ties=int((gaps == 0).sum()),
        largest_gap=float(gaps.max(initial=0.0)),
    )


def total(costs: list[dict]) -> dict:
    return {key: sum(cost[key] for cost in costs) for key in costs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with mmlu/ and qwen3_tokenizer.tar.gz")
    parser.add_argument("--questions", type=int, default=100, help="of each subject")
    parser.add_argument("--layers", type=int, help="fewer layers than the real 28, for a quick look")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="HFLM's, of which the best is used"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed" / "scoring.json")
    args = parser.parse_args()
    start, load = time.perf_counter(), os.getloadavg()

    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(args.data) / "qwen3_tokenizer.tar.gz") as tar:
            tar.extractall(folder, filter="data")
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "qwen3_tokenizer")
        checkpoint = write_random(Path(folder) / "model", "qwen3-0.6b", layers=args.layers)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).to(args.device).eval()

    def plain(batch: int) -> PlainHFLM:
        with without_warnings():
            return PlainHFLM(model, tokenizer=tokenizer, batch_size=batch, softmax_dtype="float32", add_bos_token=False)

    asked = requests(*TRIAL, args.data)
    measured(plain(1), asked[:4])
    tried = {batch: measured(plain(batch), asked)[1]["seconds"] for batch in args.batches}
    best = min(tried, key=tried.get)
    print(f"HFLM, {TRIAL[1]} questions: " + ", ".join(f"batch {b} {s:.1f} s" for b, s in tried.items()), flush=True)

    ctx = Context(tokenizer, args.device, Path(args.data), ROOT, "random", lambda: None)
    theirs, ours, subjects, likelihoods = plain(best), PrefixTreeLM(model, ctx, None), {}, []
    for i, subject in enumerate(SUBJECTS):
        asked = requests(subject, args.questions, args.data)
        order = (theirs, ours) if i % 2 == 0 else (ours, theirs)
        found = {id(lm): measured(lm, asked) for lm in order}
        (a, plain_cost), (b, our_cost) = found[id(theirs)], found[id(ours)]
        likelihoods.append((a, b))
        subjects[subject] = dict(questions=len(a), hflm=plain_cost, qbench=our_cost) | compared(a, b)
        print(subject, subjects[subject], flush=True)

    sums = {name: total([s[name] for s in subjects.values()]) for name in ("hflm", "qbench")}
    whole = dict(questions=sum(s["questions"] for s in subjects.values()), **sums)
    whole |= {f"{key}_ratio": sums["hflm"][key] / sums["qbench"][key] for key in sums["hflm"]}
    whole |= compared(*(np.concatenate(x) for x in zip(*likelihoods, strict=True)))
    about = dict(model="random, shape of Qwen3-0.6B", layers=model.config.num_hidden_layers, dtype="bfloat16", shots=5)
    about |= dict(hflm_batch=best, hflm_batches_tried=tried, pack=PACK[torch.device(args.device).type])
    machine = provenance.collect(args.device, time.perf_counter() - start)
    machine |= dict(load_before=load, load_after=os.getloadavg())
    write_json(args.out, dict(about=about, total=whole, subjects=subjects, provenance=machine))
    print(f"total {whole}\n{args.out}")


if __name__ == "__main__":
    main()
