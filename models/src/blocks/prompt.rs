//! Placeholders: one a clip in the text, one a visual token in the ids.
//!
//! Invariants
//! - Placeholders are replaced in the text, left to right, and the text is tokenised once.
//! - As many ids stand for visual tokens as the layout has; otherwise it is an error, never a
//!   shift.

use secateur_core::error::RunError;
use secateur_core::model::{Pixels, Prompt};

/// Texts that stand for a picture and for a video, and the ids that stand for visual tokens.
#[derive(Clone, Debug)]
pub(crate) struct Placeholders {
    /// Of a picture.
    pub(crate) image: String,
    /// Of a video, where the family has one.
    pub(crate) video: Option<String>,
}

impl Placeholders {
    /// Replaces each placeholder by what `expansion` gives for its clip (index and pixels).
    ///
    /// # Errors
    /// If placeholders and clips differ in number or kind.
    pub(crate) fn replace(
        &self,
        prompt: &str,
        pixels: &[&Pixels],
        mut expansion: impl FnMut(usize, &Pixels) -> Result<String, RunError>,
    ) -> Result<String, RunError> {
        let mut out = String::with_capacity(prompt.len());
        let mut rest = prompt;
        let mut clip = 0;
        while let Some((start, video)) = self.next(rest) {
            let placeholder =
                if video { self.video.as_ref().unwrap_or(&self.image) } else { &self.image };
            let Some(of_clip) = pixels.get(clip) else {
                return Err(self.count_error(prompt, pixels));
            };
            if of_clip.video != video {
                return Err(RunError::Prompt(format!(
                    "placeholder {} is `{placeholder}`, but clip {} is a {}",
                    clip + 1,
                    clip + 1,
                    if of_clip.video { "video" } else { "picture" }
                )));
            }
            out.push_str(&rest[..start]);
            out.push_str(&expansion(clip, of_clip)?);
            rest = &rest[start + placeholder.len()..];
            clip += 1;
        }
        if clip != pixels.len() {
            return Err(self.count_error(prompt, pixels));
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Number of placeholders in a text.
    pub(crate) fn count(&self, prompt: &str) -> usize {
        let (mut rest, mut count) = (prompt, 0);
        while let Some((start, video)) = self.next(rest) {
            let placeholder =
                if video { self.video.as_ref().unwrap_or(&self.image) } else { &self.image };
            rest = &rest[start + placeholder.len()..];
            count += 1;
        }
        count
    }

    /// The next placeholder: where it starts, whether it is a video's.
    fn next(&self, text: &str) -> Option<(usize, bool)> {
        let image = text.find(&self.image).map(|i| (i, false));
        let video = self.video.as_ref().and_then(|v| text.find(v.as_str())).map(|i| (i, true));
        image.into_iter().chain(video).min()
    }

    fn count_error(&self, prompt: &str, pixels: &[&Pixels]) -> RunError {
        let video = self.video.as_ref().map_or(String::new(), |v| format!(" or `{v}`"));
        RunError::Prompt(format!(
            "{} clips were given, but the prompt holds {} placeholders (`{}`{video})",
            pixels.len(),
            self.count(prompt),
            self.image
        ))
    }
}

/// Marks the ids that stand for visual tokens.
///
/// # Errors
/// If there are not exactly `tokens` of them.
pub(crate) fn mark(ids: Vec<u32>, placeholders: &[u32], tokens: usize) -> Result<Prompt, RunError> {
    let mut next = 0;
    let visual: Vec<Option<u32>> = ids
        .iter()
        .map(|id| {
            placeholders.contains(id).then(|| {
                next += 1;
                next - 1
            })
        })
        .collect();
    if next as usize != tokens {
        return Err(RunError::Prompt(format!(
            "it tokenises to {next} placeholder ids for {tokens} visual tokens; the placeholder's \
             text must not stand in the question itself"
        )));
    }
    Ok(Prompt { ids, visual })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(video: bool) -> Pixels {
        Pixels {
            values: Vec::new(),
            shape: Vec::new(),
            crops: Vec::new(),
            rgb: Vec::new(),
            grid_thw: None,
            source: [1, 1],
            video,
            times_s: Vec::new(),
            fps: None,
            outputs: Vec::new(),
        }
    }

    #[test]
    fn placeholders_and_clips_must_agree() {
        let p = Placeholders { image: "<i>".into(), video: Some("<v>".into()) };
        let (i, v) = (clip(false), clip(true));
        let done = p.replace("a<v>b<i>c", &[&v, &i], |n, _| Ok(format!("[{n}]"))).unwrap();
        assert_eq!(done, "a[0]b[1]c");
        let error = |prompt: &str, clips: &[&Pixels]| {
            p.replace(prompt, clips, |_, _| Ok(String::new())).unwrap_err().to_string()
        };
        assert!(error("<i><i>", &[&i]).contains("holds 2 placeholders"));
        assert!(error("none", &[&i]).contains("1 clips were given"));
        assert!(error("<i>", &[&v]).contains("clip 1 is a video"));
    }
}
