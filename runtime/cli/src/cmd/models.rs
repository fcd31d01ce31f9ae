//! `models`: the families that are supported, or what a folder holds.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use secateur::families::{FAMILIES, FamilyEntry, describe};
use secateur::{Load, ModelInfo, ModelOptions, Vlm};
use secateur_core::model::SignalKind;

use crate::args::ModelsArgs;
use crate::hub::{self, Needs};
use crate::job;
use crate::memory::Memory;
use crate::outcome::{Outcome, usage};
use crate::output::{Align, Console, table};

/// Runs the command.
///
/// # Errors
/// A folder that holds no model that is known.
pub(crate) fn run(args: &ModelsArgs, console: &Console) -> Result<Outcome> {
    match &args.model {
        None => families(args.json, console)?,
        Some(model) => folder(model, args, console)?,
    }
    Ok(Outcome::Done)
}

fn signal(kind: &SignalKind) -> &'static str {
    match kind {
        SignalKind::ClsAttention => "cls_attention",
        SignalKind::ColumnMean => "column_mean",
        SignalKind::PoolingAttention => "pooling_attention",
        SignalKind::EncoderMap => "encoder_map",
        SignalKind::EncoderKeys => "encoder_keys",
        SignalKind::EncoderFeatures => "encoder_features",
    }
}

fn signals(entry: &FamilyEntry) -> Vec<&'static str> {
    entry.signals.iter().map(signal).collect()
}

fn families(json: bool, console: &Console) -> Result<()> {
    if json {
        let rows: Vec<serde_json::Value> = FAMILIES
            .iter()
            .map(|f| {
                serde_json::json!({
                    "model_type": f.model_type, "name": f.name, "several_pictures": f.several,
                    "video": f.video, "boxes": f.boxes, "encoder_signals": signals(f),
                })
            })
            .collect();
        return console.json(&serde_json::json!({"schema": "secateur.models/1", "families": rows}));
    }
    let head = ["model_type", "family", "pictures", "video", "boxes", "encoder signals"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let yes = |is: bool| if is { "yes" } else { "-" }.to_owned();
    for family in FAMILIES {
        rows.push(vec![
            family.model_type.to_owned(),
            family.name.to_owned(),
            if family.several { "several" } else { "one" }.to_owned(),
            yes(family.video),
            yes(family.boxes),
            signals(family).join(" "),
        ]);
    }
    console.result(&table(&rows, &[Align::Left; 6]))?;
    console.note(
        "decoder signals (attention rows, transitions, hidden states) are offered by every family",
    );
    Ok(())
}

fn folder(model: &str, args: &ModelsArgs, console: &Console) -> Result<()> {
    hub::fetch(Some(model), Needs::Description, args.offline, console)?;
    let source = job::source(Some(model), args.mmproj.as_deref())?;
    let Some(folder) = source.path()? else {
        return Err(usage("name a folder or a hub id; `explain` describes the built-in model"));
    };
    let files = source.files()?;
    let described = describe(&files, ModelOptions::default())
        .with_context(|| format!("{} is no model that can be run", folder.display()))?;
    let info = described.info();
    let weights = match source.gguf()? {
        Some(pair) => sizes(&[pair.decoder, pair.projector]),
        None => weights_of(&folder),
    };
    // A folder may lack what the processor needs: then it is described all the same.
    let outline = Vlm::builder(job::source(Some(model), args.mmproj.as_deref())?).outline();
    let need = outline.ok().and_then(|o| o.forecast("none", &Load::default()).ok());
    let memory = Memory::read();
    if args.json {
        return console.json(&serde_json::json!({
            "schema": "secateur.model/1", "family": described.entry.name,
            "folder": folder.display().to_string(), "info": info, "weight_files": weights.0,
            "weight_bytes": weights.1, "memory_forecast": need,
            "memory_available_bytes": memory.available,
            "fit": need.map(|need| memory.fit(need.total())),
        }));
    }
    let mut rows = page(described.entry, info, &folder.display().to_string(), weights);
    if let Some(need) = need {
        rows.push(vec!["memory".into(), format!("about {need}, for one picture in bf16")]);
        rows.push(vec!["fits".into(), memory.words(need.total())]);
    }
    console.words(&table(&rows, &[Align::Left; 2]))
}

fn page(
    entry: &FamilyEntry,
    info: &ModelInfo,
    folder: &str,
    weights: (usize, u64),
) -> Vec<Vec<String>> {
    let (encoder, decoder) = (&info.encoder, &info.decoder);
    let weights = match weights {
        (0, _) => "none in the folder: it can be described, not run".to_owned(),
        (files, bytes) => {
            let name = if files == 1 { "file" } else { "files" };
            format!("{files} {name}, {:.1} MiB", bytes as f64 / 1048576.0)
        }
    };
    let mut facts: Vec<&str> = Vec::new();
    if decoder.mrope {
        facts.push("positions on three axes");
    }
    if decoder.prefix_lm {
        facts.push("the prompt sees itself");
    }
    let facts = if facts.is_empty() { String::new() } else { format!(", {}", facts.join(", ")) };
    [
        ("folder", folder.to_owned()),
        ("family", format!("{} ({})", entry.name, entry.model_type)),
        ("weights", weights),
        (
            "vision tower",
            format!(
                "{}, {} of {} layers, {} wide, {}",
                encoder.tower,
                encoder.layers,
                encoder.file_layers,
                encoder.width,
                if encoder.cls { "class token" } else { "no class token" }
            ),
        ),
        (
            "decoder",
            format!(
                "{}, {} layers, {} wide, {} heads ({} for keys), context {}{facts}",
                decoder.kind,
                decoder.layers,
                decoder.hidden,
                decoder.attn_heads,
                decoder.kv_heads,
                decoder.context
            ),
        ),
        ("visual tokens", format!("{} for a picture of the model's own size", info.visual_tokens)),
        ("takes", takes(entry)),
        ("signals", signals(entry).join(", ")),
    ]
    .into_iter()
    .map(|(name, value)| vec![name.to_owned(), value])
    .collect()
}

fn takes(entry: &FamilyEntry) -> String {
    let pictures = if entry.several { "several pictures" } else { "one picture" };
    let video = if entry.video { ", video" } else { "" };
    let boxes = if entry.boxes { "; answers with boxes" } else { "" };
    format!("{pictures}{video}{boxes}")
}

/// Number and bytes of the weight files of a folder.
fn weights_of(folder: &Path) -> (usize, u64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return (0, 0) };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_weights = |p: &PathBuf| p.extension().is_some_and(|e| e == "safetensors");
    sizes(&paths.filter(is_weights).collect::<Vec<_>>())
}

/// Number and bytes of files.
fn sizes(paths: &[PathBuf]) -> (usize, u64) {
    let sizes = paths.iter().filter_map(|p| std::fs::metadata(p).ok().map(|m| m.len()));
    sizes.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes))
}
