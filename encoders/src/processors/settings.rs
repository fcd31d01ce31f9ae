//! The fields that preprocessor files share, with the defaults of each class.
//!
//! Invariants
//! - A field that is absent takes the default of the processor's own class (transformers 5.24), as
//!   the files of the hub rely on that.
//! - Every number is checked before it sizes anything; errors name file and field.

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, short};
use secateur_core::model::ImageBackend;
use serde_json::Value;

use crate::image::Filter;

/// Largest side a preprocessor file may ask for, pixels.
pub(crate) const MAX_SIDE: usize = 16_384;

/// OpenAI's CLIP constants.
pub(crate) const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI's CLIP constants.
pub(crate) const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// ImageNet "standard" constants: mean and standard deviation.
pub(crate) const HALF: [f64; 3] = [0.5; 3];

/// What becomes of each value of a pixel, and how pictures are resized.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    mean: [f64; 3],
    std: [f64; 3],
    rescale: Option<f64>,
    normalise: bool,
    /// Resampling kernel.
    pub(crate) filter: Filter,
    /// Whether pictures are resized at all.
    pub(crate) resize: bool,
}

/// The class defaults of [`Values`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueDefaults {
    pub(crate) mean: [f64; 3],
    pub(crate) std: [f64; 3],
    pub(crate) filter: Filter,
}

fn triple(fields: &Fields<'_>, key: &str, default: [f64; 3]) -> Result<[f64; 3], ConfigError> {
    let Some(value) = fields.get(key) else { return Ok(default) };
    let numbers: Option<Vec<f64>> =
        value.as_array().map(|a| a.iter().filter_map(Value::as_f64).collect());
    match numbers.as_deref() {
        Some(&[a, b, c]) if [a, b, c].iter().all(|v| v.is_finite() && v.abs() <= 1e4) => {
            Ok([a, b, c])
        }
        _ => Err(fields.error(key, "three numbers", &short(value))),
    }
}

impl Values {
    pub(crate) fn read(fields: &Fields<'_>, defaults: ValueDefaults) -> Result<Self, ConfigError> {
        let std = triple(fields, "image_std", defaults.std)?;
        if let Some(value) = fields.get("image_std")
            && std.contains(&0.0)
        {
            return Err(fields.error("image_std", "numbers other than 0", &short(value)));
        }
        let rescale = fields.number("rescale_factor", 1e-9..=1e3, Some(1.0 / 255.0))?;
        let filter = match fields.get("resample") {
            None => defaults.filter,
            Some(value) => value.as_u64().and_then(Filter::from_pillow).ok_or_else(|| {
                let expected = "1 (Lanczos), 2 (bilinear) or 3 (bicubic)";
                fields.error("resample", expected, &short(value))
            })?,
        };
        Ok(Self {
            mean: triple(fields, "image_mean", defaults.mean)?,
            std,
            rescale: fields.flag("do_rescale", true)?.then_some(rescale),
            normalise: fields.flag("do_normalize", true)?,
            filter,
            resize: fields.flag("do_resize", true)?,
        })
    }

    /// The mean as a colour, `trunc(mean * 255)`: what squares are padded with.
    pub(crate) fn mean_colour(&self) -> [u8; 3] {
        self.mean.map(|m| (m * 255.0) as u8)
    }

    /// The f32 of every byte, channel by channel.
    ///
    /// torchvision fuses both steps, `(x - mean 255) / (std 255)`; Pillow's classes rescale in f64
    /// and normalise after. They differ by at most 2.4e-7.
    pub(crate) fn table(&self, backend: ImageBackend) -> Box<[[f32; 256]; 3]> {
        let mut table = Box::new([[0.0f32; 256]; 3]);
        for (c, row) in table.iter_mut().enumerate() {
            let (mean, std) = (self.mean[c] as f32, self.std[c] as f32);
            for (byte, out) in row.iter_mut().enumerate() {
                let x = byte as f32;
                *out = match (self.rescale, self.normalise, backend) {
                    (Some(r), true, ImageBackend::Torchvision) => {
                        let unit = (1.0 / r) as f32;
                        (x - mean * unit) / (std * unit)
                    }
                    (rescale, normalise, _) => {
                        let x = rescale.map_or(x, |r| (f64::from(x) * r) as f32);
                        if normalise { (x - mean) / std } else { x }
                    }
                };
            }
        }
        table
    }
}

/// The forms of `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// `shortest_edge`: the other side follows, truncated.
    Shortest(usize),
    /// `height` and `width`: the shape is not kept.
    Exact {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
}

impl Size {
    /// Reads `key`: an object of either form, or one number (`number` says what that means).
    pub(crate) fn read(
        fields: &Fields<'_>,
        key: &str,
        number: fn(usize) -> Size,
        default: Size,
    ) -> Result<Self, ConfigError> {
        match fields.get(key) {
            None => Ok(default),
            Some(Value::Number(_)) => Ok(number(fields.size(key, 1..=MAX_SIDE, None)?)),
            Some(_) => {
                let size = fields.object(key)?;
                if size.has("shortest_edge") {
                    Ok(Size::Shortest(size.size("shortest_edge", 1..=MAX_SIDE, None)?))
                } else {
                    Ok(Size::Exact {
                        height: size.size("height", 1..=MAX_SIDE, None)?,
                        width: size.size("width", 1..=MAX_SIDE, None)?,
                    })
                }
            }
        }
    }

    /// A square of that side.
    pub(crate) fn square(side: usize) -> Self {
        Size::Exact { height: side, width: side }
    }

    /// Width and height of a picture once resized. Truncation in f64, as Python's `int`.
    pub(crate) fn of(self, width: usize, height: usize) -> (usize, usize) {
        match self {
            Size::Exact { height, width } => (width, height),
            Size::Shortest(s) if width <= height => {
                (s, (s as f64 * height as f64 / width as f64) as usize)
            }
            Size::Shortest(s) => ((s as f64 * width as f64 / height as f64) as usize, s),
        }
    }

    /// The side of a square, for classes that know no other shape.
    pub(crate) fn side(self, fields: &Fields<'_>, key: &str) -> Result<usize, ConfigError> {
        match self {
            Size::Shortest(side) => Ok(side),
            Size::Exact { height, width } if height == width => Ok(width),
            Size::Exact { height, width } => {
                Err(fields.error(key, "a square", &format!("{width}x{height}")))
            }
        }
    }
}

/// Reads `longest_edge` of `key`, or one number.
pub(crate) fn longest(
    fields: &Fields<'_>,
    key: &str,
    default: usize,
) -> Result<usize, ConfigError> {
    match fields.get(key) {
        Some(Value::Object(_)) => {
            fields.object(key)?.size("longest_edge", 1..=MAX_SIDE, Some(default))
        }
        _ => fields.size(key, 1..=MAX_SIDE, Some(default)),
    }
}
