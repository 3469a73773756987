"""llm-compressor's GPTQ on a checkpoint, timed; experiments/quantization_speed.py runs it in its own environment.

python experiments/peers/llm_compressor.py MODEL TOKENS.safetensors OUT.safetensors
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder, tokens, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
ids_BT = load_file(tokens)["ids_BT"]
data = Dataset.from_dict({"input_ids": ids_BT.tolist(), "attention_mask": torch.ones_like(ids_BT).tolist()})
recipe = GPTQModifier(targets="Linear", scheme="W4A16_ASYM", ignore=["lm_head"], actorder=None)
started = time.perf_counter()
oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(ids_BT), max_seq_length=ids_BT.shape[1])
seconds = time.perf_counter() - started
weights = {}
for name, module in model.named_modules():
    scale = getattr(module, "weight_scale", None)
    if scale is not None:  # the weight is put on the grid once more, in case only its scales were stored
        N, K = module.weight.shape
        groups = module.weight.float().view(N, scale.shape[1], -1)
        s, z = scale.float().unsqueeze(-1), module.weight_zero_point.float().unsqueeze(-1)
        q = (groups / s + z).round().clamp(-8, 7)
        weights[name] = ((q - z) * s).view(N, K).contiguous()
save_file(weights, out)
print("PEER", json.dumps({"seconds": seconds, "llmcompressor": version("llmcompressor"), "torch": torch.__version__}))
