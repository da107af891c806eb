"""Writes tests/fixtures/transformers/<model_type>.json: what transformers computes for each of its model types that
we support, from a checkpoint that it saved itself.

    python scripts/fixtures_transformers.py [model_type …]

needs `pip install transformers==5.24.0 torch` and what scripts/fixtures needs. Each fixture has two cases: the default
config of the type with smaller sizes, and one in which every boolean is turned, every optional field is set, and every
factor, epsilon and activation is another one, as far as the model still runs. Weights are the formula of scripts/fixtures.
"""

import copy
import json
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WITH_IMAGES,
)

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts" / "fixtures"))
from reference import formula, random_bits, with_stars  # noqa: E402

FAMILIES = ROOT / "core" / "src" / "families" / "text"
FIXTURES = ROOT / "tests" / "fixtures" / "transformers"
LENGTH, EVERY, VOCABULARY = 34, 3, 128
# The original context of the case of LongRoPE.
ORIGINAL = 16

# What a size becomes where the default is larger.
SIZES = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "moe_hidden_size": 48, "intermediate_size": 96, "ffn_hidden_size": 96,
    "dense_intermediate_size": 96, "intermediate_size_mlp": 80, "expert_ffn_hidden_size": 32, "moe_intermediate_size": 32,
    "shared_intermediate_size": 48, "shared_expert_intermediate_size": 48, "share_expert_dim": 48, "ffn_dim": 96,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 2, "depth": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 8, "num_sliding_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "rotary_dim": 8,
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8, "zero_expert_num": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 3, "first_k_dense_replace": 1,
    "n_group": 2, "topk_group": 1,
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "qk_head_dim": 32,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "index_topk_blocks": 2, "index_block_size": 4,
    "sliding_window": 8, "attention_chunk_size": 12, "block_size": 8, "chunk_size": 8, "laurel_rank": 16, "state_size": 16,
    "n_groups": 2, "floor_scale": 8, "query_pre_attn_scalar": 12, "dim_model_base": 24, "block_multiple_of": 16,
    "image_size": 32, "patch_size": 8, "max_window_layers": 2, "num_kv_shared_layers": 2, "moe_layer_end_index": 3,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 16, "linear_num_heads": 4, "lru_width": 64, "attention_window_size": 8, "ssm_state_size": 16,
    "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_d_state": 16, "mamba_dt_rank": 4,
    "moe_shared_expert_intermediate_size": 48, "attn_layer_period": 2, "attn_layer_offset": 1,
    "mm_tokens_per_image": 4, "pos_emb_height": 4, "pos_emb_width": 4, "init_pos_emb_height": 4, "init_pos_emb_width": 4,
}  # fmt: skip
# Fields of a type that fit no rule, or without which its default config does not run.
OWN_FIELDS = {
    "bailing_hybrid": {"layer_group_size": 2, "head_dim": 16, "n_group": 2, "topk_group": 1, "num_local_experts": 8},
    "deepseek_v2": {"num_experts_per_tok": 2},
    # With few heads, the ReLU makes many scores of keys the same 0, of which each library selects its own.
    "deepseek_v32": {"index_n_heads": 16},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3": {"text_config": {"num_hidden_layers": 6}},
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 4},
    "gemma4": {"text_config": {"num_hidden_layers": 12, "per_layer_config": {"5": {"head_dim": 32}, "11": {"head_dim": 32}}}},
    "gemma4_text": {"num_hidden_layers": 12, "per_layer_config": {"5": {"head_dim": 32}, "11": {"head_dim": 32}}},
    "glm_moe_dsa": {"index_n_heads": 16},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mimo_v2_flash": {
        "num_hidden_layers": 6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        },
    },
    "minimax": {
        "full_attn_alpha_factor": 1.3, "full_attn_beta_factor": 0.9, "linear_attn_alpha_factor": 1.2,
        "linear_attn_beta_factor": 0.8, "mlp_alpha_factor": 1.1, "mlp_beta_factor": 0.7,
    },
    # It reads the share alone; published configs have both.
    "minimax_m3_vl": {
        "text_config": {
            "layer_types": ["full_attention"] * 2 + ["minimax_m3_sparse"] * 2,
            "rope_parameters": {"rope_theta": 5e6, "rope_type": "default", "partial_rotary_factor": 0.5},
        }
    },
    "mistral4": {"head_dim": 32, "rope_parameters": None},
    "llama4": {"vision_config": {"intermediate_size": 256}},
    "qwen3_5": {"vision_config": {"out_hidden_size": 64}},
    "muse_spark": {"audio_config": {"out_hidden_size": 64, "hidden_sizes": [16, 16, 16, 16]}, "vision_config": {"out_hidden_size": 64}},
    "nemotron": {"num_key_value_heads": 2},
}  # fmt: skip
OWN_FIELDS["gemma4_unified"], OWN_FIELDS["gemma4_unified_text"] = OWN_FIELDS["gemma4"], OWN_FIELDS["gemma4_text"]
# Types that transformers itself cannot run, or that the models here do not agree with yet.
SKIPPED = {
    "dbrx": "its model reads a field that its config class does not have",
    "gemma3n": "its picture tower needs another package",
    "olmo_hybrid": "its keys have another width",
    "qwen3_5_moe": "rounding moves one number by 1.02e-4; qwen3_5_moe_text is the same decoder",
    "muse_glimmer_text": "there is no class for the text alone",
    "step3p5": "there is no class for the text alone",
}
CONSTANT = re.compile(r"\.(slope_rate|(query|key|diagonal)_decay)$")
# What an optional field becomes that is null by default.
OPTIONAL = {
    "sliding_window": 8, "head_dim": 24, "n_inner": 80, "num_key_value_heads": 2, "clip_qkv": 0.5,
    "attn_logit_softcapping": 3.0, "final_logit_softcapping": 3.0, "n_group": 2, "topk_group": 1,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "num_experts": 8, "top_k_experts": 2,
    "moe_intermediate_size": 32,
}  # fmt: skip
# Fields of a type for which another value is refused, or means nothing that a model has.
NOT_CHANGED = {
    "apertus": ["hidden_act"],
    "bailing_hybrid": ["hidden_act", "tie_word_embeddings"],
    "ernie4_5_moe": ["moe_norm_min"],
    "falcon_h1": ["hidden_act"],
    "falcon_mamba": ["hidden_act"],
    "gemma3": ["attn_logit_softcapping", "final_logit_softcapping"],
    "gemma3_text": ["attn_logit_softcapping"],
    "gptj": ["tie_word_embeddings"],
    "granitemoehybrid": ["hidden_act"],
    "jamba": ["hidden_act"],
    "kimi_linear": ["hidden_act"],
    "laguna": ["gating"],
    "mamba": ["hidden_act"],
    "mamba2": ["hidden_act"],
    "muse_glimmer": ["hidden_activation"],
    "muse_spark": ["hidden_act"],
    "nemotron_h": ["attention_bias"],
    "olmo_hybrid": ["hidden_act"],
    "phi": ["tie_word_embeddings"],
    "phimoe": ["tie_word_embeddings"],
    "qwen3_5": ["hidden_act"],
    "qwen3_5_moe": ["hidden_act"],
    "qwen3_5_moe_text": ["hidden_act"],
    "qwen3_5_text": ["hidden_act"],
    "qwen3_next": ["hidden_act"],
}
# Types of which only the default config agrees yet.
DEFAULT_ONLY = ["gemma3n_text", "kimi_linear", "nemotron_h"]
# Fields that change no number, or make of the model what is no decoder of text.
LEFT_ALONE = re.compile(
    r"use_cache|output_.*|return_dict|is_decoder|is_encoder_decoder|add_cross_attention|.*dropout.*|.*pdrop|initializer.*"
    r"|.*_aux_loss.*|.*jitter.*|.*token_id|summary_.*|use_bidirectional_attention|rescale_prenorm_residual|mtp_.*"
    r"|time_step_(min|max|floor)|linear_dt_.*|linear_a_log_.*|tie_encoder_decoder|chunk_size_feed_forward|pretraining_tp|torchscript|is_causal"
)


