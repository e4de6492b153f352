"""Recorded request traces: one JSON object a line, {"at": seconds, "messages": [...], "max_tokens": n, "seed": n}.

`at` is the arrival time at rate 1 request a second; replaying at rate r divides it by r. A trace is a file so that every
run, and every system compared, gets the same requests in the same order.
"""
import json
import random

QUESTIONS = [
    "介绍一下深度学习。", "什么是神经网络？", "什么是反向传播？", "深度学习和机器学习有什么区别？", "你好", "你是谁？",
    "什么是Transformer？", "什么是过拟合？", "Mobula是什么？", "什么是LeaderWorkerSet？", "What is deep learning?",
    "What is a neural network?", "12加30等于多少？", "卷积神经网络有什么用？", "深度学习有哪些应用？", "Hello",
]


def record(path, count, seed):
    """Writes a new trace: Poisson arrivals at mean rate 1, questions and lengths drawn from `seed`."""
    rng = random.Random(seed)
    at = 0.0
    with open(path, "w", encoding="utf-8") as out:
        for i in range(count):
            at += rng.expovariate(1.0)
            messages = [{"role": "user", "content": rng.choice(QUESTIONS)}]
            if rng.random() < 0.5:
                messages.insert(0, {"role": "system", "content": "你是个友善的AI助手。"})
            line = {"at": round(at, 4), "messages": messages, "max_tokens": rng.choice([32, 64, 128, 192]), "seed": i}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
