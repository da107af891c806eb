"""The reference is mlx-audio's `llama`, with the package snac for its codec."""

from spoken_codes import case, frames

MODULE = "mlx_audio.tts.models.llama.llama"
# The tokenizer comes from the fixture.
import transformers  # noqa: E402

transformers.AutoTokenizer.from_pretrained = lambda *_, **__: None

LLAMA = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=156940,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=dict(
        factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192, rope_type="llama3"
    ),
    tie_word_embeddings=False,
)
CYCLE = frames(128266, 3)
# The end of the prompt, the beginning of speech, and three frames again and again.
SPEECH = [128260, 128261, 128257, *CYCLE, CYCLE[0]]


def cases() -> list[dict]:
    return [
        case("frames", MODULE, LLAMA, "Hello, you\n\nthere.", SPEECH, voice="tara", max_tokens=2 + 7 * 12),
        case(
            "a cloned voice", MODULE, LLAMA | dict(model_type="llama_tts", sample_rate=24000), "Hello.", SPEECH,
            reference=dict(samples=90, text="a tone"), max_tokens=2 + 7 * 2,
        ),
        case("tied", MODULE, LLAMA | dict(tie_word_embeddings=True), "Hello", voice="leo", max_tokens=6),
    ]
