//! Families of vision models, one file or folder for each, and their list.

crate::families::entry::vision_families! {
    aya_vision,
    gemma3,
    gemma4,
    glm4v,
    idefics3,
    internvl,
    lfm2_vl,
    llama4,
    llava,
    llava_bunny,
    llava_next,
    mistral3,
    paddleocr_vl,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
}
