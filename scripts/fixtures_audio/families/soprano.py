"""The reference of text, tokens and hidden states is mlx-audio, and of samples the package soprano-tts 0.2.0."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from common import digest, load_mlx, mlx_entries, values
from mlx_audio.tts.models.soprano.decoder import SopranoDecoder as MlxDecoder
from mlx_audio.tts.models.soprano.soprano import DecoderConfig, Model, ModelConfig
from spoken_codes import chain
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

# The package imports what reads texts and downloads, which its decoder does not need.
package = types.ModuleType("soprano")
package.__path__ = [str(Path(importlib.util.find_spec("soprano").origin).parent)]
sys.modules["soprano"] = package
from soprano.vocos.decoder import SopranoDecoder  # noqa: E402
from soprano.vocos.models import VocosBackbone  # noqa: E402

QWEN = dict(
    model_type="soprano",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    # Of the sizes of the decoder, no tensor has these.
    decoder_config=dict(hop_length=8, upscale=4),
)
SPECIAL = ["<unk>", "[PAD]", "[STOP]", "[TEXT]", "[START]", "<eos>"]
TEXT = (
    "Dr. Ames paid $12.50 on the 3rd of May 1999, 1,234 times & more. Yes! She is 21st in the GPU list of API's.\n"
    "Caf\u00e9: 5K #7 (really?!)"
)


def tokenizer_files() -> dict[str, str]:
    letters = "abcdefghijklmnopqrstuvwxyz .,!?'-$%*0123456789"
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    flags = dict(special=True, normalized=False, single_word=False, lstrip=False, rstrip=False)
    tokenizer = dict(
        version="1.0",
        added_tokens=[dict(id=i, content=token, **flags) for i, token in enumerate(SPECIAL)],
        normalizer=None,
        pre_tokenizer=dict(type="Split", pattern=dict(String=""), behavior="Isolated", invert=False),
        post_processor=None,
        decoder=dict(type="Fuse"),
        truncation=None,
        padding=None,
        model=dict(type="WordLevel", vocab=vocabulary, unk_token="<unk>"),
    )
    config = dict(pad_token="[PAD]", eos_token="<eos>", tokenizer_class="PreTrainedTokenizerFast")
    return {"tokenizer.json": json.dumps(tokenizer), "tokenizer_config.json": json.dumps(config)}


def decoder(tensors: dict, sizes: DecoderConfig, width: int) -> SopranoDecoder:
    """The authors' decoder with the tensors in their layout. Their first version had a kernel of 3 at the beginning."""
    model = SopranoDecoder(
        width, sizes.decoder_num_layers, sizes.decoder_dim, sizes.decoder_intermediate_dim, sizes.hop_length,
        sizes.n_fft, sizes.upscale, sizes.dw_kernel,
    )
    model.decoder = VocosBackbone(
        width, sizes.decoder_dim, sizes.decoder_intermediate_dim, sizes.decoder_num_layers, sizes.input_kernel,
        sizes.dw_kernel,
    )
    state = model.state_dict()
    for name, value in values({n: t for n, t in tensors.items() if n.startswith("decoder.")}).items():
        name = name.removeprefix("decoder.")
        state[name] = torch.tensor(value.swapaxes(1, 2) if value.ndim == 3 else value)
    model.load_state_dict(state)
    return model.eval()


def case(name: str, kernel: int, text: str, ids: list[int] | None, max_tokens: int) -> dict:
    config = ModelConfig.from_dict({k: v for k, v in QWEN.items() if k != "decoder_config"})
    sizes = DecoderConfig(
        decoder_num_layers=3, decoder_dim=24, decoder_intermediate_dim=40, hop_length=8, n_fft=32, upscale=4,
        input_kernel=kernel, dw_kernel=3, token_size=32,
    )
    config.decoder_config = sizes
    files = tokenizer_files()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(files["tokenizer.json"]), pad_token="[PAD]", eos_token="<eos>"
    )
    model = Model(config, tokenizer)
    assert isinstance(model.decoder, MlxDecoder)
    tensors = mlx_entries(model)
    if ids:
        chain(
            QWEN["hidden_size"], ids, tensors, "language_model.embed_tokens.weight", "language_model.lm_head.weight"
        )
    load_mlx(model, tensors)
    model.post_load_hook("")
    authors = decoder(tensors, sizes, QWEN["hidden_size"])
    prompts, generated, audio = [], [], []
    tokenize, stream = model._tokenize, model.stream_generate

    def keep_prompt(text: str) -> mx.array:
        ids = tokenize(text)
        prompts.extend(ids.tolist())
        return ids

    def keep_tokens(*arguments, **options):
        for token, hidden in stream(*arguments, **options):
            generated.extend([] if token is None else [int(token[0, 0])])
            yield token, hidden

    def decode(states: mx.array) -> mx.array:
        with torch.no_grad():
            samples = authors(torch.tensor(np.array(states)).transpose(1, 2))
        audio.append(samples[0].numpy())
        return mx.array(samples.numpy())

    model._tokenize, model.stream_generate, model.decoder = keep_prompt, keep_tokens, decode
    list(model.generate(text, temperature=0, max_tokens=max_tokens))
    return dict(
        name=name, config=QWEN, files=files, tensors=tensors, text=text, voice=[], options=dict(max_tokens=max_tokens),
        prompt=prompts, tokens=generated, audio=digest(np.concatenate(audio)),
    )


def cases() -> list[dict]:
    # From the end of the prompt to the token that pads, which is the end.
    end = [4, *range(20, 34), 1]
    return [
        case("an end", 1, TEXT, end, 512),
        case("no end, the kernel of the first version", 3, "Hello there.", None, 24),
    ]
