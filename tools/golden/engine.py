#!/usr/bin/env python3
"""Goldens of the engine: tiny configurations run by Hugging Face transformers in fp32 on the CPU.

    tools/golden/engine.py [NAME...]     writes tests/golden/FAMILY/NAME.json

Needs torch, transformers, safetensors and numpy. Each file holds config, dtype, seed, prompt, the greedy continuation
of 64 tokens, the smallest distance between the two best logits on the way, and the logits of some of its steps
(base64 of little-endian float32).
"""
import base64
import json
import os
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import weights
from shapes import shapes

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROWS = [0, 1, 31, 63]
STEPS = 64

YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 64}
DEEPSEEK = dict(
    architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", vocab_size=512, hidden_size=256,
    intermediate_size=512, moe_intermediate_size=128, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=8, q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
    n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4, n_shared_experts=1, first_k_dense_replace=1,
    norm_topk_prob=True, routed_scaling_factor=2.5, scoring_func="sigmoid", topk_method="noaux_tc", hidden_act="silu",
    rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=YARN, max_position_embeddings=2560, attention_bias=False,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
DENSE = dict(
    vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=2048,
    tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)

# name: (family, dtype, changes of the base)
CASES = {
    # moe_intermediate 128 at TP 8: every shard lies inside one 128 x 128 block
    "base_fp8": ("deepseek_v3", "fp8", DEEPSEEK, {}),
    "plain_f32": ("deepseek_v3", "f32", DEEPSEEK, dict(
        q_lora_rank=None, rope_scaling=None, n_group=1, topk_group=1, norm_topk_prob=False, first_k_dense_replace=0,
        n_shared_experts=2, attention_bias=True, num_attention_heads=4, num_key_value_heads=4, hidden_size=128,
        kv_lora_rank=64, vocab_size=509, num_hidden_layers=3)),
    "wide_bf16": ("deepseek_v3", "bf16", DEEPSEEK, dict(
        kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, hidden_size=128,
        moe_intermediate_size=64, tie_word_embeddings=True, first_k_dense_replace=2)),
    # nothing is a multiple of 128; half-rotated rope
    "odd_fp8": ("deepseek_v3", "fp8", DEEPSEEK, dict(
        hidden_size=192, intermediate_size=320, moe_intermediate_size=96, q_lora_rank=80, kv_lora_rank=72, v_head_dim=24,
        n_group=2, topk_group=1, rope_interleave=False, rope_scaling={"rope_type": "linear", "factor": 4.0},
        num_hidden_layers=3)),
    "mscale_f16": ("deepseek_v3", "f16", DEEPSEEK, dict(
        rms_norm_eps=1e-2, rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 0.5, "beta_fast": 16},
        n_shared_experts=0, hidden_size=128, num_hidden_layers=3, routed_scaling_factor=1.0)),
    "dense_bf16": ("deepseek_v3", "bf16", DEEPSEEK, dict(
        first_k_dense_replace=9, hidden_size=128, num_hidden_layers=3,
        rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32,
                      "attention_factor": 0.9})),
    "qwen2_bf16": ("qwen2", "bf16", DENSE, dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2")),
    "qwen2_tied_yarn_f32": ("qwen2", "f32", DENSE, dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", tie_word_embeddings=True, num_key_value_heads=4,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        max_position_embeddings=256)),
    "qwen3_bf16": ("qwen3", "bf16", DENSE, dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=32, tie_word_embeddings=True)),
    "qwen3_fp8": ("qwen3", "fp8", DENSE, dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=32, attention_bias=True)),
    "qwen3_moe_bf16": ("qwen3_moe", "bf16", DENSE, dict(
        architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", head_dim=32, moe_intermediate_size=64,
        num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=2)),
    "qwen3_moe_f32": ("qwen3_moe", "f32", DENSE, dict(
        architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", head_dim=16, moe_intermediate_size=64,
        num_experts=8, num_experts_per_tok=3, norm_topk_prob=False, mlp_only_layers=[1])),
    "llama3_bf16": ("llama", "bf16", DENSE, dict(
        architectures=["LlamaForCausalLM"], model_type="llama", rms_norm_eps=1e-5, rope_theta=500000.0,
        tie_word_embeddings=True,
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 64})),
    "llama_f32": ("llama", "f32", DENSE, dict(
        architectures=["LlamaForCausalLM"], model_type="llama", num_key_value_heads=8, attention_bias=True)),
}


def load(config, family, dtype, seed):
    with tempfile.TemporaryDirectory() as d:
        plain = {k: v for k, v in config.items() if k not in ("quantization_config", "torch_dtype")}
        json.dump(plain, open(d + "/config.json", "w"))
        state = {n: torch.from_numpy(np.ascontiguousarray(weights.tensor(n, s, seed, dtype == "fp8"), dtype=np.float32))
                 for n, s in shapes(config, family).items()}
        save_file(state, d + "/model.safetensors", metadata={"format": "pt"})
        model, info = AutoModelForCausalLM.from_pretrained(
            d, config=AutoConfig.from_pretrained(d), dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
            output_loading_info=True)
        missing = [k for k in info["missing_keys"] if "shared_experts" not in k and k != "lm_head.weight"]
        assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def run(model, prompt):
    ids, rows, margin = list(prompt), {}, float("inf")
    with torch.no_grad():
        for step in range(STEPS):
            logits = model(torch.tensor([ids])).logits[0, -1]
            best = logits.topk(2).values
            margin = min(margin, float(best[0] - best[1]))
            if step in ROWS:
                rows[step] = logits.numpy().astype("<f4")
            ids.append(int(logits.argmax()))
    return ids[len(prompt):], rows, margin


def make(name):
    family, dtype, base, changes = CASES[name]
    config = {**base, **changes}
    config["torch_dtype"] = {"f32": "float32", "f16": "float16"}.get(dtype, "bfloat16")
    if dtype == "fp8":
        config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                         "weight_block_size": [128, 128]}
    best = None
    for seed in range(1, 9):  # the seed whose greedy path stays farthest from ties
        model = load(config, family, dtype, seed)
        length = 150 if name in ("base_fp8", "qwen3_bf16") else 37
        prompt = [int(x) for x in weights.hashes("prompt", seed, length) % np.uint64(config["vocab_size"])]
        tokens, rows, margin = run(model, prompt)
        if len(set(tokens)) > 8 and (best is None or margin > best[0]):
            best = (margin, seed, prompt, tokens, rows)
        if best and best[0] > 4e-3:
            break
    margin, seed, prompt, tokens, rows = best
    out = {"family": family, "dtype": dtype, "seed": seed, "config": config, "prompt": prompt, "tokens": tokens,
           "margin": round(margin, 6), "rows": ROWS,
           "logits": [base64.b64encode(rows[r].tobytes()).decode() for r in ROWS]}
    path = f"{ROOT}/tests/golden/{family}/{name}.json"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")
    spread = max(float(np.std(r)) for r in rows.values())
    print(f"{name}: seed {seed}, margin {margin:.4f}, logit spread {spread:.2f}, {len(set(tokens))} distinct tokens, "
          f"{os.path.getsize(path)} bytes", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(2)
    for case in sys.argv[1:] or CASES:
        make(case)
