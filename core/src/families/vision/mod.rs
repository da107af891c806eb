//! Families of vision models, one file or folder for each, and their list.

use crate::processors::{
    blocks, by_class, canvas, fixed, grids, padded_tiles, patches, rows, smart_resize, tiles,
};

crate::families::entry::vision_families! {
    aya_vision: by_class::lined_or_numbered,
    fastvlm: fixed::squared_and_reduced,
    gemma3: fixed::with_crops,
    gemma4: patches::pooled,
    glm4v: smart_resize::doubled,
    idefics3: tiles::named,
    internvl: grids::plain,
    internvl_chat: grids::chat,
    kimi_vl: blocks::read,
    lfm2_vl: patches::split,
    llama4: padded_tiles::separated,
    llava: by_class::rows_or_centered,
    llava_bunny: fixed::marked,
    llava_next: canvas::read,
    mistral3: rows::read,
    mllama: padded_tiles::crossed,
    paddleocr_vl: blocks::limited,
    paligemma: fixed::with_start_after,
    qwen2_5_vl: smart_resize::read,
    qwen2_vl: smart_resize::read,
    qwen3_5: smart_resize::timed,
    qwen3_vl: smart_resize::timed,
}
