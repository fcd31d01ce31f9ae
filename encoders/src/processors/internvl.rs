//! InternVL: the picture stretched over a lattice of square tiles, a thumbnail last.
//!
//! Invariants
//! - Tiles row by row, then the whole picture squeezed to one tile if there is more than one.
//! - Frames of a video are one tile each, never cut.
//!
//! Method: `GotOcr2ImageProcessor.crop_image_to_patches` (transformers). Deviation
//! `always-tiles` (models-a D6): `crop_to_patches` of the file is not read, because the family's
//! processor forces it.

use secateur_core::clip::{Clip, Grid};
use secateur_core::error::{ConfigError, InputError};
use secateur_core::files::Fields;
use secateur_core::model::{Pixels, Processor, ProcessorOptions};

use super::settings::{CLIP_MEAN, CLIP_STD, Size, ValueDefaults, Values};
use super::steps::{Crops, Place, View, check_area, check_source, named, own_aspect};
use crate::image::{Bitmap, Filter, resize};

const NAME: &str = "InternVL";

/// `GotOcr2ImageProcessor` and `InternVLVideoProcessor`.
#[derive(Clone, Debug)]
pub struct InternVl {
    values: Values,
    video: Values,
    /// Width and height of a tile.
    tile: (usize, usize),
    /// Width and height of a frame.
    frame: (usize, usize),
    /// Fewest and most tiles, the thumbnail not counted.
    tiles: (usize, usize),
    patch: usize,
}

impl InternVl {
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
        let sides = |of: &Fields<'_>| -> Result<(usize, usize), ConfigError> {
            Ok(match Size::read(of, "size", Size::square, Size::square(384))? {
                Size::Exact { height, width } => (width, height),
                Size::Shortest(side) => (side, side),
            })
        };
        let tile = sides(fields)?;
        let most = fields.size("max_patches", 1..=256, Some(12))?;
        Ok(Self {
            values: Values::read(fields, defaults)?,
            video: Values::read(video.unwrap_or(fields), defaults)?,
            tile,
            frame: sides(video.unwrap_or(fields))?,
            tiles: (fields.size("min_patches", 1..=most, Some(1))?, most),
            patch,
        })
    }

    /// Columns and rows of the lattice whose shape is nearest to the picture's.
    fn lattice(&self, width: usize, height: usize, most: usize) -> (usize, usize) {
        let least = self.tiles.0.min(most);
        let mut candidates: Vec<(usize, usize)> = (1..=most)
            .flat_map(|cols| (1..=most).map(move |rows| (cols, rows)))
            .filter(|(cols, rows)| (least..=most).contains(&(cols * rows)))
            .collect();
        candidates.sort_by_key(|(cols, rows)| cols * rows);
        let shape = width as f64 / height as f64;
        let (mut best, mut nearest) = ((1, 1), f64::INFINITY);
        for (cols, rows) in candidates {
            let off = (shape - cols as f64 / rows as f64).abs();
            let room = 0.5 * (self.tile.0 * self.tile.1 * cols * rows) as f64;
            if off < nearest || (off == nearest && (width * height) as f64 > room) {
                (best, nearest) = ((cols, rows), off);
            }
        }
        best
    }

    /// Size of the stretched picture, columns, and the grids of tiles and thumbnail.
    fn plan(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<(usize, usize, Vec<Grid>), InputError> {
        let from = check_source(width, height)?;
        own_aspect((width, height), options, NAME)?;
        let tile_area = self.tile.0 * self.tile.1;
        let most =
            options.max_pixels.map_or(self.tiles.1, |p| (p / tile_area).clamp(1, self.tiles.1));
        let (cols, rows) = self.lattice(from.0, from.1, most);
        check_area((width, height), cols * rows + 1, self.tile)?;
        let place = |tile: usize| Place { source: [width, height], frame: 0, tile: tile as u32 };
        let stretched = (cols * self.tile.0, rows * self.tile.1);
        let ground = View::source().resized(from, stretched);
        let mut grids = Vec::new();
        for r in 0..rows {
            for c in 0..cols {
                let view = ground.moved((c * self.tile.0) as isize, (r * self.tile.1) as isize);
                grids.push(view.grid(self.tile, self.patch, place(r * cols + c)));
            }
        }
        if cols * rows > 1 {
            let view = View::source().resized(from, self.tile);
            grids.push(view.grid(self.tile, self.patch, place(cols * rows)));
        }
        Ok((cols, rows, grids))
    }

    fn video(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        let size = (clip.width(), clip.height());
        named(clip, check_area(size, clip.frames().len(), self.frame))?;
        let mut crops = Crops::new(&self.video, options.backend, self.patch);
        let view = View::source().resized((size.0 as usize, size.1 as usize), self.frame);
        for (i, frame) in clip.frames().iter().enumerate() {
            let picture = Bitmap::from_frame(frame);
            let resized = resize(picture, self.frame, self.video.filter, options.backend);
            let place = Place { source: [size.0, size.1], frame: i as u32, tile: 0 };
            crops.push(&resized, view.grid(self.frame, self.patch, place));
        }
        Ok(crops.finish(clip))
    }
}

impl Processor for InternVl {
    fn process(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        if clip.video().is_some() {
            return self.video(clip, options);
        }
        let (cols, rows, grids) = named(clip, self.plan(clip.width(), clip.height(), options))?;
        let picture = Bitmap::from_frame(&clip.frames()[0]);
        let stretched = (cols * self.tile.0, rows * self.tile.1);
        let ground = resize(picture.clone(), stretched, self.values.filter, options.backend);
        let mut crops = Crops::new(&self.values, options.backend, self.patch);
        for (i, grid) in grids.iter().enumerate() {
            if i < cols * rows {
                let corner =
                    (((i % cols) * self.tile.0) as isize, ((i / cols) * self.tile.1) as isize);
                crops.push(&ground.window(corner, self.tile, [0; 3]), *grid);
            } else {
                let thumbnail =
                    resize(picture.clone(), self.tile, self.values.filter, options.backend);
                crops.push(&thumbnail, *grid);
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
        Ok(self.plan(width, height, options)?.2)
    }
}
