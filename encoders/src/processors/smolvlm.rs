//! SmolVLM and Idefics3: tiles of a picture scaled to a fixed longest side, the whole last.
//!
//! Invariants
//! - `Pixels::crops`: tiles row by row, then the whole picture; a single crop means that nothing
//!   was split (rows = cols = 0 in the reference's terms).
//! - The whole is made of the picture as it was stretched for the tiles, not of the original.
//! - Frames of a video are never split.
//!
//! Method: `Idefics3ImageProcessor`, `SmolVLMImageProcessor`, `SmolVLMVideoProcessor` of
//! transformers 5.24; Lanczos on bytes throughout.

use secateur_core::clip::{Clip, Grid};
use secateur_core::error::{ConfigError, InputError};
use secateur_core::files::Fields;
use secateur_core::model::{Pixels, Processor, ProcessorOptions};

use super::settings::{HALF, ValueDefaults, Values, longest};
use super::steps::{Crops, Place, View, check_area, check_source, named, own_aspect};
use crate::image::{Bitmap, Filter, resize};

const NAME: &str = "SmolVLM/Idefics3";

/// No side grows beyond this in the first step (`MAX_IMAGE_SIZE` of the reference).
const CAP: usize = 4096;

/// The image and video processors of the family.
#[derive(Clone, Debug)]
pub struct SmolVlm {
    values: Values,
    longest: usize,
    tile: usize,
    split: bool,
    patch: usize,
    video: FrameSettings,
}

#[derive(Clone, Debug)]
struct FrameSettings {
    values: Values,
    longest: usize,
    tile: usize,
}

/// The sizes (width, height) that a picture goes through, and what it is cut into.
struct Plan {
    scaled: (usize, usize),
    /// `None` where the picture is not split.
    stretched: Option<(usize, usize)>,
    grids: Vec<Grid>,
}

/// Step 1: the longer side to `longest`, the other truncated and made even; f64 in this order.
fn scaled((w, h): (usize, usize), longest: usize) -> (usize, usize) {
    let shape = w as f64 / h as f64;
    let even = |side: f64| {
        let side = side as usize;
        side + side % 2
    };
    let (mut width, mut height) = if w >= h {
        (longest, even(longest as f64 / shape))
    } else {
        (even(longest as f64 * shape), longest)
    };
    (width, height) = (width.max(1), height.max(1));
    // The cap scales both, by the longer side.
    let shape = width as f64 / height as f64;
    if width >= height && width > CAP {
        width = CAP;
        height = (CAP as f64 / shape) as usize;
    } else if height > width && height > CAP {
        height = CAP;
        width = (CAP as f64 * shape) as usize;
    }
    (width.max(1), height.max(1))
}

/// Step 2: both sides up to multiples of the tile.
fn stretched((w, h): (usize, usize), tile: usize) -> (usize, usize) {
    let shape = w as f64 / h as f64;
    let up = |side: usize| side.div_ceil(tile) * tile;
    if w >= h {
        let width = up(w);
        (width, up((width as f64 / shape) as usize).max(tile))
    } else {
        let height = up(h);
        (up((height as f64 * shape) as usize).max(tile), height)
    }
}

impl SmolVlm {
    /// From the fields of both preprocessors; `patch`: side of a patch of the tower, pixels.
    ///
    /// # Errors
    /// A field that cannot be, by name.
    pub fn new(
        fields: &Fields<'_>,
        video: Option<&Fields<'_>>,
        patch: usize,
    ) -> Result<Self, ConfigError> {
        let defaults = ValueDefaults { mean: HALF, std: HALF, filter: Filter::Lanczos };
        let tile = longest(fields, "max_image_size", 364)?;
        let video = video.unwrap_or(fields);
        // `size`, where the file has it, wins over the sampling's own size.
        let frame = if video.has("size") {
            longest(video, "size", 4 * 364)?
        } else {
            longest(&video.object("video_sampling")?, "video_size", 4 * 364)?
        };
        Ok(Self {
            values: Values::read(fields, defaults)?,
            longest: longest(fields, "size", 4 * 364)?,
            tile,
            split: fields.flag("do_image_splitting", true)?,
            patch,
            video: FrameSettings {
                values: Values::read(video, defaults)?,
                longest: frame,
                tile: longest(video, "max_image_size", tile)?,
            },
        })
    }

