#!/usr/bin/env python3
"""Writes tests/fixtures/families/<model_type>.json: what mlx-lm computes for tiny models.

    python scripts/fixtures.py [model_type ...]

needs `pip install mlx==0.32.2 mlx-lm==0.32.2`. To cover another option, or another family, add a
Case to CASES. Weights are a formula of the tensor's name (see `formula`), so that a fixture holds
names, shapes and expected numbers only:

    config      the config.json
    tensors     name -> shape, or {"shape", "dtype": "U8"}; `*` is every layer
    dtype       BF16 or F16: every float tensor is cast to it before anything else
    quantized   module -> [bits, group size, mode]: its weight is stored as mx.quantize leaves it
    insensitive tensors that the graph does not read
    tokens      the prompt
    probes      the token ids whose log-probabilities follow
    every       rows are for positions 0, every, 2 * every, ... (default 1), the last one included
    logprobs    rows of one prefill of the whole prompt
    steps       rows of token-by-token decoding, where these differ from the prefill's
"""

import copy
import json
import math
import re
import sys
import tempfile
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.rope_utils import initialize_rope
from mlx_lm.utils import _decode_tagged_floats, _get_classes, load_model

FAMILIES = Path(__file__).parent.parent / "tests" / "fixtures" / "families"
ROUNDING = 2e-5
HALF_PRECISION = {"BF16": mx.bfloat16, "F16": mx.float16}


@dataclass
class Case:
    name: str
    config: dict
    # From the tensors of mlx-lm's module tree to those of the file, both name -> shape.
    layout: Callable[[dict], dict] = dict
    # What checkpoints carry although the graph does not read it.
    leftovers: dict = field(default_factory=dict)
    dtype: str | None = None
    # Module pattern -> (bits, group size, mode), or None for unquantized: where the file differs
    # from config["quantization"]. The last match counts.
    stored: dict = field(default_factory=dict)
    length: int = 34
    every: int = 3
    # The reference's numbers depend on how the prompt is cut into pieces.
    cut_dependent: bool = False
    # Gives the reference what the model's authors define and mlx-lm leaves out.
    amend: Callable[[nn.Module], None] = lambda model: None


def drop_global_scale(gather_qmm: Callable) -> Callable:
    """mlx-lm 0.32.2 always passes one, which mlx 0.32.2 does not take yet. It is None here."""

    def gather(*arguments, global_scale=None, **options):
        assert global_scale is None
        return gather_qmm(*arguments, **options)

    return gather


mx.gather_qmm = drop_global_scale(mx.gather_qmm)


# The formula


