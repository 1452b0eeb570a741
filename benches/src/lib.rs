//! The benches stand in `benches/`, one file a subject; each asserts its result (docs/style.md).
