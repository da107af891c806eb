"""Language models that speak in the codes of SNAC: the reference is mlx-audio, and for the codec the package snac 1.2.1.

mlx-audio reads its codec from the network when it is imported; here it gets the one of the fixture.
"""

import importlib
import json

import mlx.core as mx
import numpy as np
import snac
import torch
from common import digest, load_mlx, load_torch, mlx_entries, samples, torch_entries
from mlx_audio.codec.models.snac import SNAC
from transformers import PreTrainedTokenizerFast

CODEC = dict(
    sampling_rate=24000,
    encoder_dim=8,
    encoder_rates=[2, 4],
    latent_dim=None,
    decoder_dim=48,
    decoder_rates=[4, 2],
    attn_window_size=None,
    codebook_size=4096,
    codebook_dim=4,
    vq_strides=[4, 2, 1],
    noise=True,
    depthwise=True,
)
LETTERS = "abcdefghijklmnopqrstuvwxyz ,.:ABCDEFGHIJKLMNOPQRSTUVWXYZ'!?"


def tokenizer_files() -> dict[str, str]:
    """A tokenizer of letters, which begins a text with a token of its own as Llama's does."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*special, *LETTERS])}
    flags = dict(special=True, normalized=False, single_word=False, lstrip=False, rstrip=False)
    tokenizer = dict(
        version="1.0",
        added_tokens=[dict(id=i, content=token, **flags) for i, token in enumerate(special)],
        normalizer=None,
        pre_tokenizer=dict(type="Split", pattern=dict(String=""), behavior="Isolated", invert=False),
        post_processor=dict(
            type="TemplateProcessing",
            single=[dict(SpecialToken=dict(id="<s>", type_id=0)), dict(Sequence=dict(id="A", type_id=0))],
            pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))],
            special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"])},
        ),
        decoder=dict(type="Fuse"),
        truncation=None,
        padding=None,
        model=dict(type="WordLevel", vocab=vocabulary, unk_token="<unk>"),
    )
    config = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", tokenizer_class="PreTrainedTokenizerFast")
    return {"tokenizer.json": json.dumps(tokenizer), "tokenizer_config.json": json.dumps(config)}


def tokenizer(files: dict[str, str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(files["tokenizer.json"]), bos_token="<s>", eos_token="</s>"
    )


class Codec:
    """The package's SNAC without noise, behind the interface of mlx-audio's."""

    def __init__(self):
        model = snac.SNAC(**CODEC)
        for module in model.modules():
            if isinstance(module, snac.layers.NoiseBlock):
                module.forward = lambda x: x
        self.tensors = torch_entries(model)
        self.model = load_torch(model, self.tensors)
        self.seen = None

    def eval(self):
        return self

    def encode(self, audio: mx.array) -> list[mx.array]:
        with torch.no_grad():
            return [mx.array(codes.numpy()) for codes in self.model.encode(torch.tensor(np.array(audio)))]

    def decode(self, codes: list[mx.array]) -> mx.array:
        self.seen = [np.array(book)[0].tolist() for book in codes]
        # Without a beginning of speech, mlx-audio takes the prompt for codes.
        if any(code not in range(CODEC["codebook_size"]) for book in self.seen for code in book):
            return mx.zeros((1, 0, 1))
        with torch.no_grad():
            audio = self.model.decode([torch.tensor(np.array(book), dtype=torch.long) for book in codes])
        return mx.array(audio.numpy()).swapaxes(1, 2)


CODES = Codec()
SNAC.from_pretrained = classmethod(lambda *_, **__: CODES)


def chain(width: int, ids: list[int], tensors: dict, embedding: str, head: str) -> None:
    """Lets the model continue each of these tokens with the next one, by columns of the embedding and the head."""
    for name, low, value in ((embedding, 0.1, 12.0), (head, 0.02, 1.0)):
        places = ids[:-1] if name == embedding else ids[1:]
        tensors[name] = dict(
            shape=tensors[name], dtype="F32", **{"from": -low, "to": low},
            set=[[token * width + i, value] for i, token in enumerate(places)],
        )


def frames(first: int, count: int) -> list[int]:
    """Tokens of frames, which begin at the id `first`."""
    return [first + place * 4096 + (997 * frame + 311 * place) % 4096 for frame in range(count) for place in range(7)]


def case(
    name: str, module: str, config: dict, text: str, ids: list[int] | None = None, voice: str | None = None,
    reference: dict | None = None, **options,
) -> dict:
    """What the model says greedily; `ids` is a chain of tokens that it follows."""
    reference_module = importlib.import_module(module)
    model = reference_module.Model(reference_module.ModelConfig.from_dict(config))
    tensors = mlx_entries(model)
    if ids:
        chain(config["hidden_size"], ids, tensors, "model.embed_tokens.weight", "lm_head.weight")
    load_mlx(model, tensors)
    files = tokenizer_files()
    model.tokenizer = tokenizer(files)
    recording = {}
    if reference:
        recording = dict(ref_audio=mx.array(samples(reference["samples"])[:, 0]), ref_text=reference["text"])
    prompts, generated, codes, audio = [], [], [[], [], []], []
    generate = reference_module.stream_generate

    def keep(*arguments, **given):
        prompts.extend(given["prompt"].tolist())
        for response in generate(*arguments, **given):
            generated.append(response.token)
            yield response

    reference_module.stream_generate = keep
    load_audio = reference_module.load_audio
    reference_module.load_audio = lambda audio, **_: audio
    for result in model.generate(text, voice=voice, temperature=0, **recording, **options):
        audio.append(np.array(result.audio))
        for book, more in zip(codes, CODES.seen, strict=True):
            book.extend(more)
    reference_module.stream_generate, reference_module.load_audio = generate, load_audio
    # The end belongs to no text.
    ends = (128258, 151671, 2)
    result = dict(
        name=name, config=config, files=files, tensors=tensors, codec=dict(config=CODEC, tensors=CODES.tensors),
        text=text, voice=[voice] if voice else [], options=options, prompt=prompts,
        tokens=[token for token in generated if token not in ends],
    )
    if reference:
        result["reference"] = reference
    if audio:
        result |= dict(books=codes, audio=digest(np.concatenate(audio)))
    return result
