//! A conversation: pictures, earlier questions and answers, a chain, and what is typed next.
//!
//! Invariants
//! - What fails leaves the conversation as it was: a question that was not answered is not in it, a
//!   picture that the model does not take is not added, a chain that does not fit is not set.
//! - An answer that was stopped half-way is part of the conversation as far as it was said.

mod lines;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use secateur::{
    Answer, CancelToken, ChainSpec, Clip, Error, FinishReason, Report, Request, Session, Vlm,
};

use crate::args::SamplingArgs;
use crate::cmd::ask::{picture, say, stats};
use crate::job;
use crate::output::Console;
use crate::video::{Frames, advice, is_video};

pub(crate) use lines::{Line, Lines};

const HELP: &str = "\
A line is a question; one that begins with / is a command (// begins a question with /):
  /image PATH      add a picture, a video or a folder of frames; without PATH: list them
  /prune CHAIN     prune by another chain from now on (none: not at all); without CHAIN: show it
  /stats           where tokens, time and memory of the last answer went
  /reset           forget questions and answers; /reset all forgets the pictures too
  /help            this
  /quit            end; so does Ctrl-D. Ctrl-C stops an answer";

/// Whether the conversation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It does.
    Go,
    /// It was ended.
    Quit,
}

/// What a line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed<'a> {
    Nothing,
    Question(&'a str),
    /// Name and the rest of the line.
    Command(&'a str, &'a str),
}

impl<'a> Typed<'a> {
    fn read(line: &'a str) -> Self {
        let line = line.trim();
        match line.strip_prefix('/') {
            _ if line.is_empty() => Typed::Nothing,
            None => Typed::Question(line),
            Some(rest) if rest.starts_with('/') => Typed::Question(rest),
            Some(rest) => {
                let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                Typed::Command(name, rest.trim())
            }
        }
    }
}

/// A picture or video of the conversation.
#[derive(Debug)]
struct Picture {
    name: String,
    clips: Vec<Clip>,
}

/// A conversation in progress.
#[derive(Debug)]
pub(crate) struct Chat<'a> {
    vlm: &'a Vlm,
    session: Session,
    chain: ChainSpec,
    system: Option<String>,
    sampling: &'a SamplingArgs,
    frames: Frames,
    pictures: Vec<Picture>,
    /// What loading pictures took that no answer has reported yet, milliseconds.
    loading_ms: f64,
    turns: Vec<(String, String)>,
    last: Option<Report>,
}

impl<'a> Chat<'a> {
    /// A conversation without pictures.
    ///
    /// # Errors
    /// A chain that does not fit the model.
    pub(crate) fn new(
        vlm: &'a Vlm,
        chain: ChainSpec,
        system: Option<String>,
        sampling: &'a SamplingArgs,
        frames: Frames,
    ) -> Result<Self> {
        vlm.resolve(&chain)?;
        Ok(Self {
            vlm,
            session: vlm.session(),
            chain,
            system,
            sampling,
            frames,
            pictures: Vec::new(),
            loading_ms: 0.0,
            turns: Vec::new(),
            last: None,
        })
    }

    /// Adds a picture, a video or a folder of frames.
    ///
    /// # Errors
    /// What is wrong with it, or that the model does not take it beside the others.
    pub(crate) fn add(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str() == "-" {
            bail!("stdin holds the questions of a chat; name the picture's file");
        }
        let start = Instant::now();
        let clip = match is_video(path) {
            true => self.frames.load(path)?,
            false => picture(path, self.frames.limits())?,
        };
        let name = clip.label().to_owned();
        let clips = self.vlm.fitted(clip)?;
        let there = self.pictures.iter().flat_map(|p| &p.clips);
        let all: Vec<Clip> = there.chain(&clips).cloned().collect();
        self.vlm.tokens(&all)?;
        self.pictures.push(Picture { name, clips });
        self.loading_ms += start.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }

    /// How many pictures there are, in words.
    pub(crate) fn pictures(&self) -> String {
        match self.pictures.len() {
            0 => "no picture".to_owned(),
            1 => "1 picture".to_owned(),
            n => format!("{n} pictures"),
        }
    }

