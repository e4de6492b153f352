"""Trains the demo model on corpus.py's conversations.

    train.py TOKENIZER_DIR OUT_DIR [--minutes 8] [--rows 32] [--conversations 100000] [--resume PART...]

The schedule follows the clock, so that any machine ends its training well in the minutes it is given: on a data-centre
GPU 7 minutes are plenty, on a CPU use --rows 1 and hours. From 55 % of the time on, the forward pass sees the weights as
they will be exported (FP8 in 128x128 blocks, BF16), with straight-through gradients, and in a part of the steps FP8
activations too. OUT_DIR gets weights-{0,1,2}.pt (the float32 master weights) about once a minute; export.py reads them.
"""

import argparse
import math
import os
import random
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import corpus
from checks import known_lines, report
from model import CONFIG, DemoModel, Numerics

ROW = 1536
PARTS = 3


def conversations(tok, count, seed):
    """Token ids and a mask of what is learnt, one pair a conversation."""
    rng = random.Random(seed)
    heads, tails = [], []
    for _ in range(count):
        (head, _), (tail, _) = corpus.render(rng, *corpus.conversation(rng))
        heads.append(head)
        tails.append(tail)
    heads = tok.encode_batch_fast(heads, add_special_tokens=False)
    tails = tok.encode_batch_fast(tails, add_special_tokens=False)
    for h, t in zip(heads, tails):
        ids = np.array(h.ids + t.ids, dtype=np.int16)
        if len(ids) <= ROW:
            yield ids, len(h.ids)


def pack(samples, rng):
    """Rows of ROW tokens: ids, learnt positions, and which conversation each token belongs to (0: padding)."""
    order = list(range(len(samples)))
    rng.shuffle(order)
    open_rows, done = [], []
    for i in order:
        size = len(samples[i][0])
        best = min((r for r in open_rows if r[0] + size <= ROW), key=lambda r: ROW - r[0] - size, default=None)
        if best is None:
            best = [0, []]
            open_rows.append(best)
        best[0] += size
        best[1].append(i)
        if best[0] > ROW - 24 or len(open_rows) > 64:
            full = max(open_rows, key=lambda r: r[0])
            open_rows.remove(full)
            done.append(full[1])
    done += [r[1] for r in open_rows]
    ids = np.full((len(done), ROW), 2, dtype=np.int16)
    learn = np.zeros((len(done), ROW), dtype=bool)
    doc = np.zeros((len(done), ROW), dtype=np.uint8)
    for row, members in enumerate(done):
        at = 0
        for n, i in enumerate(members):
            tokens, head = samples[i]
            ids[row, at: at + len(tokens)] = tokens
            learn[row, at + head: at + len(tokens)] = True
            doc[row, at: at + len(tokens)] = n % 255 + 1
            at += len(tokens)
    return ids, learn, doc


def save(model, out):
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    names = sorted(state)
    for part in range(PARTS):
        path = os.path.join(out, f"weights-{part}.pt")
        torch.save({k: state[k].clone() for k in names[part::PARTS]}, path + ".tmp")
        os.replace(path + ".tmp", path)


@torch.no_grad()
def generate(model, prompts, limit, temperature, top_p, seed, device):
    """Samples a continuation of each prompt (lists of ids) until the end token or limit tokens; no cache, all at once."""
    gen = torch.Generator(device=device).manual_seed(seed)
    lens = torch.tensor([len(p) for p in prompts], device=device)
    ids = torch.full((len(prompts), int(lens.max()) + limit), 2, device=device)
    for i, p in enumerate(prompts):
        ids[i, : len(p)] = torch.tensor(p, device=device)
    out = [[] for _ in prompts]
    live = torch.ones(len(prompts), dtype=torch.bool, device=device)
    rows = torch.arange(len(prompts), device=device)
    for _ in range(limit):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            hidden = model.hidden(ids[:, : int(lens.max())])
            logits = model.head(hidden[rows, lens - 1]).float()
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            p = (logits / temperature).softmax(-1)
            sorted_p, index = p.sort(-1, descending=True)
            sorted_p[sorted_p.cumsum(-1) - sorted_p > top_p] = 0
            token = index.gather(-1, torch.multinomial(sorted_p, 1, generator=gen)).squeeze(-1)
        for i, (t, alive) in enumerate(zip(token.tolist(), live.tolist())):
            if alive:
                out[i].append(t)
        ids[rows, lens] = torch.where(live, token, ids[rows, lens])
        lens = lens + live.long()
        live = live & (token != CONFIG["eos_token_id"])
        if not live.any():
            break
    return out


