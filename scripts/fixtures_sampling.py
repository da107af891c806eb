"""Writes tests/fixtures/sampling.json: what mlx-lm's logits processors and samplers keep.

Run with a Python that has mlx-lm: `python scripts/fixtures_sampling.py`.
"""

import json
import math
from pathlib import Path

import mlx.core as mx
from mlx_lm import sample_utils as reference

VOCABULARY = 40
TOKENS = [3, 7, 7, 1, 39, 7, 12, 3, 20, 21, 22, 3, 0]


def logits(case: int) -> list[float]:
    """Numbers without ties, some negative, different in every case."""
    return [round(4 * math.sin(1.7 * i + case) + 0.013 * ((i * 29 + case) % VOCABULARY), 4) for i in range(VOCABULARY)]


def processed(values: list[float], **options) -> mx.array:
    array = mx.array([values])
    for processor in reference.make_logits_processors(**options):
        array = processor(mx.array(TOKENS), array)
    return array


def write(values) -> list:
    return [None if math.isinf(x) else x for x in values.reshape(-1).tolist()]


PENALTIES = [
    {"repetition_penalty": 1.3, "repetition_context_size": 20},
    {"repetition_penalty": 0.7, "repetition_context_size": 4},
    {"presence_penalty": 0.6, "presence_context_size": 20},
    {"presence_penalty": -0.5, "presence_context_size": 3},
    {"frequency_penalty": 0.4, "frequency_context_size": 20},
    {"frequency_penalty": 0.4, "frequency_context_size": 7},
    {"logit_bias": {5: 2.5, 7: -3.0, 39: 0.25}},
    {
        "logit_bias": {3: 1.5, 30: -1.0},
        "repetition_penalty": 1.2,
        "repetition_context_size": 9,
        "presence_penalty": 0.3,
        "presence_context_size": 9,
        "frequency_penalty": 0.2,
        "frequency_context_size": 9,
    },
]

FILTERS = [
    [("top_p", 0.9)],
    [("top_p", 0.3)],
    [("top_p", 0.0001)],
    [("min_p", 0.05)],
    [("min_p", 1.0)],
    [("top_k", 1)],
    [("top_k", 7)],
    [("top_k", 39)],
    [("xtc", 0.05)],
    [("xtc", 0.2)],
    [("xtc", 0.0)],
    [("xtc_spared", 0.05)],
    [("top_p", 0.95), ("min_p", 0.1), ("xtc", 0.08), ("top_k", 5)],
    [("top_p", 0.8), ("top_k", 3)],
    [("min_p", 0.02), ("xtc", 0.1)],
]

APPLY = {
    "top_p": reference.apply_top_p,
    "min_p": reference.apply_min_p,
    "top_k": reference.apply_top_k,
    "xtc": lambda x, threshold: reference.apply_xtc(x, 1.0, threshold, []),
    "xtc_spared": lambda x, threshold: reference.apply_xtc(x, 1.0, threshold, [1, 23]),
}


def main():
    cases = []
    for index, options in enumerate(PENALTIES):
        values = logits(index)
        expected = write(processed(values, **options))
        written = {k: sorted(v.items()) if k == "logit_bias" else v for k, v in options.items()}
        cases.append({"options": written, "logits": values, "penalized": expected})
    for index, filters in enumerate(FILTERS):
        values = logits(100 + index)
        array = mx.array([values])
        array = array - mx.logsumexp(array, -1, keepdims=True)
        for name, value in filters:
            array = APPLY[name](array, value)
        cases.append({"options": dict(filters), "logits": values, "filtered": write(array)})
    document = {"tokens": TOKENS, "cases": cases}
    path = Path(__file__).parent.parent / "tests/fixtures/sampling.json"
    path.write_text(json.dumps(document, separators=(",", ":")).replace('{"options"', '\n{"options"') + "\n")


if __name__ == "__main__":
    main()
