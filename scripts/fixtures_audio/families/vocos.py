"""The reference is the package vocos 0.1.0, and torchaudio's mel spectrogram, whose formula is here."""

import numpy as np
import torch
import yaml
from common import digest, features, load_torch, samples, torch_entries
from vocos.heads import ISTFTHead
from vocos.models import VocosBackbone

CONFIG = dict(
    feature_extractor=dict(
        class_path="vocos.feature_extractors.MelSpectrogramFeatures",
        init_args=dict(sample_rate=24000, n_fft=64, hop_length=16, n_mels=10, padding="center"),
    ),
    backbone=dict(
        class_path="vocos.models.VocosBackbone",
        init_args=dict(input_channels=10, dim=24, intermediate_dim=48, num_layers=2),
    ),
    head=dict(class_path="vocos.heads.ISTFTHead", init_args=dict(dim=24, n_fft=64, hop_length=16, padding="center")),
)


class Vocos(torch.nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.backbone = VocosBackbone(**config["backbone"]["init_args"])
        self.head = ISTFTHead(**config["head"]["init_args"])

    def forward(self, x):
        return self.head(self.backbone(x))


def htk_filters(bins: int, n_fft: int, rate: int) -> np.ndarray:
    """torchaudio.functional.melscale_fbanks with norm=None and mel_scale="htk"."""
    frequencies = np.linspace(0, rate // 2, n_fft // 2 + 1)
    mels = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), bins + 2)
    points = 700 * (10 ** (mels / 2595) - 1)
    widths = points[1:] - points[:-1]
    slopes = points[None] - frequencies[:, None]
    return np.maximum(0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))


def mels(audio: np.ndarray, c: dict) -> np.ndarray:
    x = torch.tensor(audio)
    center = c["padding"] == "center"
    if not center:
        pad = (c["n_fft"] - c["hop_length"]) // 2
        x = torch.nn.functional.pad(x[None], (pad, pad), mode="reflect")[0]
    window = torch.hann_window(c["n_fft"])
    spectra = torch.stft(x, c["n_fft"], c["hop_length"], window=window, center=center, return_complex=True).abs()
    filters = htk_filters(c["n_mels"], c["n_fft"], c["sample_rate"])
    return np.log(np.maximum(spectra.numpy().T @ filters, 1e-7))


def case(name: str, config: dict) -> dict:
    model = Vocos(config)
    tensors = torch_entries(model)
    load = {name: entry for name, entry in tensors.items() if not name.endswith("window")}
    load_torch(model, load)
    given = features(20, 10)
    with torch.no_grad():
        decoded = model(torch.tensor(given).T[None])
    found = mels(samples(400)[:, 0], config["feature_extractor"]["init_args"])
    return dict(
        name=name, files={"config.yaml": yaml.safe_dump(config)}, tensors=load, samples=400, features=digest(found),
        frames=20, bins=10, audio=digest(decoded[0][:, None]),
    )


def cases() -> list[dict]:
    same = CONFIG | dict(
        feature_extractor=dict(
            CONFIG["feature_extractor"], init_args=CONFIG["feature_extractor"]["init_args"] | dict(padding="same")
        ),
        head=dict(CONFIG["head"], init_args=CONFIG["head"]["init_args"] | dict(padding="same")),
    )
    return [case("center", CONFIG), case("same", same)]
