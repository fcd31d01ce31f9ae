//! One square crop a picture: CLIP, LLaVA-1.5 and SigLIP processors.
//!
//! Invariants
//! - Steps in the reference's order: (pad to a square), resize, (crop the centre), normalise.
//! - A crop larger than the picture pads with black before normalising; the odd pixel goes right
//!   under torchvision and left under Pillow, as in the two classes.
//!
//! Deviation `crop` (models-a D1): LLaVA-1.5 was trained on squares padded with the mean colour;
//! its published processor crops the centre. The file decides; `ImageAspect` overrides it.

use secateur_core::clip::{Clip, Grid};
use secateur_core::error::{ConfigError, InputError};
use secateur_core::files::Fields;
use secateur_core::model::{ImageAspect, ImageBackend, Pixels, Processor, ProcessorOptions};

use super::settings::{CLIP_MEAN, CLIP_STD, HALF, Size, ValueDefaults, Values};
use super::steps::{Crops, Place, View, check_area, check_source, named, pictures_only};
use crate::image::{Bitmap, Canvas, Filter, Window, resize_window};

/// `CLIPImageProcessor`, `LlavaImageProcessor` and `SiglipImageProcessor`.
#[derive(Clone, Debug)]
pub struct SingleCrop {
    values: Values,
    size: Size,
    pad: bool,
    /// Width and height of the centre crop.
    crop: Option<(usize, usize)>,
    patch: usize,
}

/// What a picture of one size goes through.
struct Plan {
    pad: bool,
    /// Width and height of the (padded) picture before resizing.
    ground: (usize, usize),
    resized: (usize, usize),
    /// Corner of the crop in the resized picture, negative where it is padded, and its size.
    corner: (isize, isize),
    crop: (usize, usize),
    grid: Grid,
}

impl SingleCrop {
    /// `CLIPImageProcessor` or `LlavaImageProcessor` (`do_pad`); `patch`: side of a patch of the
    /// tower, pixels.
    ///
    /// # Errors
    /// A field that cannot be, by name.
    pub fn clip(fields: &Fields<'_>, patch: usize) -> Result<Self, ConfigError> {
        let defaults = ValueDefaults { mean: CLIP_MEAN, std: CLIP_STD, filter: Filter::Bicubic };
        Self::read(fields, patch, defaults, Size::Shortest(224), Size::Shortest, true)
    }

    /// `SiglipImageProcessor`: resized to the exact size, no crop.
    ///
    /// # Errors
    /// As [`SingleCrop::clip`].
    pub fn siglip(fields: &Fields<'_>, patch: usize) -> Result<Self, ConfigError> {
        let defaults = ValueDefaults { mean: HALF, std: HALF, filter: Filter::Bicubic };
        Self::read(fields, patch, defaults, Size::square(224), Size::square, false)
    }

    fn read(
        fields: &Fields<'_>,
        patch: usize,
        defaults: ValueDefaults,
        size: Size,
        number: fn(usize) -> Size,
        centre_crop: bool,
    ) -> Result<Self, ConfigError> {
        let crop = if fields.flag("do_center_crop", centre_crop)? {
            match Size::read(fields, "crop_size", Size::square, Size::square(224))? {
                Size::Exact { height, width } => Some((width, height)),
                Size::Shortest(side) => Some((side, side)),
            }
        } else {
            None
        };
        if let Some((width, height)) = crop
            && (width < patch || height < patch)
        {
            let expected = format!("at least one patch of {patch} pixels");
            return Err(fields.error("crop_size", &expected, &format!("{width}x{height}")));
        }
        Ok(Self {
            values: Values::read(fields, defaults)?,
            size: Size::read(fields, "size", number, size)?,
            pad: fields.flag("do_pad", false)?,
            crop,
            patch,
        })
    }

    fn plan(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<Plan, InputError> {
        let source = check_source(width, height)?;
        let (pad, size, crop) = match (options.aspect, self.size) {
            (ImageAspect::Model, size) => (self.pad, size, self.crop),
            (ImageAspect::Pad, size) => (true, size, self.crop),
            (ImageAspect::Crop, Size::Shortest(s)) => {
                (false, self.size, self.crop.or(Some((s, s))))
            }
            (ImageAspect::Crop, Size::Exact { height, width }) => {
                (false, Size::Shortest(height.max(width)), Some((width, height)))
            }
        };
        let side = source.0.max(source.1);
        let ground = if pad { (side, side) } else { source };
        let resized = if self.values.resize { size.of(ground.0, ground.1) } else { ground };
        let crop = crop.unwrap_or(resized);
        check_area((width, height), 1, crop)?;
        let corner = (
            corner(resized.0, crop.0, options.backend),
            corner(resized.1, crop.1, options.backend),
        );
        let offset = ((ground.0 - source.0) / 2, (ground.1 - source.1) / 2);
        let view = View::source()
            .moved(-(offset.0 as isize), -(offset.1 as isize))
            .resized(ground, resized)
            .moved(corner.0, corner.1);
        let grid =
            view.grid(crop, self.patch, Place { source: [width, height], frame: 0, tile: 0 });
        Ok(Plan { pad, ground, resized, corner, crop, grid })
    }
}

/// Corner of a centred crop on one axis; negative: padding before the picture.
fn corner(size: usize, crop: usize, backend: ImageBackend) -> isize {
    if size >= crop {
        return ((size - crop) / 2) as isize;
    }
    let missing = crop - size;
    -(match backend {
        ImageBackend::Torchvision => missing / 2,
        ImageBackend::Pillow => missing.div_ceil(2),
    } as isize)
}

impl Processor for SingleCrop {
    fn process(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        pictures_only(clip, "this model")?;
        let plan = named(clip, self.plan(clip.width(), clip.height(), options))?;
        let picture = Bitmap::from_frame(&clip.frames()[0]);
        let ground = if plan.pad {
            Canvas::square(picture, self.values.mean_colour())
        } else {
            Canvas::from(picture)
        };
        debug_assert_eq!((ground.width, ground.height), plan.ground);
        // Only the part of the resized picture that the crop shows is computed.
        let shown = |corner: isize, crop: usize, size: usize| {
            let start = corner.max(0) as usize;
            (start, (corner + crop as isize).clamp(start as isize, size as isize) as usize - start)
        };
        let (left, width) = shown(plan.corner.0, plan.crop.0, plan.resized.0);
        let (top, height) = shown(plan.corner.1, plan.crop.1, plan.resized.1);
        let window = Window { left, top, width, height };
        let resized =
            resize_window(ground, plan.resized, window, self.values.filter, options.backend);
        let cropped =
            resized.window((plan.corner.0.min(0), plan.corner.1.min(0)), plan.crop, [0; 3]);
        let mut crops = Crops::new(&self.values, options.backend, self.patch);
        crops.push(&cropped, plan.grid);
        Ok(crops.finish(clip))
    }

    fn crops(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<Vec<Grid>, InputError> {
        Ok(vec![self.plan(width, height, options)?.grid])
    }
}
