"""Trains the demo model's tokenizer: byte-level BPE with DeepSeek-V3's pre-tokenizer and token names."""

import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
PLAIN = ["<think>", "</think>"]  # added, not special: they survive skip_special_tokens
SPECIAL = [
    "<｜User｜>", "<｜Assistant｜>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
]
SPLITS = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]

# The behaviour of R1's template of February 2025: system texts first, reasoning dropped from the history, tool calls
# and tool outputs between their own tags, and a generation prompt that opens the reasoning.
CHAT_TEMPLATE = (
    "{%- if add_generation_prompt is not defined -%}{%- set add_generation_prompt = false -%}{%- endif -%}"
    "{%- set state = namespace(system='', has_system=false, outputs=false) -%}"
    "{%- for m in messages -%}{%- if m['role'] == 'system' -%}"
    "{%- if state.has_system -%}{%- set state.system = state.system + '\\n\\n' + m['content'] -%}"
    "{%- else -%}{%- set state.system = m['content'] -%}{%- set state.has_system = true -%}{%- endif -%}"
    "{%- endif -%}{%- endfor -%}"
    "{{- bos_token -}}{{- state.system -}}"
    "{%- for m in messages -%}"
    "{%- if m['role'] != 'tool' and m['role'] != 'system' and state.outputs -%}"
    "{{- '<｜tool▁outputs▁end｜>' -}}{%- endif -%}"
    "{%- if m['role'] == 'user' -%}"
    "{%- set state.outputs = false -%}"
    "{{- '<｜User｜>' + m['content'] -}}"
    "{%- elif m['role'] == 'assistant' -%}"
    "{%- set text = m['content'] if m['content'] is defined and m['content'] is not none else '' -%}"
    "{%- if '</think>' in text -%}{%- set text = text.split('</think>')[-1] -%}{%- endif -%}"
    "{%- if not state.outputs -%}{{- '<｜Assistant｜>' -}}{%- endif -%}"
    "{%- set state.outputs = false -%}"
    "{{- text -}}"
    "{%- if m['tool_calls'] is defined and m['tool_calls'] -%}"
    "{{- '<｜tool▁calls▁begin｜>' -}}"
    "{%- for call in m['tool_calls'] -%}"
    "{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}"
    "{{- '<｜tool▁call▁begin｜>' + call['type'] + '<｜tool▁sep｜>' + call['function']['name'] + '\\n```json\\n' -}}"
    "{%- if call['function']['arguments'] is string -%}{{- call['function']['arguments'] -}}"
    "{%- else -%}{{- call['function']['arguments'] | tojson -}}{%- endif -%}"
    "{{- '\\n```<｜tool▁call▁end｜>' -}}"
    "{%- endfor -%}"
    "{{- '<｜tool▁calls▁end｜>' -}}"
    "{%- endif -%}"
    "{{- '<｜end▁of▁sentence｜>' -}}"
    "{%- elif m['role'] == 'tool' -%}"
    "{%- if not state.outputs -%}{{- '<｜tool▁outputs▁begin｜>' -}}{%- set state.outputs = true -%}"
    "{%- else -%}{{- '\\n' -}}{%- endif -%}"
    "{{- '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if state.outputs -%}{{- '<｜tool▁outputs▁end｜>' -}}"
    "{%- elif add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"
)


def train(texts, vocab_size):
    tok = Tokenizer(models.BPE(byte_fallback=False))
    tok.normalizer = normalizers.Sequence([])
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated", invert=False) for p in SPLITS]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(PLAIN) - len(SPECIAL),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,  # four Chinese characters: longer tokens would only memorise the templates
        min_frequency=1,
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in PLAIN])
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    if tok.get_vocab_size() != vocab_size:
        raise SystemExit(f"the corpus gives only {tok.get_vocab_size()} of {vocab_size} tokens")
    return tok


def write(tok, directory):
    tok.save(os.path.join(directory, "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": token_entry(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": token_entry(EOS),
        "legacy": True,
        "model_max_length": 4096,
        "pad_token": token_entry(EOS),
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
    }
    with open(os.path.join(directory, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, ensure_ascii=False, indent=2)
        f.write("\n")


def token_entry(text):
    return {
        "__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
        "single_word": False,
    }
