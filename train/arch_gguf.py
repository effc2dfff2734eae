"""Writes a toy Arch-Router as GGUF, the format of llama.cpp, beside itself: `python train/arch_gguf.py build/arch-toy`.

For the Qwen2 that `arch_toy.py` makes. Needs gguf, torch and transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What llama.cpp calls the parts of a layer."""


def save_gguf(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, into: Path) -> None:
    """Writes weights (32-bit), tokenizer and chat template to one file."""
    config = model.config
    writer = gguf.GGUFWriter(into, "qwen2")
    writer.add_name("A toy Arch-Router")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer)
    for name, values in model.state_dict().items():
        if name != "lm_head.weight":  # it is the embedding
            writer.add_tensor(_tensor_name(name), values.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = tokenizer.added_tokens_decoder
    kinds = [
        gguf.TokenType.NORMAL if i not in added else gguf.TokenType.CONTROL if added[i].special else gguf.TokenType.USER_DEFINED
        for i in range(len(tokenizer))
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _tensor_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, part = name.split(".", 3)
    part, _, kind = part.rpartition(".")
    return f"blk.{layer}.{NAMES[part]}.{kind}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    save_gguf(Qwen2ForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder), folder / "model.gguf")
