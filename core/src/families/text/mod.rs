//! Families that read and write text.

crate::families::families! {
    afm7,
    baichuan_m1,
    gemma3_text,
    gemma3n,
    gemma4_text,
    gpt_oss,
    iquestloopcoder,
    lfm2,
    llama,
    llama4_text,
    mamba2,
    muse_glimmer,
    nanbeige,
    nemotron_nas,
    openelm,
    phi3small,
    qwen3,
    qwen3_moe,
    spark2_5,
    talkie,
}