def random_bits(name: str, count: int) -> np.ndarray:
    """The first `count` outputs of splitmix64, seeded with the FNV-1a hash of `name`."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    state = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return state ^ state >> np.uint64(31)


def formula(name: str, shape: list[int], dtype: str = "F32") -> mx.array:
    bits = random_bits(name, math.prod(shape)).reshape(shape)
    if dtype == "U8":
        # Exponents of shared scales: 2^-7 to 2^0.
        values = (bits >> np.uint64(61)) + np.uint64(120) if name.endswith("_scales") else bits >> np.uint64(56)
        return mx.array(values.astype(np.uint8))
    uniform = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    if len(shape) >= 2:
        stacked = len(shape) == 3 and "conv" not in name
        inputs = shape[-1] if stacked else math.prod(shape[1:])
        return mx.array(uniform * np.float32(math.sqrt(3 / inputs)))
    offset = uniform * np.float32(0.25)
    around_one = "norm" in name or name.split(".")[-1] in ("D", "layer_scalar", "scale", "per_expert_scale")
    return mx.array(np.float32(1) + offset if around_one else offset)


# The checkpoint


def plan(case: Case) -> tuple[dict, dict]:
    """The tensors before quantization, name -> shape or {"shape", "dtype"}, and the quantized modules."""
    config = _decode_tagged_floats(copy.deepcopy(case.config))
    model_class, arguments = _get_classes(config)
    model = model_class(arguments.from_dict(config))
    tensors = case.layout({name: list(value.shape) for name, value in tree_flatten(model.parameters())})
    tensors |= case.leftovers

    default = config.get("quantization")
    quantized = {}
    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if default is None or not hasattr(module, "to_quantized") or f"{path}.weight" not in tensors:
            continue
        entry = default.get(path, True)
        if entry is True:
            entry = default
        setting = entry and (entry.get("bits", 4), entry.get("group_size", 64), entry.get("mode", "affine"))
        for pattern, stored in case.stored.items():
            if fnmatch(path, pattern):
                setting = stored
        if setting:
            quantized[path] = list(setting)
    return tensors, quantized


def checkpoint(case: Case, tensors: dict, quantized: dict) -> dict[str, mx.array]:
    arrays = {}
    for name, entry in tensors.items():
        array = formula(name, **entry) if isinstance(entry, dict) else formula(name, entry)
        if case.dtype and mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(HALF_PRECISION[case.dtype])
        path = name.removesuffix(".weight")
        if path != name and path in quantized:
            bits, group_size, mode = quantized[path]
            parts = mx.quantize(array, group_size=group_size, bits=bits, mode=mode)
            arrays |= zip((name, f"{path}.scales", f"{path}.biases"), parts)
        else:
            arrays[name] = array
    return arrays


def load(config: dict, arrays: dict[str, mx.array]) -> nn.Module:
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        (directory / "config.json").write_text(json.dumps(config))
        mx.save_safetensors(str(directory / "model.safetensors"), arrays)
        return load_model(directory)[0]


# The numbers


def log_probabilities(model: nn.Module, tokens: list[int], cuts: list[int]) -> np.ndarray:
    """Of every token after every position, where the prompt is run in pieces that end at `cuts`."""
    cache = make_prompt_cache(model)
    rows = []
    for start, end in zip([0, *cuts], [*cuts, len(tokens)]):
        logits = model(mx.array(tokens[start:end])[None], cache=cache)[0].astype(mx.float32)
        rows.append(np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
    return np.concatenate(rows)


def with_stars(entries: dict, layers: int) -> dict:
    """Writes entries that all layers have alike once, with `*` for the layer."""
    groups = {}
    for name, entry in entries.items():
        groups.setdefault(re.sub(r"\blayers\.\d+\.", "layers.*.", name, count=1), []).append((name, entry))
    result = {}
    for star, members in groups.items():
        alike = all(entry == members[0][1] for _, entry in members)
        if "*" in star and alike and len(members) == layers:
            result[star] = members[0][1]
        else:
            result |= members
    return result


def fixture(case: Case) -> dict:
    tensors, quantized = plan(case)
    arrays = checkpoint(case, tensors, quantized)
    text_config = case.config.get("text_config", case.config)
    vocabulary = case.config["vocab_size"]
    tokens = [int(bits % np.uint64(vocabulary)) for bits in random_bits("tokens", case.length)]
    draws = [int(bits % np.uint64(vocabulary)) for bits in random_bits("probes", 32)]
    probes = list(dict.fromkeys([0, vocabulary - 1, *draws]))[:6]
    assert (case.length - 1) % case.every == 0, "the last position is to have a row"

    def rows(model, cuts=()):
        table = log_probabilities(model, tokens, list(cuts))[:: case.every, probes]
        assert np.isfinite(table).all()
        return table

    def load_amended(arrays):
        model = load(case.config, arrays)
        case.amend(model)
        return model

    model = load_amended(arrays)
    prefill = rows(model)
    steps = rows(model, range(1, case.length))
    pieces = rows(model, [5, 6, 19])
    differ = [np.abs(other - prefill).max() for other in (steps, pieces)]
    if not case.cut_dependent:
        assert max(differ) < ROUNDING, f"{case.name}: in pieces, the numbers differ by {differ}"

    for name, array in arrays.items():
        zeroed = rows(load_amended(arrays | {name: mx.zeros_like(array)}))
        moved = np.abs(zeroed - prefill).max()
        if (moved < 1e-2) != (name in case.leftovers):
            print(f"  {case.name}: without {name} the numbers move by {moved:.1e}", file=sys.stderr)

    layers = text_config["num_hidden_layers"]
    written = {"name": case.name, "config": case.config, "tensors": with_stars(tensors, layers)}
    if case.dtype:
        written["dtype"] = case.dtype
    if quantized:
        written["quantized"] = with_stars(quantized, layers)
    if case.leftovers:
        written["insensitive"] = list(case.leftovers)
    written |= {"tokens": tokens, "probes": probes}
    if case.every > 1:
        written["every"] = case.every
    written["logprobs"] = prefill.astype(np.float64).round(6).tolist()
    if differ[0] > ROUNDING:
        written["steps"] = steps.astype(np.float64).round(6).tolist()
    return written


# The cases


def affine(bits: int, group_size: int, **overrides) -> dict:
    return dict(quantization=dict(group_size=group_size, bits=bits, **overrides))


def scaled(rope_type: str, **options) -> dict:
    return dict(rope_scaling=dict(rope_type=rope_type, **options))


# eps is large throughout: at 1e-5 a wrong one would hide below the tolerance.
LLAMA = dict(
    model_type="llama",
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-3,
    vocab_size=96,
    max_position_embeddings=256,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)
WIDE_LLAMA = LLAMA | dict(hidden_size=128, intermediate_size=128, vocab_size=97)


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


def llama_cases() -> list[Case]:
    yarn = dict(factor=4.0, original_max_position_embeddings=1024)
    eight_bits = dict(group_size=64, bits=8)
    return [
        Case("default", LLAMA | dict(architectures=["LlamaForCausalLM"], hidden_act="silu"), every=1),
        Case("tied", LLAMA | dict(tie_word_embeddings=True)),
        Case(
            "tied by default, with leftovers",
            without(LLAMA, "tie_word_embeddings"),
            leftovers={"lm_head.weight": [96, 64], "model.layers.0.self_attn.rotary_emb.inv_freq": [8]},
        ),
        Case("many heads", without(LLAMA, "num_key_value_heads", "rope_theta")),
        Case("one key head", LLAMA | dict(num_key_value_heads=1)),
        Case("head_dim", LLAMA | dict(head_dim=32)),
        Case("biases", LLAMA | dict(attention_bias=True, mlp_bias=True)),
        Case("rope traditional", LLAMA | dict(rope_traditional=True)),
        Case("rope theta", LLAMA | dict(rope_theta=500)),
        Case("rope none", LLAMA | dict(rope_scaling=None, head_dim=None)),
        Case(
            "rope llama3",
            LLAMA
            | dict(rope_theta=500000.0)
            | scaled(
                "llama3", factor=8.0, low_freq_factor=1.5, high_freq_factor=3.0, original_max_position_embeddings=64
            ),
        ),
        Case("rope llama3 defaults", LLAMA | dict(head_dim=32) | scaled("llama3", factor=32.0)),
        Case("rope linear", LLAMA | dict(rope_scaling=dict(type="linear", factor=4.0))),
        Case(
            "rope dynamic", LLAMA | dict(max_position_embeddings=16) | scaled("dynamic", factor=2.0), cut_dependent=True
        ),
        Case("rope dynamic within range", LLAMA | dict(rope_scaling=dict(type="dynamic", factor=2.0))),
        Case("rope yarn", LLAMA | dict(head_dim=32) | scaled("yarn", **yarn)),
        Case("rope yarn type", LLAMA | dict(rope_traditional=True, rope_scaling=dict(type="yarn", factor=4.0))),
        # mlx-lm does not read attention_factor.
        Case(
            "rope yarn mscale",
            LLAMA
            | dict(head_dim=32)
            | scaled(
                "yarn", **yarn, beta_fast=16.0, beta_slow=2.0, mscale=0.707, mscale_all_dim=1.5, attention_factor=7.0
            ),
        ),
        Case(
            "rope longrope",
            LLAMA
            | scaled(
                "longrope",
                short_factor=[1.0] * 8,
                long_factor=[1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0],
                original_max_position_embeddings=32,
            ),
        ),
        Case(
            "sliding",
            LLAMA
            | dict(
                num_hidden_layers=3,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                sliding_window=8,
            ),
            every=1,
        ),
        # A window without layer_types does not slide.
        Case("mistral", LLAMA | dict(model_type="mistral", sliding_window=8, head_dim=16)),
        Case("bf16", LLAMA, dtype="BF16"),
        Case("f16", LLAMA, dtype="F16"),
        Case("4 bit", LLAMA | affine(4, 32)),
        Case("8 bit", LLAMA | dict(intermediate_size=128, attention_bias=True, mlp_bias=True) | affine(8, 64)),
        Case("2 bit", WIDE_LLAMA | affine(2, 128)),
        Case("3 bit", WIDE_LLAMA | affine(3, 128)),
        Case("5 bit", WIDE_LLAMA | affine(5, 64)),
        Case("6 bit", WIDE_LLAMA | affine(6, 64)),
        Case("4 bit tied", WIDE_LLAMA | dict(tie_word_embeddings=True) | affine(4, 64, mode="affine")),
        Case(
            "4 bit bf16",
            WIDE_LLAMA | affine(4, 64) | dict(quantization_config=dict(group_size=64, bits=4)),
            dtype="BF16",
        ),
        Case(
            "mixed bits",
            WIDE_LLAMA
            | affine(
                4,
                32,
                **{
                    "model.embed_tokens": eight_bits,
                    "model.layers.0.self_attn.v_proj": dict(group_size=128, bits=6, mode="affine"),
                    "model.layers.0.mlp.gate_proj": dict(group_size=32, bits=4, mode="mxfp4"),
                    "model.layers.0.mlp.up_proj": True,
                    "model.layers.1.mlp.down_proj": False,
                },
            ),
            # Paths that the map does not name: their shapes and dtypes tell.
            stored={
                "lm_head": (8, 128, "affine"),
                "model.layers.1.self_attn.q_proj": (4, 16, "nvfp4"),
                "model.layers.1.self_attn.k_proj": (8, 32, "mxfp8"),
                "model.layers.1.self_attn.v_proj": (3, 64, "affine"),
                "model.layers.1.self_attn.o_proj": None,
            },
        ),
        Case("mxfp4", LLAMA | affine(4, 32, mode="mxfp4")),
        # An entry without a mode is affine, whatever the mode of the others.
        Case("mxfp8", WIDE_LLAMA | affine(8, 32, mode="mxfp8", **dict(lm_head=eight_bits))),
        Case("nvfp4", LLAMA | dict(tie_word_embeddings=True) | affine(4, 16, mode="nvfp4"), dtype="BF16"),
    ]


QWEN3 = LLAMA | dict(model_type="qwen3", head_dim=32, rope_theta=1000000, tie_word_embeddings=True)


def qwen3_cases() -> list[Case]:
    yarn = dict(factor=4.0, original_max_position_embeddings=512)
    parameters = without(QWEN3, "rope_theta")
    sliding = dict(use_sliding_window=False, sliding_window=None, max_window_layers=2, attention_bias=False)
    return [
        Case("default", QWEN3 | sliding | dict(rope_scaling=None), leftovers={"lm_head.weight": [96, 64]}, every=1),
        Case("untied", QWEN3 | dict(tie_word_embeddings=False)),
        Case("rope yarn", QWEN3 | scaled("yarn", **yarn)),
        Case("rope parameters", parameters | dict(rope_parameters=dict(rope_theta=5000.0, rope_type="default"))),
        Case(
            "rope parameters yarn", parameters | dict(rope_parameters=dict(rope_theta=5000.0, rope_type="yarn", **yarn))
        ),
        # What stands outside rope_parameters goes first.
        Case("rope both", QWEN3 | dict(rope_parameters=dict(rope_theta=5000.0, rope_type="linear", factor=4.0))),
        Case("bf16", QWEN3, dtype="BF16"),
        Case("4 bit", QWEN3 | dict(tie_word_embeddings=False) | affine(4, 32)),
        Case("4 bit tied bf16", QWEN3 | dict(hidden_size=128, intermediate_size=192) | affine(4, 64), dtype="BF16"),
    ]


def drop_head(tensors: dict) -> dict:
    return without(tensors, "lm_head.weight")


# The square root of 96, by which gemma scales its embeddings, is not a bfloat16.
GEMMA3 = without(LLAMA, "tie_word_embeddings") | dict(
    model_type="gemma3_text",
    hidden_size=96,
    intermediate_size=64,
    num_hidden_layers=3,
    head_dim=16,
    rope_theta=1000000.0,
    rope_local_base_freq=10000.0,
    query_pre_attn_scalar=16,
    sliding_window=8,
    sliding_window_pattern=3,
)


def gemma3_cases() -> list[Case]:
    # The spelling that checkpoints have. mlx-lm reads neither, its default is the same pattern.
    kinds = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    types = {"_sliding_window_pattern": 6, "layer_types": kinds}
    needed = ("model_type", "hidden_size", "intermediate_size", "head_dim", "vocab_size")
    return [
        Case("default", GEMMA3, layout=drop_head, every=1),
        Case("untied", GEMMA3 | dict(sliding_window_pattern=2, tie_word_embeddings=True)),
        Case(
            "pattern of 6",
            without(GEMMA3, "sliding_window_pattern") | types | dict(num_hidden_layers=7),
            layout=drop_head,
        ),
        Case("no sliding", GEMMA3 | dict(sliding_window_pattern=1, num_hidden_layers=2), layout=drop_head),
        Case(
            "rope linear",
            GEMMA3 | dict(rope_theta=10000.0, rope_local_base_freq=100.0) | scaled("linear", factor=8.0),
            layout=drop_head,
        ),
        Case("attention scale", GEMMA3 | dict(head_dim=32, query_pre_attn_scalar=24), layout=drop_head),
        Case("defaults", {key: GEMMA3[key] for key in needed} | dict(num_hidden_layers=6), layout=drop_head),
        Case("f16", GEMMA3, layout=drop_head, dtype="F16"),
        Case("bf16", GEMMA3, layout=drop_head, dtype="BF16"),
        Case("4 bit", GEMMA3 | affine(4, 32), layout=drop_head),
        Case("4 bit untied bf16", GEMMA3 | dict(hidden_size=128) | affine(4, 64), dtype="BF16"),
    ]


GEMMA4 = without(
    GEMMA3, "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "sliding_window_pattern"
) | dict(
    model_type="gemma4_text",
    num_hidden_layers=4,
    global_head_dim=32,
    num_kv_shared_layers=0,
    hidden_size_per_layer_input=0,
    vocab_size_per_layer_input=96,
    layer_types=["sliding_attention", "full_attention"] * 2,
    attention_k_eq_v=False,
    use_double_wide_mlp=False,
    tie_word_embeddings=True,
    final_logit_softcapping=2.0,
    rope_parameters=dict(
        full_attention=dict(partial_rotary_factor=0.25, rope_theta=1000000.0, rope_type="proportional"),
        sliding_attention=dict(rope_theta=10000.0, rope_type="default"),
    ),
)
GEMMA4_SMALL = GEMMA4 | dict(num_kv_shared_layers=2, use_double_wide_mlp=True, hidden_size_per_layer_input=8)
GEMMA4_LARGE = GEMMA4 | dict(attention_k_eq_v=True, num_global_key_value_heads=1)


def gemma4_wrapper(text_config: dict, **options) -> dict:
    # mlx-lm overwrites the vocab_size of text_config with this one.
    outer = dict(model_type="gemma4", vocab_size=text_config["vocab_size"], vision_config={})
    return outer | dict(text_config=text_config) | options


def gemma4_shared_keys(prefix: str) -> dict:
    """Keys and values of the layers that use those of layers 0 and 1."""
    leftovers = {}
    for layer, head_dim in ((2, 16), (3, 32)):
        attention = f"{prefix}layers.{layer}.self_attn"
        leftovers[f"{attention}.k_proj.weight"] = leftovers[f"{attention}.v_proj.weight"] = [2 * head_dim, 96]
        leftovers[f"{attention}.k_norm.weight"] = [head_dim]
    return leftovers


def gemma4_towers(prefix: str) -> dict:
    return {
        f"{prefix}vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": [8, 8],
        f"{prefix}vision_tower.encoder.layers.0.self_attn.q_proj.input_max": [],
        f"{prefix}audio_tower.output_proj.weight": [8, 8],
        f"{prefix}embed_audio.embedding_projection.weight": [96, 8],
        f"{prefix}embed_vision.embedding_projection.weight": [96, 8],
    }


def gemma4_original(tensors: dict) -> dict:
    return {name.replace("language_model.model.", "model.language_model."): shape for name, shape in tensors.items()}


def gemma4_cases() -> list[Case]:
    full = GEMMA4["rope_parameters"]["full_attention"]
    needed = ("model_type", "hidden_size", "intermediate_size", "head_dim", "vocab_size", "vocab_size_per_layer_input")
    return [
        Case("default", GEMMA4, every=1),
        Case("small", GEMMA4_SMALL, leftovers=gemma4_shared_keys("model."), every=1),
        Case("large", GEMMA4_LARGE, every=1),
        Case(
            "large with as many keys",
            without(GEMMA4_LARGE, "num_global_key_value_heads", "global_head_dim") | dict(global_head_dim=None),
        ),
        Case("keys of global layers without key equal value", GEMMA4 | dict(num_global_key_value_heads=1)),
        Case("per layer inputs alone", GEMMA4 | dict(hidden_size_per_layer_input=8)),
        Case("shared keys alone", GEMMA4 | dict(num_kv_shared_layers=2)),
        Case("double wide without shared keys", GEMMA4 | dict(use_double_wide_mlp=True, final_logit_softcapping=None)),
        Case("untied", GEMMA4 | dict(tie_word_embeddings=False)),
        Case(
            "pattern",
            without(GEMMA4, "layer_types")
            | dict(
                sliding_window_pattern=3,
                rope_parameters=dict(full_attention=full, sliding_attention=dict(rope_theta=100.0)),
            ),
        ),
        Case(
            "rope",
            GEMMA4
            | dict(
                rope_parameters=dict(
                    full_attention=full | dict(partial_rotary_factor=0.5, rope_theta=100.0, factor=8.0)
                ),
                rope_traditional=True,
            ),
        ),
        Case(
            "defaults",
            {key: GEMMA4[key] for key in needed}
            | dict(num_hidden_layers=6, num_kv_shared_layers=1, hidden_size_per_layer_input=8),
        ),
        Case("bf16", GEMMA4_SMALL, dtype="BF16"),
        Case("4 bit", GEMMA4_SMALL | dict(hidden_size_per_layer_input=32) | affine(4, 32)),
        Case("4 bit bf16", GEMMA4_LARGE | dict(hidden_size=128) | affine(4, 64), dtype="BF16"),
        Case(
            "wrapper",
            gemma4_wrapper(GEMMA4_SMALL),
            layout=gemma4_original,
            leftovers=gemma4_shared_keys("model.language_model.") | gemma4_towers("model."),
        ),
        Case(
            "wrapper of mlx",
            gemma4_wrapper(GEMMA4_SMALL),
            leftovers=gemma4_shared_keys("language_model.model.") | gemma4_towers(""),
        ),
        Case(
            "wrapper of mlx 4 bit",
            gemma4_wrapper(
                GEMMA4_LARGE | dict(intermediate_size=128, hidden_size=128),
                **affine(4, 64, **{"language_model.model.layers.1.mlp.down_proj": dict(group_size=64, bits=8)}),
            ),
            leftovers=gemma4_towers(""),
            dtype="BF16",
        ),
        Case(
            "unified wrapper",
            gemma4_wrapper(GEMMA4_LARGE, model_type="gemma4_unified"),
            layout=gemma4_original,
            leftovers={"model.vision_embedder.patch_embedding.weight": [8, 8]},
        ),
    ]


QWEN3_MOE = QWEN3 | dict(
    model_type="qwen3_moe",
    num_experts=6,
    num_experts_per_tok=2,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    moe_intermediate_size=32,
    norm_topk_prob=True,
    tie_word_embeddings=False,
)


def separate_experts(tensors: dict) -> dict:
    result = {}
    for name, shape in tensors.items():
        if "switch_mlp" in name:
            for expert in range(shape[0]):
                result[name.replace("switch_mlp", f"experts.{expert}")] = shape[1:]
        else:
            result[name] = shape
    return result


def scale_positions(model: nn.Module) -> None:
    """mlx-lm ignores `rope_scaling` here; the authors' code scales as that of Qwen 3 does."""
    args = model.args
    for layer in model.layers:
        layer.self_attn.rope = initialize_rope(
            args.head_dim, args.rope_theta, False, args.rope_scaling, args.max_position_embeddings
        )


