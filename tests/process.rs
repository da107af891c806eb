//! What models do to the process that they share. Some of these tests measure the memory of the whole
//! process and hold [`mynah_tests::BUSY`] for it, so no other tests belong in this binary.

mod engine;
mod failures;
mod loading;
mod packings;
