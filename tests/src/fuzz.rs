//! The bodies of the fuzz targets: what any bytes must not do to a parser.
//!
//! Each takes bytes and asserts; a refusal is as good as a result, a panic is a fault of ours. The
//! same bodies run as properties over the committed corpus (`tests/tests/fuzz.rs`) and as
//! coverage-guided targets (`tests/fuzz`, `cargo fuzz`).

use std::path::Path;
use std::sync::OnceLock;

use secateur::families::describe;
use secateur::image::{self, Limits};
use secateur::{ChainSpec, GgufPair, ModelInfo, ModelOptions, ModelSource, Vlm, Weights};
use secateur_core::files::ModelFiles;
use secateur_encoders::processors;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder of seeds in `tests/fuzz/corpus`.
    pub name: &'static str,
    /// Its body.
    pub body: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "chain_inline", body: chain_inline },
    Target { name: "chain_toml", body: chain_toml },
    Target { name: "model_config", body: model_config },
    Target { name: "picture", body: picture },
    Target { name: "weights", body: weights },
    Target { name: "gguf", body: gguf },
    Target { name: "command_config", body: secateur_cli::testkit::command_config },
    Target { name: "journal", body: secateur_cli::testkit::journal },
];

/// The body of a target by name, for the programs of `tests/fuzz`.
///
/// # Panics
/// If there is none of that name.
pub fn body(name: &str) -> fn(&[u8]) {
    TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no target {name}")).body
}

/// What the chains are planned for.
fn model() -> &'static ModelInfo {
    static MODEL: OnceLock<ModelInfo> = OnceLock::new();
    MODEL.get_or_init(|| {
        let outline = Vlm::builder(ModelSource::Embedded).outline().expect("the built-in model");
        outline.info().clone()
    })
}

/// A chain that parses prints as text that parses to the same chain, and is planned or refused.
fn plan(spec: ChainSpec) {
    let printed = spec.to_string();
    let again = ChainSpec::parse(&printed)
        .unwrap_or_else(|e| panic!("{printed:?} was printed and does not parse: {e}"));
    // Compared as text: a chain may hold NaN, which equals nothing.
    assert_eq!(again.to_string(), printed, "parsed and printed again");
    if let Ok(chain) = secateur_pruners::registry().build(spec)
        && let Ok(resolved) = chain.resolve(model())
    {
        for tokens in [0, 1, 256] {
            let _ = resolved.explain(model(), tokens);
        }
    }
}

fn chain_inline(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(spec) = ChainSpec::parse(text)
    {
        plan(spec);
    }
}

fn chain_toml(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(spec) = ChainSpec::from_toml("chain.toml", text)
    {
        plan(spec);
    }
}

/// `config.json` and, behind a line `---`, `preprocessor_config.json`.
fn model_config(bytes: &[u8]) {
    let cut = bytes.windows(5).position(|w| w == b"\n---\n");
    let (config, processor) =
        cut.map_or((bytes, &b"{}"[..]), |at| (&bytes[..at], &bytes[at + 5..]));
    let made = vec![
        ("config.json".to_owned(), config.to_vec()),
        ("preprocessor_config.json".to_owned(), processor.to_vec()),
    ];
    let files = ModelFiles::described("fuzz", Path::new("no such folder/model.gguf"), made);
    if let Ok(description) = describe(&files, ModelOptions::default()) {
        let _ = description.info().visual_tokens;
        let _ = processors::from_files(&files, description.entry.model_type);
    }
}

/// Small limits, so that a run stays fast; a picture that is read keeps to them.
fn picture(bytes: &[u8]) {
    let limits = Limits {
        max_pixels: 1 << 20,
        max_side: 4096,
        max_file_bytes: 1 << 20,
        max_alloc_bytes: 16 << 20,
    };
    if let Ok(clip) = image::decode("fuzz", bytes, &limits) {
        let frame = &clip.frames()[0];
        assert!(frame.width * frame.height <= 1 << 20, "larger than the limit");
    }
}

/// Puts bytes where a reader of files finds them.
fn on_disk(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    let mut file = std::fs::File::create(&path).expect("a file");
    std::io::Write::write_all(&mut file, bytes).expect("written");
    drop(file);
    read(&path);
}

fn weights(bytes: &[u8]) {
    on_disk("model.safetensors", bytes, |path| {
        if let Ok(weights) = Weights::open(path.parent().expect("a folder")) {
            for name in weights.names() {
                let shape = weights.shape_of(name).unwrap_or_default().to_vec();
                let _ = weights.tensor(name, &shape);
            }
        }
    });
}

/// The same bytes as decoder and projector.
fn gguf(bytes: &[u8]) {
    on_disk("model.gguf", bytes, |path| {
        let pair = GgufPair { decoder: path.to_path_buf(), projector: path.to_path_buf() };
        let _ = pair.open();
    });
}
