//! Expressions.

use std::rc::Rc;

use super::super::ast::{Arguments, Comparison, Expr, Kind};
use super::super::value::{Dict, Value};
use super::super::{Error, Result, checks, filters, ops, print};
use super::{Args, Interpreter};

impl<'t> Interpreter<'t> {
    pub(in super::super) fn arguments(&mut self, all: &'t Arguments, scope: usize) -> Result<Args> {
        let mut args = Args::default();
        for value in &all.positional {
            args.positional.push(self.value(value, scope)?);
        }
        for (name, value) in &all.named {
            args.named.push((name.clone(), self.value(value, scope)?));
        }
        if let Some(star) = &all.star {
            let items = self.value(star, scope)?.items(&self.budget)?;
            args.positional.extend(items);
        }
        if let Some(stars) = &all.double_star {
            let Value::Dict(dict) = self.value(stars, scope)? else {
                return Err(Error::kind("argument after ** must be a mapping"));
            };
            for (key, value) in dict.iter() {
                let Value::Text(name) = key else {
                    return Err(Error::kind("keywords must be strings"));
                };
                args.named.push((name.clone(), value.clone()));
            }
        }
        Ok(args)
    }

    /// The value of an expression.
    pub(in super::super) fn value(&mut self, expr: &'t Expr, scope: usize) -> Result<Value> {
        self.deeper(|this| this.kind(&expr.kind, scope))
    }

    fn values(&mut self, all: &'t [Expr], scope: usize) -> Result<Vec<Value>> {
        self.budget.items(all.len())?;
        all.iter().map(|e| self.value(e, scope)).collect()
    }

    fn kind(&mut self, kind: &'t Kind, scope: usize) -> Result<Value> {
        Ok(match kind {
            Kind::None => Value::None,
            Kind::Bool(b) => Value::Bool(*b),
            Kind::Int(i) => Value::Int(*i),
            Kind::Float(f) => Value::Float(*f),
            Kind::Text(text) => Value::Text(text.clone()),
            Kind::Name(name) => self.lookup(scope, name)?,
            Kind::List(all) => Value::list(self.values(all, scope)?)?,
            Kind::Tuple(all) => Value::tuple(self.values(all, scope)?)?,
            Kind::Dict(pairs) => {
                self.budget.items(2 * pairs.len())?;
                let mut dict = Dict::default();
                for (key, value) in pairs {
                    let key = self.value(key, scope)?;
                    let value = self.value(value, scope)?;
                    dict.set(key, value, &self.budget)?;
                }
                Value::Dict(Rc::new(dict))
            }
            Kind::Attribute(value, name) => {
                let value = self.value(value, scope)?;
                self.attribute(&value, name)?
            }
            Kind::Item(value, index) => {
                let value = self.value(value, scope)?;
                let index = self.value(index, scope)?;
                self.item(&value, &index)?
            }
            Kind::Slice(value, parts) => {
                let value = self.value(value, scope)?;
                let mut bounds = [Value::None, Value::None, Value::None];
                for (bound, part) in bounds.iter_mut().zip(parts) {
                    if let Some(part) = part {
                        *bound = self.value(part, scope)?;
                    }
                }
                ops::slice(&value, bounds.each_ref(), &self.budget)?
            }
            Kind::Call(callee, arguments) => {
                let callee = self.value(callee, scope)?;
                let args = self.arguments(arguments, scope)?;
                self.call(&callee, args)?
            }
            Kind::Filter(value, filter) => {
                let value = self.value(value, scope)?;
                let args = self.arguments(&filter.arguments, scope)?;
                filters::apply(self, &filter.name, value, args)?
            }
            Kind::Test { value, name, arguments, negated } => {
                let value = self.value(value, scope)?;
                let args = self.arguments(arguments, scope)?;
                Value::Bool(checks::holds(self, name, &value, args)? != *negated)
            }
            Kind::Not(value) => Value::Bool(!self.value(value, scope)?.truth()),
            Kind::Negative(value) => ops::signed(&self.value(value, scope)?, true)?,
            Kind::Positive(value) => ops::signed(&self.value(value, scope)?, false)?,
            Kind::And(a, b) => {
                let a = self.value(a, scope)?;
                if a.truth() { self.value(b, scope)? } else { a }
            }
            Kind::Or(a, b) => {
                let a = self.value(a, scope)?;
                if a.truth() { a } else { self.value(b, scope)? }
            }
            Kind::Binary(operator, a, b) => {
                let a = self.value(a, scope)?;
                let b = self.value(b, scope)?;
                ops::binary(*operator, &a, &b, &self.budget)?
            }
            Kind::Concat(all) => {
                let mut out = String::new();
                for e in all {
                    let value = self.value(e, scope)?;
                    let text = print::text(&value, &self.budget)?;
                    self.write(&mut out, &text)?;
                }
                Value::text(out)
            }
            Kind::Compare(first, rest) => {
                let mut left = self.value(first, scope)?;
                for (comparison, right) in rest {
                    let right = self.value(right, scope)?;
                    if !self.compare(*comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Kind::If { test, then, otherwise } => {
                if self.value(test, scope)?.truth() {
                    self.value(then, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.value(otherwise, scope)?
                } else {
                    Value::undefined(
                        "the inline if-expression evaluated to false and no else section was \
                         defined.",
                    )
                }
            }
        })
    }

    pub(in super::super) fn compare(
        &self,
        comparison: Comparison,
        a: &Value,
        b: &Value,
    ) -> Result<bool> {
        let budget = &self.budget;
        let order = |symbol| ops::order(a, b, symbol, budget);
        Ok(match comparison {
            Comparison::Equal => ops::equal(a, b, budget)?,
            Comparison::NotEqual => !ops::equal(a, b, budget)?,
            Comparison::Less => order("<")?.is_some_and(|o| o.is_lt()),
            Comparison::LessEqual => order("<=")?.is_some_and(|o| o.is_le()),
            Comparison::Greater => order(">")?.is_some_and(|o| o.is_gt()),
            Comparison::GreaterEqual => order(">=")?.is_some_and(|o| o.is_ge()),
            Comparison::In => ops::contains(b, a, budget)?,
            Comparison::NotIn => !ops::contains(b, a, budget)?,
        })
    }
}
