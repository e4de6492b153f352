"""The demo model: DeepSeek-V3's architecture (MLA, YaRN, noaux_tc router) at a very small size.

Parameter names are those of the Hugging Face checkpoint, except that the experts of a layer are kept stacked as
[experts, out, in]; export.py splits them. The forward pass is written for training: every expert runs on every token and
the router's weights mask the result, which at this size is faster than gathering tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 3072,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "max_position_embeddings": 4096,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "ep_size": 1,
    "pretraining_tp": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}

BLOCK = 128
E4M3_MAX = 448.0


def block_scales(w):
    """Scales of the 128x128 blocks of w [..., out, in]: amax / 448, as [..., ceil(out/128), ceil(in/128)]."""
    rows, cols = w.shape[-2:]
    pad = F.pad(w.abs(), (0, -cols % BLOCK, 0, -rows % BLOCK))
    blocks = pad.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    amax = blocks.amax(dim=(-1, -3))
    return torch.where(amax > 0, amax / E4M3_MAX, torch.ones_like(amax))


def spread_scales(scales, rows, cols):
    return scales.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)[..., :rows, :cols]


def quantise(w):
    """FP8 values and block scales of w (float32)."""
    scales = block_scales(w)
    q = (w / spread_scales(scales, *w.shape[-2:])).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return q, scales


def dequantise(q, scales):
    return q.float() * spread_scales(scales, *q.shape[-2:])


class Numerics:
    """What the forward pass simulates: FP8 weights, and FP8 activations per token and 128 channels."""

    weights = False
    activations = False


def weight(p):
    if not Numerics.weights:
        return p
    with torch.no_grad():
        delta = dequantise(*quantise(p.float())) - p
    return p + delta  # straight-through: the gradient sees the identity


def rounded(p):
    """Straight-through rounding to bf16, for what is stored as BF16."""
    if not Numerics.weights:
        return p
    with torch.no_grad():
        delta = p.bfloat16().float() - p
    return p + delta


def act(x):
    if not Numerics.activations:
        return x
    with torch.no_grad():
        width = x.shape[-1]
        g = F.pad(x.float(), (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
        s = g.abs().amax(-1, keepdim=True).clamp(min=1e-10) / E4M3_MAX
        q = ((g / s).to(torch.float8_e4m3fn).float() * s).flatten(-2)[..., :width]
        delta = q.to(x.dtype) - x
    return x + delta


class Matrix(nn.Module):
    def __init__(self, out, inp, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, inp) * std)

    def forward(self, x):
        return F.linear(act(x), weight(self.weight))


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], rounded(self.weight), self.eps).to(x.dtype)


def yarn_m(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_frequencies(c):
    """Inverse frequencies after YaRN's interpolation (arXiv 2309.00071, section 3.2).

    In float32 and in transformers' order of operations: at position 1500, one unit in the last place of a frequency
    already shows in the fourth decimal of the logits.
    """
    s, dim, base = c["rope_scaling"], c["qk_rope_head_dim"], c["rope_theta"]
    period = base ** (torch.arange(0, dim, 2).float() / dim)

    def corr(rotations):
        length = s["original_max_position_embeddings"]
        return dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(corr(s["beta_fast"])), 0)
    high = min(math.ceil(corr(s["beta_slow"])), dim - 1)
    keep = 1 - ((torch.arange(dim // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return 1.0 / (s["factor"] * period) * (1 - keep) + 1.0 / period * keep


def rotate(x, cos, sin):
    """Rotates the interleaved pairs (2i, 2i+1) of x [..., tokens, dim] in fp32."""
    pair = x.float().unflatten(-1, (-1, 2))
    a, b = pair[..., 0], pair[..., 1]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c, std):
        super().__init__()
        self.c = c
        h, heads = c["hidden_size"], c["num_attention_heads"]
        nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        eps, q_rank, kv_rank = c["rms_norm_eps"], c["q_lora_rank"], c["kv_lora_rank"]
        self.q_a_proj = Matrix(q_rank, h, std)
        self.q_a_layernorm = Norm(q_rank, eps)
        self.q_b_proj = Matrix(heads * (nope + rope), q_rank, std)
        self.kv_a_proj_with_mqa = Matrix(kv_rank + rope, h, std)
        self.kv_a_layernorm = Norm(kv_rank, eps)
        self.kv_b_proj = Matrix(heads * (nope + v), kv_rank, std)
        self.o_proj = Matrix(h, heads * v, std / math.sqrt(2 * c["num_hidden_layers"]))
        m = yarn_m(c["rope_scaling"]["factor"], c["rope_scaling"]["mscale_all_dim"])
        self.scale = (nope + rope) ** -0.5 * m * m

    def forward(self, x, cos, sin, mask):
        c, (batch, length, _) = self.c, x.shape
        heads, nope, rope, v_dim = (
            c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"])
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.view(batch, length, heads, nope + rope).transpose(1, 2)
        latent = self.kv_a_proj_with_mqa(x)
        kv, k_pe = latent.split((c["kv_lora_rank"], rope), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(kv)).view(batch, length, heads, nope + v_dim).transpose(1, 2)
        k_nope, v = kv.split((nope, v_dim), -1)
        k_pe = rotate(k_pe.unsqueeze(1), cos, sin).expand(-1, heads, -1, -1)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), -1)
        k = torch.cat((k_nope, k_pe), -1)
        v = F.pad(v, (0, nope + rope - v_dim))  # equal head sizes: the fused attention kernels want them
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return self.o_proj(o[..., :v_dim].transpose(1, 2).reshape(batch, length, heads * v_dim))


class Mlp(nn.Module):
    def __init__(self, h, inter, std, out_std):
        super().__init__()
        self.gate_proj = Matrix(inter, h, std)
        self.up_proj = Matrix(inter, h, std)
        self.down_proj = Matrix(h, inter, out_std)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    def __init__(self, c, std):
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.randn(c["n_routed_experts"], c["hidden_size"]) * std)
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))
        self.load = None

    def forward(self, x):
        """Weights of all experts [tokens, experts], zero where an expert is not chosen."""
        c = self.c
        with torch.autocast(x.device.type, enabled=False):
            score = F.linear(x.float(), rounded(self.weight)).sigmoid()
        with torch.no_grad():
            t = score + self.e_score_correction_bias
            groups = t.unflatten(-1, (c["n_group"], -1))
            best = groups.topk(2, -1).values.sum(-1).topk(c["topk_group"], -1).indices
            keep = torch.zeros_like(groups[..., 0]).scatter_(-1, best, 1.0).bool()
            t = groups.masked_fill(~keep.unsqueeze(-1), float("-inf")).flatten(-2)
            chosen = torch.zeros_like(t).scatter_(-1, t.topk(c["num_experts_per_tok"], -1).indices, 1.0)
            self.load = chosen.sum(0)
        w = score * chosen
        return w / (w.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]

    @torch.no_grad()
    def balance(self, rate):
        """DeepSeek-V3's balancing without an auxiliary loss: raise the bias of what is used too little."""
        self.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)
        # Only differences matter. With a minimum of 0, no admitted score is negative, so implementations that
        # exclude groups with 0 instead of -inf agree too.
        self.e_score_correction_bias -= self.e_score_correction_bias.min()


