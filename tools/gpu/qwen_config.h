// Qwen2.5-7B's config.json with one %d: its layers (28).
#ifndef MOB_TOOLS_GPU_QWEN_CONFIG_H
#define MOB_TOOLS_GPU_QWEN_CONFIG_H

static const char qwen_config[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"vocab_size\":152064,\"hidden_size\":3584,"
    "\"intermediate_size\":18944,\"num_hidden_layers\":%d,\"num_attention_heads\":28,\"num_key_value_heads\":4,\"hidden_act\":\"silu\","
    "\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,\"max_position_embeddings\":32768,\"max_window_layers\":28,"
    "\"use_sliding_window\":false,\"tie_word_embeddings\":false,\"bos_token_id\":151643,\"eos_token_id\":151645,"
    "\"torch_dtype\":\"bfloat16\"}";

#endif
