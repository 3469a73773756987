"""GGUF, the format of llama.cpp: one file ``model.gguf`` with the weights in blocks, the shape of the model and the
tokenizer. What no block holds exactly is refused; ``gguf_blocks`` has the blocks.

Sources: gguf, constants.py (Keys, MODEL_TENSORS) and gguf_writer.py; llama.cpp, convert_hf_to_gguf.py.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from qbench.formats.base import Format, Source, check_halves
from qbench.formats.gguf_blocks import packed, type_of
from qbench.weights import FloatWeight

FLOATS = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}


@dataclass(frozen=True)
class GGUF(Format):
    """Qwen3 models on a grid with groups of 32 or more, up to 8 bits symmetric and 7 asymmetric."""

    name: ClassVar[str] = "gguf"

    def refuse(self, weight, acts):
        super().refuse(weight, acts)
        (_, K), (_, G) = weight.codes_NK.shape, weight.scale_NG.shape
        if K // G % 32:
            raise ValueError(
                f"its blocks are 32 columns of one group, not {K // G}; use a group_size that is a multiple of 32"
            )
        if type_of(weight) is None:
            raise ValueError("its blocks hold q - z from -128 to 127, and 8 asymmetric bits reach 255; use format=hf")
        check_halves(weight)

    def check_model(self, folder):
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "qwen3" or config.rope_parameters["rope_type"] != "default":
            kind = f"{config.model_type} with {config.rope_parameters['rope_type']} positions"
            raise ValueError(f"format=gguf writes Qwen3 models with default positions, not {kind}; use format=hf")

    def tensors(self, weight, acts, dtype):
        return {"weight": packed(weight)}

    def config(self, weights, acts):
        """Nothing of it is written: the file has the type of each tensor."""
        return {"types": {name: type_of(weight).name for name, weight in weights.items()}}

    def read(self, name, tensors, config):
        """The numbers alone: a file does not hold codes and zeros apart."""
        numbers = gguf.quants.dequantize(tensors["weight"].numpy(), Type[config["types"][name]])
        return FloatWeight(torch.from_numpy(numbers))

    def notes(self, weights, acts):
        return [
            "llama.cpp and transformers read this file. transformers multiplies with exactly the measured weights; it "
            "takes heads to be 128 wide and needs config= for other models. On a CPU llama.cpp rounds activations to 8 "
            "bits. It cuts texts as Qwen's tokenizer does: give it token ids for a model with another tokenizer."
        ]

    def write(self, model, folder):
        writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3")
        config = describe(writer, model.folder)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
        for key, tensor, type in self._stored(model, with_numbers=False):
            name, nbytes = names.get_name(key, try_suffixes=(".weight",)), tensor.nbytes
            shape = (*tensor.shape[:-1], nbytes // tensor.shape[:-1].numel())
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), nbytes, type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor, _ in self._stored(model, with_numbers=True):
            writer.write_tensor_data(tensor.contiguous().view(torch.uint8).numpy())
        writer.close()

    def _stored(self, model: Source, with_numbers: bool) -> Iterator[tuple[str, Tensor, Type]]:
        """Every tensor and its type; norms in float32, quantized ones as bytes."""
        for part in model.parts():
            for key, tensor in part.tensors.items():
                tensor = tensor.float() if tensor.ndim == 1 else tensor
                yield key, tensor, FLOATS[tensor.dtype]
            told = self.config(part.weights, model.acts)
            for name, weight in part.weights.items():
                stored = self.tensors(weight if with_numbers else weight.outline(), model.acts, model.dtype)
                if with_numbers:
                    self.check({name: weight}, model.acts)
                    if not torch.equal(self.read(name, stored, told).dequantize(), weight.dequantize()):
                        raise AssertionError(f"{name} is not read back as it was written; this is a bug of {self.name}")
                yield f"{name}.weight", stored["weight"], Type[told["types"][name]]


def describe(writer: gguf.GGUFWriter, folder: Path) -> PretrainedConfig:
    """Adds the shape and the tokenizer of the checkpoint in ``folder``; its config.

    Ids without a token, up to the rows of the embedding, are called as llama.cpp calls them.
    """
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [f"[PAD{i}]" for i in range(config.vocab_size)]
    types = [gguf.TokenType.UNUSED] * config.vocab_size
    for token, i in told["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for token in told["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], types[token["id"]] = token["content"], kind
    is_qwen = json.dumps(PRETOKENIZE_REGEX) in json.dumps(told["pre_tokenizer"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2" if is_qwen else "default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]])
    for name in ("bos", "eos", "pad"):
        if (id := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    return config