class Experts(nn.Module):
    def __init__(self, n, h, inter, std, out_std):
        super().__init__()
        self.gate_proj = nn.Parameter(torch.randn(n, inter, h) * std)
        self.up_proj = nn.Parameter(torch.randn(n, inter, h) * std)
        self.down_proj = nn.Parameter(torch.randn(n, h, inter) * out_std)

    def forward(self, x, w):
        x = act(x)
        y = F.silu(F.linear(x, weight(self.gate_proj).flatten(0, 1))) * F.linear(x, weight(self.up_proj).flatten(0, 1))
        y = act(y.unflatten(-1, (w.shape[-1], -1))) * w.to(y.dtype).unsqueeze(-1)
        down = weight(self.down_proj).permute(1, 0, 2).flatten(1)
        return F.linear(y.flatten(-2), down)


class Moe(nn.Module):
    def __init__(self, c, std, out_std):
        super().__init__()
        h, inter = c["hidden_size"], c["moe_intermediate_size"]
        self.gate = Gate(c, std)
        self.experts = Experts(c["n_routed_experts"], h, inter, std, out_std)
        self.shared_experts = Mlp(h, inter * c["n_shared_experts"], std, out_std)

    def forward(self, x):
        flat = x.flatten(0, 1)
        return (self.experts(flat, self.gate(flat)) + self.shared_experts(flat)).view_as(x)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        h, eps = c["hidden_size"], c["rms_norm_eps"]
        std = 1 / math.sqrt(h)
        out_std = std / math.sqrt(2 * c["num_hidden_layers"])
        self.input_layernorm = Norm(h, eps)
        self.self_attn = Attention(c, std)
        self.post_attention_layernorm = Norm(h, eps)
        dense = index < c["first_k_dense_replace"]
        self.mlp = Mlp(h, c["intermediate_size"], std, out_std) if dense else Moe(c, std, out_std)

    def forward(self, x, cos, sin, mask):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])


class DemoModel(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c = c
        self.model = Body(c)
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(), yarn_frequencies(c))
        s = c["rope_scaling"]
        m = yarn_m(s["factor"], s["mscale"]) / yarn_m(s["factor"], s["mscale_all_dim"])
        self.register_buffer("cos", angle.cos() * m, persistent=False)
        self.register_buffer("sin", angle.sin() * m, persistent=False)

    def hidden(self, ids, mask=None):
        """ids [batch, tokens]; mask bool [batch, 1, tokens, tokens], true where attention is allowed, or causal."""
        x = F.embedding(ids, rounded(self.model.embed_tokens.weight))
        if torch.is_autocast_enabled(ids.device.type):
            x = x.to(torch.get_autocast_dtype(ids.device.type))
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return self.model.norm(x)

    def head(self, x):
        return F.linear(x, rounded(self.lm_head.weight))

    def forward(self, ids, mask=None):
        return self.head(self.hidden(ids, mask))

    def gates(self):
        return [layer.mlp.gate for layer in self.model.layers if isinstance(layer.mlp, Moe)]
