"""The reference is transformers."""

import torch
from common import codes, digest, load_torch, samples, torch_entries
from transformers import EncodecConfig, EncodecFeatureExtractor, EncodecModel

MONO = dict(
    model_type="encodec",
    target_bandwidths=[30.0, 90.0],
    sampling_rate=24000,
    audio_channels=1,
    normalize=False,
    chunk_length_s=None,
    overlap=None,
    hidden_size=16,
    num_filters=4,
    num_residual_layers=2,
    upsampling_ratios=[4, 2],
    norm_type="weight_norm",
    kernel_size=7,
    last_kernel_size=7,
    residual_kernel_size=3,
    dilation_growth_rate=2,
    use_causal_conv=True,
    pad_mode="reflect",
    compress=2,
    num_lstm_layers=2,
    trim_right_ratio=1.0,
    codebook_size=32,
    codebook_dim=16,
    use_conv_shortcut=True,
)
STEREO = MONO | dict(
    audio_channels=2,
    normalize=True,
    chunk_length_s=0.01,
    overlap=0.05,
    norm_type="time_group_norm",
    use_causal_conv=False,
    num_residual_layers=1,
)


def case(name: str, config: dict, count: int, frames: int) -> dict:
    model = EncodecModel(EncodecConfig(**config))
    left_out = ("cluster_size", "embed_avg", "inited")
    tensors = {name: entry for name, entry in torch_entries(model).items() if not name.endswith(left_out)}
    load_torch(model, tensors)
    channels = config["audio_channels"]
    extractor = EncodecFeatureExtractor(
        feature_size=channels,
        sampling_rate=config["sampling_rate"],
        chunk_length_s=config["chunk_length_s"],
        overlap=config["overlap"],
    )
    audio = samples(count, channels)
    books = len(model.quantizer.layers)
    with torch.no_grad():
        inputs = extractor(audio.T if channels == 2 else audio[:, 0], sampling_rate=24000, return_tensors="pt")
        encoded = model.encode(inputs["input_values"], inputs["padding_mask"])
        chunks = 1 if config["chunk_length_s"] is None else 3
        given = [codes(books, frames * chunks, 32)[:, i * frames : (i + 1) * frames] for i in range(chunks)]
        scales = [torch.tensor([[0.5 + 0.25 * i]]) if config["normalize"] else None for i in range(chunks)]
        stacked = torch.stack([torch.tensor(rows).long()[None] for rows in given])
        decoded = model.decode(stacked, scales, return_dict=True).audio_values
    found = []
    # transformers encodes what its feature extractor has padded the last chunk with as one more chunk.
    own = list(zip(encoded.audio_codes, encoded.audio_scales))[:chunks]
    for rows, scale in own:
        chunk = dict(codebooks=rows[0].tolist())
        found.append(chunk if scale is None else chunk | dict(scale=float(scale)))
    sent = [dict(codebooks=rows.tolist()) for rows in given]
    if config["normalize"]:
        sent = [chunk | dict(scale=float(scale)) for chunk, scale in zip(sent, scales)]
    return dict(
        name=name, config=config, tensors=tensors, samples=count, channels=channels, codes=found, given=sent,
        audio=digest(decoded[0].T),
    )


def cases() -> list[dict]:
    return [case("24 kHz", MONO, 203, 40), case("48 kHz", STEREO, 500, 30)]
