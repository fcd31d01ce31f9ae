//! The examples are in `src/bin`; `cargo run -p secateur-examples --bin NAME`.
