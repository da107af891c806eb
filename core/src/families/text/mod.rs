//! Families that read and write text.

crate::families::families! {
    gemma3_text,
    gemma4_text,
    gpt_oss,
    lfm2,
    llama,
    mamba2,
    qwen3,
    qwen3_moe,
}
