//! `doctor` and `--version`: what this build and this machine offer.

use anyhow::Result;
use secateur::{Load, ModelSource, Vlm};

use crate::args::DoctorArgs;
use crate::memory::{Fit, Memory, in_gib};
use crate::outcome::Outcome;
use crate::output::{Align, Console, table};

/// Shapes that memory is forecast for, small to large.
const SHAPES: [&str; 4] = ["smolvlm-256m", "tinyllava-1b", "qwen2.5-vl-3b", "llava-1.5-7b"];

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
    let memory = Memory::read();
    let forecasts = forecasts(memory);
    if args.json {
        console.json(&serde_json::json!({
            "schema": "secateur.doctor/1",
            "version": env!("CARGO_PKG_VERSION"),
            "features": features(),
            "kernels": kernels,
            "cores": cores,
            "memory_bytes": memory.total,
            "memory_available_bytes": memory.available,
            "forecasts": forecasts
                .iter()
                .map(|f| serde_json::json!({ "shape": f.shape, "bytes": f.bytes, "fit": f.fit }))
                .collect::<Vec<_>>(),
            "built_in_model": model,
            "hub_cache": cache,
            "ok": is_well,
        }))?;
    } else {
        let words = format!("{}, {} free", in_gib(memory.total), in_gib(memory.available));
        let rows: Vec<Vec<String>> = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("kernels", kernels),
            ("cores", cores.to_string()),
            ("memory", words),
            ("models in bf16", told(&forecasts)),
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

/// What a shape needs for one picture in bf16, and whether that fits.
struct Forecast {
    shape: &'static str,
    bytes: u64,
    fit: Fit,
}

fn forecasts(memory: Memory) -> Vec<Forecast> {
    let need = |shape: &'static str| {
        let outline = Vlm::builder(ModelSource::Embedded).outline_shape(shape).ok()?;
        let bytes = outline.forecast("none", &Load::default()).ok()?.total();
        Some(Forecast { shape, bytes, fit: memory.fit(bytes) })
    };
    SHAPES.into_iter().filter_map(need).collect()
}

/// `smolvlm-256m 0.7 GiB, .. fit; llava-1.5-7b 14.5 GiB does not`, by what is free.
fn told(forecasts: &[Forecast]) -> String {
    let of = |fits: &[Fit]| -> Vec<String> {
        let chosen = forecasts.iter().filter(|f| fits.contains(&f.fit));
        chosen.map(|f| format!("{} ({})", f.shape, in_gib(Some(f.bytes)))).collect()
    };
    let groups = [
        ("fit now", of(&[Fit::Fits])),
        ("when other programs are closed", of(&[Fit::Tight])),
        ("do not fit", of(&[Fit::No])),
        ("not known whether they fit", of(&[Fit::Unknown])),
    ];
    let groups = groups.into_iter().filter(|(_, names)| !names.is_empty());
    groups
        .map(|(words, names)| format!("{words}: {}", names.join(", ")))
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_a_forecast_and_larger_ones_need_more() {
        let memory = Memory { total: Some(8 << 30), available: Some(4 << 30) };
        let forecasts = forecasts(memory);
        assert_eq!(forecasts.len(), SHAPES.len());
        assert!(forecasts.windows(2).all(|w| w[0].bytes < w[1].bytes));
        let said = told(&forecasts);
        assert!(
            said.starts_with("fit now: smolvlm-256m (")
                && said.contains("do not fit: llava-1.5-7b ("),
            "{said}"
        );
    }
}
