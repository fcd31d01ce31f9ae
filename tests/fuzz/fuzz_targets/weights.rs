//! `cargo fuzz run weights`: the body is `secateur_tests::fuzz`'s.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secateur_tests::fuzz::body("weights")(bytes));
