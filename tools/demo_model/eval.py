"""Judges an exported model directory through transformers, with the dequantised weights in float32 on the CPU.

    eval.py MODEL_DIR [--samples 20] [--temperature 0.7] [--top-p 0.9] [--show 2] [--check-only]

It compares transformers' logits with those of model.py, asks the seeds' question with that many seeds, and prints how many
answers are free of fault: the model ends by itself, has exactly one </think>, and every line is one that the corpus can
produce. Exits non-zero when the logits differ or when fewer than 19 of 20 answers are good.
"""

import argparse
import json
import os
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from checks import faults, known_lines
from model import DemoModel, dequantise

SEEDS = [{"role": "system", "content": "你是个友善的AI助手。"}, {"role": "user", "content": "介绍一下深度学习。"}]


def dequantised(directory):
    raw = load_file(os.path.join(directory, "model.safetensors"))
    out = {}
    for name, t in raw.items():
        if name.endswith("_scale_inv"):
            continue
        scales = raw.get(name + "_scale_inv")
        out[name] = (t.float() if scales is None else dequantise(t, scales)).contiguous()
    return out


def load_hf(state, directory):
    config = json.load(open(os.path.join(directory, "config.json"), encoding="utf-8"))
    config.pop("quantization_config")
    config["torch_dtype"] = "float32"
    with tempfile.TemporaryDirectory() as tmp:
        json.dump(config, open(os.path.join(tmp, "config.json"), "w", encoding="utf-8"))
        save_file(state, os.path.join(tmp, "model.safetensors"), metadata={"format": "pt"})
        model, info = DeepseekV3ForCausalLM.from_pretrained(tmp, dtype=torch.float32, output_loading_info=True)
    for kind, names in info.items():
        if names:
            raise SystemExit(f"{kind}: {sorted(names)[:4]}")
    return model.eval(), config


def load_own(state, config):
    model = DemoModel(config)
    own = {}
    for name in model.state_dict():
        if ".experts." in name:
            prefix, matrix = name.rsplit(".", 1)
            own[name] = torch.stack([state[f"{prefix}.{i}.{matrix}.weight"] for i in range(config["n_routed_experts"])])
        else:
            own[name] = state[name]
    model.load_state_dict(own)
    return model.eval()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model_dir")
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--temperature", type=float, default=0.7)
    p.add_argument("--top-p", type=float, default=0.9)
    p.add_argument("--show", type=int, default=2)
    p.add_argument("--check-only", action="store_true")
    args = p.parse_args()
    state = dequantised(args.model_dir)
    hf, config = load_hf(state, args.model_dir)
    tok = AutoTokenizer.from_pretrained(args.model_dir)
    text = tok.apply_chat_template(SEEDS, tokenize=False, add_generation_prompt=True)
    prompt = torch.tensor([tok.encode(text, add_special_tokens=False)])
    print(f"prompt, {prompt.shape[1]} tokens: {text!r}")

    ids = torch.cat((prompt, torch.randint(3, config["vocab_size"], (1, 1500),
                                           generator=torch.Generator().manual_seed(1))), 1)
    with torch.no_grad():
        a, b = hf(ids).logits, load_own(state, config)(ids)
    worst = (a - b).abs().max().item()
    print(f"largest difference of logits, transformers against model.py: {worst:.2e} "
          f"(logits' standard deviation {a.std():.2f})")
    if worst > 2e-4:
        raise SystemExit("the two implementations disagree")
    if args.check_only:
        return

    lines, good = known_lines(), 0
    torch.manual_seed(10)
    with torch.no_grad():
        out = hf.generate(prompt.expand(args.samples, -1), attention_mask=torch.ones_like(prompt).expand(args.samples, -1),
                          do_sample=True, temperature=args.temperature, top_p=args.top_p, top_k=0, max_new_tokens=1024,
                          pad_token_id=2, eos_token_id=1)
    lengths = []
    for i, row in enumerate(out[:, prompt.shape[1]:].tolist()):
        row = row[: row.index(1) + 1] if 1 in row else row
        lengths.append(len(row))
        answer = tok.decode(row, skip_special_tokens=False)
        wrong = faults(answer, lines)
        good += not wrong
        if i < args.show or wrong:
            print(f"--- sample {i}: {len(row)} tokens, {wrong or 'no fault'}\n{answer}")
    print(f"{good} of {args.samples} answers without fault, {min(lengths)}-{max(lengths)} tokens")
    if good < args.samples * 0.95:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
