"""Checkpoints of the goldens in tests/golden, written from their seeds as a Hugging Face directory."""

import base64
import json
import struct
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools" / "golden"))
import shapes as golden_shapes  # noqa: E402
import weights  # noqa: E402

# The codes of 0 to 7 in E4M3: sign 1 bit, exponent 4 bits with bias 7, mantissa 3 bits. 0, 1, 2, 3, 4, 5, 6, 7 are exact.
E4M3 = np.array([0x00, 0x38, 0x40, 0x44, 0x48, 0x4A, 0x4C, 0x4E], dtype=np.uint8)


def cases():
    return {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "tests" / "golden").glob("*/*.json"))
            if path.parent.name != "text"}


def logits(case):
    """step -> the golden logits that chose the continuation's token of that step."""
    return {row: np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)
            for row, text in zip(case["rows"], case["logits"])}


def _plain(values, dtype):
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        assert not (bits & 0xFFFF).any()  # exact
        return (bits >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def tensors(case):
    """(name, dtype, shape, bytes) of every tensor."""
    stored = {"f32": "F32", "f16": "F16", "bf16": "BF16", "fp8": "BF16"}[case["dtype"]]
    for name, shape in golden_shapes.shapes(case["config"], case["family"]).items():
        if case["dtype"] == "fp8" and weights.is_quantised(name, shape):
            k = weights.dice(name, case["seed"], int(np.prod(shape)))
            codes = E4M3[np.abs(k)] | np.where(k < 0, 0x80, 0).astype(np.uint8)
            yield name, "F8_E4M3", shape, codes.tobytes()
            blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
            h = weights.hashes(name + "_scale_inv", case["seed"], blocks[0] * blocks[1])
            scale = np.float32(2.0 ** -weights.exponent(name, shape))
            scales = (8 + (h & np.uint64(7)).astype(np.float32)) / np.float32(8) * scale
            yield name + "_scale_inv", "F32", blocks, _plain(scales, "F32")
            continue
        dtype = "F32" if name.endswith("e_score_correction_bias") else stored
        yield name, dtype, shape, _plain(weights.tensor(name, shape, case["seed"], False), dtype)


def write_safetensors(path, entries):
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, dtype, shape, raw in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def write(case, folder, files=1):
    """Writes config.json and the weights, in one file or in several with an index; no tokenizer files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    entries = list(tensors(case))
    if files == 1:
        write_safetensors(folder / "model.safetensors", entries)
        return folder
    names = {}
    for i in range(files):
        name = f"model-{i + 1:05}-of-{files:05}.safetensors"
        part = entries[i::files]
        write_safetensors(folder / name, part)
        names.update({entry[0]: name for entry in part})
    index = {"metadata": {"total_size": sum(len(e[3]) for e in entries)}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
