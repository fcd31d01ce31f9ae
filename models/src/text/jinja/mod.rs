//! The template language of chat templates: Jinja with the values of Python.
//!
//! Templates are written for transformers, which runs them in a sandbox of Jinja2 over Python's
//! values. What a template prints therefore depends on Python: `{'a': True}`, `1e+16`, `'%d' % n`,
//! insertion order of maps, banker's rounding. This module is that language, and no more of it than
//! a template can see: no loader, no files, no attributes of the interpreter.
//!
//! Invariants
//! - Everything that a template makes costs fuel in proportion to its size; fuel, the bytes of a
//!   text, the depth of values and the depth of evaluation have limits ([`Limits`]). What goes
//!   beyond one is an error.
//! - Compiling and rendering run on a thread of their own with a stack of known size.
//! - Values do not change once made; a namespace is the one thing that is written to.
//! - Maps keep the order of insertion.
//!
//! Source: the documentation of Jinja 3.1 and `_compile_jinja_template` of transformers 5.24 (its
//! options, filters and globals); `tests/golden/templates` compares with its output.
//!
//! Deviations: `escape` gives a plain text; whole numbers have 128 bits; `lipsum`, `random`,
//! `urlize`, `wordwrap`, `xmlattr` and `pprint` are not read; templates that load other templates
//! are refused, as there.

mod ast;
mod call;
mod checks;
mod clock;
mod eval;
mod filters;
mod format;
mod json;
mod lexer;
mod methods;
mod number;
mod ops;
mod parser;
mod print;
mod sequences;
#[cfg(test)]
mod table;
mod value;

use std::cell::Cell;

pub(super) use value::{Dict, Value};

use super::guard::guarded;

/// What is wrong with a template, or what it says is wrong with the conversation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// Not the language.
    #[error("line {line}: {reason}")]
    Syntax { line: usize, reason: String },
    /// The template's own `raise_exception`.
    #[error("{0}")]
    Raised(String),
    /// Something that is not there was used as if it were.
    #[error("{0}")]
    Undefined(String),
    /// An operation that its values do not have.
    #[error("{0}")]
    Type(String),
    /// A limit.
    #[error("{0}")]
    Limit(String),
    /// With the place.
    #[error("line {line}: {error}")]
    At { line: usize, error: Box<Error> },
}

impl Error {
    fn kind(text: impl Into<String>) -> Self {
        Error::Type(text.into())
    }

    /// With the line, if it has none.
    fn at(self, line: usize) -> Self {
        match self {
            Error::Syntax { .. } | Error::At { .. } => self,
            error => Error::At { line, error: Box::new(error) },
        }
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// What a template may use up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of a template.
    pub(super) source: usize,
    /// Bytes of a text that it makes, the prompt among them.
    pub(super) text: usize,
    /// Steps; eight bytes of text or a quarter of an item are one.
    pub(super) fuel: u64,
    /// Nested evaluations: calls within calls within expressions.
    pub(super) depth: usize,
}

impl Limits {
    /// Published templates have at most some 100 kB and take some 100,000 steps for long
    /// conversations; the fuel is a second or two of work.
    pub(super) const DEFAULT: Self =
        Self { source: 1 << 20, text: 16 << 20, fuel: 20_000_000, depth: 1000 };
}

/// Bytes of stack: `Limits::DEFAULT.depth` evaluations in a build without optimisation, and as much
/// again.
const STACK: usize = 64 << 20;

/// Fuel and the limit of texts.
struct Budget {
    left: Cell<u64>,
    limits: Limits,
}

impl Budget {
    fn new(limits: Limits) -> Self {
        Self { left: Cell::new(limits.fuel), limits }
    }

    /// Pays for steps.
    fn spend(&self, steps: u64) -> Result<()> {
        match self.left.get().checked_sub(steps) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                let fuel = self.limits.fuel;
                Err(Error::Limit(format!("the template takes more than {fuel} steps")))
            }
        }
    }

    /// Refuses a text that is too large.
    fn bytes(&self, bytes: usize) -> Result<()> {
        let most = self.limits.text;
        if bytes > most {
            return Err(Error::Limit(format!(
                "the template makes a text of more than {most} bytes"
            )));
        }
        Ok(())
    }

    /// Pays for a text before it is made.
    fn text(&self, bytes: usize) -> Result<()> {
        self.bytes(bytes)?;
        self.spend(bytes as u64 / 8 + 1)
    }

    /// Pays for items before they are made.
    fn items(&self, count: usize) -> Result<()> {
        self.spend(4 * count as u64 + 1)
    }
}

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    body: Vec<ast::Node>,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// Where it is not the language, with the line; where it is too large.
    pub(super) fn compile(source: &str, limits: Limits) -> Result<Self> {
        if source.len() > limits.source {
            let (found, most) = (source.len(), limits.source);
            return Err(Error::Limit(format!("the template has {found} bytes; read are {most}")));
        }
        let body = own_stack(|| parser::parse(&lexer::normal(source)))?;
        Ok(Self { body })
    }

    /// What the template prints where `context` gives the values of its variables.
    ///
    /// # Errors
    /// What the template raises, operations that its values do not have, limits.
    pub(super) fn render(
        &self,
        context: impl FnOnce() -> Dict + Send,
        limits: Limits,
    ) -> Result<String> {
        own_stack(|| eval::render(&self.body, context(), limits))
    }
}

/// Runs on a thread of its own. A panic there would be a fault of this module; it stays an error.
fn own_stack<T: Send>(run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".into()).stack_size(STACK);
        let thread = thread
            .spawn_scoped(scope, || guarded(run))
            .map_err(|e| Error::Limit(format!("no thread for the template: {e}")))?;
        let fault = |words: &str| Error::Limit(format!("fault of the template engine: {words}"));
        thread.join().map_err(|_| fault("no reason given"))?.map_err(|words| fault(&words))?
    })
}
