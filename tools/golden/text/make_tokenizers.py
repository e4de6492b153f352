"""Trains the small tokenizers of tests/golden/text: the pipelines of DeepSeek-V3, Qwen2 and Llama-3 with a
vocabulary of about a thousand tokens, and one with the rarer steps. Run with `tokenizers` installed."""
import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

import texts

OUT = pathlib.Path(__file__).resolve().parents[3] / "tests" / "golden" / "text"

DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern) if isinstance(pattern, str) else pattern, behavior, invert)


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **options})


def train(tok, size):
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tok.train_from_iterator(texts.CORPUS * 3, trainer)
    tok.decoder = decoders.ByteLevel()
    return tok


def save(tok, name, config=None, edit=None):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads(tok.to_str())
    if edit:
        edit(data)
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))


def deepseek():
    tok = Tokenizer(BPE())
    tok.normalizer = normalizers.Sequence([])
    tok.pre_tokenizer = pre_tokenizers.Sequence([split(p) for p in DEEPSEEK] + [byte_level()])
    train(tok, 1100)
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>",
               "<|EOT|>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"]
    tok.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    tok.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    tok.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], tok.token_to_id(special[0]))])

    def edit(data):  # older files write merges as text
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]

    save(tok, "deepseek", {"add_bos_token": True, "add_eos_token": False,
                           "bos_token": {"__type": "AddedToken", "content": special[0]},
                           "eos_token": {"__type": "AddedToken", "content": special[1]},
                           "clean_up_tokenization_spaces": False, "tokenizer_class": "LlamaTokenizerFast"}, edit)


def qwen():
    tok = Tokenizer(BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN), byte_level()])
    train(tok, 1100)
    tok.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok.add_tokens([AddedToken(t, normalized=False) for t in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    tok.add_tokens([AddedToken("cafétok", normalized=True)])
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    save(tok, "qwen", {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
                       "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"})


def llama():
    tok = Tokenizer(BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence([split(LLAMA), byte_level()])
    train(tok, 1100)
    tok.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                            "<|eot_id|>"])
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)])])

    def edit(data):  # words that no merge makes: only ignore_merges finds them
        data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) not in ("Ġthe", "ing", "hello")]
        usable = set(pre_tokenizers.ByteLevel.alphabet())
        kept = []
        for a, b in data["model"]["merges"]:
            if a in usable and b in usable:
                usable.add(a + b)
                kept.append([a, b])
        data["model"]["merges"] = kept

    save(tok, "llama", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
                        "tokenizer_class": "PreTrainedTokenizerFast"}, edit)


def rare():
    """The steps and flags that few models use."""
    tok = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=False), split("--", "merged_with_next"), split(r"[,;]", "merged_with_previous"),
        split(Regex(r"=+"), "contiguous"), split(r"[^~]+", "removed", True), split(r"(?i:foo)|\h{2}+", "isolated"),
        byte_level(add_prefix_space=True, use_regex=True)])
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], show_progress=False)
    tok.train_from_iterator(texts.CORPUS[:4] * 3 + texts.CORPUS[12:14] * 3, trainer)
    tok.decoder = decoders.ByteLevel()
    tok.add_tokens([AddedToken("[MASK]", lstrip=True, rstrip=True, normalized=False),
                    AddedToken("TOKEN", single_word=True, normalized=False),
                    AddedToken("two words", normalized=True), AddedToken("two words more", normalized=True),
                    AddedToken("é", normalized=True)])
    tok.post_processor = processors.TemplateProcessing(
        single="<unk> [MASK] $A TOKEN",
        special_tokens=[(t, tok.token_to_id(t)) for t in ("<unk>", "[MASK]", "TOKEN")])
    save(tok, "rare")


if __name__ == "__main__":
    for make in (deepseek, qwen, llama, rare):
        if len(sys.argv) < 2 or make.__name__ in sys.argv[1:]:
            make()
