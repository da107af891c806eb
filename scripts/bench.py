"""Measures this library against mlx-lm, and its downloads against curl: `scripts/bench [name …] [--runs N]`.

Both sides run in processes of their own, in turns, on the same checkpoints with random weights; what
is printed are medians over the runs and their ratio. A rate should have a ratio of at least what the
table asks for, a time or a size at most that.

Ours is timed from the start of the process; mlx-lm's from the call of `load`, after its imports.
Downloads come from a hub on loopback; ours are verified, curl's are not.
"""

import argparse
import importlib
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
INSIDE = ROOT / "target" / "release" / "bench"
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


# The share of a long history that a second turn may cost, and the history's length.
SECOND_TURN = 0.05
HISTORY = 4000
SMALL = dict(
    hidden_size=128,
    num_hidden_layers=4,
    vocab_size=4096,
    max_position_embeddings=8192,
    intermediate_size=256,
    num_attention_heads=2,
    num_key_value_heads=1,
    rms_norm_eps=1e-6,
)
# One of each kind: positions, windows, convolutions, recurrences.
TALKERS = [
    dict(model_type="llama", **SMALL),
    dict(model_type="gemma3_text", head_dim=64, sliding_window=512, query_pre_attn_scalar=64, **SMALL),
    dict(
        model_type="lfm2",
        block_dim=128,
        block_ff_dim=256,
        block_multiple_of=32,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=True,
        norm_eps=1e-6,
        conv_bias=False,
        conv_L_cache=3,
        rope_theta=1e6,
        full_attn_idxs=[1, 3],
        **SMALL,
    ),
    dict(
        model_type="mamba2",
        num_heads=4,
        head_dim=64,
        state_size=64,
        n_groups=1,
        conv_kernel=4,
        use_bias=False,
        use_conv_bias=True,
        layer_norm_epsilon=1e-5,
        time_step_limit=[0.001, 0.1],
        time_step_rank=16,
        tie_word_embeddings=True,
        **SMALL,
    ),
]
# Microseconds a token, from its id to the text at the reader.
STREAMING = 20
# The share of a 16-bit cache that a 4-bit one may take.
CACHE = 0.3


def qwen3(vocabulary: int, sizes: dict) -> dict:
    return dict(
        model_type="qwen3",
        num_hidden_layers=28,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        **sizes,
    )


def make_model(path: Path, config: dict, quantized: bool = False) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    if config.get("torch_dtype") == "bfloat16":
        model.set_dtype(mx.bfloat16)
    if quantized:
        nn.quantize(model, group_size=64, bits=4)
        config["quantization"] = dict(group_size=64, bits=4)
    path.mkdir(parents=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    make_tokenizer(path, config["vocab_size"])
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


def inside(*arguments) -> dict:
    return json.loads(run_process([str(word) for word in [INSIDE, *arguments]])[0])


def compare_second_turns(runs: int) -> None:
    print(f"\n{f'second turn after {HISTORY} tokens, seconds':38}{'session':>10}{'anew':>10}{'ratio':>8}")
    for config in TALKERS:
        name = config["model_type"]
        results = [inside("second-turn", MODELS / name, HISTORY) for _ in range(runs)]
        session, anew = (statistics.median(result[side] for result in results) for side in ("session", "anew"))
        note = "" if session / anew <= SECOND_TURN else f"   missed: ≤ {SECOND_TURN}"
        print(f"{name:38}{session:10.4f}{anew:10.4f}{session / anew:8.4f}{note}", flush=True)


def measure_streaming(runs: int) -> None:
    results = [inside("streaming", MODELS / "qwen3")["microseconds"] for _ in range(runs)]
    microseconds = statistics.median(results)
    note = "" if microseconds <= STREAMING else f"   missed: ≤ {STREAMING}"
    print(f"\n{'streaming, microseconds a token':38}{microseconds:10.2f}{note}", flush=True)


def compare_caches() -> None:
    """Four bits against sixteen; sizes are the same in every run."""
    result = inside("cache", MODELS / "half", HISTORY)
    four, sixteen = (result[bits] / 1e6 for bits in ("four", "sixteen"))
    note = "" if four / sixteen <= CACHE else f"   missed: ≤ {CACHE}"
    print(f"\n{f'cache of {HISTORY} positions, MB':38}{'4 bit':>10}{'bf16':>10}{'ratio':>8}")
    print(f"{'llama':38}{four:10.2f}{sixteen:10.2f}{four / sixteen:8.2f}{note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    names = [measure.name for measure in MEASURES] + ["second-turn", "streaming", "cache", "hub"]
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(names))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--reference", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reference:
        path, prompt, tokens = arguments.reference
        return run_reference(path, int(prompt), int(tokens))

    models = {"host": qwen3(512, HOST_BOUND), "qwen3": qwen3(151936, QWEN3_06B)}
    models |= {config["model_type"]: config for config in TALKERS}
    models["half"] = TALKERS[0] | dict(torch_dtype="bfloat16")
    for name, config in models.items():
        if not (MODELS / name / "config.json").exists():
            make_model(MODELS / name, config, quantized=name == "qwen3")

    wanted = set(arguments.names or names)
    measures = [measure for measure in MEASURES if measure.name in wanted]
    if measures:
        print(f"{'':38}{'mynah':>10}{'mlx-lm':>10}{'ratio':>8}")
    for measure in measures:
        pairs = [(ours(measure), theirs(measure)) for _ in range(arguments.runs)]
        report(measure.title, pairs, measure.bound, measure.is_rate)
    if "second-turn" in wanted:
        compare_second_turns(arguments.runs)
    if "streaming" in wanted:
        measure_streaming(arguments.runs)
    if "cache" in wanted:
        compare_caches()
    if "hub" in wanted:
        rates, memory = downloads(arguments.runs)
        report("download of 2 GB, MB/s; curl's", rates, 0.9, is_rate=True)
        report("peak memory of it, MB; allowed", memory, 1.0, is_rate=False)


main()
