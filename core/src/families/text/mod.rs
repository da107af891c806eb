//! Families that read and write text.

crate::families::families! {
    ernie4_5,
    gemma3_text,
    gemma4_text,
    gpt_oss,
    granite,
    helium,
    internlm3,
    lfm2,
    llama,
    mamba2,
    mimo,
    qwen2,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    telechat3,
}
