//! Files that lie: every mutant of a checkpoint or configuration is refused with an error that
//! names the file, or loads; none panics, none makes the process allocate by its word.
//!
//! `SECATEUR_FULL=1` runs two thousand mutants of the checkpoint instead of three hundred.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use secateur::{Precision, Request, Vlm};
use secateur_core::weights::Weights;
use secateur_tests::golden;
use serde_json::Value;

fn model_copy(folder: &Path) -> PathBuf {
    let to = folder.join("model");
    std::fs::create_dir_all(&to).expect("a folder");
    for entry in
        std::fs::read_dir(golden().join("models/llava-1.5-tiny")).expect("the model").flatten()
    {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
    to
}

/// Writes a file in one go: nobody reads the folder of a test meanwhile.
fn put(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(bytes).expect("written");
}

/// Opens a model; `Err(text)` holds its error, a panic fails the test with the mutant's name.
fn open(model: &Path, mutant: &str) -> Result<Vlm, String> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        Vlm::builder(model).precision(Precision::F32).threads(1).open()
    }));
    opened.unwrap_or_else(|_| panic!("{mutant}: it panicked")).map_err(|e| e.to_string())
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

fn header(bytes: &[u8]) -> (usize, Value) {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    (length, serde_json::from_slice(&bytes[8..8 + length]).expect("a header"))
}

fn with_header(bytes: &[u8], length: usize, header: &Value) -> Vec<u8> {
    let text = header.to_string();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&bytes[8 + length..]);
    out
}

/// One lie about one tensor, or about the file.
fn mutant(bytes: &[u8], random: &mut Random) -> (String, Vec<u8>) {
    let (length, mut head) = header(bytes);
    let names: Vec<String> = head
        .as_object()
        .expect("an object")
        .keys()
        .filter(|k| *k != "__metadata__")
        .cloned()
        .collect();
    let name = names[random.below(names.len())].clone();
    let kind = random.below(10);
    let tensor = &mut head[&name];
    match kind {
        0 => {
            let lie = [0u64, 7, 1 << 40, u64::MAX, length as u64 + 1][random.below(5)];
            let mut out = bytes.to_vec();
            out[..8].copy_from_slice(&lie.to_le_bytes());
            return (format!("header length {lie}"), out);
        }
        1 => {
            let at = random.below(bytes.len());
            return (format!("cut at {at}"), bytes[..at].to_vec());
        }
        2 => tensor["data_offsets"][1] = Value::from(u64::MAX),
        3 => tensor["data_offsets"] = serde_json::json!([0, 16]),
        4 => tensor["shape"] = serde_json::json!([u64::MAX, u64::MAX]),
        5 => tensor["shape"] = serde_json::json!([1usize << 31, 2]),
        6 => tensor["dtype"] = Value::from(["F16", "F64", "U8", "BF16", "NOPE"][random.below(5)]),
        7 => tensor["shape"] = serde_json::json!([]),
        8 => {
            head.as_object_mut().expect("an object").remove(&name);
        }
        _ => {
            let mut out = bytes.to_vec();
            let at = 8 + random.below(length);
            out[at] ^= 1 << random.below(8);
            return (format!("bit flipped at {at}"), out);
        }
    }
    (format!("kind {kind} of `{name}`"), with_header(bytes, length, &head))
}

#[test]
fn a_checkpoint_that_lies_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_copy(folder.path());
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("the weights");
    let rounds = if std::env::var_os("SECATEUR_FULL").is_some() { 2000 } else { 300 };
    let mut random = Random(7);
    let mut refused = 0;
    for _ in 0..rounds {
        let (name, lie) = mutant(&bytes, &mut random);
        put(&path, &lie);
        if let Err(error) = open(&model, &name) {
            refused += 1;
            assert!(
                error.contains("model.safetensors")
                    || error.contains("model`")
                    || error.contains("/model"),
                "{name}: {error}"
            );
        }
    }
    assert!(refused > rounds / 2, "only {refused} of {rounds} mutants were refused");
}

/// Every length, type and count of a GGUF file that lies: an error that names the file, or a model
/// that opens; `SECATEUR_FULL=1` takes every byte of the two headers.
#[test]
fn a_gguf_file_that_lies_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = golden().join("gguf/smolvlm-tiny");
    let truth = ["model.gguf", "mmproj.gguf"]
        .map(|file| (file, std::fs::read(source.join(file)).expect("the file")));
    for (file, bytes) in &truth {
        put(&folder.path().join(file), bytes);
    }
    let model = folder.path().join("model.gguf");
    open(&model, "the truth").expect("it opens");
    let full = std::env::var_os("SECATEUR_FULL").is_some();
    let mut random = Random(11);
    for (file, bytes) in &truth {
        let path = folder.path().join(file);
        // Headers of the tiny files: keys and tensors end long before this.
        let header = bytes.len().min(24 << 10);
        let rounds = if full { header } else { 250 };
        let mut refused = 0;
        for round in 0..rounds {
            let mut lie = bytes.clone();
            let mutant = if round % 5 == 0 {
                lie.truncate(random.below(bytes.len()));
                format!("{file} cut at {}", lie.len())
            } else {
                let at = if full { round } else { random.below(header) };
                let with = [0xff, 0x00, lie[at] ^ 0x80, lie[at].wrapping_add(1)][round % 4];
                lie[at] = with;
                format!("{file}: byte {at} is {with}")
            };
            put(&path, &lie);
            if let Err(error) = open(&model, &mutant) {
                refused += 1;
                assert!(error.contains(".gguf"), "{mutant}: {error}");
            }
        }
        assert!(refused >= rounds / 8, "only {refused} of {rounds} mutants of {file} were refused");
        put(&path, bytes);
    }
    std::fs::remove_file(folder.path().join("mmproj.gguf")).expect("removed");
    let error = open(&model, "no projector").expect_err("refused");
    assert!(error.contains("mmproj"), "{error}");
    for name in ["mmproj-a.gguf", "mmproj-b.gguf"] {
        put(&folder.path().join(name), &truth[1].1);
    }
    let error = open(&model, "two projectors").expect_err("refused");
    assert!(error.contains("mmproj-a.gguf") && error.contains("--mmproj"), "{error}");
}

