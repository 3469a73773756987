"""Ask a nano model the world's questions: `python -m experiments.nano_training.quiz --size l`.

The check of a training; the study itself measures through lm-eval. Zero-shot cloze: of the four choices,
the one with the largest log-likelihood after `Question: ...\\nAnswer:` is the model's answer.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from qbench.models.checkpoint import NANO
from qbench.nano import world


@torch.no_grad()
def accuracy(model: PreTrainedModel, tok: PreTrainedTokenizerFast, questions: list[dict], batch: int = 128) -> float:
    """Share of questions answered rightly; `questions` as `world.questions()` lists them for a subject."""
    right = 0
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        best = _scores(model, tok, part).argmax(-1)
        right += (best == torch.tensor([q["answer"] for q in part])).sum().item()
    return right / len(questions)


def _scores(model, tok, questions) -> torch.Tensor:
    """Log-likelihood of each choice, [questions, 4], from one forward over all rows, padded on the right."""
    rows = [
        (tok(world.prompt(q["question"])).input_ids, tok(f" {choice}").input_ids)
        for q in questions
        for choice in q["choices"]
    ]
    ids_BT = torch.full((len(rows), max(len(c) + len(a) for c, a in rows)), tok.pad_token_id)
    for row, (context, answer) in zip(ids_BT, rows):
        row[: len(context) + len(answer)] = torch.tensor(context + answer)
    logp = model(input_ids=ids_BT).logits.float().log_softmax(-1)
    return torch.tensor(
        [
            sum(logp[i, len(context) + k - 1, token].item() for k, token in enumerate(answer))
            for i, (context, answer) in enumerate(rows)
        ]
    ).view(-1, 4)


def main() -> None:
    """Command line: print the accuracy by subject and the mean over subjects."""
    parser = argparse.ArgumentParser(prog="python -m experiments.nano_training.quiz", description=__doc__)
    parser.add_argument("--size", choices=["s", "m", "l"])
    parser.add_argument("--path", help="another checkpoint folder")
    args = parser.parse_args()
    if not args.size and not args.path:
        parser.error("say which model: --size s, m or l, or --path FOLDER")
    folder = args.path or NANO / f"nano-{args.size}"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tok = AutoTokenizer.from_pretrained(folder)
    by_subject = {subject: accuracy(model, tok, items) for subject, items in world.questions().items()}
    for subject, value in by_subject.items():
        print(f"{subject:<12}{value:7.1%}")
    print(f"{'mean':<12}{sum(by_subject.values()) / len(by_subject):7.1%}")


if __name__ == "__main__":
    main()
