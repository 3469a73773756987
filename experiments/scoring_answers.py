"""Whether lm-eval's own HFLM answers as qbench's scorer does, on a real model:

    qbench fetch model=smollm2-135m calib=nano eval=nano
    python experiments/scoring_answers.py --data DIR [--questions 200] [--out results/scoring_answers.json]

Both score the first questions of three zero-shot tasks with SmolLM2-135M in float32; DIR is machine.data_dir. The
questions, and each one's score by lm-eval, are compared one by one. Takes a few minutes on two cores.
"""

import argparse
import time
from pathlib import Path

from lm_eval.models.huggingface import HFLM

from qbench import provenance
from qbench.files import write_json
from qbench.measure.base import Context
from qbench.measure.lm_eval.model import PrefixTreeLM, without_warnings
from qbench.measure.lm_eval.requests import build_requests
from qbench.plan.sweep import configs

ROOT = Path(__file__).parent.parent
TASKS = ("arc_easy", "piqa", "winogrande")
METRICS = ("acc", "acc_norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=200, help="of each task")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "scoring_answers.json")
    args = parser.parse_args()
    (config,), _ = configs(["model=smollm2-135m", "method=none"])
    ckpt, start = config.model.open(), time.perf_counter()
    model, asked = ckpt.load("cpu"), build_requests(TASKS, 0, args.questions, str(args.data))
    ctx = Context(ckpt.tokenizer, "cpu", args.data, ROOT, "real", lambda: model)
    with without_warnings():
        theirs = HFLM(model, tokenizer=ckpt.tokenizer, batch_size=8, softmax_dtype="float32", add_bos_token=False)
    found, seconds = {}, {}
    for name, lm in (("hflm", theirs), ("qbench", PrefixTreeLM(model, ctx, None))):
        before = time.process_time()
        found[name], seconds[name] = asked.outcomes(lm), round(time.process_time() - before, 1)
    tasks = {}
    for task, by_metric in found["hflm"].items():
        tasks[task] = {"questions": len(by_metric["acc"])}
        for metric in (metric for metric in METRICS if metric in by_metric):
            a, b = by_metric[metric], found["qbench"][task][metric]
            tasks[task][metric] = dict(right_hflm=sum(a), right_qbench=sum(b), differ=sum(x != y for x, y in zip(a, b)))
        print(task, tasks[task], flush=True)
    about = dict(model=ckpt.science(), tasks=asked.versions, data=asked.data, cpu_seconds=seconds)
    write_json(
        args.out, dict(about=about, tasks=tasks, provenance=provenance.collect("cpu", time.perf_counter() - start))
    )


if __name__ == "__main__":
    main()
