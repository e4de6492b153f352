"""Trains the tokenizer on the corpus and writes tokenizer.json and tokenizer_config.json: make_tokenizer.py OUT_DIR"""

import os
import sys

import corpus
import tokenizer
from model import CONFIG

if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    tokenizer.write(tokenizer.train(corpus.tokenizer_texts(), CONFIG["vocab_size"]), sys.argv[1])
