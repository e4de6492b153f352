"""Names and shapes of the tensors of a checkpoint, from its configuration."""


def mlp(prefix, hidden, inter):
    return {prefix + "gate_proj.weight": (inter, hidden), prefix + "up_proj.weight": (inter, hidden),
            prefix + "down_proj.weight": (hidden, inter)}


def deepseek_attention(c, p):
    h, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, v, kv = (c[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
    s = {p + "kv_a_proj_with_mqa.weight": (kv + rope, h), p + "kv_a_layernorm.weight": (kv,),
         p + "kv_b_proj.weight": (heads * (nope + v), kv), p + "o_proj.weight": (h, heads * v)}
    if c["q_lora_rank"]:
        q = c["q_lora_rank"]
        s |= {p + "q_a_proj.weight": (q, h), p + "q_a_layernorm.weight": (q,),
              p + "q_b_proj.weight": (heads * (nope + rope), q)}
    else:
        s |= {p + "q_proj.weight": (heads * (nope + rope), h)}
    if c["attention_bias"]:
        s |= {p + "kv_a_proj_with_mqa.bias": (kv + rope,), p + "o_proj.bias": (h,)}
        if c["q_lora_rank"]:
            s |= {p + "q_a_proj.bias": (c["q_lora_rank"],)}
    return s


def gqa_attention(c, p, family):
    h, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    d = c.get("head_dim") or h // heads
    s = {p + "q_proj.weight": (heads * d, h), p + "k_proj.weight": (kv * d, h), p + "v_proj.weight": (kv * d, h),
         p + "o_proj.weight": (h, heads * d)}
    if family == "qwen2" or c.get("attention_bias"):
        s |= {p + "q_proj.bias": (heads * d,), p + "k_proj.bias": (kv * d,), p + "v_proj.bias": (kv * d,)}
    if c.get("attention_bias"):
        s |= {p + "o_proj.bias": (h,)}
    if family.startswith("qwen3"):
        s |= {p + "q_norm.weight": (d,), p + "k_norm.weight": (d,)}
    return s


def shapes(c, family):
    h = c["hidden_size"]
    s = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    if not c["tie_word_embeddings"]:
        s["lm_head.weight"] = (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        s |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,)}
        if family == "deepseek_v3":
            s |= deepseek_attention(c, p + "self_attn.")
            moe, experts = i >= c["first_k_dense_replace"], c["n_routed_experts"]
        else:
            s |= gqa_attention(c, p + "self_attn.", family)
            moe = family == "qwen3_moe" and (i + 1) % c.get("decoder_sparse_step", 1) == 0 \
                and i not in c.get("mlp_only_layers", [])
            experts = c.get("num_experts", 0)
        if not moe:
            s |= mlp(p + "mlp.", h, c["intermediate_size"])
            continue
        s[p + "mlp.gate.weight"] = (experts, h)
        for e in range(experts):
            s |= mlp(p + f"mlp.experts.{e}.", h, c["moe_intermediate_size"])
        if family == "deepseek_v3":
            s[p + "mlp.gate.e_score_correction_bias"] = (experts,)
            if c["n_shared_experts"]:
                s |= mlp(p + "mlp.shared_experts.", h, c["moe_intermediate_size"] * c["n_shared_experts"])
    return s
