//! The fuzz targets' bodies as properties: over the committed corpus, over damaged copies of it,
//! and over plain noise. `tests/fuzz` runs the same bodies with coverage.
//!
//! `SECATEUR_FULL=1` makes ten times as many copies.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use secateur_tests::fuzz::{TARGETS, Target};

fn seeds(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).expect("a seed");
            (entry.path(), bytes)
        })
        .collect();
    found.sort();
    found
}

/// One way to damage bytes.
#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Flip(usize, u8),
    Repeat(usize, usize),
    Remove(usize, usize),
    Put(usize, Vec<u8>),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |place: usize, bytes: &[u8]| place % (bytes.len() + 1);
        match self {
            Self::Cut(place) => bytes.truncate(at(*place, bytes)),
            Self::Flip(place, with) => {
                let place = at(*place, bytes);
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= *with;
                }
            }
            Self::Repeat(place, length) | Self::Remove(place, length) => {
                let from = at(*place, bytes);
                let to = bytes.len().min(from + length);
                if matches!(self, Self::Repeat(..)) {
                    let part = bytes[from..to].to_vec();
                    bytes.splice(from..from, part);
                } else {
                    bytes.drain(from..to);
                }
            }
            Self::Put(place, what) => {
                let place = at(*place, bytes);
                bytes.splice(place..place, what.iter().copied());
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = 0..1usize << 20;
    let telling = prop::sample::select(vec![
        &b"-1"[..],
        b"0",
        b"1e400",
        b"18446744073709551616",
        b"nan",
        b"null",
        b"[[",
        b"{",
        b"\"",
        b":",
        b",",
        b"=",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0\0\0\0\x80",
        b"\n",
    ]);
    prop_oneof![
        place.clone().prop_map(Damage::Cut),
        (place.clone(), 1u8..).prop_map(|(at, with)| Damage::Flip(at, with)),
        (place.clone(), 1..40usize).prop_map(|(at, n)| Damage::Repeat(at, n)),
        (place.clone(), 1..40usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        (place, telling).prop_map(|(at, what)| Damage::Put(at, what.to_vec())),
    ]
}

fn check(name: &str) {
    let target = TARGETS.iter().find(|t| t.name == name).expect("a target");
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    for (_, bytes) in &seeds {
        (target.body)(bytes);
    }
    let cases = if std::env::var_os("SECATEUR_FULL").is_some() { 4000 } else { 400 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let strategy = (
        prop::sample::select(seeds),
        prop::collection::vec(damage(), 1..6),
        prop::option::weighted(0.1, prop::collection::vec(any::<u8>(), 0..300)),
    );
    TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    )
    .run(&strategy, |((_, mut bytes), damages, noise)| {
        for damage in damages {
            damage.apply(&mut bytes);
        }
        (target.body)(&noise.unwrap_or(bytes));
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// One test a target, and every target has one.
macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        #[test]
        fn every_target_is_run_here_and_has_a_program() {
            let here = [$(stringify!($name)),*];
            assert_eq!(TARGETS.iter().map(|t| t.name).collect::<Vec<_>>(), here);
            for name in here {
                let program = format!("fuzz/fuzz_targets/{name}.rs");
                let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(program);
                assert!(program.is_file(), "{} is missing", program.display());
            }
        }
    };
}

targets!(chain_inline, chain_toml, model_config, picture, weights, gguf, command_config, journal);
