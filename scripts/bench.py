"""Measures this library against mlx-lm, itself, curl and fixed limits: `scripts/bench [name …] [--runs N]`.

Both sides run in processes of their own, in turns, on the same checkpoints with random weights. The output
is the median of each side over the runs, and their ratio. The ratio of a rate should be at least the target,
that of a time or a size at most the target.

Mynah is timed from the start of the process; mlx-lm is timed from the call of `load`, after its imports.
Downloads come from a hub on loopback; Mynah's are verified and synced, curl's are not.
"""

import argparse
import atexit
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODELS = ROOT / ".mlx" / "bench"
MYNAH = ROOT / "target" / "release" / "mynah"
INSIDE = ROOT / "target" / "release" / "bench"
HUB = ROOT / "target" / "release" / "hub"

# The size of the downloaded file in bytes.
DOWNLOAD = 2_000_000_000
# The tokens of a chat before its second turn, and the positions of a KV cache.
HISTORY = 4000


# Models: the shapes of published models, and small models whose speed the host limits


def qwen3(**sizes) -> dict:
    return dict(
        model_type="qwen3",
        num_hidden_layers=28,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        **sizes,
    )


QWEN3_06B = dict(
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
)
HOST_BOUND = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
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
LLAMA = dict(model_type="llama", **SMALL)
CONFIGS = {
    "host": qwen3(**HOST_BOUND),
    "qwen3": qwen3(**QWEN3_06B),
    "qwen3_moe": dict(
        model_type="qwen3_moe",
        hidden_size=1024,
        num_hidden_layers=6,
        intermediate_size=3072,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=64,
        num_experts_per_tok=8,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        moe_intermediate_size=512,
        norm_topk_prob=True,
        rms_norm_eps=1e-6,
        vocab_size=32000,
        rope_theta=1e6,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    ),
    "deepseek_v3": dict(
        model_type="deepseek_v3",
        hidden_size=1024,
        num_hidden_layers=6,
        intermediate_size=3072,
        moe_intermediate_size=512,
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=512,
        kv_lora_rank=256,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=64,
        n_shared_experts=1,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        first_k_dense_replace=1,
        moe_layer_freq=1,
        rms_norm_eps=1e-6,
        vocab_size=32000,
        rope_theta=1e4,
        rope_scaling=None,
        attention_bias=False,
        max_position_embeddings=4096,
    ),
    "llama": LLAMA,
    "half": LLAMA | dict(torch_dtype="bfloat16"),
    "gemma3_text": dict(
        model_type="gemma3_text", head_dim=64, sliding_window=512, query_pre_attn_scalar=64, **SMALL
    ),
    "lfm2": dict(
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
    "mamba2": dict(
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
}
BFLOAT16 = dict(torch_dtype="bfloat16")
# The shapes of published models, for GPUs.
CONFIGS |= {
    "gpu-host": qwen3(**HOST_BOUND) | BFLOAT16,
    "gpu-qwen3-bf16": qwen3(**QWEN3_06B) | BFLOAT16,
    "gpu-qwen3": qwen3(**QWEN3_06B) | BFLOAT16,
    "gpu-llama-1b": dict(
        model_type="llama",
        hidden_size=2048,
        num_hidden_layers=16,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        **BFLOAT16,
    ),
    "gpu-llama-8b": dict(
        model_type="llama",
        hidden_size=4096,
        num_hidden_layers=32,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        rms_norm_eps=1e-5,
        rope_theta=5e5,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
        **BFLOAT16,
    ),
    "gpu-qwen3-moe": CONFIGS["qwen3_moe"]
    | dict(
        hidden_size=2048,
        num_hidden_layers=12,
        intermediate_size=6144,
        num_attention_heads=32,
        num_experts=128,
        moe_intermediate_size=768,
        vocab_size=151936,
        tie_word_embeddings=False,
        **BFLOAT16,
    ),
    "gpu-gemma3": dict(
        model_type="gemma3_text",
        hidden_size=1152,
        num_hidden_layers=26,
        intermediate_size=6912,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        sliding_window_pattern=6,
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-6,
        vocab_size=262144,
        max_position_embeddings=32768,
        **BFLOAT16,
    ),
    "gpu-lfm2": CONFIGS["lfm2"]
    | dict(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=65536,
        block_dim=2048,
        block_ff_dim=12288,
        block_multiple_of=256,
        block_auto_adjust_ff_dim=True,
        full_attn_idxs=[2, 5, 8, 10, 12, 14],
        **BFLOAT16,
    ),
    "gpu-mamba2": CONFIGS["mamba2"]
    | dict(
        hidden_size=1536,
        num_hidden_layers=48,
        intermediate_size=3072,
        vocab_size=50288,
        num_heads=48,
        state_size=128,
        **BFLOAT16,
    ),
}
QUANTIZED = {"qwen3", "qwen3_moe", "deepseek_v3", *(name for name in CONFIGS if name.startswith("gpu-"))}
QUANTIZED -= {"gpu-qwen3-bf16"}


def made(name: str) -> Path:
    """The folder of a model. A process of its own makes the model, because the peak memory of a child
    process includes that of its parent."""
    path = MODELS / name
    if not (path / "config.json").exists():
        subprocess.run([sys.executable, __file__, "--make", name], check=True)
    return path


def make_model(name: str) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    path, config = MODELS / name, CONFIGS[name]
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    if config.get("torch_dtype") == "bfloat16":
        model.set_dtype(mx.bfloat16)
    if name in QUANTIZED:
        nn.quantize(model, group_size=64, bits=4)
        config["quantization"] = dict(group_size=64, bits=4)
    path.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    make_tokenizer(path, config["vocab_size"])
    # The config is written last, so that a folder with a config is complete.
    (path / "config.json").write_text(json.dumps(config))


def make_tokenizer(path: Path, vocabulary: int) -> None:
    """A byte-level BPE tokenizer of the given size: pairs of bytes, then triples."""
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


# Measurements


def run_reference(path: str, prompt: int, tokens: int, times_of_all: int = 1) -> None:
    """A run of mlx-lm in a process of its own; of several, the rates are those of the last."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    gather_qmm = mx.gather_qmm
    # mlx-lm 0.32.2 always passes `global_scale`, which mlx 0.32.2 does not accept yet. It is None here.
    mx.gather_qmm = lambda *arguments, global_scale=None, **options: gather_qmm(*arguments, **options)
    started = time.perf_counter()
    model, _ = load(path)
    loaded = time.perf_counter()
    first_token = None
    for _ in range(times_of_all):
        times, said = [], []
        began = time.perf_counter() if first_token else loaded
        for token, _ in generate_step(mx.array(list(range(1, prompt + 1))), model, max_tokens=tokens):
            times.append(time.perf_counter())
            said.append(token)
        first_token = first_token or times[0] - started
    print(
        json.dumps(
            dict(
                prefill=prompt / (times[0] - began),
                decode=(len(times) - 1) / (times[-1] - times[0]) if tokens > 1 else 0.0,
                first_token=first_token,
                tokens=said,
            )
        )
    )


def run_process(*command, **variables: str) -> tuple[bytes, float, float]:
    """Runs a command. Returns its output, wall time in seconds and peak resident memory in MB."""
    command = [str(word) for word in command]
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


Pair = tuple[float, float]


def against_mlx_lm(name: str, prompt: int, tokens: int, field: str) -> Pair:
    path = made(name)
    ids = ",".join(str(id) for id in range(1, prompt + 1))
    options = ["--max-tokens", tokens, "--temperature", 0, "--ignore-eos", "--json"]
    # Models of random weights repeat themselves, which speculation would make faster than models are.
    options += ["--speculation", "off"]
    output, elapsed, memory = run_process(MYNAH, "generate", path, "--tokens", ids, *options)
    result = json.loads(output)
    ours = dict(
        decode=result["decode_tokens_per_second"],
        prefill=result["prefill_tokens_per_second"],
        first_token=elapsed,
        memory=memory,
    )
    output, _, memory = run_process(sys.executable, __file__, "--reference", path, prompt, tokens)
    theirs = json.loads(output.splitlines()[-1]) | dict(memory=memory)
    return ours[field], theirs[field]


def inside(*arguments) -> dict:
    return json.loads(run_process(INSIDE, *arguments)[0])


def second_turn(name: str) -> Pair:
    result = inside("second-turn", made(name), HISTORY)
    return result["session"], result["anew"]


def sampling() -> Pair:
    result = inside("sampling", made("qwen3"), 12)
    return result["all"], result["greedy"]


def speculation(name: str, text: str) -> Pair:
    result = inside("speculation", made(name), 300)[text]
    return result["auto"], result["off"]


def streaming(microseconds: float) -> Pair:
    return inside("streaming", made("qwen3"))["microseconds"], microseconds


def cache_size() -> Pair:
    result = inside("cache", made("half"), HISTORY)
    return result["four"] / 1e6, result["sixteen"] / 1e6


@cache
def hub() -> str:
    """The address of a hub with one repository."""
    command = [HUB, "org/model", f"model.safetensors={DOWNLOAD}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process.stdout.readline().strip()


def in_folder(*command, **variables: str) -> tuple[float, float]:
    """Runs a command that fills an empty folder, `{}` in its arguments. Returns its wall time in seconds and
    peak memory in MB."""
    with tempfile.TemporaryDirectory(dir=MODELS) as folder:
        # Writes of an earlier run must not slow this one down.
        os.sync()
        fill = lambda word: str(word).replace("{}", folder)
        variables = {name: fill(value) for name, value in variables.items()}
        return run_process(*map(fill, command), **variables)[1:]


def download() -> tuple[float, float]:
    variables = dict(HF_ENDPOINT=hub(), HF_HUB_CACHE="{}", HF_HUB_OFFLINE="0")
    return in_folder(MYNAH, "download", "org/model", **variables)


def against_curl() -> Pair:
    ours, _ = download()
    address = f"{hub()}/org/model/resolve/main/model.safetensors"
    theirs, _ = in_folder("curl", "--silent", "--location", "--output", "{}/file", address)
    return DOWNLOAD / 1e6 / ours, DOWNLOAD / 1e6 / theirs


def download_memory(megabytes: float) -> Pair:
    return download()[1], megabytes


@dataclass
class Row:
    name: str
    title: str
    against: str
    # Of the first over the second: at least this for a rate, at most this for a time or a size.
    asked: float
    run: Callable[[], Pair]
    is_rate: bool = False


def speculated(title: str, asked: float, *run) -> Row:
    title = f"{title}, tokens/s"
    return Row("speculation", title, "steps", asked, lambda: speculation(*run), is_rate=True)


def rate(name: str, title: str, asked: float, *run) -> Row:
    return Row(name, f"{title}, tokens/s", "mlx-lm", asked, lambda: against_mlx_lm(*run), is_rate=True)


def turn(name: str) -> Row:
    title = f"second turn after {HISTORY} tokens, {name}, s"
    return Row("second-turn", title, "anew", 0.05, lambda: second_turn(name))


def row(name: str, title: str, against: str, asked: float, run: Callable, *arguments) -> Row:
    return Row(name, title, against, asked, lambda: run(*arguments))


ROWS = [
    rate("host", "decode, host-bound", 1.4, "host", 8, 300, "decode"),
    rate("decode", "decode, Qwen3 0.6B, 4 bit", 1.0, "qwen3", 4, 10, "decode"),
    rate("prefill", "prefill, Qwen3 0.6B, 4 bit", 1.0, "qwen3", 32, 1, "prefill"),
    row("load", "load to first token, the same, s", "mlx-lm", 0.5, against_mlx_lm, "qwen3", 1, 1, "first_token"),
    row("memory", "peak resident memory, the same, MB", "mlx-lm", 1.0, against_mlx_lm, "qwen3", 32, 4, "memory"),
    rate("moe", "decode, qwen3_moe, 64 experts", 1.0, "qwen3_moe", 4, 40, "decode"),
    rate("moe", "prefill, the same", 1.0, "qwen3_moe", 128, 1, "prefill"),
    rate("mla", "decode, deepseek_v3, 64 experts", 1.0, "deepseek_v3", 4, 40, "decode"),
    rate("mla", "prefill, the same", 1.0, "deepseek_v3", 128, 1, "prefill"),
    *map(turn, ["llama", "gemma3_text", "lfm2", "mamba2"]),
    row("sampling", "a step with all sampling options, s", "greedy", 1.05, sampling),
    speculated("decode, host-bound, repeating", 1.5, "host", "repeating"),
    speculated("decode, host-bound, nothing repeats", 0.97, "host", "new"),
    speculated("decode, 0.6B, 4 bits, repeating", 1.5, "qwen3", "repeating"),
    speculated("decode, 0.6B, 4 bits, nothing repeats", 0.97, "qwen3", "new"),
    row("streaming", "id to text at the reader, µs a token", "allowed", 1.0, streaming, 20.0),
    row("cache", f"4-bit cache of {HISTORY} positions, MB", "bf16", 0.3, cache_size),
    Row("hub", "download of 2 GB, MB/s", "curl", 0.9, against_curl, is_rate=True),
    row("hub", "peak memory of it, MB", "allowed", 1.0, download_memory, 64.0),
]


# Decode rates that are asked for; prefill and load are the same for all.
GPU = {
    "gpu-host": 1.6,
    "gpu-qwen3-bf16": 1.6,
    "gpu-qwen3": 1.6,
    "gpu-llama-1b": 1.3,
    "gpu-llama-8b": 1.1,
    "gpu-qwen3-moe": 1.3,
    "gpu-gemma3": 1.3,
    "gpu-lfm2": 1.3,
    "gpu-mamba2": 1.3,
}


def report_gpu(name: str, runs: int) -> None:
    """Compares warm rates and loading on a GPU; 512 tokens of prompt."""
    path, sides = made(name), []
    for run in range(runs + 1):
        ours = inside("rates", path, 512, 256)
        output, _, _ = run_process(sys.executable, __file__, "--reference", path, 512, 256, 2)
        theirs = json.loads(output.splitlines()[-1])
        # The first run of both compiles kernels.
        if run:
            sides.append((ours, theirs))
    equal = os.path.commonprefix([ours["tokens"], theirs["tokens"]])
    print(f"{name}: {len(equal)} of 256 tokens are equal", flush=True)
    for field, asked in dict(decode=GPU[name], prefill=1.05, first_token=0.6).items():
        measured = lambda: [(ours[field], theirs[field]) for ours, theirs in sides]
        title = f"{name}, {field}{', s' if field == 'first_token' else ', tokens/s'}"
        pairs = iter(measured())
        row = Row(name, title, "mlx-lm", asked, lambda: next(pairs), is_rate=field != "first_token")
        report(row, runs)


def report(row: Row, runs: int) -> None:
    ours, other = (statistics.median(side) for side in zip(*(row.run() for _ in range(runs))))
    ratio = ours / other
    reached = ratio >= row.asked if row.is_rate else ratio <= row.asked
    asked = f"{'≥' if row.is_rate else '≤'} {row.asked}{'' if reached else '  missed'}"
    print(f"{row.title:46}{ours:10.4g}{other:10.4g}  {row.against:8}{ratio:8.3f}  {asked}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    names = [*dict.fromkeys(row.name for row in ROWS), "gpu", *GPU]
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(names))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--reference", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        return make_model(arguments.make)
    if arguments.reference:
        path, *numbers = arguments.reference
        return run_reference(path, *map(int, numbers))
    if unknown := set(arguments.names) - set(names):
        parser.error(f"{', '.join(unknown)}: not among {', '.join(names)}")
    MODELS.mkdir(parents=True, exist_ok=True)
    for name in GPU:
        if {"gpu", name} & set(arguments.names):
            report_gpu(name, arguments.runs)
    for row in ROWS:
        if not arguments.names or row.name in arguments.names:
            report(row, arguments.runs)


main()
