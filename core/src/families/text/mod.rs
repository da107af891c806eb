//! Families of text models: one file or folder for each, and their list.

mod afm7;
mod afmoe;
mod apertus;
mod baichuan_m1;
mod bailing_moe;
mod bitnet;
mod cohere;
mod cohere2;
mod dbrx;
mod deepseek;
mod deepseek_v2;
mod deepseek_v3;
mod deepseek_v32;
mod deepseek_v41;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone;
mod exaone4;
mod exaone_moe;
mod gemma;
mod gemma2;
mod gemma3_text;
mod gemma3n;
mod gemma4_text;
mod glm;
mod glm4;
mod glm4_moe;
mod glm4_moe_lite;
mod glm_moe_dsa;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod granitemoe;
mod helium;
mod hunyuan;
mod hunyuan_v1_dense;
mod internlm2;
mod internlm3;
mod iquestloopcoder;
mod kimi_k25;
mod klear;
mod laguna;
mod lfm2;
mod lille_130m;
mod llama;
mod llama4;
mod llama4_text;
mod longcat_flash;
mod longcat_flash_ngram;
mod mamba2;
mod mellum;
mod mimo;
mod mimo_v2_flash;
mod minicpm;
mod minicpm3;
mod minimax;
mod minimax_m3_vl;
mod ministral3;
mod mistral3;
mod mistral4;
mod mixtral;
mod muse_glimmer;
mod muse_spark;
mod nanbeige;
mod nanochat;
mod nemotron;
mod nemotron_nas;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod openelm;
mod phi;
mod phi3;
mod phi3small;
mod phimoe;
mod phixtral;
mod plamo;
mod plamo3;
mod qwen;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod seed_oss;
mod smollm3;
mod solar_open;
mod spark2_5;
mod stablelm;
mod starcoder2;
mod step3p5;
mod talkie;
mod telechat3;
mod youtu_llm;

crate::families::family::families! {
    afm7,
    afmoe,
    apertus,
    baichuan_m1,
    bailing_moe,
    bitnet,
    cohere,
    cohere2,
    dbrx,
    deepseek,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    deepseek_v41,
    dots1,
    ernie4_5,
    ernie4_5_moe,
    exaone,
    exaone4,
    exaone_moe,
    gemma,
    gemma2,
    gemma3_text,
    gemma3n,
    gemma4_text,
    glm,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt2,
    gpt_bigcode,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    granitemoe,
    helium,
    hunyuan,
    hunyuan_v1_dense,
    internlm2,
    internlm3,
    iquestloopcoder,
    kimi_k25,
    klear,
    laguna,
    lfm2,
    lille_130m,
    llama,
    llama4,
    llama4_text,
    longcat_flash,
    longcat_flash_ngram,
    mamba2,
    mellum,
    mimo,
    mimo_v2_flash,
    minicpm,
    minicpm3,
    minimax,
    minimax_m3_vl,
    ministral3,
    mistral3,
    mistral4,
    mixtral,
    muse_glimmer,
    muse_spark,
    nanbeige,
    nanochat,
    nemotron,
    nemotron_nas,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    openelm,
    phi,
    phi3,
    phi3small,
    phimoe,
    phixtral,
    plamo,
    plamo3,
    qwen,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    solar_open,
    spark2_5,
    stablelm,
    starcoder2,
    step3p5,
    talkie,
    telechat3,
    youtu_llm,
}
