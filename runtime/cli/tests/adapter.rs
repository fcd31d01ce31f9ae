//! `--adapter`: an adapter is merged into the model, and is part of what made a caption.

mod support;

use std::path::{Path, PathBuf};

use support::{pictures, records, run, texts};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

#[test]
fn an_adapter_is_part_of_what_made_a_caption() {
    let folder = pictures(1);
    let model = golden("models/llava-1.5-tiny").display().to_string();
    let adapter = golden("bugs/40-adapter-of-every-kind-of-module/adapter").display().to_string();
    let caption = |output: &str, more: &[&str]| {
        let args = ["caption", "in", "-m", &model, "-o", output, "--max-tokens", "4"];
        let (code, _, stderr) = texts(&run(folder.path(), &[&args[..], more].concat()));
        assert_eq!(code, 0, "{stderr}");
        let text = std::fs::read_to_string(folder.path().join(output)).expect("records");
        records(&text).into_values().next().expect("a record")
    };
    let (plain, merged) = (caption("a.jsonl", &[]), caption("b.jsonl", &["--adapter", &adapter]));
    assert_ne!(plain["fingerprint"], merged["fingerprint"]);
    assert_ne!(plain["caption"], merged["caption"]);
    assert_eq!(merged, caption("c.jsonl", &["--adapter", &adapter]));
}

#[test]
fn an_adapter_in_place_of_a_model_names_its_base_and_the_flag() {
    let folder = pictures(1);
    let adapter = golden("bugs/40-adapter-of-every-kind-of-module/adapter").display().to_string();
    let args = ["ask", "What is shown?", "-i", "in/000.png", "-m", &adapter];
    let (code, _, stderr) = texts(&run(folder.path(), &args));
    assert_ne!(code, 0);
    for word in ["adapter", "LORA", "the tiny model", "--adapter"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
}

#[test]
fn a_model_with_an_adapter_in_its_folder_runs_when_it_is_said_what_is_meant() {
    let folder = pictures(1);
    let model = folder.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    for from in ["models/llava-1.5-tiny", "bugs/40-adapter-of-every-kind-of-module/adapter"] {
        for entry in std::fs::read_dir(golden(from)).expect("a folder").flatten() {
            std::fs::copy(entry.path(), model.join(entry.file_name())).expect("a copy");
        }
    }
    let ask = |more: &[&str]| {
        let args =
            ["ask", "What is shown?", "-i", "in/000.png", "-m", "model", "--max-tokens", "2"];
        texts(&run(folder.path(), &[&args[..], more].concat()))
    };
    let (code, _, stderr) = ask(&[]);
    assert!(code != 0 && stderr.contains("also holds an adapter"), "{stderr}");
    let (code, _, stderr) = ask(&["--adapter", "model"]);
    assert_eq!(code, 0, "{stderr}");
    std::fs::remove_file(model.join("adapter_config.json")).expect("a file");
    let (code, _, stderr) = ask(&[]);
    assert_eq!(code, 0, "{stderr}");
}
