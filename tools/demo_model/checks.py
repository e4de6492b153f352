"""Automatic checks of sampled answers: a form check, and whether every line is one that the corpus can produce."""

import random

import corpus

EOS = "<｜end▁of▁sentence｜>"


def known_lines(count=20000):
    """Every line that the answers to the seeds' question can consist of."""
    rng = random.Random(0)
    lines = {""}
    for _ in range(count):
        _, think, answer = corpus.introduction(rng, True)
        lines.update((think + "</think>\n\n" + answer).split("\n"))
    return lines


def faults(text, lines):
    """What is wrong with one answer, as text ending with the end token; empty when nothing is."""
    found = []
    if not text.endswith(EOS):
        found.append("does not end by itself")
    text = text.removesuffix(EOS)
    if text.count("</think>") != 1:
        found.append("not exactly one </think>")
    elif len(text.split("</think>")[1].strip()) < 150:
        found.append("short answer")
    found += [f"odd line: {line}" for line in text.split("\n") if line not in lines]
    headings = [line for line in text.split("\n") if line.startswith("#")]
    if len(headings) != len(set(headings)):
        found.append("a heading twice")
    return found


def report(texts, lines):
    wrong = [faults(t, lines) for t in texts]
    shown = [f for w in wrong for f in w][:6]
    return f"{sum(not w for w in wrong)} of {len(texts)} without fault; {len(set(texts))} different; {shown}"
