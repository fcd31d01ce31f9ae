//! What the tests of the command share: pictures, folders, and the program itself.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::print_stderr, reason = "a skip says why")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};

/// The program in a folder of its own, with an environment that the tests decide.
pub(crate) fn secateur(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    command.current_dir(folder).env_clear().env("HOME", folder).env("SECATEUR_THREADS", "1");
    command
}

/// Runs the program to its end.
pub(crate) fn run(folder: &Path, args: &[&str]) -> Output {
    secateur(folder).args(args).output().expect("the program starts")
}

/// Exit code, stdout and stderr.
pub(crate) fn texts(output: &Output) -> (i32, String, String) {
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A picture whose colours depend on `seed`.
pub(crate) fn picture(seed: u32) -> RgbImage {
    let side = 24 + seed % 17;
    RgbImage::from_fn(side * 2, side, |x, y| {
        let inside = x / 8 % 3 == seed % 3 && y > 6;
        if inside { Rgb([(seed * 37) as u8, 40, 200]) } else { Rgb([230, (seed * 91) as u8, 90]) }
    })
}

/// A folder with `count` pictures `000.png`, `001.png`, ...
pub(crate) fn pictures(count: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("in")).expect("a folder");
    for i in 0..count {
        picture(i).save(folder.path().join(format!("in/{i:03}.png"))).expect("a picture");
    }
    folder
}

/// Every file below a folder with its bytes, state folders left out.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != ".secateur") {
                    open.push(path);
                }
            } else {
                let name = path.strip_prefix(folder).expect("below").to_path_buf();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// Records by path, without what may differ between runs.
pub(crate) fn records(text: &str) -> BTreeMap<String, serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a JSON line"))
        .filter(|value| value.get("path").is_some())
        .map(|mut value| {
            let object = value.as_object_mut().expect("an object");
            object.remove("ms");
            object.remove("batch");
            // Place and time of the picture.
            object.remove("file");
            (value["path"].as_str().expect("a path").to_owned(), value)
        })
        .collect()
}

/// Writes a file.
pub(crate) fn put(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    fs::File::create(path).expect("a file").write_all(bytes).expect("writing");
}

/// Whether the full numbers were asked for.
pub(crate) fn is_full() -> bool {
    std::env::var_os("SECATEUR_FULL").is_some_and(|v| v == "1")
}

/// Says why a test skips; fails where `SECATEUR_REQUIRE` (a list, by commas) names what it needs.
pub(crate) fn skipped(need: &str, reason: &str) {
    let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r == need), "{need} is required: {reason}");
    eprintln!("skipped: {reason}");
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The commands that the README prints, in order, without their comments.
pub(crate) fn readme_commands() -> Vec<String> {
    let readme = fs::read_to_string(repository().join("README.md")).expect("the README");
    let mut is_console = false;
    let mut commands = Vec::new();
    for line in readme.lines() {
        if line.starts_with("```") {
            is_console = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| is_console) {
            let command = command.split("  # ").next().unwrap_or_default();
            commands.push(command.trim_end().to_owned());
        }
    }
    commands
}
