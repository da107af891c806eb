"""The reference is transformers, with the names of published checkpoints and those that it has now."""

from typing import Callable

import torch
from common import codes, digest, samples, torch_entries, values
from transformers import MimiConfig, MimiModel

MIMI = dict(
    model_type="mimi",
    sampling_rate=24000,
    audio_channels=1,
    hidden_size=32,
    num_filters=4,
    num_residual_layers=1,
    upsampling_ratios=[4, 3, 2],
    kernel_size=7,
    last_kernel_size=3,
    residual_kernel_size=3,
    dilation_growth_rate=2,
    use_causal_conv=True,
    pad_mode="constant",
    compress=2,
    trim_right_ratio=1.0,
    codebook_size=32,
    codebook_dim=16,
    num_quantizers=4,
    use_conv_shortcut=False,
    vector_quantization_hidden_dimension=16,
    num_semantic_quantizers=1,
    upsample_groups=32,
    num_hidden_layers=2,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    hidden_act="gelu",
    max_position_embeddings=8000,
    norm_eps=1e-5,
    rope_theta=10000.0,
    sliding_window=7,
    frame_rate=500.0,
)


def published(name: str) -> str:
    for side in ("encoder", "decoder"):
        for part in ("encoder_transformer", "decoder_transformer", "downsample", "upsample"):
            name = name.replace(f"{side}.{part}.", f"{part}.")
        name = name.replace(f"{side}.{side}_seanet.", f"{side}.")
    return name


def case(title: str, renamed: Callable[[str], str]) -> dict:
    model = MimiModel(MimiConfig(**MIMI))
    names = {name: renamed(name) for name in model.state_dict()}
    found = torch_entries(model)
    tensors = {names[name]: entry for name, entry in found.items() if not name.endswith("initialized")}
    weights = values(tensors)
    state = model.state_dict()
    state |= {name: torch.tensor(weights[names[name]]) for name in found if names[name] in weights}
    model.load_state_dict(state)
    model.eval()
    given = codes(4, 25, 32)
    with torch.no_grad():
        encoded = model.encode(torch.tensor(samples(1111)).T[None]).audio_codes
        decoded = model.decode(torch.tensor(given).long()[None]).audio_values
    return dict(
        name=title, config=MIMI, tensors=tensors, samples=1111, codes=[dict(codebooks=encoded[0].tolist())],
        given=[dict(codebooks=given.tolist())], audio=digest(decoded[0].T),
    )


def cases() -> list[dict]:
    return [case("published", published), case("nested", str)]
