//! Flags of videos, and of a vision tower that is not the model's own.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Which frames of a video.
#[derive(Clone, Debug, Args)]
pub(crate) struct VideoArgs {
    /// How the frames of a video are chosen
    #[arg(long, value_enum, default_value_t, help_heading = "Video")]
    pub(crate) sampling: FrameChoice,
    /// Frames a second to take; of a folder of frames, their rate [default: the model's, else 2]
    #[arg(long, value_name = "F", value_parser = rate, help_heading = "Video")]
    pub(crate) fps: Option<f64>,
    /// Most frames of a video [default: what the model takes and its context has room for]
    #[arg(long, value_name = "N", value_parser = super::at_least_one, help_heading = "Video")]
    pub(crate) max_frames: Option<usize>,
}

/// How frames are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum FrameChoice {
    /// As the model's own processor does; where it has no rule, or --max-frames is given, by rate
    #[default]
    Model,
    /// --fps a second, spread wider where that is more than --max-frames
    Rate,
    /// --max-frames, evenly
    Uniform,
    /// The first frame and those after the largest changes
    Scenes,
}

/// A vision tower in place of the model's own.
#[derive(Clone, Debug, Args)]
pub(crate) struct EncoderArgs {
    /// Run the vision tower from an ONNX file that export_onnx.py wrote (feature onnx)
    #[arg(id = "encoder", long, value_name = "FILE.onnx", help_heading = "Model")]
    pub(crate) file: Option<PathBuf>,
    /// ONNX Runtime's library, libonnxruntime.so [default: ORT_DYLIB_PATH]
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub(crate) onnx_library: Option<PathBuf>,
    /// What runs the ONNX file
    #[arg(long, value_name = "cpu|cuda[:N]", default_value = "cpu", value_parser = provider, help_heading = "Model")]
    pub(crate) onnx_provider: ProviderChoice,
}

/// What runs an ONNX file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProviderChoice {
    /// The processor.
    Cpu,
    /// A CUDA device, by ordinal.
    Cuda(u32),
}

fn rate(text: &str) -> Result<f64, String> {
    let known = text.parse().ok().filter(|f: &f64| f.is_finite() && *f > 0.0);
    known.ok_or_else(|| "expected a number above 0".into())
}

fn provider(text: &str) -> Result<ProviderChoice, String> {
    match text.split_once(':').unwrap_or((text, "0")) {
        ("cpu", _) if text == "cpu" => Ok(ProviderChoice::Cpu),
        ("cuda", device) => device
            .parse()
            .map(ProviderChoice::Cuda)
            .map_err(|_| format!("`{device}` is no number of a device; expected cuda or cuda:N")),
        _ => Err("expected cpu, cuda or cuda:N".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_above_zero() {
        assert_eq!(rate("29.97"), Ok(29.97));
        for text in ["", "0", "-1", "nan", "inf", "two"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_provider_is_a_name_and_a_device() {
        assert_eq!(provider("cpu"), Ok(ProviderChoice::Cpu));
        assert_eq!(provider("cuda"), Ok(ProviderChoice::Cuda(0)));
        assert_eq!(provider("cuda:3"), Ok(ProviderChoice::Cuda(3)));
        for text in ["", "cpu:1", "cuda:", "cuda:x", "tpu"] {
            assert!(provider(text).is_err(), "{text}");
        }
    }
}
