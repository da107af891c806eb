//! Writes the foreign side of the bindings.

fn main() {
    uniffi::uniffi_bindgen_main();
}
