"""The references are mlx-audio, with the names of the authors in MLX, and transformers."""

import mlx.core as mx
import torch
from common import codes, digest, load_mlx, load_torch, mlx_entries, samples, torch_entries
from mlx_audio.codec.models.dacvae.codec import DACVAE, DACVAEConfig
from mlx_audio.codec.models.descript import DAC
from transformers import DacConfig, DacModel
from common import features

AUTHORS = dict(
    encoder_dim=8,
    encoder_rates=[2, 4],
    decoder_dim=32,
    decoder_rates=[4, 2],
    n_codebooks=3,
    codebook_size=32,
    codebook_dim=4,
    sample_rate=16000,
)
TRANSFORMERS = dict(
    model_type="dac",
    encoder_hidden_size=8,
    downsampling_ratios=[2, 3],
    decoder_hidden_size=32,
    n_codebooks=3,
    codebook_size=32,
    codebook_dim=4,
    sampling_rate=16000,
)


def mlx_case(name: str, config: dict) -> dict:
    model = DAC(**config)
    tensors = mlx_entries(model)
    load_mlx(model, tensors)
    given = codes(3, 60, config["codebook_size"])
    _, encoded, *_ = model.encode(model.preprocess(mx.array(samples(203)).T[None], None))
    decoded = model.decode(model.quantizer.from_codes(mx.array(given)[None])[0])
    return dict(
        name=name,
        config=config,
        tensors=tensors,
        samples=203,
        codes=[dict(codebooks=encoded[0].tolist())],
        given=[dict(codebooks=given.tolist())],
        audio=digest(decoded[0]),
    )


def transformers_case(name: str, config: dict) -> dict:
    model = DacModel(DacConfig(**config))
    tensors = torch_entries(model)
    load_torch(model, tensors)
    given = codes(3, 60, config["codebook_size"])
    with torch.no_grad():
        audio = torch.tensor(samples(204)).T[None]
        encoded = model.encode(audio).audio_codes
        decoded = model.decode(audio_codes=torch.tensor(given).long()[None]).audio_values
    return dict(
        name=name,
        config=config,
        tensors=tensors,
        samples=204,
        codes=[dict(codebooks=encoded[0].tolist())],
        given=[dict(codebooks=given.tolist())],
        audio=digest(decoded[0][:, None]),
    )


def variational_case() -> dict:
    config = dict(
        encoder_dim=8, encoder_rates=[2, 4], latent_dim=32, decoder_dim=24, decoder_rates=[4, 2], codebook_dim=6,
        n_codebooks=3, codebook_size=32, quantizer_dropout=False, sample_rate=48000, mean=0.0, std=1.0,
    )
    model = DACVAE(DACVAEConfig(**config))
    tensors = mlx_entries(model)
    load_mlx(model, tensors)
    given = features(20, 6)
    encoded = model.encode(mx.array(samples(203))[None])
    decoded = model.decode(mx.array(given).T[None])
    return dict(
        name="variational", config=config, tensors=tensors, samples=203, features=digest(encoded[0].T),
        frames=20, bins=6, audio=digest(decoded[0]),
    )


def cases() -> list[dict]:
    return [
        mlx_case("names of the authors", AUTHORS),
        transformers_case("transformers", TRANSFORMERS),
        variational_case(),
    ]
