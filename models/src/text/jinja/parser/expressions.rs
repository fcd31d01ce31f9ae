//! Expressions, by rank: `if`, `or`, `and`, `not`, comparisons, sums, `~`, products, powers, signs,
//! then what stands behind a value.

use super::super::Result;
use super::super::ast::{Arguments, Comparison, Expr, Kind, Operator};
use super::super::lexer::Token;
use super::Parser;

impl Parser {
    /// Expressions with commas; one without is itself. `empty`: `()` is allowed.
    pub(super) fn tuple(&mut self, conditional: bool, empty: bool) -> Result<Expr> {
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

    pub(super) fn expression(&mut self) -> Result<Expr> {
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

    pub(super) fn or(&mut self) -> Result<Expr> {
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

    pub(super) fn arguments(&mut self) -> Result<Arguments> {
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
