//! LLaVA-OneVision: tiles for a lone picture, one padded square each for several, frames as they
//! are.
//!
//! Invariants
//! - A lone picture: as LLaVA-NeXT. One crop means the multi-picture form (or the padded aspect);
//!   the family then writes one newline after it.
//! - The odd pixels of a tile that no patch covers (384 = 27 * 14 + 6) stay in the values.
//!
//! Deviation `multi-image` (models-a D4): the reference takes the form from the nesting of its
//! list; here [`ProcessorOptions::pictures`] says how many pictures a request has.

use secateur_core::clip::{Clip, Grid};
use secateur_core::error::{ConfigError, InputError};
use secateur_core::files::Fields;
use secateur_core::model::{ImageAspect, Pixels, Processor, ProcessorOptions};

use super::anyres::AnyRes;
use super::settings::{CLIP_MEAN, CLIP_STD, Size, ValueDefaults, Values};
use super::steps::{Crops, Place, View, check_area, check_source, named};
use crate::image::{Bitmap, Canvas, Filter, resize};

/// `LlavaOnevisionImageProcessor` and `LlavaOnevisionVideoProcessor`.
#[derive(Clone, Debug)]
pub struct LlavaOnevision {
    values: Values,
    anyres: AnyRes,
    patch: usize,
    video: VideoSettings,
}

#[derive(Clone, Debug)]
struct VideoSettings {
    values: Values,
    side: usize,
}

impl LlavaOnevision {
    /// From the fields of both preprocessors; `patch`: side of a patch of the tower, pixels.
    ///
    /// # Errors
    /// A field that cannot be, by name.
    pub fn new(
        fields: &Fields<'_>,
        video: Option<&Fields<'_>>,
        patch: usize,
    ) -> Result<Self, ConfigError> {
        let defaults = ValueDefaults { mean: CLIP_MEAN, std: CLIP_STD, filter: Filter::Bicubic };
        let square = Size::square(384);
        let side = Size::read(fields, "size", Size::square, square)?.side(fields, "size")?;
        let default: Vec<(usize, usize)> =
            (1..=6).flat_map(|i| (1..=6).map(move |j| (384 * i, 384 * j))).collect();
        let video = video.unwrap_or(fields);
        let frame = Size::read(video, "size", Size::square, square)?.side(video, "size")?;
        Ok(Self {
            values: Values::read(fields, defaults)?,
            anyres: AnyRes::read(fields, side, patch, &default)?,
            patch,
            video: VideoSettings { values: Values::read(video, defaults)?, side: frame },
        })
    }

    /// The grid of a picture padded to a square.
    fn padded(&self, width: u32, height: u32) -> Result<Grid, InputError> {
        let (w, h) = check_source(width, height)?;
        let longest = w.max(h);
        let side = (self.anyres.side(), self.anyres.side());
        let corner = (-(((longest - w) / 2) as isize), -(((longest - h) / 2) as isize));
        let view = View::source().moved(corner.0, corner.1).resized((longest, longest), side);
        Ok(view.grid(side, self.patch, Place { source: [width, height], frame: 0, tile: 0 }))
    }

    fn video(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        let size = (clip.width(), clip.height());
        let side = (self.video.side, self.video.side);
        named(clip, check_area(size, clip.frames().len(), side))?;
        let mut crops = Crops::new(&self.video.values, options.backend, self.patch);
        let from = (size.0 as usize, size.1 as usize);
        for (i, frame) in clip.frames().iter().enumerate() {
            let picture = Bitmap::from_frame(frame);
            let resized = resize(picture, side, self.video.values.filter, options.backend);
            let place = Place { source: [size.0, size.1], frame: i as u32, tile: 0 };
            crops.push(&resized, View::source().resized(from, side).grid(side, self.patch, place));
        }
        Ok(crops.finish(clip))
    }
}

fn is_single_crop(options: &ProcessorOptions) -> bool {
    options.aspect == ImageAspect::Pad || options.pictures > 1
}

/// Cropping the centre is no form of this family.
fn check_aspect(size: (u32, u32), options: &ProcessorOptions) -> Result<(), InputError> {
    match options.aspect {
        ImageAspect::Crop => super::steps::own_aspect(size, options, "LLaVA-OneVision"),
        ImageAspect::Model | ImageAspect::Pad => Ok(()),
    }
}

impl Processor for LlavaOnevision {
    fn process(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        if clip.video().is_some() {
            return self.video(clip, options);
        }
        let (width, height) = (clip.width(), clip.height());
        named(clip, check_aspect((width, height), options))?;
        let picture = Bitmap::from_frame(&clip.frames()[0]);
        let mut pixels = if is_single_crop(options) {
            let ground = Canvas::square(picture, self.values.mean_colour());
            let side = (self.anyres.side(), self.anyres.side());
            let mut crops = Crops::new(&self.values, options.backend, self.patch);
            crops.push(
                &resize(ground, side, self.values.filter, options.backend),
                self.padded(width, height)?,
            );
            crops.finish(clip)
        } else {
            let plan = named(clip, self.anyres.plan(width, height))?;
            self.anyres.cut(&picture, &plan, &self.values, options.backend).finish(clip)
        };
        let size = vec![i64::from(height), i64::from(width)];
        pixels.outputs.push(("image_sizes".into(), size, vec![1, 2]));
        Ok(pixels)
    }

    fn crops(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<Vec<Grid>, InputError> {
        check_aspect((width, height), options)?;
        if is_single_crop(options) {
            return Ok(vec![self.padded(width, height)?]);
        }
        Ok(self.anyres.plan(width, height)?.grids)
    }
}