def qwen3_moe_cases() -> list[Case]:
    # From 64 tokens times experts on, mlx-lm sorts what it sends to the experts.
    unsorted, long = dict(length=25), dict(length=76, every=15)
    gates = {f"model.layers.{layer}.mlp.gate": dict(group_size=64, bits=8) for layer in (0, 1)}
    return [
        Case("default", QWEN3_MOE, every=1),
        Case("unsorted", QWEN3_MOE, **unsorted),
        Case("long", QWEN3_MOE, **long),
        Case("original", QWEN3_MOE | dict(num_experts=4), layout=separate_experts),
        Case("tied", QWEN3_MOE | dict(tie_word_embeddings=True), leftovers={"lm_head.weight": [96, 64]}),
        Case("probabilities as they are", QWEN3_MOE | dict(norm_topk_prob=False)),
        Case("one expert", QWEN3_MOE | dict(num_experts=4, num_experts_per_tok=1, norm_topk_prob=False)),
        Case("three experts", QWEN3_MOE | dict(num_experts_per_tok=3)),
        Case("dense layers", QWEN3_MOE | dict(num_hidden_layers=3, mlp_only_layers=[1])),
        Case(
            "sparse step",
            QWEN3_MOE | dict(num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3]),
            layout=separate_experts,
        ),
        Case(
            "rope scaling",
            QWEN3_MOE | scaled("yarn", factor=4.0, original_max_position_embeddings=512),
            amend=scale_positions,
        ),
        Case("4 bit", QWEN3_MOE | affine(4, 32, **gates), **long),
        Case(
            "4 bit bf16",
            QWEN3_MOE | dict(moe_intermediate_size=64, intermediate_size=64) | affine(4, 64, **gates),
            dtype="BF16",
        ),
    ]


