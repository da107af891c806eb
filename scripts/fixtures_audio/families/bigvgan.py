"""The reference is the package bigvgan 2.4.1."""

import torch
from bigvgan.bigvgan import BigVGAN
from bigvgan.env import AttrDict
from common import digest, features, load_torch, samples, torch_entries

CONFIG = dict(
    num_mels=10,
    upsample_rates=[4, 2],
    upsample_kernel_sizes=[8, 4],
    upsample_initial_channel=16,
    resblock="1",
    resblock_kernel_sizes=[3, 5],
    resblock_dilation_sizes=[[1, 3], [1, 2]],
    activation="snakebeta",
    snake_logscale=True,
    use_bias_at_final=False,
    use_tanh_at_final=False,
    sampling_rate=24000,
    n_fft=64,
    hop_size=16,
    win_size=64,
    fmin=0,
    fmax=None,
    use_cuda_kernel=False,
)


def case(name: str, config: dict) -> dict:
    model = BigVGAN(AttrDict(config))
    tensors = {name: entry for name, entry in torch_entries(model).items() if "filter" not in name}
    load_torch(model, tensors)
    given = features(12, 10)
    with torch.no_grad():
        decoded = model(torch.tensor(given).T[None])
    result = dict(
        name=name, config=config, tensors=tensors, frames=12, bins=10, audio=digest(decoded[0].T),
    )
    try:
        from bigvgan.meldataset import get_mel_spectrogram

        found = get_mel_spectrogram(torch.tensor(samples(400)).T, AttrDict(config))
        result |= dict(samples=400, features=digest(found[0].T))
    except ImportError as missing:
        print(missing)
    return result


def cases() -> list[dict]:
    other = CONFIG | dict(
        resblock="2", activation="snake", snake_logscale=False, use_bias_at_final=True, use_tanh_at_final=True
    )
    return [case("snakebeta", CONFIG), case("snake", other)]
