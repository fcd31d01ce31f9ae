//! Dependencies point one way: core <- {pruners, encoders, models} <- sdk <- cli.

use std::collections::BTreeMap;
use std::process::Command;

/// Which of our crates each of our crates may name (dev-dependencies aside).
const ALLOWED: &[(&str, &[&str])] = &[
    ("secateur-core", &[]),
    ("secateur-pruners", &["secateur-core"]),
    ("secateur-encoders", &["secateur-core"]),
    ("secateur-models", &["secateur-core"]),
    ("secateur", &["secateur-core", "secateur-pruners", "secateur-encoders", "secateur-models"]),
    ("secateur-cli", &["secateur", "secateur-core"]),
    (
        "secateur-tests",
        &[
            "secateur",
            "secateur-cli",
            "secateur-core",
            "secateur-pruners",
            "secateur-encoders",
            "secateur-models",
        ],
    ),
    ("secateur-examples", &["secateur", "secateur-cli"]),
    ("secateur-benches", &["secateur", "secateur-core", "secateur-pruners"]),
];

#[test]
fn crates_name_only_those_below_them() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline"])
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(packages.len(), ALLOWED.len(), "every crate has a row in ALLOWED");
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} has no row in ALLOWED"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let normal = dependency["kind"].is_null();
            if !normal || dependency["path"].is_null() {
                continue;
            }
            let on = dependency["name"].as_str().expect("a name");
            assert!(may.contains(&on), "{name} must not depend on {on}");
        }
    }
}
