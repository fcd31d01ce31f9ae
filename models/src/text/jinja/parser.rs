//! Tokens to the tree.
//!
//! Invariants
//! - Nesting has a limit, of statements, of brackets and of the tree that comes out.

mod expressions;

use std::sync::Arc;

use super::ast::{Arguments, Expr, Filter, For, Kind, Macro, Node, Statement, Target, names};
use super::lexer::{Token, tokens};
use super::{Error, Result};

/// Deepest nesting of brackets (which count twice) and of statements.
const MAX_NESTED: usize = 200;

/// The statements of a template.
///
/// # Errors
/// Where it is not the language, with the line.
pub(super) fn parse(source: &str) -> Result<Vec<Node>> {
    let mut parser = Parser { tokens: tokens(source)?, at: 0, nested: 0 };
    let (body, _) = parser.body(&[])?;
    Ok(body)
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    nested: usize,
}

impl Parser {
    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line)
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Syntax { line: self.line(), reason: reason.into() }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    fn expected(&self, what: &str) -> Error {
        let found = match self.peek() {
            None => "the end of the template".to_owned(),
            Some(Token::Name(name)) => format!("`{name}`"),
            Some(Token::Operator(operator)) => format!("`{operator}`"),
            Some(Token::BlockEnd | Token::PrintEnd) => "the end of the tag".to_owned(),
            Some(other) => format!("{other:?}"),
        };
        self.error(format!("expected {what}, found {found}"))
    }

    fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Operator(o)) if *o == operator)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(n)) if n == name)
    }

    fn take_operator(&mut self, operator: &str) -> bool {
        let is_there = self.is_operator(operator);
        self.at += usize::from(is_there);
        is_there
    }

    fn take_name(&mut self, name: &str) -> bool {
        let is_there = self.is_name(name);
        self.at += usize::from(is_there);
        is_there
    }

    fn operator(&mut self, operator: &str) -> Result<()> {
        if self.take_operator(operator) {
            return Ok(());
        }
        Err(self.expected(&format!("`{operator}`")))
    }

    fn name(&mut self) -> Result<Arc<str>> {
        match self.peek() {
            Some(Token::Name(name)) => {
                let name = Arc::from(name.as_str());
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.expected("a name")),
        }
    }

    fn block_end(&mut self) -> Result<()> {
        if self.peek() == Some(&Token::BlockEnd) {
            self.at += 1;
            return Ok(());
        }
        Err(self.expected("the end of the tag"))
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nested == MAX_NESTED {
            return Err(self.error(format!("nested more than {MAX_NESTED} deep")));
        }
        self.nested += 1;
        let done = parse(self);
        self.nested -= 1;
        done
    }

    /// Statements up to one of `ends`, whose name comes along; its tag is left open.
    fn body(&mut self, ends: &[&str]) -> Result<(Vec<Node>, Arc<str>)> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let Some(token) = self.next() else {
                if ends.is_empty() {
                    return Ok((body, "".into()));
                }
                return Err(self.error(format!("the template ends where `{}` is missing", ends[0])));
            };
            match token {
                Token::Data(text) => {
                    body.push(Node { line, kind: Statement::Text(text.into()) });
                }
                Token::PrintBegin => {
                    let value = self.tuple(true, false)?;
                    if self.next() != Some(Token::PrintEnd) {
                        self.at -= 1;
                        return Err(self.expected("the end of the print"));
                    }
                    body.push(Node { line, kind: Statement::Print(value) });
                }
                Token::BlockBegin => {
                    let name = self.name()?;
                    if ends.contains(&&*name) {
                        return Ok((body, name));
                    }
                    let kind = self.deeper(|p| p.statement(&name))?;
                    body.push(Node { line, kind });
                }
                _ => {
                    self.at -= 1;
                    return Err(self.expected("text or a tag"));
                }
            }
        }
    }

    /// A body with the tag that ends it.
    fn whole_body(&mut self, end: &str) -> Result<Vec<Node>> {
        self.block_end()?;
        let (body, _) = self.body(&[end])?;
        Ok(body)
    }

    fn statement(&mut self, name: &str) -> Result<Statement> {
        let statement = match name {
            "if" => return self.conditional(),
            "for" => return self.repeated(),
            "set" => return self.assignment(),
            "print" => Statement::Print(self.tuple(true, false)?),
            "break" => Statement::Break,
            "continue" => Statement::Continue,
            "macro" => {
                let name = self.name()?;
                Statement::Macro(self.routine(name, "endmacro")?)
            }
            "call" => {
                let parameters =
                    if self.is_operator("(") { self.parameters()? } else { Vec::new() };
                let call = self.expression()?;
                if !matches!(call.kind, Kind::Call(..)) {
                    return Err(self.error("expected a call behind `call`"));
                }
                let body = self.whole_body("endcall")?;
                Statement::Call { caller: routine("caller".into(), parameters, body), call }
            }
            "filter" => {
                let filters = self.filters(true)?;
                Statement::FilterBlock { filters, body: self.whole_body("endfilter")? }
            }
            "with" => {
                let mut values = Vec::new();
                while self.peek() != Some(&Token::BlockEnd) {
                    if !values.is_empty() {
                        self.operator(",")?;
                    }
                    let target = self.target(false)?;
                    self.operator("=")?;
                    values.push((target, self.expression()?));
                }
                Statement::With { values, body: self.whole_body("endwith")? }
            }
            "generation" => Statement::Scope(self.whole_body("endgeneration")?),
            "autoescape" => {
                let value = self.expression()?;
                if !matches!(value.kind, Kind::Bool(false)) {
                    return Err(self.error("escaping of all that is printed is not supported"));
                }
                Statement::Scope(self.whole_body("endautoescape")?)
            }
            "block" => {
                let name = self.name()?;
                while self.take_name("scoped") || self.take_name("required") {}
                let body = self.whole_body("endblock")?;
                self.take_name(&name);
                Statement::Scope(body)
            }
            "include" | "import" | "from" | "extends" => {
                return Err(self.error(format!("`{name}`: a chat template cannot load another")));
            }
            _ => return Err(self.error(format!("unknown tag `{name}`"))),
        };
        self.block_end()?;
        Ok(statement)
    }

    fn conditional(&mut self) -> Result<Statement> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, false)?;
            self.block_end()?;
            let (body, end) = self.body(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match &*end {
                "elif" => {}
                "else" => {
                    let otherwise = self.whole_body("endif")?;
                    self.block_end()?;
                    return Ok(Statement::If { branches, otherwise });
                }
                _ => {
                    self.block_end()?;
                    return Ok(Statement::If { branches, otherwise: Vec::new() });
                }
            }
        }
    }

    fn repeated(&mut self) -> Result<Statement> {
        let target = self.target(false)?;
        if !self.take_name("in") {
            return Err(self.expected("`in`"));
        }
        let items = self.tuple(false, false)?;
        let test = if self.take_name("if") { Some(self.expression()?) } else { None };
        let is_recursive = self.take_name("recursive");
        self.block_end()?;
        let (body, end) = self.body(&["else", "endfor"])?;
        let otherwise = if &*end == "else" { self.whole_body("endfor")? } else { Vec::new() };
        self.block_end()?;
        let parts = For { target, items, test, is_recursive, body, otherwise };
        Ok(Statement::For(Box::new(parts)))
    }

    fn assignment(&mut self) -> Result<Statement> {
        let target = self.target(true)?;
        let statement = if self.take_operator("=") {
            Statement::Set { target, value: self.tuple(true, false)? }
        } else {
            let filters = self.filters(false)?;
            Statement::SetBlock { target, filters, body: self.whole_body("endset")? }
        };
        self.block_end()?;
        Ok(statement)
    }

    /// What is assigned to: names, or with `attributes` one of a namespace.
    fn target(&mut self, attributes: bool) -> Result<Target> {
        let mut all = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.take_operator("(") {
                all.push(self.deeper(|p| p.target(attributes))?);
                self.operator(")")?;
            } else {
                let name = self.name()?;
                if attributes && self.take_operator(".") {
                    all.push(Target::Attribute(name, self.name()?));
                } else {
                    let fixed = ["true", "false", "none", "True", "False", "None"];
                    if fixed.contains(&&*name) {
                        return Err(self.error(format!("cannot assign to `{name}`")));
                    }
                    all.push(Target::Name(name));
                }
            }
            if !self.take_operator(",") {
                break;
            }
            is_tuple = true;
            if self.is_name("in") || self.is_operator("=") || self.is_operator(")") {
                break;
            }
        }
        match (is_tuple, all.pop()) {
            (false, Some(one)) => Ok(one),
            (_, last) => {
                all.extend(last);
                Ok(Target::Tuple(all))
            }
        }
    }

    fn parameters(&mut self) -> Result<Vec<(Arc<str>, Option<Expr>)>> {
        self.operator("(")?;
        let mut all: Vec<(Arc<str>, Option<Expr>)> = Vec::new();
        while !self.take_operator(")") {
            if !all.is_empty() {
                self.operator(",")?;
            }
            let name = self.name()?;
            let default = if self.take_operator("=") { Some(self.expression()?) } else { None };
            if default.is_none() && all.last().is_some_and(|(_, default)| default.is_some()) {
                return Err(self.error("a parameter without a default follows one with a default"));
            }
            all.push((name, default));
        }
        Ok(all)
    }

    fn routine(&mut self, name: Arc<str>, end: &str) -> Result<Arc<Macro>> {
        let parameters = self.parameters()?;
        let body = self.whole_body(end)?;
        Ok(routine(name, parameters, body))
    }

    /// Filters of a block: `upper | trim`; with `inline` the first has no bar.
    fn filters(&mut self, inline: bool) -> Result<Vec<Filter>> {
        let mut filters = Vec::new();
        while (inline && filters.is_empty()) || self.take_operator("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    fn filter(&mut self) -> Result<Filter> {
        let name = self.dotted()?;
        let arguments =
            if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
        Ok(Filter { name, arguments })
    }

    fn dotted(&mut self) -> Result<Arc<str>> {
        let mut name = self.name()?.to_string();
        while self.take_operator(".") {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name.into())
    }
}

fn routine(
    name: Arc<str>,
    parameters: Vec<(Arc<str>, Option<Expr>)>,
    body: Vec<Node>,
) -> Arc<Macro> {
    let says = |word: &str| names(&body, word);
    let (varargs, kwargs, caller) = (says("varargs"), says("kwargs"), says("caller"));
    Arc::new(Macro { name, parameters, body, varargs, kwargs, caller })
}
