//! A model folder that is a tiny golden model with faults: what `tests/golden/bugs` is made of.
//!
//! A case is data: the model it starts from, files and keys of its JSON files that are set or
//! deleted, files that are laid over it, and what is done to its tensors. An unknown key of a case
//! is an error, so that a typing mistake cannot make a case pass.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::golden;

/// One case: a folder with `case.json`, and beside it what that names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bug {
    /// Public reports of the situation, for people.
    pub report: String,
    /// Where the expected values are from, for people.
    pub judge: String,
    /// The tiny model to start from; none: an empty folder.
    pub model: Option<String>,
    /// Values to set: file, then path of the key with `/`.
    #[serde(default)]
    set: BTreeMap<String, BTreeMap<String, Value>>,
    /// Keys to delete of a file; none: the file itself.
    #[serde(default)]
    delete: BTreeMap<String, Vec<String>>,
    /// What is done to the tensors, in order.
    #[serde(default)]
    tensors: Vec<Change>,
    /// Folder beside the case of an adapter that is merged into the model.
    pub adapter: Option<String>,
    /// Pictures: `golden:images/x.png`, or a file beside the case.
    #[serde(default)]
    pub images: Vec<String>,
    /// Frames of one video, two a second.
    #[serde(default)]
    pub frames: Vec<String>,
    /// The prompt, with its placeholders unless `chat`.
    pub prompt: String,
    /// Whether the chat template is rendered.
    #[serde(default)]
    pub chat: bool,
    /// Tokens to generate.
    #[serde(default)]
    pub max_tokens: usize,
    /// Largest relative difference of a tensor of floats; the rounding of another order of sums.
    #[serde(default = "tolerance")]
    pub tolerance: f64,
    /// What is right.
    pub expect: Expect,
}

fn tolerance() -> f64 {
    2e-4
}

/// What a run must do.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// Give the tensors of `expected.safetensors`.
    Tensors(bool),
    /// Be refused with a message that holds all these texts.
    Fails(Vec<String>),
    /// End well.
    Runs(bool),
}

/// One change of a checkpoint.
#[derive(Debug, Deserialize)]
#[serde(from = "Vec<Value>")]
enum Change {
    /// Tensors whose name holds the text go.
    Drop(String),
    /// A tensor of zeros.
    Add(String, Dtype, Vec<usize>),
    /// Tensors whose name holds the text get another type.
    Cast(String, Dtype),
    /// Projections are stored fifty times too large, with a scale beside them.
    Scaled(String),
    /// Projections become what AWQ stores.
    Awq(String),
    /// Two shards with an index. `missing`: the second is not there; `dup`: its first tensor stands
    /// in both; `dot`: the index says `./NAME`.
    Shards(Vec<String>),
}

impl From<Vec<Value>> for Change {
    fn from(list: Vec<Value>) -> Self {
        let text = |i: usize| list[i].as_str().expect("a text").to_owned();
        match (text(0).as_str(), list.len()) {
            ("drop", 2) => Change::Drop(text(1)),
            ("add", 4) => {
                let shape = serde_json::from_value(list[3].clone()).expect("a shape");
                Change::Add(text(1), dtype(&text(2)), shape)
            }
            ("cast", 3) => Change::Cast(text(1), dtype(&text(2))),
            ("scaled", 2) => Change::Scaled(text(1)),
            ("awq", 2) => Change::Awq(text(1)),
            ("shards", _) => Change::Shards((1..list.len()).map(text).collect()),
            (other, length) => panic!("no change of tensors `{other}` with {length} entries"),
        }
    }
}

/// A storage type by the name that numpy (or, of the narrow ones, ml_dtypes) gives it.
fn dtype(name: &str) -> Dtype {
    match name {
        "bool" => Dtype::BOOL,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "int32" => Dtype::I32,
        "int64" => Dtype::I64,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float16" => Dtype::F16,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        other => panic!("no storage type `{other}`"),
    }
}

/// A tensor that is about to be written.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn filled(dtype: Dtype, shape: &[usize], element: &[u8]) -> Self {
        let bytes = element.repeat(shape.iter().product());
        Self { dtype, shape: shape.to_vec(), bytes }
    }

    fn floats(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32, "the tiny models are in f32");
        self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn cast(&self, to: Dtype) -> Self {
        let values = self.floats();
        let bytes = match to {
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            Dtype::I64 => values.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect(),
            Dtype::I32 => values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            Dtype::I8 => values.iter().flat_map(|v| (*v as i8).to_le_bytes()).collect(),
            Dtype::U8 => values.iter().map(|v| *v as u8).collect(),
            other => panic!("no cast to {other:?}"),
        };
        Self { dtype: to, shape: self.shape.clone(), bytes }
    }
}

impl safetensors::View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

type Checkpoint = BTreeMap<String, Stored>;

impl Bug {
    /// Reads `case.json` of a folder.
    ///
    /// # Panics
    /// If it is no case: a broken checkout.
    pub fn read(case: &Path) -> Self {
        let text = std::fs::read_to_string(case.join("case.json")).expect("case.json");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", case.display()))
    }

    /// Makes the model folder of the case that lies in `case`; `folder` is not there yet.
    ///
    /// # Panics
    /// If a file cannot be written, or the case speaks of something that is not there.
    pub fn build(&self, case: &Path, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder");
        if let Some(model) = &self.model {
            copy_tree(&golden().join("models").join(model), folder);
        }
        if case.join("overlay").is_dir() {
            copy_tree(&case.join("overlay"), folder);
        }
        for (file, values) in &self.set {
            change_json(&folder.join(file), |root| {
                for (path, value) in values {
                    let (object, key) = parent(root, path);
                    object.insert(key.to_owned(), value.clone());
                }
            });
        }
        for (file, keys) in &self.delete {
            if keys.is_empty() {
                std::fs::remove_file(folder.join(file)).expect("a file to delete");
                continue;
            }
            change_json(&folder.join(file), |root| {
                for path in keys {
                    let (object, key) = parent(root, path);
                    object.remove(key);
                }
            });
        }
        if !self.tensors.is_empty() {
            change_weights(folder, &self.tensors);
        }
    }