#[test]
fn an_index_that_leads_elsewhere_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (shard, reason) in [("../model.safetensors", "outside"), ("absent.safetensors", "absent")] {
        let index = serde_json::json!({ "weight_map": { "a": shard } }).to_string();
        put(&folder.path().join("model.safetensors.index.json"), index.as_bytes());
        // A shard that is not there is missed by the tensor that needs it.
        let read = Weights::open(folder.path()).and_then(|weights| weights.tensor("a", &[1]));
        let error = read.expect_err("refused").to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn weights_that_are_not_numbers_name_the_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_copy(folder.path());
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("the weights");
    let (length, head) = header(&bytes);
    let name = head
        .as_object()
        .expect("an object")
        .keys()
        .find(|k| k.contains("layers.3.mlp.down_proj"))
        .filter(|k| !k.contains("vision"))
        .cloned()
        .expect("a decoder layer");
    let range = &head[&name]["data_offsets"];
    let at = |i: usize| 8 + length + range[i].as_u64().expect("an offset") as usize;
    bytes[at(0)..at(1)].fill(0xff);
    put(&path, &bytes);
    let vlm = open(&model, "NaN weights").expect("NaN loads");
    let picture = golden().join("images/shapes-160x120.png");
    let request = Request::new("What is this?").path(&picture).expect("a picture");
    let error = vlm.session().ask(request).expect_err("refused");
    assert!(matches!(error, secateur::Error::NonFinite { layer: 3, .. }), "{error}");
}

/// Paths of all integers of a configuration.
fn integers(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(n) if n.is_i64() || n.is_u64() => found.push(path.to_owned()),
        Value::Object(object) => {
            for (key, value) in object {
                integers(value, &format!("{path}/{key}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn a_configuration_that_lies_is_refused_or_harmless() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_copy(folder.path());
    let picture = golden().join("images/a_p4_9x5.png");
    for file in ["config.json", "preprocessor_config.json"] {
        let path = model.join(file);
        let truth = std::fs::read(&path).expect("the file");
        let config: Value = serde_json::from_slice(&truth).expect("JSON");
        let mut paths = Vec::new();
        integers(&config, "", &mut paths);
        assert!(paths.len() >= 3, "{file} has integers");
        for at in &paths {
            let old = config.pointer(at).and_then(Value::as_i64).expect("an integer");
            let lies = [
                Value::from(0),
                Value::from(1),
                Value::from(-1),
                Value::from(1i64 << 31),
                Value::from(old.saturating_mul(2)),
                Value::from("seven"),
                Value::Null,
                serde_json::json!([[]]),
            ];
            for lie in lies {
                let mut config = config.clone();
                *config.pointer_mut(at).expect("the field") = lie.clone();
                put(&path, config.to_string().as_bytes());
                let mutant = format!("{file}{at} = {lie}");
                // What opens must also run, or say why not.
                if let Ok(vlm) = open(&model, &mutant) {
                    let request =
                        Request::new("x").path(&picture).expect("a picture").max_tokens(2);
                    let ran = catch_unwind(AssertUnwindSafe(|| {
                        vlm.session().ask(request).and_then(secateur::Stream::finish)
                    }));
                    let ran = ran.unwrap_or_else(|_| panic!("{mutant}: it panicked"));
                    assert!(
                        !matches!(ran, Err(secateur::Error::Internal(_))),
                        "{mutant}: {}",
                        ran.err().map(|e| e.to_string()).unwrap_or_default()
                    );
                }
            }
        }
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        put(&path, deep.as_bytes());
        let error = open(&model, "deep JSON").expect_err("refused");
        assert!(error.contains(file), "{error}");
        put(&path, &truth);
    }
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_copy(folder.path());
    put(&model.join("config.json"), br#"{ "model_type": "mystery" }"#);
    let error = open(&model, "unknown").expect_err("refused");
    assert!(
        error.contains("mystery") && error.contains("llava") && error.contains("qwen2_5_vl"),
        "{error}"
    );
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let vlm = open(&golden().join("models/llava-1.5-tiny"), "the model").expect("it opens");
    let error = vlm.session().ask(Request::new("word ".repeat(4000))).expect_err("refused");
    assert!(
        matches!(error, secateur::Error::Context { need, have: 2048 } if need > 2048),
        "{error}"
    );
}