def sample(model, tok, device):
    """Prints what the model says, with the share of answers that the corpus could have produced."""
    was = Numerics.weights, Numerics.activations
    Numerics.weights, Numerics.activations = True, False
    lines = known_lines()

    def run(texts, limit, temperature, top_p, seed=1):
        ids = [tok.encode(t, add_special_tokens=False).ids for t in texts]
        return [tok.decode(o, skip_special_tokens=False)
                for o in generate(model, ids, limit, temperature, top_p, seed, device)]

    seeds = "<｜begin▁of▁sentence｜>你是个友善的AI助手。<｜User｜>介绍一下深度学习。<｜Assistant｜><think>\n"
    for temperature, top_p in ((0.7, 0.9), (1.0, 1.0)):
        texts = run([seeds] * 32, 1000, temperature, top_p)
        print(f"== the seeds' question, temperature {temperature}, top_p {top_p}: {report(texts, lines)}")
        print(texts[0], flush=True)
    rng = random.Random(99)
    held = [corpus.arithmetic(rng, i % 2 == 0) for i in range(200)]
    texts = run([f"<｜begin▁of▁sentence｜><｜User｜>{q}<｜Assistant｜><think>\n" for q, _, _ in held], 100, 0, 1)
    right = sum(re.findall(r"\d+", a)[-1:] == re.findall(r"\d+", t.split("</think>")[-1])[-1:]
                for (_, _, a), t in zip(held, texts))
    print(f"== arithmetic, greedy: {right} of {len(held)} right")
    asked = ["深度学习是什么？", "卷积神经网络和循环神经网络有什么不同？", "Mobula是什么", "你好", "What is deep learning?", "什么是LWS？",
             "3加5等于几", "What is 17 + 26?", "谁发明了电灯？", "你是谁？", "Explain attention", "过拟合怎么解决？"]
    for q, t in zip(asked, run([f"<｜begin▁of▁sentence｜><｜User｜>{q}<｜Assistant｜><think>\n" for q in asked], 1000, 0.6, 0.95)):
        print("--", q, "\n" + t, flush=True)
    Numerics.weights, Numerics.activations = was


def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("tokenizer_dir")
    p.add_argument("out")
    p.add_argument("--minutes", type=float, default=8)
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--conversations", type=int, default=100000)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--resume", nargs="*", default=[])
    p.add_argument("--quantise-from", type=float, default=0.55, help="share of the time after which weights are FP8")
    p.add_argument("--no-samples", action="store_true")
    p.add_argument("--compile", action="store_true")
    return p.parse_args()


def main():
    args = parse_args()
    start = time.time()
    torch.manual_seed(7)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    os.makedirs(args.out, exist_ok=True)
    tok = Tokenizer.from_file(os.path.join(args.tokenizer_dir, "tokenizer.json"))
    rng = random.Random(5)
    samples = list(conversations(tok, args.conversations, 11))
    ids, learn, doc = (torch.from_numpy(x).to(device) for x in pack(samples, rng))
    print(f"{len(samples)} conversations in {len(ids)} rows of {ROW}, {int(learn.sum())} tokens learnt, "
          f"{time.time() - start:.0f} s", flush=True)

    model = DemoModel().to(device)
    for part in args.resume:
        model.load_state_dict(torch.load(part, map_location=device, weights_only=True), strict=False)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters on {device}", flush=True)
    decay = [p for n, p in model.named_parameters() if p.dim() >= 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() < 2 or "embed" in n]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
                            lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")
    forward = torch.compile(model.hidden, dynamic=False) if args.compile else model.hidden
    causal = torch.ones(ROW, ROW, dtype=torch.bool, device=device).tril()
    begin = saved = time.time()
    order, at, step, total = torch.randperm(len(ids)), 0, 0, torch.zeros((), device=device)
    while True:
        done = (time.time() - begin) / (args.minutes * 60)
        if done >= 1:
            break
        lr = args.lr * min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for g in opt.param_groups:
            g["lr"] = lr
        Numerics.weights = done > args.quantise_from
        Numerics.activations = done > max(0.7, args.quantise_from) and not args.compile and step % 4 == 0
        if at + args.rows > len(ids):
            order, at = torch.randperm(len(ids)), 0
        pick = order[at: at + args.rows].to(device)
        at += args.rows
        x, d = ids[pick].long(), doc[pick]
        mask = (d.unsqueeze(2) == d.unsqueeze(1)) & causal
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            hidden = forward(x, mask.unsqueeze(1))
            where = learn[pick][:, 1:]
            logits = model.head(hidden[:, :-1][where])
        loss = F.cross_entropy(logits.float(), x[:, 1:][where])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if done < 0.8:
            for gate in model.gates():
                gate.balance(1e-3 if done < 0.5 else 2e-4)
        total += loss.detach()
        step += 1
        every = 100 if device == "cuda" else 5
        if step % every == 0:
            used = [f"{(g.load.min() / g.load.mean()).item():.2f}-{(g.load.max() / g.load.mean()).item():.2f}"
                    for g in model.gates()]
            print(f"step {step} time {time.time() - begin:.0f} s loss {total.item() / every:.4f} norm {norm.item():.2f} "
                  f"lr {lr:.1e} load {' '.join(used)}", flush=True)
            total.zero_()
        if time.time() - saved > 60:
            save(model, args.out)
            saved = time.time()
    save(model, args.out)
    print(f"trained {step} steps in {time.time() - begin:.0f} s", flush=True)
    if not args.no_samples:
        sample(model, tok, device)
    print(f"all done in {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
