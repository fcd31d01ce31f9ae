//! `cargo fuzz run gguf`: the body is `secateur_tests::fuzz`'s.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secateur_tests::fuzz::body("gguf")(bytes));
