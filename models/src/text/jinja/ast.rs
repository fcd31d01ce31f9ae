//! The tree of a template.
//!
//! Invariants
//! - The depth of an expression is known and limited, so that walking or dropping one cannot
//!   exhaust a stack.

use std::sync::Arc;

use super::{Error, Result};

/// Deepest expression.
pub(super) const MAX_DEPTH: u16 = 300;

/// A statement, or text.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) kind: Statement,
}

#[derive(Debug)]
pub(super) enum Statement {
    Text(Arc<str>),
    Print(Expr),
    If {
        branches: Vec<(Expr, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    For(Box<For>),
    Set {
        target: Target,
        value: Expr,
    },
    /// `{% set x %}..{% endset %}` with the filters that its text runs through.
    SetBlock {
        target: Target,
        filters: Vec<Filter>,
        body: Vec<Node>,
    },
    With {
        values: Vec<(Target, Expr)>,
        body: Vec<Node>,
    },
    Macro(Arc<Macro>),
    Call {
        caller: Arc<Macro>,
        call: Expr,
    },
    FilterBlock {
        filters: Vec<Filter>,
        body: Vec<Node>,
    },
    /// A body with variables of its own: `block`, `generation`, `autoescape`.
    Scope(Vec<Node>),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) test: Option<Expr>,
    pub(super) is_recursive: bool,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

/// What a value is bound to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>),
    /// `namespace.attribute`
    Attribute(Arc<str>, Arc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Arc<str>,
    pub(super) parameters: Vec<(Arc<str>, Option<Expr>)>,
    pub(super) body: Vec<Node>,
    /// Which of `varargs`, `kwargs` and `caller` the body names.
    pub(super) varargs: bool,
    pub(super) kwargs: bool,
    pub(super) caller: bool,
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Arc<str>, Expr)>,
    pub(super) star: Option<Box<Expr>>,
    pub(super) double_star: Option<Box<Expr>>,
}

#[derive(Debug)]
pub(super) struct Filter {
    pub(super) name: Arc<str>,
    pub(super) arguments: Arguments,
}

/// An expression with its depth.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) depth: u16,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Kind {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    Name(Arc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Arc<str>),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Arguments),
    Filter(Box<Expr>, Box<Filter>),
    Test { value: Box<Expr>, name: Arc<str>, arguments: Arguments, negated: bool },
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    If { test: Box<Expr>, then: Box<Expr>, otherwise: Option<Box<Expr>> },
}

impl Arguments {
    fn each<'a>(&'a self, see: &mut dyn FnMut(&'a Expr)) {
        self.positional.iter().for_each(&mut *see);
        self.named.iter().for_each(|(_, e)| see(e));
        self.star.iter().chain(&self.double_star).for_each(|e| see(e));
    }
}

impl Expr {
    /// An expression at a line.
    ///
    /// # Errors
    /// If it is nested too deeply.
    pub(super) fn new(kind: Kind, line: usize) -> Result<Self> {
        let mut deepest = 0;
        kind.each(&mut |e: &Expr| deepest = deepest.max(e.depth));
        if deepest >= MAX_DEPTH {
            let reason = format!("an expression is nested more than {MAX_DEPTH} deep");
            return Err(Error::Syntax { line, reason });
        }
        Ok(Self { depth: deepest + 1, kind })
    }

    /// Whether a name stands in it.
    pub(super) fn names(&self, name: &str) -> bool {
        if let Kind::Name(own) = &self.kind {
            return **own == *name;
        }
        let mut found = false;
        self.kind.each(&mut |e: &Expr| found = found || e.names(name));
        found
    }
}

impl Kind {
    /// The expressions right below.
    fn each<'a>(&'a self, see: &mut dyn FnMut(&'a Expr)) {
        match self {
            Kind::None | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) => {}
            Kind::Text(_) | Kind::Name(_) => {}
            Kind::List(all) | Kind::Tuple(all) | Kind::Concat(all) => all.iter().for_each(see),
            Kind::Dict(pairs) => pairs.iter().for_each(|(key, value)| {
                see(key);
                see(value);
            }),
            Kind::Attribute(e, _) | Kind::Not(e) | Kind::Negative(e) | Kind::Positive(e) => see(e),
            Kind::Item(a, b) | Kind::And(a, b) | Kind::Or(a, b) | Kind::Binary(_, a, b) => {
                see(a);
                see(b);
            }
            Kind::Slice(e, parts) => {
                see(e);
                parts.iter().flatten().for_each(|part| see(part));
            }
            Kind::Call(e, arguments) => {
                see(e);
                arguments.each(see);
            }
            Kind::Filter(e, filter) => {
                see(e);
                filter.arguments.each(see);
            }
            Kind::Test { value, arguments, .. } => {
                see(value);
                arguments.each(see);
            }
            Kind::Compare(e, rest) => {
                see(e);
                rest.iter().for_each(|(_, right)| see(right));
            }
            Kind::If { test, then, otherwise } => {
                see(test);
                see(then);
                otherwise.iter().for_each(|e| see(e));
            }
        }
    }
}

/// Whether a name stands in an expression of a body, macros and calls inside it included.
pub(super) fn names(body: &[Node], name: &str) -> bool {
    let filters = |all: &[Filter]| {
        let mut found = false;
        all.iter().for_each(|f| f.arguments.each(&mut |e| found = found || e.names(name)));
        found
    };
    let of_macro = |m: &Macro| {
        names(&m.body, name)
            || m.parameters.iter().any(|(_, e)| e.as_ref().is_some_and(|e| e.names(name)))
    };
    body.iter().any(|node| match &node.kind {
        Statement::Text(_) | Statement::Break | Statement::Continue => false,
        Statement::Print(e) => e.names(name),
        Statement::If { branches, otherwise } => {
            branches.iter().any(|(e, body)| e.names(name) || names(body, name))
                || names(otherwise, name)
        }
        Statement::For(f) => {
            f.items.names(name)
                || f.test.as_ref().is_some_and(|e| e.names(name))
                || names(&f.body, name)
                || names(&f.otherwise, name)
        }
        Statement::Set { value, .. } => value.names(name),
        Statement::SetBlock { filters: all, body, .. }
        | Statement::FilterBlock { filters: all, body } => filters(all) || names(body, name),
        Statement::With { values, body } => {
            values.iter().any(|(_, e)| e.names(name)) || names(body, name)
        }
        Statement::Macro(m) => of_macro(m),
        Statement::Call { caller, call } => of_macro(caller) || call.names(name),
        Statement::Scope(body) => names(body, name),
    })
}