# mlx-lm does not read "truncate".
GPT_OSS_ROPE = dict(
    rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=4096, truncate=False
)
GPT_OSS = without(LLAMA, "max_position_embeddings", "tie_word_embeddings") | dict(
    model_type="gpt_oss",
    head_dim=16,
    intermediate_size=64,
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=8,
    rope_theta=150000,
    rope_scaling=GPT_OSS_ROPE,
    layer_types=["sliding_attention", "full_attention"],
)


def gpt_oss_original(tensors: dict) -> dict:
    result = {}
    for name, shape in tensors.items():
        experts, is_expert, tensor = name.partition(".experts.")
        if not is_expert:
            result[name] = shape
        elif not tensor.startswith("up_proj"):
            projection, kind = tensor.split(".")
            rows = shape[1]
            if projection == "gate_proj":
                projection, rows = "gate_up_proj", 2 * rows
            base = f"{experts}.experts.{projection}"
            if kind == "bias":
                result[f"{base}_bias"] = [shape[0], rows]
            else:
                blocks = [shape[0], rows, shape[2] // 32]
                result[f"{base}_blocks"] = dict(shape=[*blocks, 16], dtype="U8")
                result[f"{base}_scales"] = dict(shape=blocks, dtype="U8")
    return result


def gpt_oss_cases() -> list[Case]:
    only_experts = {"*": None, "*.experts.*": (4, 32, "mxfp4")}
    dense = [
        f"model.layers.{layer}.{module}"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.router")
    ]
    eight_bits = {path: dict(group_size=64, bits=8) for path in ["model.embed_tokens", "lm_head", *dense]}
    # Small, because the formula's U8 experts are so loud that the rest hardly counts.
    original = GPT_OSS | dict(
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=8,
        num_local_experts=6,
        quantization_config=dict(
            quant_method="mxfp4",
            modules_to_not_convert=[
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        ),
    )
    return [
        Case("default", GPT_OSS, every=1),
        Case("default layer types", without(GPT_OSS, "layer_types") | dict(num_hidden_layers=4, rope_scaling=None)),
        Case("full attention first", GPT_OSS | dict(layer_types=["full_attention", "sliding_attention"])),
        Case(
            "rope",
            GPT_OSS
            | dict(rope_theta=5000.0)
            | dict(rope_scaling=GPT_OSS_ROPE | dict(beta_fast=16, beta_slow=2, original_max_position_embeddings=512)),
        ),
        Case("long", GPT_OSS, length=76, every=15),
        Case("unsorted", GPT_OSS, length=25),
        Case("4 bit", GPT_OSS | affine(4, 32)),
        Case("mxfp4 experts", GPT_OSS | affine(4, 32, mode="mxfp4"), stored=only_experts),
        Case("mxfp4 experts, 8 bit rest", GPT_OSS | affine(4, 32, mode="mxfp4", **eight_bits), dtype="BF16"),
        Case("original", original, layout=gpt_oss_original, every=1),
        Case("original bf16", original, layout=gpt_oss_original, dtype="BF16"),
    ]


MAMBA2 = dict(
    model_type="mamba2",
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=128,
    num_heads=8,
    head_dim=16,
    state_size=16,
    n_groups=1,
    conv_kernel=4,
    use_bias=False,
    use_conv_bias=True,
    layer_norm_epsilon=1e-2,
    time_step_limit=[0.0, {"__float__": "Infinity"}],
    time_step_rank=4,
    tie_word_embeddings=True,
    vocab_size=96,
)


def original_convolutions(tensors: dict) -> dict:
    return {
        name: [shape[0], 1, shape[1]] if "conv" in name and len(shape) == 3 else shape
        for name, shape in tensors.items()
    }


def mamba2_cases() -> list[Case]:
    return [
        Case("default", MAMBA2, layout=original_convolutions, every=1),
        Case("mlx", MAMBA2 | dict(n_groups=2, tie_word_embeddings=False)),
        Case("biases", MAMBA2 | dict(use_bias=True, use_conv_bias=False, time_step_rank="auto")),
        Case("time step limit", MAMBA2 | dict(time_step_limit=[0.5, 0.9])),
        Case("state", MAMBA2 | dict(ssm_state_size=24, state_size=8, conv_kernel=3), layout=original_convolutions),
        # The intermediate size is the heads' dimensions, whatever the config says.
        Case("intermediate size", MAMBA2 | dict(intermediate_size=77, num_heads=4)),
        Case("two chunks", MAMBA2 | dict(n_groups=4), length=289, every=16),
        Case("bf16", MAMBA2, layout=original_convolutions, dtype="BF16", cut_dependent=True),
        Case("4 bit", MAMBA2 | dict(use_bias=True) | affine(4, 32)),
        Case(
            "4 bit bf16",
            MAMBA2 | dict(n_groups=2, tie_word_embeddings=False) | affine(4, 64),
            dtype="BF16",
            cut_dependent=True,
        ),
    ]


LFM2 = dict(
    model_type="lfm2",
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    norm_eps=1e-3,
    vocab_size=96,
    conv_bias=False,
    conv_L_cache=3,
    block_dim=64,
    block_ff_dim=144,
    block_multiple_of=32,
    block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=True,
    rope_theta=1000000.0,
    full_attn_idxs=[1, 3],
)


def lfm2_cases() -> list[Case]:
    types = dict(layer_types=["conv", "conv", "full_attention", "conv"])
    parameters = dict(rope_parameters=dict(rope_theta=500.0, rope_type="default"))
    return [
        Case("default", LFM2, layout=original_convolutions, every=1),
        Case("layer types", without(LFM2, "full_attn_idxs") | types | parameters),
        Case("attention first", LFM2 | dict(full_attn_idxs=[0, 1]), layout=original_convolutions),
        Case("biases", LFM2 | dict(conv_bias=True, conv_L_cache=4), layout=original_convolutions),
        Case("feed forward as it is", LFM2 | dict(block_auto_adjust_ff_dim=False)),
        Case("feed forward multiplier", LFM2 | dict(block_ffn_dim_multiplier=1.3, block_multiple_of=16)),
        Case("feed forward without multiplier", LFM2 | dict(block_ffn_dim_multiplier=None, block_multiple_of=7)),
        Case("intermediate size", without(LFM2, "block_ff_dim") | dict(intermediate_size=72, rope_theta=500.0)),
        Case("both sizes", LFM2 | dict(intermediate_size=72, block_auto_adjust_ff_dim=False)),
        Case("bf16", LFM2, layout=original_convolutions, dtype="BF16"),
        Case("4 bit", LFM2 | affine(4, 32)),
        Case("4 bit bf16", LFM2 | dict(block_multiple_of=64) | affine(4, 64), dtype="BF16"),
    ]


CASES = dict(
    llama=llama_cases,
    qwen3=qwen3_cases,
    gemma3_text=gemma3_cases,
    gemma4_text=gemma4_cases,
    qwen3_moe=qwen3_moe_cases,
    gpt_oss=gpt_oss_cases,
    mamba2=mamba2_cases,
    lfm2=lfm2_cases,
)


def main() -> None:
    mx.set_default_device(mx.cpu)
    FAMILIES.mkdir(parents=True, exist_ok=True)
    for family in sys.argv[1:] or CASES:
        lines = []
        for case in CASES[family]():
            lines.append(json.dumps(fixture(case), separators=(",", ":")))
        path = FAMILIES / f"{family}.json"
        reference = json.dumps(f"mlx-lm {version('mlx-lm')}")
        path.write_text(f'{{"reference": {reference}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")
        print(f"{path.name}: {len(lines)} cases, {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
