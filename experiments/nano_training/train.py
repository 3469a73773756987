"""Train a nano model from scratch: `python -m experiments.nano_training.train --size l`.

Plain next-token training on the endless train split: documents are joined by the end-of-text token and cut
into windows of 256 tokens, so a fact comes again and again, but each time in other words and company. Muon
moves the matrices of the blocks and AdamW the rest: on these facts Muon reaches a loss in fewer steps than
AdamW alone. bf16 autocast over float32 weights; the checkpoint is bf16. The settings of the shipped models
stand in `trainings`.

With `--state FILE` a run keeps its state in that file and goes on from there when started again. The learning
rate is constant until the last part of the run, so a run that is not there yet may be given more or fewer
`--tokens` when it is resumed.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from experiments.nano_training import outliers, tokenizer
from experiments.nano_training.trainings import TRAININGS, Training
from qbench.models.checkpoint import NANO
from qbench.nano import world
from qbench.nano.facts import WAVE, World, build


def new_model(training: Training, tok: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 with random float32 weights, seeded."""
    torch.manual_seed(training.seed)
    config = Qwen3Config(
        vocab_size=len(tok),
        hidden_size=training.hidden,
        intermediate_size=training.intermediate,
        num_hidden_layers=training.layers,
        num_attention_heads=training.heads,
        num_key_value_heads=training.kv_heads,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def windows(tok: PreTrainedTokenizerFast, training: Training) -> Iterator[Tensor]:
    """Endless batches `ids_BT` of the train split, cut from one stream: the first wave, then everybody."""
    need = training.batch * training.window
    first = training.first_tokens // need
    yield from islice(_batches(tok, training, build(people=WAVE)), first)
    yield from _batches(tok, training, build())


def _batches(tok: PreTrainedTokenizerFast, training: Training, facts: World) -> Iterator[Tensor]:
    documents, need = world.documents("train", training.seed, facts), training.batch * training.window
    stream: list[int] = []
    while True:
        while len(stream) < need:
            for ids in tok(list(islice(documents, 500))).input_ids:
                stream += [*ids, tok.eos_token_id]
        yield torch.tensor(stream[:need]).view(training.batch, training.window)
        del stream[:need]


def learning_rate(training: Training, step: int) -> float:
    """Linear warm-up, constant, then linear to zero over the last `decay` of the steps."""
    left = (training.steps - step) / max(1, round(training.decay * training.steps))
    return training.lr * min(1.0, (step + 1) / training.warmup, left)


def new_optimizers(model: Qwen3ForCausalLM, training: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=training.lr, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=training.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(
    training: Training,
    tok: PreTrainedTokenizerFast,
    *,
    state: Path | None = None,
    compile: bool = False,
    log_every: int = 10,
    save_every: int = 100,
) -> tuple[Qwen3ForCausalLM, list[dict]]:
    """Train and return (float32 model, log); with `state`, resume from and save to that file."""
    model = new_model(training, tok)
    model.config.use_cache = False
    optimizers = new_optimizers(model, training)
    loss_of = torch.compile(next_token_loss) if compile else next_token_loss
    first, log = _resume(state, training, model, optimizers)
    model.train()
    began, seen = time.perf_counter(), 0
    before = log[-1]["seconds"] if log else 0.0
    for step, ids_BT in enumerate(islice(windows(tok, training), first, training.steps), first):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(training, step)
        loss = loss_of(model, ids_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += ids_BT.numel()
        if step % log_every == 0 or step == training.steps - 1:
            seconds = time.perf_counter() - began
            log.append(
                {
                    "step": step,
                    "loss": round(loss.item(), 4),
                    "lr": round(learning_rate(training, step), 7),
                    "tokens_per_second": round(seen / seconds),
                    "seconds": round(before + seconds, 1),
                }
            )
        if state and (step + 1) % save_every == 0:
            _save_state(state, training, model, optimizers, step + 1, log)
    model.config.use_cache = True
    return model.eval(), log


def next_token_loss(model: Qwen3ForCausalLM, ids_BT: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it, in nats; bf16 products, float32 logits."""
    with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids_BT[:, :-1]).logits
    return cross_entropy(logits.float().flatten(0, 1), ids_BT[:, 1:].flatten())


def save(
    model: Qwen3ForCausalLM, tok: PreTrainedTokenizerFast, log: list[dict], folder: Path, log_lines: int = 300
) -> None:
    """Write a Hugging Face checkpoint in bf16, the tokenizer, and the log thinned to `log_lines`."""
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    stride = max(1, math.ceil(len(log) / log_lines))
    kept = log[:-1:stride] + log[-1:]
    (folder / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


def _resume(state, training, model, optimizers) -> tuple[int, list[dict]]:
    if state is None or not state.exists():
        return 0, []
    saved = torch.load(state, weights_only=True)
    wanted = asdict(training) | {"tokens": saved["training"]["tokens"]}
    if saved["training"] != wanted:
        raise ValueError(f"{state} is the state of another training, {saved['training']}; remove it to start over")
    model.load_state_dict(saved["model"])
    for optimizer, kept in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return saved["step"], saved["log"]


def _save_state(state, training, model, optimizers, step, log) -> None:
    part = state.with_suffix(".part")
    kept = {
        "training": asdict(training),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "log": log,
    }
    torch.save(kept, part)
    part.replace(state)


def main() -> None:
    """Command line: train one size and write its checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m experiments.nano_training.train", description=__doc__)
    parser.add_argument("--size", choices=list(TRAININGS), required=True)
    parser.add_argument("--tokens", type=int, help="train on so many tokens instead of the configured number")
    parser.add_argument("--out", type=Path, help="folder of the checkpoint (default: the one in the package)")
    parser.add_argument("--state", type=Path, help="file that keeps the state of an interrupted run")
    parser.add_argument("--threads", type=int, help="CPU threads for torch")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss: a quarter faster on a CPU")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    training = TRAININGS[args.size]
    if args.tokens:
        training = replace(training, tokens=args.tokens)
    tok = tokenizer.train()
    model, log = train(training, tok, state=args.state, compile=args.compile)
    outliers.add_outliers(model, training.seed)
    save(model, tok, log, args.out or NANO / f"nano-{args.size}")


if __name__ == "__main__":
    main()
