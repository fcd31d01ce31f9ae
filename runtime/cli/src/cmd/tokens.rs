//! `tokens`: how many visual tokens pictures and videos become, tile by tile and frame by frame,
//! without reading a weight.

use anyhow::{Context, Result};
use secateur::{Clip, Frame, Outline, VideoInfo, VideoOptions, Vlm, video};

use crate::args::TokensArgs;
use crate::cmd::ask::picture;
use crate::hub::{self, Needs};
use crate::job;
use crate::named::pictures_of;
use crate::outcome::{Outcome, usage};
use crate::output::{Align, Console, clean_line, table};
use crate::video::Frames;

/// One picture's tokens.
struct Counted {
    name: String,
    width: u32,
    height: u32,
    tokens: usize,
    /// Rows and columns of each tile's grid.
    grids: Vec<(u32, u32)>,
}

/// Runs the command.
///
/// # Errors
/// A model or a picture that cannot be used.
pub(crate) fn run(args: &TokensArgs, console: &Console) -> Result<Outcome> {
    if args.image.is_empty() && args.frames.is_empty() && args.size.is_empty() {
        return Err(usage(
            "name a picture or a video with --image, the frames of a video with --frames, or a size with \
             --size WxH or WxHxFRAMES",
        ));
    }
    let outline = open(args, console)?;
    let limits = secateur::image::Limits::default();
    let mut counted = Vec::new();
    let frames = Frames::new(&args.video, &outline, 0, limits);
    for path in &args.image {
        let is_video = video::is_video(path);
        let clip = if is_video { frames.load(path)? } else { picture(path, &limits)? };
        counted.push(count(&outline, &path.display().to_string(), clip)?);
    }
    for folder in &args.frames {
        let label = folder.display().to_string();
        let pictures = pictures_of(folder).with_context(|| format!("cannot read {label}"))?;
        let clip = video::from_pictures(&label, &pictures, video::FPS, &VideoOptions::default())?;
        counted.push(count(&outline, &label, clip)?);
    }
    for size in &args.size {
        counted.push(count(&outline, size, blank(size)?)?);
    }
    if args.json {
        let pictures: Vec<serde_json::Value> = counted
            .iter()
            .map(|c| {
                let grids: Vec<[u32; 2]> = c.grids.iter().map(|g| [g.0, g.1]).collect();
                serde_json::json!({
                    "picture": c.name, "width": c.width, "height": c.height, "tokens": c.tokens,
                    "grids": grids,
                })
            })
            .collect();
        let model = &outline.info().name;
        console.json(&serde_json::json!({
            "schema": "secateur.tokens/1", "model": model, "pictures": pictures,
        }))?;
        return Ok(Outcome::Done);
    }
    let mut rows = vec![["picture", "pixels", "tokens", "grids"].map(str::to_owned).to_vec()];
    for c in &counted {
        rows.push(vec![
            clean_line(&c.name),
            format!("{}x{}", c.width, c.height),
            c.tokens.to_string(),
            grids(&c.grids),
        ]);
    }
    console.result(&table(&rows, &[Align::Left, Align::Right, Align::Right, Align::Left]))?;
    Ok(Outcome::Done)
}

fn open(args: &TokensArgs, console: &Console) -> Result<Outline> {
    hub::fetch(args.model.as_deref(), Needs::Description, args.offline, console)?;
    let side = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok());
    let options = secateur::ProcessorOptions {
        max_pixels: side(args.max_pixels),
        min_pixels: side(args.min_pixels),
        ..secateur::ProcessorOptions::default()
    };
    let builder = Vlm::builder(job::source(args.model.as_deref(), args.mmproj.as_deref())?);
    job::outline(builder.image_options(options), args.model.as_deref(), args.shape.as_deref())
}

fn count(outline: &Outline, name: &str, clip: Clip) -> Result<Counted> {
    let (width, height) = (clip.width(), clip.height());
    let map = outline.tokens(&outline.fitted(clip)?)?;
    let grids = map.grids.iter().map(|g| (g.rows, g.cols)).collect();
    Ok(Counted { name: name.to_owned(), width, height, tokens: map.len(), grids })
}

/// A black picture of a size, or a video of that many frames.
fn blank(size: &str) -> Result<Clip> {
    let wrong = || {
        usage(format!(
            "--size {size}: expected WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES, for instance 640x480"
        ))
    };
    let number = |text: &str| {
        text.trim().parse::<u32>().ok().filter(|n| (1..=65_535).contains(n)).ok_or_else(wrong)
    };
    let numbers: Vec<u32> = size.split(['x', 'X']).map(number).collect::<Result<_>>()?;
    let (width, height, frames) = match numbers[..] {
        [width, height] => (width, height, None),
        [width, height, frames] => (width, height, Some(frames as usize)),
        _ => return Err(wrong()),
    };
    let pixels = u64::from(width) * u64::from(height);
    if pixels * frames.unwrap_or(1) as u64 > secateur::image::Limits::default().max_pixels {
        return Err(usage(format!("--size {size}: more than 100M pixels")));
    }
    let rgb = vec![0; pixels as usize * 3];
    let Some(frames) = frames else { return Ok(Clip::picture(size, width, height, rgb)?) };
    let frame = Frame { width, height, rgb: rgb.into(), time_s: None };
    let info = VideoInfo { fps: Some(video::FPS), duration_s: None };
    Ok(Clip::from_frames(size, vec![frame; frames], info)?)
}

/// `24x24`, or `3 of 24x24, 1 of 12x24` where there are several.
fn grids(grids: &[(u32, u32)]) -> String {
    let mut runs: Vec<((u32, u32), usize)> = Vec::new();
    for grid in grids {
        match runs.last_mut() {
            Some((last, count)) if last == grid => *count += 1,
            _ => runs.push((*grid, 1)),
        }
    }
    let texts: Vec<String> = runs
        .iter()
        .map(|((rows, cols), count)| match count {
            1 => format!("{rows}x{cols}"),
            n => format!("{n} of {rows}x{cols}"),
        })
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_told_in_runs() {
        assert_eq!(grids(&[(24, 24)]), "24x24");
        assert_eq!(grids(&[(24, 24), (24, 24), (12, 24)]), "2 of 24x24, 12x24");
    }

    #[test]
    fn a_size_that_is_none_is_refused() {
        assert_eq!(blank("4x3").unwrap().width(), 4);
        for size in ["4", "0x3", "4x", "70000x1", "60000x60000", "-1x3"] {
            assert!(blank(size).is_err(), "{size}");
        }
    }
}
