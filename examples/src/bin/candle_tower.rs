//! A vision tower written in candle in place of the model's own.
//!
//! `cargo run --release -p secateur-examples --features candle --bin candle_tower`

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use secateur::candle::{CandleEncoder, CandleRows, CandleTower};
use secateur::{EncoderInfo, EncoderParts, Error, ModelSource, Request, Vlm, signal::Signal};

/// One linear layer over patches, where the real thing has transformer layers.
#[derive(Debug)]
struct Linear {
    info: EncoderInfo,
    patch: usize,
    weight: Tensor,
}

impl CandleTower for Linear {
    fn info(&self) -> &EncoderInfo {
        &self.info
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    /// `[crops, 3, height, width]` to `[crops, class row + patches, width]`.
    fn forward(&self, pixels: &Tensor, _: &[Signal]) -> Result<CandleRows> {
        let rows = pixels.conv2d(&self.weight, 0, self.patch, 1, 1)?.flatten(2, 3)?;
        let rows = rows.transpose(1, 2)?;
        let class = rows.mean_keepdim(1)?;
        let hidden = if self.info.cls { Tensor::cat(&[&class, &rows], 1)? } else { rows };
        Ok(CandleRows { hidden, signals: BTreeMap::new() })
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let info = Vlm::builder(ModelSource::Embedded).open()?.info().encoder.clone();
    let make = move |parts: EncoderParts<'_>| {
        // It gives rows and no signal: a chain that reads one is refused when it is planned.
        let info = EncoderInfo { full_attention_layers: Vec::new(), ..info };
        let patch = parts.spec.config["patch_size"].as_u64().unwrap_or(14) as usize;
        let name = "tower.embeddings.patch_embedding.weight";
        let shape = [info.width, 3, patch, patch];
        let values = parts.weights.tensor(name, &shape)?.to_f32();
        let weight = Tensor::from_vec(values, &shape, &Device::Cpu)
            .map_err(|e| Error::Encoder(e.to_string()))?;
        let tower = Linear { info, patch, weight };
        Ok(Box::new(CandleEncoder::new(tower, 8, Arc::clone(parts.ops))) as _)
    };
    let vlm = Vlm::builder(ModelSource::Embedded).encoder(make).open()?;
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/word-so-blue-circle.png");
    let request = Request::new("Describe the image.").path(&picture)?;
    println!("{}", vlm.session().ask(request)?.finish()?.text);
    Ok(())
}
