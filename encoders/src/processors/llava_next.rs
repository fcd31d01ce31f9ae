//! LLaVA-NeXT: any-resolution tiles on black, the base first.
//!
//! Invariants
//! - `Pixels::crops[0]` is the base, the others are the tiles of one R x C lattice, row by row:
//!   the family reads R and C off the tiles' origins, and unpads by `Pixels::source`.
//!
//! Not here: unpadding and newlines (the family).

use secateur_core::clip::{Clip, Grid};
use secateur_core::error::{ConfigError, InputError};
use secateur_core::files::Fields;
use secateur_core::model::{Pixels, Processor, ProcessorOptions};

use super::anyres::AnyRes;
use super::settings::{CLIP_MEAN, CLIP_STD, Size, ValueDefaults, Values};
use super::steps::{named, own_aspect, pictures_only};
use crate::image::{Bitmap, Filter};

const NAME: &str = "LLaVA-NeXT";

/// Default of `image_grid_pinpoints`, (height, width).
const PINPOINTS: [(usize, usize); 5] =
    [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];

/// `LlavaNextImageProcessor`.
#[derive(Clone, Debug)]
pub struct LlavaNext {
    values: Values,
    anyres: AnyRes,
}

impl LlavaNext {
    /// From a preprocessor's fields; `patch`: side of a patch of the tower, pixels.
    ///
    /// # Errors
    /// A field that cannot be, by name.
    pub fn new(fields: &Fields<'_>, patch: usize) -> Result<Self, ConfigError> {
        let defaults = ValueDefaults { mean: CLIP_MEAN, std: CLIP_STD, filter: Filter::Bicubic };
        let crop = Size::read(fields, "crop_size", Size::square, Size::square(224))?;
        let side = crop.side(fields, "crop_size")?;
        // Each tile is resized to `size` and cropped to `crop_size`: nothing happens if both are
        // one number, as in every published file; else the tower would see scaled tiles.
        let size = Size::read(fields, "size", Size::Shortest, Size::Shortest(224))?;
        if size.side(fields, "size")? != side {
            let expected = format!("the side of `crop_size`, {side}");
            return Err(fields.error("size", &expected, &format!("{size:?}")));
        }
        Ok(Self {
            values: Values::read(fields, defaults)?,
            anyres: AnyRes::read(fields, side, patch, &PINPOINTS)?,
        })
    }
}

impl Processor for LlavaNext {
    fn process(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        pictures_only(clip, NAME)?;
        let (width, height) = (clip.width(), clip.height());
        named(clip, own_aspect((width, height), options, NAME))?;
        let plan = named(clip, self.anyres.plan(width, height))?;
        let picture = Bitmap::from_frame(&clip.frames()[0]);
        let mut pixels =
            self.anyres.cut(&picture, &plan, &self.values, options.backend).finish(clip);
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
        own_aspect((width, height), options, NAME)?;
        Ok(self.anyres.plan(width, height)?.grids)
    }
}
