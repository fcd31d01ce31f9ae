//! Pages that would go stale: the tables of `docs/compatibility.md` are made here from those of the
//! program and compared with the file; every message that `docs/troubleshooting.md` explains stands
//! in the source.
//!
//! `SECATEUR_UPDATE_DOCS=1 cargo test -p secateur-tests --test docs` writes them anew.

use std::path::{Path, PathBuf};

use secateur::families::{FAMILIES, FamilyEntry};
use secateur::pruners::{Entry, PRUNERS, registry};
use secateur::{ChainSpec, ModelInfo, ModelSource, Vlm};

const BEGIN: &str = "<!-- tables: begin -->\n";
const END: &str = "<!-- tables: end -->\n";

/// What the table of families does not hold: published checkpoints in its layout, whether GGUF
/// pairs of it are read, and the tiny model of it that stands among the goldens.
struct Known {
    model_type: &'static str,
    checkpoints: &'static str,
    gguf: bool,
    tiny: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        model_type: "llava",
        checkpoints: "`llava-hf/llava-1.5-7b-hf`, `llava-hf/llava-1.5-13b-hf`",
        gguf: true,
        tiny: "llava-1.5-tiny",
    },
    Known {
        model_type: "llava_next",
        checkpoints: "`llava-hf/llava-v1.6-mistral-7b-hf`, `llava-hf/llava-v1.6-vicuna-7b-hf`",
        gguf: false,
        tiny: "llava-next-tiny",
    },
    Known {
        model_type: "llava_onevision",
        checkpoints: "`llava-hf/llava-onevision-qwen2-0.5b-ov-hf`, \
                      `llava-hf/llava-onevision-qwen2-7b-ov-hf`",
        gguf: false,
        tiny: "llava-onevision-tiny",
    },
    Known {
        model_type: "qwen2_vl",
        checkpoints: "`Qwen/Qwen2-VL-2B-Instruct`, `Qwen/Qwen2-VL-7B-Instruct`",
        gguf: true,
        tiny: "qwen2-vl-tiny",
    },
    Known {
        model_type: "qwen2_5_vl",
        checkpoints: "`Qwen/Qwen2.5-VL-3B-Instruct`, `Qwen/Qwen2.5-VL-7B-Instruct`",
        gguf: true,
        tiny: "qwen2.5-vl-tiny",
    },
    Known {
        model_type: "qwen3_vl",
        checkpoints: "`Qwen/Qwen3-VL-2B-Instruct`, `Qwen/Qwen3-VL-4B-Instruct`",
        gguf: true,
        tiny: "qwen3-vl-tiny",
    },
    Known {
        model_type: "smolvlm",
        checkpoints: "`HuggingFaceTB/SmolVLM2-500M-Video-Instruct`, \
                      `HuggingFaceTB/SmolVLM2-2.2B-Instruct`",
        gguf: true,
        tiny: "smolvlm-tiny",
    },
    Known {
        model_type: "idefics3",
        checkpoints: "`HuggingFaceTB/SmolVLM-256M-Instruct`, `HuggingFaceM4/Idefics3-8B-Llama3`",
        gguf: true,
        tiny: "smolvlm-tiny",
    },
    Known {
        model_type: "internvl",
        checkpoints: "`OpenGVLab/InternVL3-1B-hf`, `OpenGVLab/InternVL3-8B-hf`",
        gguf: true,
        tiny: "internvl-tiny",
    },
    Known {
        model_type: "paligemma",
        checkpoints: "`google/paligemma-3b-mix-224`, `google/paligemma2-3b-mix-224` (gated)",
        gguf: false,
        tiny: "paligemma-tiny",
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn known(family: &FamilyEntry) -> &'static Known {
    KNOWN
        .iter()
        .find(|k| k.model_type == family.model_type)
        .unwrap_or_else(|| panic!("KNOWN has no row `{}`", family.model_type))
}

