"""Writes train.py's weights as a Hugging Face model directory with FP8 block-quantised weights.

    export.py WEIGHTS_DIR TOKENIZER_DIR OUT_DIR
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

from model import CONFIG, quantise

KEPT_BF16 = ("embed_tokens", "lm_head", "norm.weight", "layernorm.weight", "mlp.gate.weight")


def split_experts(state):
    for name, tensor in state.items():
        if ".experts." in name:
            prefix, matrix = name.rsplit(".", 1)
            for i, one in enumerate(tensor):
                yield f"{prefix}.{i}.{matrix}.weight", one
        else:
            yield name, tensor


def tensors(state):
    out = {}
    for name, t in split_experts(state):
        t = t.detach().float().cpu()
        if name.endswith("e_score_correction_bias"):
            out[name] = t.contiguous()
        elif name.endswith(KEPT_BF16) or "embed_tokens" in name or "lm_head" in name:
            out[name] = t.bfloat16().contiguous()
        else:
            q, scales = quantise(t)
            out[name] = q.contiguous()
            out[name + "_scale_inv"] = scales.float().contiguous()
    return out


def dump(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=2)
        f.write("\n")


def main():
    weights, tokenizer_dir, out = sys.argv[1:4]
    os.makedirs(out, exist_ok=True)
    state = {}
    for name in sorted(n for n in os.listdir(weights) if n.startswith("weights-") and n.endswith(".pt")):
        state.update(torch.load(os.path.join(weights, name), map_location="cpu", weights_only=True))
    save_file(tensors(state), os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(out, "model.safetensors"), 0o644)
    dump(os.path.join(out, "config.json"), CONFIG)
    dump(os.path.join(out, "generation_config.json"), {
        "_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6,
        "top_p": 0.95,
    })
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if os.path.abspath(tokenizer_dir) != os.path.abspath(out):
            shutil.copy(os.path.join(tokenizer_dir, name), os.path.join(out, name))


if __name__ == "__main__":
    main()
