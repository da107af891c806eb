//! Families of vision models, one file or folder for each, and their list.

crate::families::entry::vision_families! {}