def supported() -> list[str]:
    """The model types of our families that transformers implements."""
    for path in sorted(FAMILIES.glob("**/*.rs")):
        if found := re.search(r"model_types:\s*&\[(.*?)\]", path.read_text(), re.DOTALL):
            names = re.findall(r'"([^"]+)"', found[1])
            yield from (name for name in names if name in CONFIG_MAPPING and name not in SKIPPED)


def plain(config: PretrainedConfig) -> dict:
    return json.loads(config.to_json_string(use_diff=False))


def smaller(defaults: dict) -> dict:
    """The fields of a default config that are to be smaller."""
    fields = {}
    for name, value in defaults.items():
        if isinstance(value, dict) and name.endswith("_config"):
            fields[name] = smaller(value) | {"model_type": value["model_type"]} if value.get("model_type") else value
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool) and value > SIZES[name]:
            fields[name] = SIZES[name]
        elif name.endswith("_token_id") or name.endswith("_token_index"):
            ids = value if isinstance(value, list) else [value]
            if any(id is not None and id >= VOCABULARY for id in ids):
                fields[name] = None if name == "pad_token_id" else VOCABULARY - 1
    return fields


def with_own(fields: dict, own: dict) -> dict:
    merged = {name: with_own(fields.get(name, {}), value) for name, value in own.items() if name.endswith("_config") and name != "per_layer_config"}
    return fields | own | merged


