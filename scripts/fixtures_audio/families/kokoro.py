"""The reference is the package kokoro 0.9.4 with random numbers of zero."""

import importlib.util
import sys
import types
from pathlib import Path

import torch
from common import digest, entry, values

# The package imports its pipeline, which needs more than the network does.
root = Path(importlib.util.find_spec("kokoro").origin).parent if "kokoro" not in sys.modules else None
package = types.ModuleType("kokoro")
package.__path__ = [str(root)]
sys.modules["kokoro"] = package
from kokoro.model import KModel  # noqa: E402

CONFIG = dict(
    istftnet=dict(
        upsample_kernel_sizes=[8, 4],
        upsample_rates=[4, 2],
        gen_istft_hop_size=5,
        gen_istft_n_fft=20,
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        resblock_kernel_sizes=[3, 5],
        upsample_initial_channel=512,
    ),
    dim_in=64,
    dropout=0.2,
    hidden_dim=512,
    max_conv_dim=512,
    max_dur=12,
    multispeaker=True,
    n_layer=2,
    n_mels=80,
    n_token=20,
    style_dim=128,
    text_encoder_kernel_size=5,
    plbert=dict(
        hidden_size=48,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        num_hidden_layers=3,
        dropout=0.1,
    ),
    vocab={character: i + 1 for i, character in enumerate("abdefhklmn,. ˈɪə")},
)
PHONEMES = "hˈɪ ?lə, bdˈe mn."


class Model(KModel):
    def __init__(self, config: dict):
        load = torch.load
        torch.load = lambda *_, **__: {}
        super().__init__("hexgrad/Kokoro-82M", config, model="none")
        torch.load = load


def cases() -> list[dict]:
    torch.randn_like = torch.zeros_like
    model = Model(CONFIG)
    left_out = (".norm.weight", ".norm.bias", "position_ids")
    tensors, state = {}, model.state_dict()
    for name, value in state.items():
        if name.endswith(left_out) or "pooler" in name or "stft" in name or not value.is_floating_point():
            continue
        # Pitches around 100 Hz.
        if name == "predictor.F0_proj.bias":
            tensors[name] = dict(shape=[1], dtype="F32", **{"from": 100.0, "to": 101.0})
        elif name.startswith(("predictor.F0_proj.weight",)):
            tensors[name] = dict(shape=list(value.shape), dtype="F32", **{"from": -1.0, "to": 1.0})
        # Durations that differ.
        elif name == "predictor.duration_proj.linear_layer.weight":
            tensors[name] = dict(shape=list(value.shape), dtype="F32", **{"from": -4.0, "to": 4.0})
        elif ".alpha" in name:
            tensors[name] = dict(shape=list(value.shape), dtype="F32", **{"from": 0.5, "to": 1.5})
        else:
            tensors[name] = entry(name, tuple(value.shape))
    voices = {name: dict(shape=[510, 1, 256], dtype="F32", **{"from": -0.3, "to": 0.3}) for name in ("af_a", "bf_b")}
    state |= {name: torch.tensor(value) for name, value in values(tensors).items()}
    model.load_state_dict(state)
    model.eval()
    packs = {name: torch.tensor(value) for name, value in values(voices).items()}
    found = {}
    original = model.predictor.F0Ntrain

    def keep(*arguments):
        found["f0"], found["energy"] = original(*arguments)
        return found["f0"], found["energy"]

    model.predictor.F0Ntrain = keep
    result = []
    for name, voice, speed in (("one voice", ["af_a"], 1.0), ("two voices, faster", ["af_a", "bf_b"], 1.3)):
        known = [CONFIG["vocab"][c] for c in PHONEMES if c in CONFIG["vocab"]]
        style = sum(packs[name][len(known) - 1] for name in voice) / len(voice)
        output = model(PHONEMES, style, speed, return_output=True)
        result.append(
            dict(
                name=name, config=CONFIG, tensors=tensors, voices={v: voices[v] for v in voices}, phonemes=PHONEMES,
                voice=voice, speed=speed, tokens=[0, *known, 0], durations=output.pred_dur.tolist(),
                f0=digest(found["f0"][0]), energy=digest(found["energy"][0]), audio=digest(output.audio), phases_are_free=True,
            )
        )
    return result