/// A family's model with a decoder of published depth, so that layers of published settings exist.
fn info(family: &FamilyEntry) -> ModelInfo {
    let folder = root().join("tests/golden/models").join(known(family).tiny);
    let outline = Vlm::builder(ModelSource::Folder(folder)).outline().expect("an outline");
    let mut info = outline.info().clone();
    info.decoder.layers = 32;
    info
}

/// `yes`, `fallback` where the pruner's own option makes it run, or `-`.
fn fits(entry: &Entry, info: &ModelInfo) -> &'static str {
    let resolves = |text: &str| {
        let chain =
            registry().build(ChainSpec::parse(text).expect("a chain")).expect("known pruners");
        chain.resolve(info).is_ok()
    };
    let takes_fallback = entry.parameters().any(|p| p.name == "fallback");
    if resolves(entry.example) {
        "yes"
    } else if takes_fallback && resolves(&format!("{}:fallback=column_mean", entry.example)) {
        "`fallback`"
    } else {
        "-"
    }
}

fn tables() -> String {
    let yes = |is: bool| if is { "yes" } else { "-" };
    let mut out = String::from(
        "## Families\n\n| `model_type` | family | published checkpoints in this layout | pictures | \
         video | boxes | GGUF |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for family in FAMILIES {
        let known = known(family);
        out.push_str(&format!(
            "| `{}` | {} | {} | {} | {} | {} | {} |\n",
            family.model_type,
            family.name,
            known.checkpoints,
            if family.several { "several" } else { "one" },
            if family.video { "yes" } else { "frames as pictures" },
            yes(family.boxes),
            yes(known.gguf),
        ));
    }
    out.push_str("\n## Pruners by family\n\n| pruner |");
    for family in FAMILIES {
        out.push_str(&format!(" `{}` |", family.model_type));
    }
    out.push_str(&format!("\n| --- |{}\n", " --- |".repeat(FAMILIES.len())));
    let infos: Vec<ModelInfo> = FAMILIES.iter().map(info).collect();
    for entry in PRUNERS {
        let cells: Vec<&str> = infos.iter().map(|info| fits(entry, info)).collect();
        out.push_str(&format!("| `{}` | {} |\n", entry.name, cells.join(" | ")));
    }
    out
}

#[test]
fn the_tables_of_compatibility_are_those_of_the_program() {
    let path = root().join("docs/compatibility.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let start = text.find(BEGIN).expect("the file marks its tables") + BEGIN.len();
    let end = text.find(END).expect("the file marks the end of its tables");
    let tables = tables();
    if std::env::var_os("SECATEUR_UPDATE_DOCS").is_some() {
        let text = format!("{}{tables}{}", &text[..start], &text[end..]);
        let mut file = std::fs::File::create(&path).unwrap();
        return std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    }
    assert_eq!(
        &text[start..end],
        tables,
        "docs/compatibility.md is stale: SECATEUR_UPDATE_DOCS=1 cargo test -p secateur-tests --test docs"
    );
}

#[test]
fn a_tower_without_a_class_token_needs_the_fallback() {
    let of = |model_type: &str| FAMILIES.iter().find(|f| f.model_type == model_type).unwrap();
    let vtc = PRUNERS.iter().find(|e| e.name == "vtc_cls").unwrap();
    assert_eq!(fits(vtc, &info(of("llava"))), "yes");
    assert_eq!(fits(vtc, &info(of("qwen2_vl"))), "`fallback`");
}

/// The text of all sources, with broken strings joined.
fn sources() -> String {
    let mut text = String::new();
    let mut open: Vec<PathBuf> =
        ["runtime", "models", "encoders", "pruners"].map(|name| root().join(name)).into();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&std::fs::read_to_string(&path).expect("text"));
            }
        }
    }
    let mut lines = text.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |joined, line| joined + line.trim_start())
}

#[test]
fn every_message_that_is_explained_is_one_of_the_program() {
    let text = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let sources = sources();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let mut seen = 0;
    for (message, _) in rows {
        for part in message.split("...").map(str::trim).filter(|part| !part.is_empty()) {
            assert!(sources.contains(part), "no message holds `{part}`");
        }
        seen += 1;
    }
    assert!(seen > 25, "{seen} messages");
}
