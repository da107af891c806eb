//! A tiny chat model that is part of the program.

use crate::checkpoint::files::Files;

/// The demo model: greetings, sums up to 20, days and months, opposites, colours. It fits in two
/// megabytes, and `scripts/demo_model.py` trained it.
pub const DEMO: Files = Files::Embedded(&[
    ("config.json", include_bytes!("../../demo/config.json")),
    ("generation_config.json", include_bytes!("../../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../../demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../demo/tokenizer_config.json")),
]);
