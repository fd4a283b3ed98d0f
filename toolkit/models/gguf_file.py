"""A GGUF file of the llama architecture, written out once in the hub layout in bfloat16.

Format: the GGUF description in the ggml project's documentation. The file stores the rows of the query and key projections
with the two halves of each head interleaved; here they are put back. Weights are dequantised to float32 and rounded.
Left out: other architectures, other tokenizers than byte-level BPE, rotary stretching.
Shapes: O output features, I input features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from toolkit.models.config import TransformerConfig
from toolkit.models.hub_config import to_hub
from toolkit.models.storage import say
from toolkit.models.tokenizer import Tokenizer

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = 3  # token type "control" in the file


def convert(path: Path, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer of the GGUF file `path` into `folder`.

    Raises ValueError for an architecture, tokenizer or tensor that is not supported.
    """
    import gguf

    say(f"{path.name}: converting once to {folder.parent} (about 15 s)")
    reader = gguf.GGUFReader(path)
    fields = _Fields(reader.fields, path)
    if fields["general.architecture"] != "llama":
        raise ValueError(f"{path}: architecture {fields['general.architecture']!r} is not supported, only 'llama'")
    names = {tensor.name for tensor in reader.tensors}
    config = _config(fields, tied="output.weight" not in names)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors: dict[str, torch.Tensor] = {}
    for number, tensor in enumerate(reader.tensors, 1):
        weight = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in heads:
            weight = _uninterleave(weight, heads[part])
        tensors[_hub_name(tensor.name, path)] = weight.to(torch.bfloat16).contiguous()
        if number % 90 == 0:
            say(f"{path.name}: {number} of {len(names)} tensors")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_hub_config(config, fields), indent=2))
    _tokenizer(fields, path).save(folder)


class _Fields:
    """The file's metadata by name; a missing one is an error that names the file."""

    def __init__(self, fields: Any, path: Path) -> None:
        self.fields, self.path = fields, path

    def __getitem__(self, name: str) -> Any:
        if name not in self.fields:
            raise ValueError(f"{self.path}: the metadata {name!r} is missing")
        return self.fields[name].contents()

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self.fields else default


def _config(fields: _Fields, *, tied: bool) -> TransformerConfig:
    heads = fields["llama.attention.head_count"]
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"{fields.path}: rotary scaling {scaling!r} is not supported")
    return TransformerConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=fields["llama.rope.dimension_count"],
        max_position_embeddings=fields["llama.context_length"],
        # The file stores float32: 1e-5 comes back as 9.99999974e-06. The shortest decimal of that float32 is meant.
        rms_norm_eps=float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        rope_theta=float(fields.get("llama.rope.freq_base", 10000.0)),
        tie_word_embeddings=tied,
    )


def _hub_config(config: TransformerConfig, fields: _Fields) -> dict[str, Any]:
    ids = {
        f"{short}_token_id": fields.get(f"tokenizer.ggml.{long}_token_id")
        for short, long in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return to_hub(config) | {name: value for name, value in ids.items() if value is not None}


def _hub_name(name: str, path: Path) -> str:
    if name in _TOP:
        return _TOP[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK and parts[3] == "weight":
        return f"model.layers.{int(parts[1])}.{_BLOCK[parts[2]]}.weight"
    raise ValueError(f"{path}: the tensor {name!r} has no place in a llama model")


def _uninterleave(weight_OI: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows 0, 2, 4, ... of a head become its first half, rows 1, 3, 5, ... its second."""
    pairs = weight_OI.view(num_heads, -1, 2, weight_OI.shape[1])
    return pairs.transpose(1, 2).reshape(weight_OI.shape)


def _tokenizer(fields: _Fields, path: Path) -> Tokenizer:
    kind = (fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"{path}: the tokenizer {kind} is not supported, only ('gpt2', 'smollm')")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    rust = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    rust.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _SPECIAL]
    rust.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"add_prefix_space": False, "model_max_length": fields["llama.context_length"]}
    for name, long in names.items():
        number = fields.get(f"tokenizer.ggml.{long}_token_id")
        if number is not None:
            settings[name] = tokens[number]
    template = fields.get("tokenizer.chat_template")
    if template is not None:
        settings["chat_template"] = template
    return Tokenizer(rust, settings, where=str(path))