    fn plan(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<Plan, InputError> {
        let from = check_source(width, height)?;
        own_aspect((width, height), options, NAME)?;
        let scaled = if self.values.resize { scaled(from, self.longest) } else { from };
        let whole = stretched(scaled, self.tile);
        // A user's limit on the area switches the splitting off.
        let split = self.split && options.max_pixels.is_none_or(|most| whole.0 * whole.1 <= most);
        let tile = (self.tile, self.tile);
        let place = |index: usize| Place { source: [width, height], frame: 0, tile: index as u32 };
        let global = View::source().resized(from, tile);
        if !split || whole == tile {
            let grids = vec![global.grid(tile, self.patch, place(0))];
            return Ok(Plan { scaled, stretched: split.then_some(whole), grids });
        }
        let (rows, cols) = (whole.1 / self.tile, whole.0 / self.tile);
        check_area((width, height), rows * cols + 1, tile)?;
        let ground = View::source().resized(from, whole);
        let mut grids = Vec::new();
        for r in 0..rows {
            for c in 0..cols {
                let view = ground.moved((c * self.tile) as isize, (r * self.tile) as isize);
                grids.push(view.grid(tile, self.patch, place(r * cols + c)));
            }
        }
        grids.push(global.grid(tile, self.patch, place(rows * cols)));
        Ok(Plan { scaled, stretched: Some(whole), grids })
    }

    fn video(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        let size = (clip.width(), clip.height());
        let tile = (self.video.tile, self.video.tile);
        named(clip, check_area(size, clip.frames().len(), tile))?;
        let from = (size.0 as usize, size.1 as usize);
        let first = scaled(from, self.video.longest);
        let (filter, backend) = (self.video.values.filter, options.backend);
        let mut crops = Crops::new(&self.video.values, backend, self.patch);
        let view = View::source().resized(from, tile);
        for (i, frame) in clip.frames().iter().enumerate() {
            let once = resize(Bitmap::from_frame(frame), first, filter, backend);
            let place = Place { source: [size.0, size.1], frame: i as u32, tile: 0 };
            crops.push(&resize(once, tile, filter, backend), view.grid(tile, self.patch, place));
        }
        let mut pixels = crops.finish(clip);
        let info = clip.video().unwrap_or_default();
        let fps = info.fps.filter(|f| f.is_finite() && *f > 0.0).unwrap_or(24.0);
        pixels.fps = Some(fps);
        let frames = clip.frames().iter().enumerate();
        pixels.times_s = frames.map(|(i, f)| f.time_s.unwrap_or(i as f64 / fps)).collect();
        if let Some(duration) = info.duration_s {
            // The prompt speaks of the length of the source in whole seconds.
            let seconds = duration as i64;
            pixels.outputs.push((secateur_core::model::DURATION.into(), vec![seconds], vec![1]));
        }
        Ok(pixels)
    }
}

impl Processor for SmolVlm {
    fn process(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        if clip.video().is_some() {
            return self.video(clip, options);
        }
        let plan = named(clip, self.plan(clip.width(), clip.height(), options))?;
        let (filter, backend) = (self.values.filter, options.backend);
        let tile = (self.tile, self.tile);
        let mut picture =
            resize(Bitmap::from_frame(&clip.frames()[0]), plan.scaled, filter, backend);
        if let Some(whole) = plan.stretched {
            picture = resize(picture, whole, filter, backend);
        }
        let mut crops = Crops::new(&self.values, backend, self.patch);
        let cols = picture.width / self.tile;
        let last = plan.grids.len() - 1;
        for (i, grid) in plan.grids.iter().enumerate() {
            if i < last {
                let corner = (((i % cols) * self.tile) as isize, ((i / cols) * self.tile) as isize);
                crops.push(&picture.window(corner, tile, [0; 3]), *grid);
            } else {
                crops.push(&resize(picture.clone(), tile, filter, backend), *grid);
            }
        }
        Ok(crops.finish(clip))
    }

    fn crops(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<Vec<Grid>, InputError> {
        Ok(self.plan(width, height, options)?.grids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of models-b, section 6: rows and columns of tiles.
    #[test]
    fn tiles_of_every_size_in_the_reference_table() {
        for (longest, tile) in [(2048, 512), (1536, 384), (1456, 364)] {
            for (w, h, rows, cols) in [
                (336, 336, 4, 4),
                (28, 28, 4, 4),
                (640, 480, 3, 4),
                (1024, 768, 3, 4),
                (1920, 1080, 3, 4),
                (4000, 3000, 3, 4),
                (480, 640, 4, 3),
                (50, 200, 4, 1),
            ] {
                let whole = stretched(scaled((w, h), longest), tile);
                assert_eq!((whole.1 / tile, whole.0 / tile), (rows, cols), "{w}x{h} to {longest}");
            }
        }
    }
}
