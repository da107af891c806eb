"""The reference is mlx-audio."""

import mlx.core as mx
import numpy as np
from common import digest, load_mlx, mlx_entries, samples
from mlx_audio.vad.models.smart_turn import Model, ModelConfig

CONFIG = dict(
    model_type="smart_turn",
    encoder_config=dict(
        num_mel_bins=16, max_source_positions=50, d_model=24, encoder_attention_heads=3, encoder_layers=2,
        encoder_ffn_dim=48, k_proj_bias=False,
    ),
    processor_config=dict(
        sampling_rate=16000, max_audio_seconds=1, n_fft=400, hop_length=160, n_mels=16, normalize_audio=True,
        threshold=0.5,
    ),
)


def case(name: str, count: int, rate: int) -> dict:
    model = Model(ModelConfig.from_dict(CONFIG))
    tensors = mlx_entries(model)
    load_mlx(model, tensors)
    found = model.predict_endpoint(samples(count)[:, 0], sample_rate=rate)
    rows = np.array([[found.probability]])
    return dict(name=name, config=CONFIG, tensors=tensors, samples=count, sample_rate=rate, rows=digest(rows))


def cases() -> list[dict]:
    return [case("short", 9000, 16000), case("long, at another rate", 9000, 8000)]
