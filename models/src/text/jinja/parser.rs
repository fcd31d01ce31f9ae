//! Tokens to the tree.
//!
//! Invariants
//! - Nesting has a limit, of statements, of brackets and of the tree that comes out.

use std::sync::Arc;

use super::ast::{
    Arguments, Comparison, Expr, Filter, For, Kind, Macro, Node, Operator, Statement, Target, names,
};
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

    /// Expressions with commas; one without is itself. `empty`: `()` is allowed.
    fn tuple(&mut self, conditional: bool, empty: bool) -> Result<Expr> {
        let line = self.line();
        let mut all = Vec::new();
        let mut is_tuple = false;
        loop {
            let is_end = matches!(self.peek(), None | Some(Token::BlockEnd | Token::PrintEnd))
                || self.is_operator(")")
                || (!conditional && self.is_name("recursive"));
            if is_end {
                break;
            }
            all.push(if conditional { self.expression()? } else { self.deeper(Self::or)? });
            if !self.take_operator(",") {
                break;
            }
            is_tuple = true;
        }
        if !is_tuple {
            if let Some(one) = all.pop() {
                return Ok(one);
            }
            if !empty {
                return Err(self.expected("an expression"));
            }
        }
        Expr::new(Kind::Tuple(all), line)
    }

    fn expression(&mut self) -> Result<Expr> {
        self.deeper(|p| {
            let line = p.line();
            let mut value = p.or()?;
            while p.take_name("if") {
                let test = Box::new(p.or()?);
                let otherwise =
                    if p.take_name("else") { Some(Box::new(p.expression()?)) } else { None };
                value = Expr::new(Kind::If { test, then: Box::new(value), otherwise }, line)?;
            }
            Ok(value)
        })
    }

    fn or(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.take_name("or") {
            left = Expr::new(Kind::Or(Box::new(left), Box::new(self.and()?)), line)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.take_name("and") {
            left = Expr::new(Kind::And(Box::new(left), Box::new(self.not()?)), line)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.take_name("not") {
            let value = self.deeper(Self::not)?;
            return Expr::new(Kind::Not(Box::new(value)), line);
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr> {
        const ALL: [(&str, Comparison); 6] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessEqual),
            (">=", Comparison::GreaterEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        let line = self.line();
        let left = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let symbol = ALL.iter().find(|(o, _)| self.is_operator(o)).map(|(_, c)| *c);
            let comparison = if symbol.is_some() {
                self.at += 1;
                symbol
            } else if self.take_name("in") {
                Some(Comparison::In)
            } else if self.is_name("not")
                && matches!(self.tokens.get(self.at + 1), Some((Token::Name(n), _)) if n == "in")
            {
                self.at += 2;
                Some(Comparison::NotIn)
            } else {
                None
            };
            let Some(comparison) = comparison else { break };
            rest.push((comparison, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(left);
        }
        Expr::new(Kind::Compare(Box::new(left), rest), line)
    }

    /// Operators of one rank, from the left.
    fn chain(
        &mut self,
        operators: &[(&str, Operator)],
        operand: fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        while let Some((_, operator)) = operators.iter().find(|(o, _)| self.is_operator(o)) {
            self.at += 1;
            let right = Box::new(operand(self)?);
            left = Expr::new(Kind::Binary(*operator, Box::new(left), right), line)?;
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.chain(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concatenation)
    }

    fn concatenation(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.take_operator("~") {
            all.push(self.product()?);
        }
        Expr::new(Kind::Concat(all), line)
    }

    fn product(&mut self) -> Result<Expr> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Modulo),
        ];
        self.chain(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        self.chain(&[("**", Operator::Power)], |p| p.unary(true))
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let line = self.line();
        let value = if self.take_operator("-") {
            let value = self.deeper(|p| p.unary(false))?;
            Expr::new(Kind::Negative(Box::new(value)), line)?
        } else if self.take_operator("+") {
            let value = self.deeper(|p| p.unary(false))?;
            Expr::new(Kind::Positive(Box::new(value)), line)?
        } else {
            self.primary()?
        };
        let value = self.postfix(value)?;
        if with_filters { self.filtered(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        let Some(token) = self.next() else {
            return Err(self.expected("an expression"));
        };
        let kind = match token {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Kind::Bool(true),
                "false" | "False" => Kind::Bool(false),
                "none" | "None" => Kind::None,
                _ => Kind::Name(name.into()),
            },
            Token::Text(mut text) => {
                while let Some(Token::Text(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Kind::Text(text.into())
            }
            Token::Int(value) => Kind::Int(value),
            Token::Float(value) => Kind::Float(value),
            Token::Operator("(") => {
                let value = self.deeper(|p| p.tuple(true, true))?;
                self.operator(")")?;
                return Ok(value);
            }
            Token::Operator("[") => {
                let mut all = Vec::new();
                while !self.take_operator("]") {
                    if !all.is_empty() {
                        self.operator(",")?;
                        if self.take_operator("]") {
                            break;
                        }
                    }
                    all.push(self.expression()?);
                }
                Kind::List(all)
            }
            Token::Operator("{") => {
                let mut all = Vec::new();
                while !self.take_operator("}") {
                    if !all.is_empty() {
                        self.operator(",")?;
                        if self.take_operator("}") {
                            break;
                        }
                    }
                    let key = self.expression()?;
                    self.operator(":")?;
                    all.push((key, self.expression()?));
                }
                Kind::Dict(all)
            }
            _ => {
                self.at -= 1;
                return Err(self.expected("an expression"));
            }
        };
        Expr::new(kind, line)
    }

    fn postfix(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            let kind = if self.take_operator(".") {
                match self.next() {
                    Some(Token::Name(name)) => Kind::Attribute(Box::new(value), name.into()),
                    Some(Token::Int(index)) => {
                        let index = Expr::new(Kind::Int(index), line)?;
                        Kind::Item(Box::new(value), Box::new(index))
                    }
                    _ => {
                        self.at -= 1;
                        return Err(self.expected("a name or a number behind `.`"));
                    }
                }
            } else if self.take_operator("[") {
                self.subscript(value)?
            } else if self.is_operator("(") {
                Kind::Call(Box::new(value), self.arguments()?)
            } else {
                return Ok(value);
            };
            value = Expr::new(kind, line)?;
        }
    }

    fn subscript(&mut self, value: Expr) -> Result<Kind> {
        let line = self.line();
        let part = |p: &mut Self| -> Result<Option<Box<Expr>>> {
            if p.is_operator(":") || p.is_operator("]") || p.is_operator(",") {
                return Ok(None);
            }
            Ok(Some(Box::new(p.expression()?)))
        };
        let first = part(self)?;
        if self.take_operator(":") {
            let second = part(self)?;
            let third = if self.take_operator(":") { part(self)? } else { None };
            self.operator("]")?;
            return Ok(Kind::Slice(Box::new(value), [first, second, third]));
        }
        let Some(first) = first else { return Err(self.expected("an index")) };
        if self.take_operator("]") {
            return Ok(Kind::Item(Box::new(value), first));
        }
        let mut all = vec![*first];
        while self.take_operator(",") {
            all.push(self.expression()?);
        }
        self.operator("]")?;
        let index = Expr::new(Kind::Tuple(all), line)?;
        Ok(Kind::Item(Box::new(value), Box::new(index)))
    }

    fn arguments(&mut self) -> Result<Arguments> {
        self.operator("(")?;
        let mut all = Arguments::default();
        let mut is_first = true;
        while !self.take_operator(")") {
            if !is_first {
                self.operator(",")?;
                if self.take_operator(")") {
                    break;
                }
            }
            is_first = false;
            if self.take_operator("**") {
                all.double_star = Some(Box::new(self.expression()?));
            } else if self.take_operator("*") {
                all.star = Some(Box::new(self.expression()?));
            } else if matches!(self.peek(), Some(Token::Name(_)))
                && matches!(self.tokens.get(self.at + 1), Some((Token::Operator("="), _)))
            {
                let name = self.name()?;
                self.operator("=")?;
                all.named.push((name, self.expression()?));
            } else {
                if !all.named.is_empty() || all.double_star.is_some() {
                    return Err(self.error("an argument follows named ones"));
                }
                all.positional.push(self.expression()?);
            }
        }
        Ok(all)
    }

    /// Filters, tests and calls behind a value.
    fn filtered(&mut self, mut value: Expr) -> Result<Expr> {
        loop {
            let line = self.line();
            let kind = if self.take_operator("|") {
                let filter = Box::new(self.filter()?);
                Kind::Filter(Box::new(value), filter)
            } else if self.take_name("is") {
                let negated = self.take_name("not");
                let name = self.dotted()?;
                let arguments = self.test_arguments()?;
                Kind::Test { value: Box::new(value), name, arguments, negated }
            } else if self.is_operator("(") {
                Kind::Call(Box::new(value), self.arguments()?)
            } else {
                return Ok(value);
            };
            value = Expr::new(kind, line)?;
        }
    }

    /// Arguments of a test: in brackets, or one value behind it.
    fn test_arguments(&mut self) -> Result<Arguments> {
        if self.is_operator("(") {
            return self.arguments();
        }
        let is_value = match self.peek() {
            Some(Token::Name(name)) => !["else", "or", "and"].contains(&name.as_str()),
            Some(Token::Text(_) | Token::Int(_) | Token::Float(_)) => true,
            Some(Token::Operator(o)) => ["[", "{"].contains(o),
            _ => false,
        };
        if !is_value {
            return Ok(Arguments::default());
        }
        if self.is_name("is") {
            return Err(self.error("tests cannot follow each other with `is`"));
        }
        let value = self.primary()?;
        let value = self.postfix(value)?;
        Ok(Arguments { positional: vec![value], ..Arguments::default() })
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
