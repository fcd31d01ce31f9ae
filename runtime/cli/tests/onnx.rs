//! `--encoder` through the real program. Needs the feature `onnx` and `ORT_DYLIB_PATH`; otherwise
//! tests skip and say so, unless `SECATEUR_REQUIRE` names `onnx`.

mod support;

use std::path::Path;

use support::{run, secateur, skipped, texts};

fn root(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path).display().to_string()
}

#[test]
fn an_onnx_tower_gives_the_caption_of_the_native_one() {
    let library = std::env::var_os("ORT_DYLIB_PATH").filter(|_| cfg!(feature = "onnx"));
    let Some(library) = library else {
        skipped("onnx", "ORT_DYLIB_PATH is not set, or a build without `onnx`");
        return;
    };
    let folder = support::pictures(2);
    let model = root("tests/golden/models/llava-1.5-tiny");
    let tower = root("encoders/tests/golden/llava-1.5-tiny.onnx");
    let caption = |extra: &[&str]| {
        let same = ["caption", "in", "--format", "jsonl", "--max-tokens", "12", "--dtype", "f32"];
        let args = [&same[..], &["-m", &model], extra].concat();
        let output = secateur(folder.path())
            .env("ORT_DYLIB_PATH", &library)
            .args(args)
            .output()
            .expect("the program starts");
        let (code, out, err) = texts(&output);
        assert_eq!(code, 0, "{err}");
        support::records(&out)
    };
    let (native, exported) = (caption(&[]), caption(&["--encoder", &tower]));
    assert_eq!(native.len(), 2);
    for (path, record) in &native {
        assert_eq!(record["caption"], exported[path]["caption"], "{path}");
        assert_ne!(record["fingerprint"], exported[path]["fingerprint"], "{path}");
    }
    // Another model's tower is refused before anything runs.
    let other = root("encoders/tests/golden/llava-onevision-tiny.onnx");
    let wrong = ["explain", "-m", &model, "--encoder", &other];
    let output =
        secateur(folder.path()).env("ORT_DYLIB_PATH", &library).args(wrong).output().unwrap();
    let (code, _, err) = texts(&output);
    assert_eq!(code, 1);
    assert!(err.contains("llava-onevision-tiny.onnx") && err.contains("siglip"), "{err}");
}

#[test]
fn what_is_missing_is_said_with_its_remedy() {
    let folder = support::pictures(1);
    let args = ["ask", "-i", "in/000.png", "What?", "--encoder", "tower.onnx"];
    let (code, _, err) = texts(&run(folder.path(), &args));
    assert_ne!(code, 0);
    let word = if cfg!(feature = "onnx") { "no such file" } else { "--features onnx" };
    assert!(err.contains("tower.onnx") && err.contains(word), "{err}");
}
