"""What mlx-audio computes for tiny speech models: tests/fixtures/speech.json.

Weights are the formula of scripts/fixtures/reference.py, so a case has names and shapes of tensors, the small files
beside them, and expected numbers at 32 places of the features and of the encoder's output. The sound is a formula, too
(`sound`). Run it as `python scripts/fixtures_speech.py`."""

import json
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
from reference import formula  # noqa: E402

RATE = 16000
LANGUAGES = "en zh de es ru ko fr ja pt tr".split()
OUTPUT = Path(__file__).parent.parent / "tests/fixtures/speech.json"
mx.set_default_device(mx.cpu)


def sound(seconds: float) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * t)
    return (0.4 * swell * np.sin(2 * np.pi * (220 + 30 * t) * t) + 0.05 * np.sin(2 * np.pi * 3100 * t)).astype(np.float32)


def places(x: mx.array) -> dict:
    x = np.array(x.astype(mx.float32)).reshape(-1, x.shape[-1])
    flat = x.reshape(-1)
    return dict(shape=list(x.shape), values=[float(flat[i * (flat.size - 1) // 31]) for i in range(32)])


def logprobs(logits: mx.array, tokens: list[int]) -> list[float]:
    rows = logits.astype(mx.float32)
    rows = rows - mx.logsumexp(rows, axis=-1, keepdims=True)
    return [float(rows[i, token]) for i, token in enumerate(tokens)]


def byte_level(size: int, specials: list[str], first: int) -> dict:
    """A tokenizer of bytes, words that no text is encoded to, and special tokens from `first` on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    names = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    vocabulary = {names[byte]: byte for byte in range(256)} | {f"Ġw{i}": i for i in range(256, first)}
    kind = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    model = dict(type="BPE", dropout=None, unk_token=None, fuse_unk=False, byte_fallback=False, merges=[])
    assert first + len(specials) <= size
    return dict(
        version="1.0",
        truncation=None,
        padding=None,
        normalizer=None,
        pre_tokenizer=level,
        post_processor=None,
        decoder=level,
        added_tokens=[dict(id=first + i, content=text, **kind) for i, text in enumerate(specials)],
        model=model | dict(vocab=vocabulary, continuing_subword_prefix="", end_of_word_suffix=""),
    )


def fill(model, layout=lambda name, value: (name, value.shape)) -> dict:
    """Gives a model the formula's weights; returns the names and shapes of the file. `layout` maps a tensor of the model
    to its name and shape in the file; a shape in another order is transposed back."""
    tensors, weights = {}, []
    for name, value in tree_flatten(model.parameters()):
        stored, shape = layout(name, value)
        tensors[stored] = list(shape)
        weight = formula(stored, list(shape))
        if "running_var" in stored:
            tensors[stored] = dict(shape=list(shape), dtype="F32", **{"from": 0.5, "to": 1.5})
            weight = formula(stored, tensors[stored])
        # The times of an aligner differ only if its marks attend to few places, and these count more than the mark.
        ranges = {"embed_tokens": (-0.02, 0.02), "q_norm": (6.0, 9.0)}
        for part, (start, end) in ranges.items() if "Aligner" in type(model).__name__ else ():
            if part in stored:
                tensors[stored] = dict(shape=list(shape), dtype="F32", **{"from": start, "to": end})
                weight = formula(stored, tensors[stored])
        if list(shape) != list(value.shape):
            axes = (0, 2, 1) if len(shape) == 3 else (0, 2, 3, 1)
            weight = weight.transpose(*axes)
        weights.append((name, weight))
    model.update(tree_unflatten(weights))
    model.eval()
    return tensors


def sensevoice() -> dict:
    from mlx_audio.stt.models.sensevoice.config import ModelConfig
    from mlx_audio.stt.models.sensevoice.sensevoice import SenseVoiceSmall

    config = dict(
        model_type="sensevoice",
        vocab_size=60,
        input_size=280,
        encoder_conf=dict(output_size=32, attention_heads=2, linear_units=48, num_blocks=3, tp_blocks=2, kernel_size=5),
        frontend_conf=dict(n_mels=40, lfr_m=7, lfr_n=6),
    )
    model = SenseVoiceSmall(ModelConfig.from_dict(json.loads(json.dumps(config))))
    flip = lambda name, value: (name, [value.shape[0], value.shape[2], value.shape[1]] if "fsmn" in name else value.shape)
    tensors = fill(model, flip)
    shift, scale = (np.array(formula(name, [280])) for name in ("shift", "scale.norm"))
    rows = [" ".join(f"{x:.6f}" for x in row) for row in (shift * 4 - 8, scale * 0.3)]
    means = "<AddShift> 280 280\n<LearnRateCoef> 0 [ {} ]\n<Rescale> 280 280\n<LearnRateCoef> 0 [ {} ]\n".format(*rows)
    pieces = [("▁" if i % 3 == 0 else "") + f"t{i}" for i in range(60)]
    files = {"am.mvn": means, "tokens.json": json.dumps(pieces)}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        model = SenseVoiceSmall.post_load_hook(model, Path(folder))
    audio = mx.array(sound(2.0))
    features = model._extract_features(audio)
    result = model.generate(audio, language="en", use_itn=True)
    ids, _ = model._greedy_ctc_decode(model(features[None], language="en", use_itn=True)[0][4:])
    text = dict(tokens=ids, text=result.text, emotion=result.segments[0]["emotion"], event=result.segments[0]["event"])
    return dict(name="sensevoice", config=config, tensors=tensors, files=files, features=places(features), transcript=text)


def moonshine() -> dict:
    from mlx_audio.stt.models.moonshine.config import ModelConfig
    from mlx_audio.stt.models.moonshine.moonshine import Model

    config = dict(
        model_type="moonshine",
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
    )
    model = Model(ModelConfig.from_dict(config))
    flip = lambda name, value: (
        f"model.{name}",
        [value.shape[0], value.shape[2], value.shape[1]] if "conv" in name and value.ndim == 3 else value.shape,
    )
    tensors = fill(model, flip)
    audio = mx.array(sound(2.0))
    encoded = model.encoder(audio)
    given = [5, 77, 130, 200]
    hidden, _ = model.decoder(mx.array([[1, *given[:-1]]]), encoded)
    score = logprobs(model._get_logits(hidden)[0], given)
    written = []
    model._decode_tokens = lambda tokens: written.extend(tokens) or ""
    model.generate(audio, max_tokens=20)
    return dict(
        name="moonshine",
        config=config,
        tensors=tensors,
        files={"tokenizer.json": json.dumps(byte_level(320, [], 320))},
        encoder=places(encoded),
        score=dict(prompt=1, tokens=given, logprobs=score),
        transcript=dict(tokens=written),
        max_tokens=20,
    )


def qwen3_asr() -> dict:
    from mlx_audio.stt.models.qwen3_asr.config import ModelConfig
    from mlx_audio.stt.models.qwen3_asr.qwen3_asr import Qwen3ASRModel

    specials = "<|endoftext|> <|im_start|> <|im_end|> <|audio_start|> <|audio_end|> <|audio_pad|> <asr_text>".split()
    size, first = 400, 393
    config = dict(
        model_type="qwen3_asr",
        audio_token_id=first + 5,
        audio_config=dict(
            num_mel_bins=40,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=48,
            d_model=32,
            n_window=50,
            output_dim=48,
            n_window_infer=200,
            downsample_hidden_size=12,
        ),
        text_config=dict(
            vocab_size=size,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
        ),
    )
    model = Qwen3ASRModel(ModelConfig.from_dict(json.loads(json.dumps(config))))
    def torch(name: str, value: mx.array) -> tuple:
        if "conv2d" in name and value.ndim == 4:
            return f"thinker.{name}", [value.shape[0], value.shape[3], value.shape[1], value.shape[2]]
        return f"thinker.{name}", value.shape

    tensors = fill(model, torch)
    files = {
        "tokenizer.json": json.dumps(byte_level(size, specials, first)),
        "tokenizer_config.json": json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<|im_end|>")),
        "preprocessor_config.json": json.dumps(
            dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=40, sampling_rate=RATE)
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (files | {"config.json": json.dumps(config)}).items():
            (Path(folder) / name).write_text(text)
        model = Qwen3ASRModel.post_load_hook(model, Path(folder))
    audio = sound(5.3)
    features, mask, count = model._preprocess_audio(audio)
    encoded = model.get_audio_features(features, mask)
    prompt = model._build_prompt(count, "English")
    embedded = model._build_inputs_embeds(prompt, encoded)
    given = [5, 77, 130, 200, first + 6]
    rest = model.model.embed_tokens(mx.array([given[:-1]]))
    logits = model._forward_with_embeds(mx.concatenate([embedded, rest], axis=1))[0, prompt.shape[1] - 1 :]
    written = [int(token) for token, _ in model.stream_generate(audio, max_tokens=12, language="English")]
    return dict(
        name="qwen3_asr",
        config=config,
        tensors=tensors,
        files={name: text for name, text in files.items() if name != "preprocessor_config.json"},
        seconds=5.3,
        features=places(features[0].T),
        encoder=places(encoded),
        score=dict(prompt=prompt.shape[1], tokens=given, logprobs=logprobs(logits, given)),
        transcript=dict(tokens=written),
        max_tokens=12,
    )


def qwen3_forced_aligner(language: str, text: str) -> dict:
    from mlx_audio.stt.models.qwen3_asr.qwen3_forced_aligner import ForcedAlignerConfig, ForcedAlignerModel

    specials = "<|endoftext|> <|im_end|> <|audio_start|> <|audio_end|> <|audio_pad|> <timestamp>".split()
    size, first = 400, 393
    config = dict(
        model_type="qwen3_asr",
        timestamp_token_id=first + 5,
        timestamp_segment_time=80,
        thinker_config=dict(
            model_type="qwen3_forced_aligner",
            audio_token_id=first + 4,
            classify_num=60,
            audio_config=dict(
                num_mel_bins=40,
                encoder_layers=2,
                encoder_attention_heads=2,
                encoder_ffn_dim=48,
                d_model=32,
                n_window=50,
                output_dim=48,
                n_window_infer=200,
                downsample_hidden_size=12,
            ),
            text_config=dict(
                vocab_size=size,
                hidden_size=48,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
            ),
        ),
    )
    model = ForcedAlignerModel(ForcedAlignerConfig.from_dict(json.loads(json.dumps(config))))

    def torch(name: str, value: mx.array) -> tuple:
        if "conv2d" in name and value.ndim == 4:
            return f"thinker.{name}", [value.shape[0], value.shape[3], value.shape[1], value.shape[2]]
        return f"thinker.{name}", value.shape

    tensors = fill(model, torch)
    files = {
        "tokenizer.json": json.dumps(byte_level(size, specials, first)),
        "tokenizer_config.json": json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<|im_end|>")),
    }
    extractor = dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=40, sampling_rate=RATE)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (files | {"preprocessor_config.json": json.dumps(extractor)}).items():
            (Path(folder) / name).write_text(content)
        # The tokenizer is read by its own class, because the config has a type that transformers does not have.
        (Path(folder) / "config.json").write_text(json.dumps(dict(model_type="qwen3")))
        model = ForcedAlignerModel.post_load_hook(model, Path(folder))
    audio = sound(3.3)
    features, mask, _ = model._preprocess_audio(audio)
    result = model.generate(audio, text, language)
    # mlx-audio 0.6.2 returns one result or a list.
    items = (result[0] if isinstance(result, list) else result).items
    return dict(
        name="qwen3_forced_aligner " + language,
        config=config,
        tensors=tensors,
        files=files,
        seconds=3.3,
        features=places(features[0].T),
        encoder=places(model.get_audio_features(features, mask)),
        align=dict(text=text, language=language, words=[[item.text, item.start_time, item.end_time] for item in items]),
    )


def parakeet(kind: str) -> dict:
    from mlx_audio.stt.models.parakeet.parakeet import Model, ModelConfig

    size = 30
    pieces = [("▁" if i % 2 == 0 else "") + f"p{i}" for i in range(size)]
    config = dict(
        target="nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        model_defaults=dict(tdt_durations=[0, 1, 2, 3, 4]) if kind == "tdt" else {},
        preprocessor=dict(
            sample_rate=RATE,
            normalize="per_feature",
            window_size=0.025,
            window_stride=0.01,
            window="hann",
            features=32,
            n_fft=512,
            dither=0.0,
        ),
        encoder=dict(
            feat_in=32,
            n_layers=2,
            d_model=32,
            n_heads=4,
            ff_expansion_factor=2,
            subsampling_factor=8,
            self_attention_model="rel_pos",
            subsampling="dw_striding",
            conv_kernel_size=5,
            subsampling_conv_channels=8,
            pos_emb_max_len=500,
            xscaling=kind == "ctc",
        ),
        decoder=dict(blank_as_pad=True, vocab_size=size, prednet=dict(pred_hidden=24, pred_rnn_layers=2)),
        joint=dict(
            num_classes=size,
            vocabulary=pieces,
            num_extra_outputs=5 if kind == "tdt" else 0,
            jointnet=dict(joint_hidden=28, activation="relu", encoder_hidden=32, pred_hidden=24),
        ),
        decoding=dict(model_type="tdt", durations=[0, 1, 2, 3, 4], greedy=dict(max_symbols=10)),
    )
    if kind == "ctc":
        config["target"] = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
        config["decoder"] = dict(feat_in=32, num_classes=size, vocabulary=pieces)
        del config["joint"]
    model = Model(ModelConfig.from_dict(json.loads(json.dumps(config))))
    tensors = fill(model)
    features = model._log_mel_spectrogram(mx.array(sound(2.0)))
    encoded, _ = model.encoder(features)
    result = model.decode(features)[0]
    tokens = [token for sentence in result.sentences for token in sentence.tokens]
    return dict(
        name=f"parakeet_{kind}",
        config=config,
        tensors=tensors,
        features=places(features),
        encoder=places(encoded),
        transcript=dict(tokens=[token.id for token in tokens], text=result.text),
    )


def whisper(layout: str) -> dict:
    from mlx_audio.stt.models.whisper.audio import N_SAMPLES, log_mel_spectrogram, pad_or_trim
    from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions

    width = 16
    config = dict(
        model_type="whisper",
        num_mel_bins=80,
        max_source_positions=1500,
        d_model=width,
        encoder_attention_heads=2,
        encoder_layers=2,
        vocab_size=51865,
        max_target_positions=448,
        decoder_attention_heads=2,
        decoder_layers=2,
        # Published configs have these, too.
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        activation_function="gelu",
        scale_embedding=False,
    )
    dims = ModelDimensions.from_dict(config)
    model = Model(dims, mx.float32)
    names = [
        ("decoder.positional_embedding", "decoder.embed_positions.weight"),
        ("encoder.ln_post.", "encoder.layer_norm."),
        ("decoder.ln.", "decoder.layer_norm."),
        (".blocks.", ".layers."),
        (".cross_attn_ln.", ".encoder_attn_layer_norm."),
        (".attn_ln.", ".self_attn_layer_norm."),
        (".mlp_ln.", ".final_layer_norm."),
        (".mlp1.", ".fc1."),
        (".mlp2.", ".fc2."),
        (".cross_attn.", ".encoder_attn."),
        (".attn.", ".self_attn."),
        (".query.", ".q_proj."),
        (".key.", ".k_proj."),
        (".value.", ".v_proj."),
        (".out.", ".out_proj."),
        ("decoder.token_embedding.", "decoder.embed_tokens."),
    ]

    def hugging_face(name: str, value: mx.array) -> tuple:
        for own, theirs in names:
            name = name.replace(own, theirs)
        shape = value.shape if value.ndim < 3 else [value.shape[0], value.shape[2], value.shape[1]]
        return f"model.{name}", shape

    tensors = fill(model, hugging_face) if layout == "transformers" else fill(model)
    if layout == "mlx":
        config = {key: getattr(dims, key) for key in dims.__dataclass_fields__} | dict(model_type="whisper")
    features = pad_or_trim(log_mel_spectrogram(mx.array(sound(2.0)), 80, padding=N_SAMPLES), 3000, axis=-2)
    encoded = model.encoder(features[None])
    prompt, given = [50258, 50259, 50359, 50363], [440, 9000, 12345, 50256, 300, 7]
    logits = model.logits(mx.array([prompt + given[:-1]]), encoded)[0, len(prompt) - 1 :]
    return dict(
        name=f"whisper_{layout}",
        config=config,
        tensors=tensors,
        features=places(features),
        encoder=places(encoded),
        score=dict(prompt=4, tokens=given, logprobs=logprobs(logits, given)),
    )


def voxtral() -> dict:
    from mlx_audio.stt.models.voxtral.config import ModelConfig
    from mlx_audio.stt.models.voxtral.voxtral import Model
    from mlx_audio.stt.models.whisper.audio import log_mel_spectrogram, pad_or_trim
    from mlx_audio.stt.models.whisper.whisper import sinusoids

    specials = "<s> [INST] [BEGIN_AUDIO] [AUDIO] [/INST] [TRANSCRIBE]".split()
    size, first, width = 300, 290, 16
    config = dict(
        model_type="voxtral",
        audio_token_id=first + 3,
        audio_config=dict(
            num_mel_bins=40,
            d_model=width,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=48,
            intermediate_size=4 * width,
        ),
        text_config=dict(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        ),
    )
    model = Model(ModelConfig.from_dict(json.loads(json.dumps(config))))
    config["text_config"] |= dict(
        rope_theta=model.config.text_config.rope_theta,
        tie_word_embeddings=model.config.text_config.tie_word_embeddings,
    )
    flip = lambda name, value: (
        name,
        [value.shape[0], value.shape[2], value.shape[1]] if "conv" in name and value.ndim == 3 else value.shape,
    )
    tensors = fill(model, flip)
    del tensors["audio_tower.embed_positions.weight"]
    model.audio_tower.embed_positions.weight = sinusoids(1500, width)
    audio = pad_or_trim(mx.array(sound(2.0)), 30 * RATE)
    features = log_mel_spectrogram(audio, 40)
    encoded = model.get_audio_embeds(features[None])
    prompt = [first, first + 1, first + 2, *[first + 3] * len(encoded), first + 4, *b"lang:en", first + 5]
    given = [5, 77, 130, 200]
    logits = model(mx.array([prompt + given[:-1]]), features[None])[0, len(prompt) - 1 :]
    return dict(
        name="voxtral",
        config=config,
        tensors=tensors,
        files={"tokenizer.json": json.dumps(byte_level(size, specials, first))},
        features=places(features),
        encoder=places(encoded),
        score=dict(prompt=len(prompt), tokens=given, logprobs=logprobs(logits, given)),
    )


CASES = [
    lambda: whisper("transformers"),
    lambda: whisper("mlx"),
    sensevoice,
    moonshine,
    qwen3_asr,
    lambda: qwen3_forced_aligner("English", "It's well-known, isn't it? Numbers: 12 \u4f60\u597d!"),
    lambda: qwen3_forced_aligner("Chinese", "\u4f60\u597d, hello-you \u4e16\u754c\u3002"),
    voxtral,
    lambda: parakeet("tdt"),
    lambda: parakeet("rnnt"),
    lambda: parakeet("ctc"),
]

if __name__ == "__main__":
    lines = [json.dumps(case(), ensure_ascii=False) for case in CASES]
    OUTPUT.write_text("[\n" + ",\n".join(lines) + "\n]\n")
