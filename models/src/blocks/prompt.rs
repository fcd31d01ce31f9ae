//! Placeholders: one a clip in the text, one a visual token in the ids.
//!
//! Invariants
//! - Placeholders are replaced in the text, left to right, and the text is tokenised once.
//! - As many ids stand for visual tokens as the layout has; otherwise it is an error, never a
//!   shift.

use secateur_core::error::RunError;
use secateur_core::model::{Pixels, Prompt, Slot};

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
        let kinds = self.kinds(prompt);
        if kinds.len() != pixels.len() || kinds.iter().zip(pixels).any(|(v, p)| *v != p.video) {
            return Err(self.mismatch(&kinds, pixels));
        }
        let mut out = String::with_capacity(prompt.len());
        let mut rest = prompt;
        for (clip, of_clip) in pixels.iter().enumerate() {
            let Some((start, video)) = self.next(rest) else { break };
            out.push_str(&rest[..start]);
            out.push_str(&expansion(clip, of_clip)?);
            rest = &rest[start + self.text(video).len()..];
        }
        out.push_str(rest);
        Ok(out)
    }

    /// For each placeholder of a text, left to right, whether it is a video's.
    pub(crate) fn kinds(&self, prompt: &str) -> Vec<bool> {
        let (mut rest, mut kinds) = (prompt, Vec::new());
        while let Some((start, video)) = self.next(rest) {
            rest = &rest[start + self.text(video).len()..];
            kinds.push(video);
        }
        kinds
    }

    /// The placeholder of a kind.
    pub(crate) fn text(&self, video: bool) -> &str {
        self.video.as_ref().filter(|_| video).unwrap_or(&self.image)
    }

    /// The next placeholder: where it starts, whether it is a video's.
    fn next(&self, text: &str) -> Option<(usize, bool)> {
        let image = text.find(&self.image).map(|i| (i, false));
        let video = self.video.as_ref().and_then(|v| text.find(v.as_str())).map(|i| (i, true));
        image.into_iter().chain(video).min()
    }

    fn mismatch(&self, kinds: &[bool], pixels: &[&Pixels]) -> RunError {
        let clips: Vec<bool> = pixels.iter().map(|p| p.video).collect();
        let count = |of: &[bool], video: bool| of.iter().filter(|v| **v == video).count();
        let words = |of: &[bool], with_text: bool| {
            let part = |(video, word): (bool, &str)| {
                let (n, other) = (count(of, video), count(of, !video));
                // No pictures is worth a word only where there is nothing else.
                if n == 0 && (video || other > 0) {
                    return None;
                }
                let plural = if n == 1 { "" } else { "s" };
                let text =
                    if with_text { format!(" (`{}`)", self.text(video)) } else { String::new() };
                Some(format!("{n} {word}{plural}{text}"))
            };
            let parts: Vec<String> =
                [(false, "picture"), (true, "video")].into_iter().filter_map(part).collect();
            parts.join(" and ")
        };
        let given = words(&clips, false);
        let is_order = [false, true].iter().all(|&v| count(&clips, v) == count(kinds, v));
        RunError::Prompt(if is_order {
            format!("{given} given in another order than the prompt's placeholders")
        } else {
            format!("{given} given, but the prompt holds placeholders for {}", words(kinds, true))
        })
    }
}

/// Marks the ids that stand for visual tokens.
///
/// # Errors
/// If there are not exactly `tokens` of them.
pub(crate) fn mark(ids: Vec<u32>, placeholders: &[u32], tokens: usize) -> Result<Prompt, RunError> {
    let mut next = 0;
    let slots = ids
        .iter()
        .map(|id| {
            if !placeholders.contains(id) {
                return Slot::Text(*id);
            }
            next += 1;
            Slot::Visual(next - 1)
        })
        .collect();
    if next as usize != tokens {
        return Err(RunError::Prompt(format!(
            "it tokenises to {next} placeholder ids for {tokens} visual tokens; the placeholder's \
             text must not stand in the question itself"
        )));
    }
    Ok(Prompt { ids, slots })
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
        assert!(error("<i><i>", &[&i]).contains("1 picture given, but the prompt holds"));
        assert!(error("none", &[&i]).contains("placeholders for 0 pictures (`<i>`)"));
        assert!(error("<i>", &[&v]).contains("1 video given, but"));
        assert!(error("<i><v>", &[&v, &i]).contains("another order"));
        assert_eq!(p.kinds("a<v>b<i><v>"), [true, false, true]);
    }
}
