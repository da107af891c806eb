"""The reference is mlx-audio's `qwen3`, with the package snac for its codec."""

from spoken_codes import case, frames

MODULE = "mlx_audio.tts.models.qwen3.qwen3"
QWEN = dict(
    model_type="qwen3",
    architectures=["Qwen3ForCausalLM"],
    vocab_size=180352,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    tie_word_embeddings=False,
)
# The end of the prompt, the beginning of speech, three frames, and the end of speech.
SPEECH = [151673, 151674, 151670, *frames(151679, 3), 151671]


def cases() -> list[dict]:
    return [case("frames", MODULE, QWEN, "Hello, you\nthere.", SPEECH, voice="Ana")]
