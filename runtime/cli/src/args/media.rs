//! Pictures and videos among the arguments, in the order in which they were typed.
//!
//! Invariants
//! - The order of the command line is the order of the prompt, whichever flags brought the media.
//! - What came from the environment or a file stands before what was typed, flag by flag.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

/// One argument that may bring a picture, a video or the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A picture or video, or `-`.
    File(PathBuf),
    /// The frames of one video: a folder, or their files.
    Frames(Vec<PathBuf>),
    /// An argument without a flag.
    Word(PathBuf),
}

#[derive(Clone, Debug, Args)]
struct AskFlags {
    /// The question (@FILE reads a file); pictures and videos may stand beside it
    #[arg(value_name = "QUESTION", required = true, num_args = 1..)]
    words: Vec<PathBuf>,
    /// Picture or video, or - for a picture from stdin (may be repeated)
    #[arg(
        short = 'i',
        long,
        short_alias = 'a',
        visible_alias = "attachment",
        value_name = "FILE|-"
    )]
    image: Vec<PathBuf>,
    /// Folder whose pictures are the frames of one video, by name (may be repeated)
    #[arg(long, value_name = "DIR", help_heading = "Video")]
    frames: Vec<PathBuf>,
}

/// Question, pictures and videos of `ask`.
#[derive(Clone, Debug)]
pub(crate) struct AskMedia(pub(crate) Vec<Medium>);

#[derive(Clone, Debug, Args)]
struct TraceFlags {
    /// Picture (may be repeated)
    #[arg(short = 'i', long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Frames of one video, in order (may be repeated: a video each)
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    frames: Vec<PathBuf>,
}

/// Pictures and videos of `trace`.
#[derive(Clone, Debug)]
pub(crate) struct TraceMedia(pub(crate) Vec<Medium>);

/// What becomes of the values of a flag: one medium an occurrence.
type Make = fn(Vec<PathBuf>) -> Medium;

/// What the flags of a command brought, by their place on the command line.
fn in_order(matches: &ArgMatches, flags: &[(&str, Make)]) -> Vec<Medium> {
    let mut placed: Vec<(usize, Medium)> = Vec::new();
    for (id, medium) in flags {
        let is_typed = matches.value_source(id) == Some(ValueSource::CommandLine);
        let mut places = matches.indices_of(id).into_iter().flatten();
        for values in matches.get_raw_occurrences(id).into_iter().flatten() {
            let values: Vec<PathBuf> = values.map(PathBuf::from).collect();
            // Arguments without a flag are one occurrence, wherever they stand.
            let parts = if *id == "words" { values.chunks(1) } else { values.chunks(usize::MAX) };
            for part in parts {
                let place = (0..part.len()).filter_map(|_| places.next()).last();
                placed.push((place.filter(|_| is_typed).unwrap_or(0), medium(part.to_vec())));
            }
        }
    }
    // Stable: what has no place stays in the order of the flags.
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, medium)| medium).collect()
}

fn file(values: Vec<PathBuf>) -> Medium {
    Medium::File(values.into_iter().next().unwrap_or_default())
}

fn word(values: Vec<PathBuf>) -> Medium {
    Medium::Word(values.into_iter().next().unwrap_or_default())
}

impl FromArgMatches for AskMedia {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags: [(&str, Make); 3] =
            [("image", file), ("frames", Medium::Frames), ("words", word)];
        Ok(Self(in_order(matches, &flags)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for AskMedia {
    fn augment_args(command: Command) -> Command {
        AskFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        AskFlags::augment_args_for_update(command)
    }
}

impl FromArgMatches for TraceMedia {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags: [(&str, Make); 2] = [("image", file), ("frames", Medium::Frames)];
        Ok(Self(in_order(matches, &flags)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for TraceMedia {
    fn augment_args(command: Command) -> Command {
        TraceFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        TraceFlags::augment_args_for_update(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media<T: Args>(typed: &[&str]) -> T {
        let matches = T::augment_args(Command::new("x")).get_matches_from(typed);
        T::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn media_keep_the_order_of_the_command_line() {
        let typed =
            ["x", "a.png", "--frames", "v", "-i", "b.png", "What?", "--frames=w", "-", "-ac"];
        let (file, word) = (|p: &str| Medium::File(p.into()), |p: &str| Medium::Word(p.into()));
        let frames = |of: &[&str]| Medium::Frames(of.iter().map(PathBuf::from).collect());
        let (v, w) = (frames(&["v"]), frames(&["w"]));
        let expected =
            vec![word("a.png"), v, file("b.png"), word("What?"), w, word("-"), file("c")];
        assert_eq!(media::<AskMedia>(&typed).0, expected);
        let typed = ["x", "--frames", "1,2,3", "-i", "b", "--frames", "4", "-i", "c"];
        let expected = vec![frames(&["1", "2", "3"]), file("b"), frames(&["4"]), file("c")];
        assert_eq!(media::<TraceMedia>(&typed).0, expected);
    }
}