    /// The file of a picture that the case in `case` names.
    pub fn picture(case: &Path, name: &str) -> PathBuf {
        name.strip_prefix("golden:").map_or_else(|| case.join(name), |n| golden().join(n))
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).expect("a folder");
            copy_tree(&entry.path(), &target);
        } else {
            // Written anew, not copied: a copy would keep a read-only mode.
            let content = std::fs::read(entry.path()).expect("a file");
            write(&target, &content);
        }
    }
}

fn write(path: &Path, content: &[u8]) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(content).expect("written");
}

fn change_json(path: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|_| "{}".into());
    let mut root: Map<String, Value> = serde_json::from_str(&text).expect("an object");
    change(&mut root);
    write(path, Value::Object(root).to_string().as_bytes());
}

/// The object that holds the last key of a path, and that key.
fn parent<'a, 'b>(
    root: &'a mut Map<String, Value>,
    path: &'b str,
) -> (&'a mut Map<String, Value>, &'b str) {
    let (mut at, mut rest) = (root, path);
    while let Some((key, after)) = rest.split_once('/') {
        at = at.entry(key).or_insert_with(|| json!({})).as_object_mut().expect("an object");
        rest = after;
    }
    (at, rest)
}

fn change_weights(folder: &Path, changes: &[Change]) {
    let single = folder.join("model.safetensors");
    let bytes = std::fs::read(&single).expect("model.safetensors");
    let mut all: Checkpoint = safetensors::SafeTensors::deserialize(&bytes)
        .expect("a safetensors file")
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, stored(&view)))
        .collect();
    let mut shards = None;
    for change in changes {
        match change {
            Change::Drop(part) => {
                let before = all.len();
                all.retain(|name, _| !name.contains(part.as_str()));
                assert!(all.len() < before, "no tensor of `{part}` to drop");
            }
            Change::Add(name, dtype, shape) => {
                let zero = vec![0; dtype.bitsize() / 8];
                all.insert(name.clone(), Stored::filled(*dtype, shape, &zero));
            }
            Change::Cast(part, to) => {
                let mut named =
                    all.iter_mut().filter(|(n, _)| n.contains(part.as_str())).peekable();
                assert!(named.peek().is_some(), "no tensor of `{part}` to cast");
                named.for_each(|(_, tensor)| *tensor = tensor.cast(*to));
            }
            Change::Scaled(part) => {
                for name in projections(&all, part) {
                    let tensor = &all[&name];
                    let values = tensor.floats().into_iter();
                    let bytes = values.flat_map(|v| (v * 50.0).to_le_bytes()).collect();
                    let scale = [tensor.shape[0], 1];
                    let larger = Stored { bytes, ..tensor.clone() };
                    all.insert(name.clone(), larger);
                    let scale = Stored::filled(Dtype::F32, &scale, &0.02f32.to_le_bytes());
                    all.insert(format!("{name}_scale"), scale);
                }
            }
            Change::Awq(part) => {
                for name in projections(&all, part) {
                    let tensor = all.remove(&name).expect("it was listed");
                    let (out, width) = (tensor.shape[0], tensor.shape[1]);
                    let base = name.strip_suffix("weight").expect("a weight");
                    let mut put = |leaf: &str, tensor| all.insert(format!("{base}{leaf}"), tensor);
                    put("qweight", Stored::filled(Dtype::I32, &[width, out / 8], &[0; 4]));
                    put("qzeros", Stored::filled(Dtype::I32, &[1, out / 8], &[0; 4]));
                    let one = f16::ONE.to_le_bytes();
                    put("scales", Stored::filled(Dtype::F16, &[1, out], &one));
                }
            }
            Change::Shards(options) => shards = Some(options),
        }
    }
    match shards {
        None => write_tensors(&single, &all),
        Some(options) => {
            std::fs::remove_file(&single).expect("model.safetensors");
            write_shards(folder, all, options);
        }
    }
}

fn stored(view: &TensorView<'_>) -> Stored {
    Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() }
}

fn projections(all: &Checkpoint, part: &str) -> Vec<String> {
    let names: Vec<String> =
        all.keys().filter(|n| n.contains(part) && n.ends_with("proj.weight")).cloned().collect();
    assert!(!names.is_empty(), "no projection of `{part}`");
    names
}

fn write_tensors(path: &Path, tensors: &Checkpoint) {
    let metadata = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    write(path, &safetensors::serialize(tensors, Some(metadata)).expect("tensors"));
}

fn write_shards(folder: &Path, mut first: Checkpoint, options: &[String]) {
    let given = |option: &str| options.iter().any(|o| o == option);
    let middle = first.keys().nth(first.len() / 2).expect("two tensors").clone();
    let mut second = first.split_off(&middle);
    let place = if given("dot") { "./" } else { "" };
    let mut map = Map::new();
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for (file, part) in files.iter().zip([&first, &second]) {
        map.extend(part.keys().map(|name| (name.clone(), json!(format!("{place}{file}")))));
    }
    if given("dup") {
        let (name, tensor) = first.first_key_value().expect("a tensor");
        second.insert(name.clone(), tensor.clone());
    }
    write_tensors(&folder.join(files[0]), &first);
    if !given("missing") {
        write_tensors(&folder.join(files[1]), &second);
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    write(&folder.join("model.safetensors.index.json"), index.to_string().as_bytes());
}
