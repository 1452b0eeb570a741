//! The benches stand in `benches/`, one file a subject; each asserts its result (CONTRIBUTING.md).
