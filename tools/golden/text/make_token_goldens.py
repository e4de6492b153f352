"""Writes tests/golden/text/<name>/golden.json: texts, the ids that `tokenizers` gives them, and ids with the text
that they decode to. With transformers at hand the added bos is checked against it too."""
import json
import pathlib
import random

from tokenizers import Tokenizer

import texts

OUT = pathlib.Path(__file__).resolve().parents[3] / "tests" / "golden" / "text"


def all_texts(tok):
    added = [t.content for _, t in sorted(tok.get_added_tokens_decoder().items())]
    made = [f"{a}" for a in added] + [f"x{a}y" for a in added] + [f" {a}  {a}\n{a}" for a in added[:4]]
    made += ["".join(added), added[0] + "你好" + added[1] + "\n" + added[2]]
    return texts.CORPUS + texts.EDGE + made


def main():
    for folder in sorted(p for p in OUT.iterdir() if (p / "tokenizer.json").exists()):
        tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        rng = random.Random(7)
        encode = [[t, tok.encode(t, add_special_tokens=False).ids] for t in all_texts(tok)]
        size = tok.get_vocab_size(with_added_tokens=True)
        decode = []
        for i in range(120):
            ids = [rng.randrange(256 if i % 2 else size) for _ in range(rng.randrange(1, 24))]
            decode.append([ids, tok.decode(ids, skip_special_tokens=False), tok.decode(ids, skip_special_tokens=True)])
        golden = {"special": tok.encode("a b", add_special_tokens=True).ids, "encode": encode, "decode": decode}
        with open(folder / "golden.json", "w") as f:
            json.dump(golden, f, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    main()
