"""CLIP text encoders with their tokenizers: part `text_encoder` of every family with prompts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "clip"
START, END = "<|startoftext|>", "<|endoftext|>"


def token_id(token: str) -> int:
    return json.loads((FOLDER / "vocab.json").read_text())[token]


def add(f, width: int, second: bool, layers: int = 2, prefix: str = "") -> None:
    """Folders `{prefix}text_encoder` and `{prefix}tokenizer` of a fixture, as Stable Diffusion 1.x has them, or as 2.x and ModelScope do.

    The first has its tensors below `text_model.`, as released files do, the second at the top, as transformers 5 saves.
    """
    config = CLIPTextConfig(vocab_size=token_id(END) + 1, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                            num_attention_heads=4, hidden_act="gelu" if second else "quick_gelu", projection_dim=width,
                            bos_token_id=token_id(START), eos_token_id=token_id(END))
    kept = {k: v for k, v in config.to_diff_dict().items() if k != "transformers_version"}
    f.write_json(f"{prefix}text_encoder/config.json", {**kept, "architectures": ["CLIPTextModel"]})
    state = {name.removeprefix("text_model."): t for name, t in CLIPTextModel(config).state_dict().items()}
    if not second:
        state = {f"text_model.{name}": t for name, t in {**state, "embeddings.position_ids": torch.zeros(1, 77)}.items()}
    f.add(f"{prefix}text_encoder", "model.safetensors", state)
    framing = {"bos_token": START, "eos_token": END, "unk_token": END}
    token = lambda text: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    f.write_json(f"{prefix}tokenizer/tokenizer_config.json", {
        "add_prefix_space": False, **{k: {"__type": "AddedToken", **token(v)} for k, v in framing.items()}, "do_lower_case": True,
        "errors": "replace", "model_max_length": 77, "pad_token": END, "tokenizer_class": "CLIPTokenizer"})
    f.write_json(f"{prefix}tokenizer/special_tokens_map.json", {**{k: token(v) for k, v in framing.items()}, "pad_token": "!" if second else END})


def materialise(into: Path) -> None:
    """Gives every tokenizer folder of a checkpoint the shared vocabulary."""
    for config in into.glob("*/tokenizer_config.json"):
        for name in ("vocab.json", "merges.txt"):
            (config.parent / name).write_bytes((FOLDER / name).read_bytes())


def load(folder: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(folder, attn_implementation="eager").eval()


def record(r, encoder: CLIPTextModel, part: str = "text_encoder") -> None:
    """Whole and short texts, padded by the start, the end and the first token, in batches of one and two."""
    start, end = token_id(START), token_id(END)
    rows = {
        77: [[start, *range(600, 640), *[end] * 36], [start, 5, 300, 1200, end, *[0] * 72]],
        12: [[start, 700, 7, 7, 900, end, end, end, end, end, end, end], [start, *range(1, 11), end]],
        1: [[start]],
    }
    for length, texts in rows.items():

        def oracle(r, texts=texts):
            out = encoder(r.listed("input_ids", texts, "i64"), output_hidden_states=True)
            norm = getattr(encoder, "text_model", encoder).final_layer_norm
            return {"last_hidden_state": out.last_hidden_state, "earlier_hidden_states": norm(torch.stack(out.hidden_states[:-1]))}

        r.record(part, f"b{len(texts)}-l{length}", oracle)