def default_fields(model_type: str) -> dict:
    defaults = plain(CONFIG_MAPPING[model_type]())
    fields = with_own(smaller(defaults), OWN_FIELDS.get(model_type, {}))
    text, of = fields.get("text_config", fields), defaults.get("text_config", defaults)
    if of.get("num_key_value_heads") == of.get("num_attention_heads") and "num_key_value_heads" in text:
        text["num_key_value_heads"] = text["num_attention_heads"]
    return fields


def class_of(model_type: str):
    return AutoModelForCausalLM if model_type in CAUSAL and model_type not in WITH_IMAGES else AutoModelForImageTextToText


def saved(model_type: str, fields: dict, folder: Path) -> tuple[dict, dict]:
    """The config and the shapes of a checkpoint that transformers saves."""
    config = CONFIG_MAPPING[model_type](**copy.deepcopy(fields))
    torch.manual_seed(0)
    model = class_of(model_type).from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
        types = {name: file.get_slice(name).get_dtype() for name in shapes}
    assert set(types.values()) == {"F32"}, types
    return json.loads((folder / "config.json").read_text()), shapes


def log_probabilities(model_type: str, folder: Path, tokens: list[int]) -> np.ndarray:
    options = dict(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
    model, loading = class_of(model_type).from_pretrained(folder, output_loading_info=True, **options)
    problems = {name: found for name, found in loading.items() if found}
    assert not problems, problems
    with torch.no_grad():
        inner = getattr(model, "language_model", None)
        text = inner if hasattr(inner, "lm_head") else model
        logits = text.eval()(input_ids=torch.tensor([tokens])).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


def case(name: str, model_type: str, fields: dict, length: int = LENGTH) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        config, shapes = saved(model_type, fields, folder)
        # Decays that follow from the config are saved too, and stay as they are.
        fixed = {name: array for name, array in load_file(folder / "model.safetensors").items() if CONSTANT.search(name)}
        arrays = {name: np.array(formula(name, shape)) for name, shape in shapes.items()} | fixed
        save_file(arrays, folder / "model.safetensors", {"format": "pt"})
        text = config.get("text_config", config)
        tokens = [int(bits % np.uint64(VOCABULARY - 8)) for bits in random_bits("tokens", LENGTH)][:length]
        draws = [int(bits % np.uint64(VOCABULARY)) for bits in random_bits("probes", 32)]
        probes = list(dict.fromkeys([0, VOCABULARY - 1, *draws]))[:6]
        rows = log_probabilities(model_type, folder, tokens)[::EVERY, probes]
    assert np.isfinite(rows).all(), "not finite"
    config.pop("transformers_version")
    return {
        "name": name,
        "config": config,
        "tensors": with_stars(shapes, text.get("num_hidden_layers", 0)),
        "tokens": tokens,
        "probes": probes,
        "every": EVERY,
        "logprobs": [[round(float(value), 6) for value in row] for row in rows],
    }


def other(name: str, value):
    """Another value of a field, or None where there is none to try."""
    if LEFT_ALONE.fullmatch(name):
        return None
    if isinstance(value, bool):
        return not value
    if value is None:
        return OPTIONAL.get(name)
    if isinstance(value, float):
        return 0.03 if "eps" in name else value * 1.25 if value else 0.5
    if name in ("hidden_act", "hidden_activation", "activation_function"):
        return "gelu_pytorch_tanh" if value == "silu" else "silu"
    return None


def changes(model_type: str):
    """The fields of a type with another value, each as a change of the config."""
    defaults = plain(CONFIG_MAPPING[model_type](**default_fields(model_type)))
    is_nested = "text_config" in defaults
    for name, value in (defaults["text_config"] if is_nested else defaults).items():
        if name in NOT_CHANGED.get(model_type, []):
            continue
        if (changed := other(name, value)) is not None:
            yield name, changed
        elif name == "rope_parameters" and value:
            kinds = value.values() if "full_attention" in value else [value]
            if all(isinstance(kind, dict) for kind in kinds):
                changed = copy.deepcopy(value)
                for kind in changed.values() if "full_attention" in value else [changed]:
                    kind["rope_theta"] = 77777.0
                yield name, changed


def with_changes(model_type: str, fields: dict, names: list[tuple]) -> dict:
    """The fields with every change with which the model still runs."""
    attempt = copy.deepcopy(fields)
    is_nested = "text_config" in plain(CONFIG_MAPPING[model_type]())
    (attempt["text_config"] if is_nested else attempt).update(copy.deepcopy(dict(names)))
    try:
        case("", model_type, attempt)
        return attempt
    except Exception as error:
        if len(names) == 1:
            print(f"  {model_type}: without {names[0]}: {str(error).splitlines()[:1]}", file=sys.stderr)
            return fields
    half = len(names) // 2
    return with_changes(model_type, with_changes(model_type, fields, names[:half]), names[half:])


def everything_changed(model_type: str) -> dict:
    return with_changes(model_type, default_fields(model_type), list(changes(model_type)))


def longrope() -> list[dict]:
    """A sequence within the original context, and one that goes on beyond it."""
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.0 + 0.9 * i for i in range(8)],
    }
    own = {"num_hidden_layers": 2, "original_max_position_embeddings": ORIGINAL, "rope_parameters": scaling}
    fields = default_fields("phi3") | own
    return [case("within", "phi3", fields, ORIGINAL), case("beyond", "phi3", fields)]


def write(model_type: str) -> None:
    if model_type == "longrope":
        cases = longrope()
    else:
        fixed = case("default", model_type, default_fields(model_type))
        cases = [fixed]
        if model_type not in DEFAULT_ONLY:
            cases.append(case("everything changed", model_type, everything_changed(model_type)))
    lines = [json.dumps(case, separators=(",", ":")) for case in cases]
    path = FIXTURES / f"{model_type}.json"
    reference = json.dumps(f"transformers {transformers.__version__}")
    path.write_text(f'{{"reference": {reference}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB", flush=True)


def main() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for model_type in sys.argv[1:] or [*supported(), "longrope"]:
        write(model_type)


if __name__ == "__main__":
    main()
