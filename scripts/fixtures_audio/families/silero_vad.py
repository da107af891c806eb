"""The reference is mlx-audio."""

import mlx.core as mx
import numpy as np
from common import digest, load_mlx, mlx_entries, samples
from mlx_audio.vad.models.silero_vad import Model, ModelConfig


def cases() -> list[dict]:
    config = dict(model_type="silero_vad")
    model = Model(ModelConfig.from_dict(config))
    tensors = mlx_entries(model)
    load_mlx(model, tensors)
    result = []
    for rate in (16000, 8000):
        found = model.predict_proba(mx.array(samples(8000)[:, 0]), sample_rate=rate)
        name = f"{rate // 1000} kHz"
        result.append(
            dict(name=name, config=config, tensors=tensors, samples=8000, sample_rate=rate, rows=digest(np.array(found)[:, None]))
        )
    return result
