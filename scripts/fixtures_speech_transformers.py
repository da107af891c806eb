"""What transformers computes for tiny speech models in its own layouts: the cases of tests/fixtures/speech.json whose
names end with `_hf`, which replace those that are there. Run it as `python scripts/fixtures_speech_transformers.py`
after scripts/fixtures_speech.py."""

import json

import numpy as np
import torch
from fixtures_speech import OUTPUT, RATE, byte_level, formula, mx, sound
from transformers import (
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    ParakeetCTCConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    ParakeetForTDT,
    ParakeetTDTConfig,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
)

# The last frame of two seconds would be a position of its own, which transformers masks.
SECONDS = 1.9


def fill(model) -> dict:
    """Gives a model the formula's weights; returns the names and shapes of its file."""
    tensors = {}
    for name, value in model.state_dict().items():
        if "num_batches_tracked" in name or (name == "proj_out.weight" and model.config.tie_word_embeddings):
            continue
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        entry = list(value.shape)
        tensors[name] = entry
        if "running_var" in name:
            entry = tensors[name] = dict(shape=entry, dtype="F32", **{"from": 0.5, "to": 1.5})
        value.copy_(torch.tensor(np.array(formula(name, entry))))
    return tensors


def places(x: torch.Tensor) -> dict:
    flat = x.reshape(-1)
    return dict(shape=list(x.shape), values=[float(flat[i * (len(flat) - 1) // 31]) for i in range(32)])


def config(model) -> dict:
    return json.loads(model.config.to_json_string(use_diff=False))


def score(logits: torch.Tensor, tokens: list[int], prompt: int) -> dict:
    rows = torch.log_softmax(logits, -1)
    return dict(prompt=prompt, tokens=tokens, logprobs=[float(rows[i, token]) for i, token in enumerate(tokens)])


def parakeet(kind: str) -> dict:
    size = 40
    encoder = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=56, conv_kernel_size=5,
        subsampling_conv_channels=8, num_mel_bins=32,
    )
    if kind == "ctc":
        model = ParakeetForCTC(ParakeetCTCConfig(vocab_size=size, pad_token_id=size - 1, encoder_config=encoder))
    else:
        model = ParakeetForTDT(
            ParakeetTDTConfig(vocab_size=size, blank_token_id=size - 1, decoder_hidden_size=24, encoder_config=encoder)
        )
        model.generation_config.decoder_start_token_id = size - 1
    tensors = fill(model.eval())
    extractor = ParakeetFeatureExtractor(feature_size=32)
    inputs = extractor(sound(SECONDS), sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    features, mask = inputs.input_features, inputs.attention_mask
    encoded = model.encoder(features, attention_mask=mask)
    valid = int(encoded.attention_mask.sum())
    if kind == "ctc":
        ids = model.generate(features, attention_mask=mask)[0].tolist()
        ids = [id for i, id in enumerate(ids) if i == 0 or ids[i - 1] != id]
    else:
        ids = model.generate(features, attention_mask=mask, do_sample=False).sequences[0].tolist()[1:]
    vocabulary = {f"{'▁' if i % 2 else ''}p{i}": i for i in range(size - 1)} | {"<blank>": size - 1}
    tokenizer = byte_level(size + 256, [], size)
    tokenizer["model"]["vocab"] = vocabulary
    tokenizer["added_tokens"] = []
    tokenizer |= dict(pre_tokenizer=None, decoder=None)
    return dict(
        name=f"parakeet_{kind}_hf",
        config=config(model),
        tensors=tensors,
        files={
            "tokenizer.json": json.dumps(tokenizer),
            "preprocessor_config.json": extractor.to_json_string(),
            "generation_config.json": json.dumps(dict(decoder_start_token_id=size - 1)),
        },
        seconds=SECONDS,
        features=places(features[0]),
        encoder=places(encoded.last_hidden_state[0, :valid]),
        transcript=dict(tokens=[id for id in ids if id != size - 1]),
    )


def moonshine() -> dict:
    model = MoonshineForConditionalGeneration(
        MoonshineConfig(
            vocab_size=320, hidden_size=32, intermediate_size=48, encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
            rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5),
            attention_bias=True,
        )
    )
    tensors = fill(model.eval())
    encoded = model.model.encoder(torch.tensor(sound(SECONDS))[None])
    given = [5, 77, 130, 200]
    logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[1, *given[:-1]]])).logits[0]
    return dict(
        name="moonshine_hf",
        config=config(model),
        tensors=tensors,
        files={"tokenizer.json": json.dumps(byte_level(320, [], 320))},
        seconds=SECONDS,
        encoder=places(encoded.last_hidden_state[0]),
        score=score(logits, given, 1),
    )


def qwen3_asr() -> dict:
    specials = "<|endoftext|> <|im_start|> <|im_end|> <|audio_start|> <|audio_end|> <|audio_pad|> <asr_text>".split()
    size, first = 400, 393
    model = Qwen3ASRForConditionalGeneration(
        Qwen3ASRConfig(
            audio_token_id=first + 5, pad_token_id=first, eos_token_id=[first, first + 2],
            audio_config=dict(
                num_mel_bins=40, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32,
                n_window_infer=200, output_dim=48, downsample_hidden_size=12,
            ),
            text_config=dict(
                vocab_size=size, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16,
            ),
        )
    )
    tensors = fill(model.eval())
    extractor = Qwen3ASRFeatureExtractor(feature_size=40)
    inputs = extractor(sound(0.3), sampling_rate=RATE, return_tensors="pt", padding="longest", return_attention_mask=True)
    features, mask = inputs.input_features, inputs.attention_mask
    encoded = model.get_audio_features(features, mask).pooler_output.reshape(-1, 48)
    before = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|>"
    after = "<|audio_end|><|im_end|>\n<|im_start|>assistant\nlanguage English<asr_text>"
    ids = []
    for part in (before, [first + 5] * len(encoded), after):
        for special in specials if isinstance(part, str) else []:
            part = part.replace(special, chr(0xE000 + specials.index(special)))
        ids += part if isinstance(part, list) else [
            first + ord(c) - 0xE000 if ord(c) >= 0xE000 else ord(c) for c in part
        ]
    given = [5, 77, 130, 200, first + 6]
    tokens = torch.tensor([ids + given[:-1]])
    logits = model(input_ids=tokens, input_features=features, input_features_mask=mask).logits[0, len(ids) - 1 :]
    return dict(
        name="qwen3_asr_hf",
        config=config(model),
        tensors=tensors,
        files={"tokenizer.json": json.dumps(byte_level(size, specials, first))},
        seconds=0.3,
        features=places(features[0, :, : int(mask.sum())].T),
        encoder=places(encoded),
        score=score(logits, given, len(ids)),
    )


if __name__ == "__main__":
    with torch.no_grad():
        cases = [parakeet("ctc"), parakeet("tdt"), moonshine(), qwen3_asr()]
    kept = [line.rstrip(",") for line in OUTPUT.read_text().splitlines()[1:-1] if '_hf", "config"' not in line]
    OUTPUT.write_text("[\n" + ",\n".join(kept + [json.dumps(case, ensure_ascii=False) for case in cases]) + "\n]\n")
