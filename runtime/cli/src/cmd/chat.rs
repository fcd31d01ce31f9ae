//! `chat`: a conversation about pictures, a question a line, answers streamed as they are made.

use anyhow::Result;
use secateur::Load;

use crate::args::ChatArgs;
use crate::chat::{Chat, Line, Lines, Next};
use crate::job;
use crate::outcome::{Outcome, of_error};
use crate::output::Console;
use crate::signals::Interrupts;
use crate::video::Frames;

/// Runs the command.
///
/// # Errors
/// What keeps the conversation from beginning; a closed stdout. What goes wrong in it is said, and it
/// goes on.
pub(crate) fn run(args: &ChatArgs, console: &Console) -> Result<Outcome> {
    let chain = job::chain(&args.chain)?;
    let load = Load { max_tokens: args.sampling.max_tokens, ..Load::default() };
    job::most_requests(&args.model, &args.limits, &chain, &load, console)?;
    let system = args.system.as_deref().map(job::text).transpose()?;
    let vlm = job::open(&args.model, console)?;
    let limits = job::limits(&args.limits);
    let frames = Frames::new(&args.video, &vlm, args.sampling.max_tokens, limits);
    let mut chat = Chat::new(&vlm, chain, system, &args.sampling, frames)?;
    for path in &args.image {
        chat.add(path)?;
    }
    let mut lines = Lines::open()?;
    let interrupts = Interrupts::install()?;
    if lines.is_terminal() {
        let name = &vlm.info().name;
        console.note(&format!("{name}, {}; /help lists what can be typed", chat.pictures()));
    }
    let mut has_failed = false;
    loop {
        let line = match lines.next()? {
            Line::Text(text) => text,
            Line::End => break,
            Line::Interrupted => {
                console.note("/quit or Ctrl-D ends the conversation");
                continue;
            }
            Line::Refused(reason) => {
                has_failed = true;
                console.error(reason);
                continue;
            }
        };
        let next = interrupts.during(|stop| chat.take(&line, stop, console));
        match next {
            Ok(Next::Go) => {}
            Ok(Next::Quit) => break,
            Err(error) => {
                if let (outcome, false) = of_error(&error) {
                    return Ok(outcome);
                }
                has_failed = true;
                console.error(&format!("{error:#}"));
            }
        }
    }
    // A person has seen it; a program that piped its questions in has not.
    Ok(if has_failed && !lines.is_terminal() { Outcome::SomeFailed } else { Outcome::Done })
}
