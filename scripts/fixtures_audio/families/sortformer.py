"""The reference is mlx-audio."""

import mlx.core as mx
import numpy as np
from common import digest, load_mlx, mlx_entries, samples
from mlx_audio.vad.models.sortformer import Model, ModelConfig

CONFIG = dict(
    model_type="sortformer",
    fc_encoder_config=dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_mel_bins=16,
        conv_kernel_size=5, subsampling_factor=8, subsampling_conv_channels=8, scale_input=True,
    ),
    tf_encoder_config=dict(
        d_model=24, encoder_layers=2, encoder_attention_heads=3, encoder_ffn_dim=48, max_source_positions=100,
    ),
    modules_config=dict(num_speakers=4, fc_d_model=32, tf_d_model=24),
    processor_config=dict(feature_size=16, sampling_rate=16000, hop_length=160, n_fft=512, win_length=400),
)


def cases() -> list[dict]:
    model = Model(ModelConfig.from_dict(CONFIG))
    tensors = mlx_entries(model)
    for name, entry in tensors.items():
        if name.endswith("running_var"):
            tensors[name] = dict(shape=entry, dtype="F32", **{"from": 0.5, "to": 1.0})
    load_mlx(model, tensors)
    found = model.generate(mx.array(samples(20000)[:, 0]))
    rows = np.array(found.speaker_probs)
    return [
        dict(name="default", config=CONFIG, tensors=tensors, samples=20000, sample_rate=16000, rows=digest(rows))
    ]
