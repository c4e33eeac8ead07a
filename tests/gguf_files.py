"""GGUF files of the tests' own: the embedded model, written as llama.cpp's converter writes a model of its kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

MODEL = Path(__file__).parents[1] / "plugins" / "ftkit_quickstart" / "model"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(
    path: Path,
    stored_as: str = "F32",
    architecture: str = "llama",
    drop: str | None = None,
    parts: int = 1,
    tokenizer: str = "gpt2",
    tensors: bool = True,
    model: Path = MODEL,
    template: str = TEMPLATE,
) -> Path:
    """Write the embedded model, or another of its kind. `drop` leaves out a tensor by its GGUF name, `tensors` False all."""
    import gguf
    from safetensors.torch import load_file  # numpy has no bfloat16

    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("embedded")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if parts > 1:
        writer.add_uint16("split.count", parts)
    _add_tokenizer(writer, config, tokenizer, model, template)
    for name, tensor in load_file(model / "model.safetensors").items() if tensors else ():
        values = tensor.float().numpy()
        stem = name.removeprefix("model.").removesuffix(".weight")
        if stem.startswith("layers."):
            _, number, part = stem.split(".", 2)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp pairs the rotated halves of a head
                values = _permuted(values, config["num_attention_heads"])
            stem = f"blk.{number}.{_NAMES[part]}"
        else:
            stem = {"embed_tokens": "token_embd", "norm": "output_norm"}[stem]
        if f"{stem}.weight" == drop:
            continue
        kind = gguf.GGMLQuantizationType[stored_as if values.ndim == 2 else "F32"]
        writer.add_tensor(f"{stem}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))


def _add_tokenizer(writer: object, config: dict[str, int], kind: str, model: Path, template: str) -> None:
    import gguf

    assert isinstance(writer, gguf.GGUFWriter)
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=lambda token: vocabulary["vocab"][token])
    special = {config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]}
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template(template)
