//! `doctor` and `--version`: what this build and this machine offer.

use anyhow::Result;
use secateur::{ModelSource, Vlm};

use crate::args::DoctorArgs;
use crate::outcome::Outcome;
use crate::output::{Align, Console, table};

/// Optional parts that this build has.
fn features() -> Vec<&'static str> {
    // Each optional dependency of the command adds its line here.
    let all = [
        ("video", cfg!(feature = "video")),
        ("onnx", cfg!(feature = "onnx")),
        ("onnx-cuda", cfg!(feature = "onnx-cuda")),
        ("hub", cfg!(feature = "hub")),
        ("gguf", cfg!(feature = "gguf")),
    ];
    all.into_iter().filter(|f| f.1).map(|f| f.0).collect()
}

/// `--version`: version, features, kernels.
///
/// # Errors
/// A closed stdout.
pub(crate) fn version(console: &Console) -> Result<Outcome> {
    let kernels = match Vlm::builder(ModelSource::Embedded).open() {
        Ok(vlm) => vlm.describe(),
        Err(error) => format!("unknown: {error}"),
    };
    let features = features();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    console.result(&format!(
        "secateur {}\nfeatures  {features}\nkernels   {kernels}\n",
        env!("CARGO_PKG_VERSION")
    ))?;
    Ok(Outcome::Done)
}

/// Runs the command.
///
/// # Errors
/// A closed stdout.
pub(crate) fn run(args: &DoctorArgs, console: &Console) -> Result<Outcome> {
    let start = std::time::Instant::now();
    let opened = Vlm::builder(ModelSource::Embedded).open();
    let opening = format!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (kernels, model, is_well) = match &opened {
        Ok(vlm) => {
            let info = vlm.info();
            let text = format!(
                "{} visual tokens, {} decoder layers, opened in {opening}",
                info.visual_tokens, info.decoder.layers
            );
            (vlm.describe(), text, true)
        }
        Err(error) => ("unknown".to_owned(), format!("cannot be opened: {error}"), false),
    };
    let cache = ["HF_HUB_CACHE", "HF_HOME", "HOME"]
        .iter()
        .find_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
        .unwrap_or_else(|| "no HF_HOME, no HOME".to_owned());
    let memory = memory_bytes();
    if args.json {
        console.json(&serde_json::json!({
            "schema": "secateur.doctor/1",
            "version": env!("CARGO_PKG_VERSION"),
            "features": features(),
            "kernels": kernels,
            "cores": cores,
            "memory_bytes": memory,
            "built_in_model": model,
            "hub_cache": cache,
            "ok": is_well,
        }))?;
    } else {
        let memory = memory.map_or_else(
            || "unknown".to_owned(),
            |bytes| format!("{:.1} GiB", bytes as f64 / 1073741824.0),
        );
        let rows: Vec<Vec<String>> = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("kernels", kernels),
            ("cores", cores.to_string()),
            ("memory", memory),
            ("built-in model", model),
            ("hub cache", cache),
        ]
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
        console.words(&table(&rows, &[Align::Left; 2]))?;
    }
    Ok(if is_well { Outcome::Done } else { Outcome::Failed })
}

/// Memory of the machine, where the system says it.
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