    /// Does what a line asks for; `stop` stops an answer.
    ///
    /// # Errors
    /// What went wrong, after which the conversation goes on as it was; a closed stdout.
    pub(crate) fn take(
        &mut self,
        line: &str,
        stop: CancelToken,
        console: &Console,
    ) -> Result<Next> {
        match Typed::read(line) {
            Typed::Nothing => {}
            Typed::Question(question) => self.ask(question, stop, console)?,
            Typed::Command("quit" | "exit" | "q", "") => return Ok(Next::Quit),
            Typed::Command("help" | "h" | "?", _) => console.note(HELP),
            Typed::Command("image", "") => {
                console.note(&self.pictures());
                for picture in &self.pictures {
                    console.note(&format!("  {}", crate::output::clean_line(&picture.name)));
                }
            }
            Typed::Command("image", path) => {
                self.add(Path::new(path))?;
                let place = "all stand before the first question";
                console.note(&format!("{}; {place}", self.pictures()));
            }
            Typed::Command("prune", "") => console.note(self.vlm.explain(&self.chain)?.trim_end()),
            Typed::Command("prune", chain) => {
                let chain = secateur::parse_chain(chain)?;
                let planned = self.vlm.resolve(&chain)?;
                console.note(&format!("chain {chain}"));
                for note in planned.notes_of(self.vlm.info().visual_tokens) {
                    console.note(&format!("note: {note}"));
                }
                self.chain = chain;
            }
            Typed::Command("stats", "") => match &self.last {
                None => console.note("nothing was answered yet"),
                Some(report) => {
                    console.note(stats(report, &self.vlm.describe()).trim_end());
                }
            },
            Typed::Command("reset", what @ ("" | "all")) => {
                self.turns.clear();
                self.session.reset();
                if what == "all" {
                    self.pictures.clear();
                }
                console.note(&format!("a new conversation, {}", self.pictures()));
            }
            Typed::Command(name, _) => {
                let name = crate::output::clean_line(name);
                bail!("`/{name}` is no command, or takes nothing behind it; /help lists them");
            }
        }
        Ok(Next::Go)
    }

    fn ask(&mut self, question: &str, stop: CancelToken, console: &Console) -> Result<()> {
        let mut request = Request::new(question)
            .chain(&self.chain)
            .sampling(job::sampling(self.sampling))
            .max_tokens(self.sampling.max_tokens)
            .cancel(stop)
            .decode_image_ms(std::mem::take(&mut self.loading_ms));
        if let Some(system) = &self.system {
            request = request.system(system);
        }
        request = self.sampling.stop.iter().fold(request, Request::stop);
        let clips = self.pictures.iter().flat_map(|p| &p.clips);
        request = clips.cloned().fold(request, Request::clip);
        request = self.turns.iter().fold(request, |request, (q, a)| request.turn(q, a));
        let frames = self.pictures.iter().flat_map(|p| &p.clips).map(|c| c.frames().len()).sum();
        let answer = match answered(&mut self.session, request, console) {
            Ok(answer) => answer,
            Err(error) => match error.downcast::<Error>() {
                Ok(Error::Cancelled { partial, .. }) => {
                    console.note("stopped");
                    let Some(partial) = partial else { return Ok(()) };
                    *partial
                }
                Ok(error @ Error::Context { .. }) => {
                    let advice = advice(&error, frames).unwrap_or_else(|| {
                        "pictures, questions and answers have filled it; /reset forgets questions \
                         and answers, /reset all the pictures too"
                            .to_owned()
                    });
                    return Err(error).context(advice);
                }
                Ok(error) => return Err(error.into()),
                Err(error) => return Err(error),
            },
        };
        if answer.finish == FinishReason::Length {
            console.note(&self.cut_short(&answer));
        }
        self.turns.push((question.to_owned(), answer.text));
        self.last = Some(answer.report);
        Ok(())
    }

    /// Why an answer ended in the middle, and what to do.
    fn cut_short(&self, answer: &Answer) -> String {
        let (context, most) = (self.vlm.info().decoder.context, self.sampling.max_tokens);
        if answer.ids.len() < most {
            format!("cut short: the model's context of {context} tokens is full; /reset empties it")
        } else {
            format!("cut short after {most} tokens (--max-tokens)")
        }
    }
}

/// Asks, and prints the answer as it is made.
fn answered(session: &mut Session, request: Request, console: &Console) -> Result<Answer> {
    let mut stream = session.ask(request)?;
    say(&mut stream, console)?;
    Ok(stream.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_begins_a_command_and_two_a_question() {
        assert_eq!(Typed::read("  \t"), Typed::Nothing);
        assert_eq!(Typed::read(" What? "), Typed::Question("What?"));
        assert_eq!(Typed::read("//etc holds what?"), Typed::Question("/etc holds what?"));
        assert_eq!(Typed::read("/image  a b.png "), Typed::Command("image", "a b.png"));
        assert_eq!(Typed::read("/"), Typed::Command("", ""));
    }
}
