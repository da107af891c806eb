"""Measures this library against mlx-lm, and its downloads against curl: `scripts/bench [name …] [--runs N]`.

Both sides run in processes of their own, in turns, on the same checkpoints with random weights; what
is printed are medians over the runs and their ratio. A rate should have a ratio of at least what the
table asks for, a time or a size at most that.

Ours is timed from the start of the process; mlx-lm's from the call of `load`, after its imports.
Downloads come from a hub on loopback; ours are verified, curl's are not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODELS = ROOT / ".mlx" / "bench"
MYNAH = ROOT / "target" / "release" / "mynah"
HUB = ROOT / "target" / "release" / "hub"

# Bytes of the file that is downloaded, and megabytes that this may take in memory.
DOWNLOAD = 2_000_000_000
ALLOWED_MEMORY = 64

HOST_BOUND = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
QWEN3_06B = dict(hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8, head_dim=128)


@dataclass
class Measure:
    name: str
    title: str
    model: str
    prompt: int
    tokens: int
    field: str
    # Ours over mlx-lm's: at least this for a rate, at most this for a time or a size.
    bound: float
    is_rate: bool = True


MEASURES = [
    Measure("host", "decode, host-bound, tokens/s", "host", 8, 300, "decode", 1.4),
    Measure("decode", "decode, Qwen3 0.6B 4 bit, tokens/s", "qwen3", 4, 10, "decode", 1.0),
    Measure("prefill", "prefill, Qwen3 0.6B 4 bit, tokens/s", "qwen3", 32, 1, "prefill", 1.0),
    Measure("load", "load to first token, seconds", "qwen3", 1, 1, "first_token", 0.5, is_rate=False),
    Measure("memory", "peak resident memory, MB", "qwen3", 32, 4, "memory", 1.0, is_rate=False),
]


def make_model(path: Path, vocabulary: int, quantized: bool, sizes: dict) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.models.qwen3 import Model, ModelArgs

    config = dict(
        model_type="qwen3",
        num_hidden_layers=28,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        **sizes,
    )
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(config))
    if quantized:
        nn.quantize(model, group_size=64, bits=4)
        config["quantization"] = dict(group_size=64, bits=4)
    path.mkdir(parents=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    make_tokenizer(path, vocabulary)
    # Last, so that a model that is there is whole.
    (path / "config.json").write_text(json.dumps(config))


def make_tokenizer(path: Path, vocabulary: int) -> None:
    """Byte-level BPE of the right size: pairs of bytes, then pairs and a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: id for id, letter in enumerate(alphabet)}
    merges = []
    pairs = ((a, b) for a in alphabet for b in alphabet)
    triples = ((a + b, c) for a in alphabet for b in alphabet for c in alphabet)
    for left, right in (pair for source in (pairs, triples) for pair in source):
        if len(vocab) >= vocabulary:
            break
        merges.append((left, right))
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def run_reference(path: str, prompt: int, tokens: int) -> None:
    """One run of mlx-lm; in a process of its own."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    started = time.perf_counter()
    model, _ = load(path)
    loaded = time.perf_counter()
    times = []
    for token, _ in generate_step(mx.array(list(range(1, prompt + 1))), model, max_tokens=tokens):
        times.append(time.perf_counter())
    print(
        json.dumps(
            dict(
                prefill=prompt / (times[0] - loaded),
                decode=(len(times) - 1) / (times[-1] - times[0]) if tokens > 1 else 0.0,
                first_token=times[0] - started,
            )
        )
    )


def run_process(command: list, **variables: str) -> tuple[bytes, float, float]:
    """Its output, wall time in seconds and peak resident memory in MB."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        environment = os.environ | variables
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        if status:
            raise SystemExit(f"{command} has failed")
        output.seek(0)
        result = output.read()
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return result, elapsed, usage.ru_maxrss / unit


def ours(measure: Measure) -> float:
    ids = ",".join(str(id) for id in range(1, measure.prompt + 1))
    options = ["--tokens", ids, "--max-tokens", measure.tokens, "--temperature", 0, "--ignore-eos", "--json"]
    command = [str(word) for word in [MYNAH, "generate", MODELS / measure.model, *options]]
    output, elapsed, memory = run_process(command)
    result = json.loads(output)
    return dict(
        decode=result["decode_tokens_per_second"],
        prefill=result["prefill_tokens_per_second"],
        first_token=elapsed,
        memory=memory,
    )[measure.field]


def theirs(measure: Measure) -> float:
    path, prompt, tokens = MODELS / measure.model, measure.prompt, measure.tokens
    command = [sys.executable, __file__, "--reference", str(path), str(prompt), str(tokens)]
    output, _, memory = run_process(command)
    return (json.loads(output.splitlines()[-1]) | dict(memory=memory))[measure.field]


def download(endpoint: str) -> tuple[float, float, float]:
    """One download each: megabytes a second of ours and of curl's, and our peak memory in MB."""
    with tempfile.TemporaryDirectory(dir=MODELS) as folder:
        command = [MYNAH, "download", "org/model"]
        variables = dict(HF_ENDPOINT=endpoint, HF_HUB_CACHE=folder, HF_HUB_OFFLINE="0")
        _, mine, memory = run_process(command, **variables)
    with tempfile.TemporaryDirectory(dir=MODELS) as folder:
        address = f"{endpoint}/org/model/resolve/main/model.safetensors"
        command = ["curl", "--silent", "--location", "--output", f"{folder}/file", address]
        _, other, _ = run_process(command)
    return DOWNLOAD / 1e6 / mine, DOWNLOAD / 1e6 / other, memory


def downloads(runs: int) -> tuple[list, list]:
    """Pairs of rates, and pairs of ours and the allowed memory."""
    command = [HUB, "org/model", f"model.safetensors={DOWNLOAD}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
        endpoint = hub.stdout.readline().strip()
        results = [download(endpoint) for _ in range(runs)]
    rates = [(mine, other) for mine, other, _ in results]
    return rates, [(memory, ALLOWED_MEMORY) for _, _, memory in results]


def report(title: str, pairs: list, bound: float, is_rate: bool) -> None:
    mine, other = (statistics.median(side) for side in zip(*pairs))
    ratio = mine / other
    reached = ratio >= bound if is_rate else ratio <= bound
    sign = "≥" if is_rate else "≤"
    note = "" if reached else f"   missed: {sign} {bound}"
    print(f"{title:38}{mine:10.2f}{other:10.2f}{ratio:8.2f}{note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join([*(m.name for m in MEASURES), "hub"]))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--reference", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reference:
        path, prompt, tokens = arguments.reference
        return run_reference(path, int(prompt), int(tokens))

    for name, vocabulary, quantized, sizes in [
        ("host", 512, False, HOST_BOUND),
        ("qwen3", 151936, True, QWEN3_06B),
    ]:
        if not (MODELS / name / "config.json").exists():
            make_model(MODELS / name, vocabulary, quantized, sizes)

    print(f"{'':38}{'mynah':>10}{'mlx-lm':>10}{'ratio':>8}")
    for measure in MEASURES:
        if arguments.names and measure.name not in arguments.names:
            continue
        pairs = [(ours(measure), theirs(measure)) for _ in range(arguments.runs)]
        report(measure.title, pairs, measure.bound, measure.is_rate)
    if not arguments.names or "hub" in arguments.names:
        rates, memory = downloads(arguments.runs)
        report("download of 2 GB, MB/s; curl's", rates, 0.9, is_rate=True)
        report("peak memory of it, MB; allowed", memory, 1.0, is_rate=False)


main()
