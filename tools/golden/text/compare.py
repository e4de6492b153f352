"""Compares the tokenizer with `tokenizers` on random texts and ids.

    python tools/golden/text/compare.py BUILD_FOLDER [ROUNDS] [SEED] [FOLDER_WITH_TOKENIZER_JSON ...]
"""
import pathlib
import random
import sys
import time
import unicodedata

import tokenizers

import mobula_text
import texts

OUT = pathlib.Path(__file__).resolve().parents[3] / "tests" / "golden" / "text"
RANGES = [(0x20, 0x7E)] * 6 + [(0, 0x1F), (0x7F, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
          (0xE00, 0xE7F), (0x1100, 0x11FF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
          (0xAC00, 0xD7A3), (0xF900, 0xFFFF), (0x1F300, 0x1FAFF), (0x20000, 0x2FFFF), (0x1D400, 0x1D7FF)]


def random_text(rng, tok):
    parts = []
    added = [t.content for t in tok.get_added_tokens_decoder().values()]
    for _ in range(rng.randrange(1, 12)):
        kind = rng.randrange(9)
        if kind == 0:
            parts.append(rng.choice(texts.EDGE)[:60])
        elif kind == 1:
            t = rng.choice(texts.CORPUS)
            i = rng.randrange(len(t))
            parts.append(t[i:i + rng.randrange(1, 40)])
        elif kind == 2 and added:
            t = rng.choice(added)
            parts.append(t if rng.randrange(4) else t[:rng.randrange(1, len(t) + 1)])
        elif kind == 3:
            parts.append("".join(rng.choice(" \t\n\r\u00a0\u3000\u2028\x0b\x85\u180e'") for _ in range(rng.randrange(1, 8))))
        elif kind == 4:
            parts.append("".join(rng.choice("aAeE01239 .,'-_=~sStTdDmMlLrRvVfFoO\n") for _ in range(rng.randrange(1, 16))))
        elif kind == 5:
            low, high = rng.choice(RANGES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 10))))
        elif kind == 6:
            parts.append(rng.choice("ab1 \n=哈é😀\u0301") * rng.randrange(1, 90))
        elif kind == 7:
            parts.append(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])))
        else:
            low, high = rng.choice(RANGES[-18:])
            parts.append(" " * rng.randrange(3) + chr(rng.randint(low, high)) + rng.choice("\u0301\u093f\u200d x1,\n"))
    text = "".join(parts).encode("utf-8", "ignore").decode()
    # Characters newer than this Python's Unicode are left out: `tokenizers` may know more of them than PCRE2.
    return "".join(c for c in text if unicodedata.category(c) != "Cn")


def main():
    lib = mobula_text.load(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    folders = [pathlib.Path(p) for p in sys.argv[4:]] or sorted(p.parent for p in OUT.glob("*/tokenizer.json"))
    bad = 0
    for folder in folders:
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        ours = mobula_text.Tokenizer(lib, folder)
        rng = random.Random(seed)
        size = theirs.get_vocab_size(with_added_tokens=True)
        wrong = 0
        for _ in range(rounds):
            text = random_text(rng, theirs)
            want, got = theirs.encode(text, add_special_tokens=False).ids, ours.encode(text)
            if want != got:
                wrong += 1
                if wrong <= 8:
                    print(f"{folder.name}: {text!r}\n  want {[theirs.id_to_token(i) for i in want]}\n"
                          f"  got  {[theirs.id_to_token(i) for i in got]}")
            ids = want if rng.randrange(2) else [rng.randrange(size) for _ in range(rng.randrange(20))]
            for skip in (False, True):
                text = theirs.decode(ids, skip_special_tokens=skip)
                if ours.decode(ids, skip) != text or ours.stream(ids, skip) != text:
                    wrong += 1
                    print(f"{folder.name}: decode {ids} skip {skip}: want {text!r} got {ours.decode(ids, skip)!r}")
        print(f"{folder.name}: {rounds} texts, {wrong} differ")
        bad += wrong
        sample = "".join(texts.CORPUS) * 300
        for name, encode in (("tokenizers", lambda t: theirs.encode(t, add_special_tokens=False)), ("mobula", ours.encode)):
            start = time.monotonic()
            encode(sample)
            print(f"  {name}: {len(sample.encode()) / (time.monotonic() - start) / 1e6:.2f} MB/s")
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
