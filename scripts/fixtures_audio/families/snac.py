"""The reference is the package snac 1.2.1."""

import numpy as np
import snac
import torch
from common import codes, digest, load_torch, samples, torch_entries

SNAC = dict(
    sampling_rate=24000,
    encoder_dim=8,
    encoder_rates=[2, 4],
    latent_dim=None,
    decoder_dim=48,
    decoder_rates=[4, 2],
    attn_window_size=None,
    codebook_size=24,
    codebook_dim=4,
    vq_strides=[4, 2, 1],
    noise=True,
    depthwise=True,
)
ATTENTION = SNAC | dict(
    encoder_dim=32, decoder_dim=128, encoder_rates=[2, 3], decoder_rates=[3, 2], attn_window_size=8, vq_strides=[2, 1]
)


def case(name: str, config: dict, count: int, units: int, mlx: bool = False) -> dict:
    model = snac.SNAC(**config)
    for module in model.modules():
        if isinstance(module, snac.layers.NoiseBlock):
            module.forward = lambda x: x
    tensors = torch_entries(model)
    tensors = {name: entry for name, entry in tensors.items() if not name.endswith("inv_freq")}
    load_torch(model, tensors)
    audio = torch.tensor(samples(count)).T[None]
    strides = config["vq_strides"]
    unit = int(np.lcm.reduce([*strides, config["attn_window_size"] or 1]))
    given = [codes(1, units * unit // stride, config["codebook_size"])[0].tolist() for stride in strides]
    with torch.no_grad():
        encoded = model.encode(audio)
        decoded = model.decode([torch.tensor([row]) for row in given])
    return dict(
        name=name,
        config=config,
        tensors=tensors,
        samples=count,
        codes=[dict(codebooks=[row[0].tolist() for row in encoded])],
        given=[dict(codebooks=given)],
        audio=digest(decoded[0].T),
    )


def cases() -> list[dict]:
    return [case("default", SNAC, 500, 30), case("attention, odd strides", ATTENTION, 300, 12)]
