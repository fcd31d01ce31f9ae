//! A template at work: statements, scopes, loops, macros.
//!
//! Invariants
//! - Scopes lie in one list and name their parent by index; those of a body go when it ends, unless
//!   a macro was made in it that may still read them.
//! - Every evaluation pays one step and counts against the depth.

mod expressions;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::ast::{Filter, For, Kind, Macro, Node, Statement, Target};
use super::value::{Dict, Loop, Value};
use super::{Budget, Error, Limits, Result, filters, print};

/// Arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

struct Scope {
    names: Vec<(Arc<str>, Value)>,
    parent: usize,
}

/// A template at work.
pub(super) struct Interpreter<'t> {
    pub(super) budget: Budget,
    scopes: Vec<Scope>,
    pub(super) namespaces: Vec<Dict>,
    /// Macros with the scopes that they were made in.
    pub(super) macros: Vec<(&'t Macro, usize)>,
    /// Loops that ran, by the index that [`super::value::LoopState`] keeps.
    loops: Vec<&'t For>,
    depth: usize,
}

/// What a template prints.
///
/// # Errors
/// With the line.
pub(super) fn render(body: &[Node], context: Dict, limits: Limits) -> Result<String> {
    let names = context.iter().filter_map(|(key, value)| match key {
        Value::Text(name) => Some((name.clone(), value.clone())),
        _ => None,
    });
    let root = Scope { names: names.collect(), parent: 0 };
    let mut interpreter = Interpreter {
        budget: Budget::new(limits),
        scopes: vec![root],
        namespaces: Vec::new(),
        macros: Vec::new(),
        loops: Vec::new(),
        depth: 0,
    };
    let top = interpreter.scope(0);
    let mut out = String::new();
    interpreter.body(body, top, &mut out)?;
    Ok(out)
}

impl<'t> Interpreter<'t> {
    fn scope(&mut self, parent: usize) -> usize {
        let parent = if parent < self.scopes.len() { parent } else { 0 };
        self.scopes.push(Scope { names: Vec::new(), parent });
        self.scopes.len() - 1
    }

    /// Runs in a scope of its own.
    fn scoped<T>(
        &mut self,
        parent: usize,
        run: impl FnOnce(&mut Self, usize) -> Result<T>,
    ) -> Result<T> {
        let (mark, macros) = (self.scopes.len(), self.macros.len());
        let scope = self.scope(parent);
        let done = run(self, scope);
        if self.macros.len() == macros {
            self.scopes.truncate(mark);
        }
        done
    }

    fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let most = self.budget.limits.depth;
        if self.depth >= most {
            let reason = format!("the template nests more than {most} calls and expressions");
            return Err(Error::Limit(reason));
        }
        self.budget.spend(1)?;
        self.depth += 1;
        let done = run(self);
        self.depth -= 1;
        done
    }

    fn lookup(&self, scope: usize, name: &str) -> Result<Value> {
        let mut at = scope;
        while let Some(scope) = self.scopes.get(at) {
            self.budget.spend(scope.names.len() as u64 / 16)?;
            if let Some((_, value)) = scope.names.iter().find(|(n, _)| **n == *name) {
                return Ok(value.clone());
            }
            if at == 0 {
                break;
            }
            at = scope.parent;
        }
        let global = super::call::global(name);
        Ok(global.unwrap_or_else(|| Value::undefined(format!("'{name}' is undefined"))))
    }

    fn define(&mut self, scope: usize, name: &Arc<str>, value: Value) {
        let names = &mut self.scopes[scope].names;
        match names.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => names.push((name.clone(), value)),
        }
    }

    fn bind(&mut self, target: &Target, value: Value, scope: usize) -> Result<()> {
        match target {
            Target::Name(name) => self.define(scope, name, value),
            Target::Attribute(name, attribute) => {
                let Value::Namespace(index) = self.lookup(scope, name)? else {
                    return Err(Error::kind("cannot assign attribute on non-namespace object"));
                };
                if attribute.starts_with('_') {
                    return Err(Error::kind(format!(
                        "a namespace takes no name that begins with an underscore: '{attribute}'"
                    )));
                }
                let key = Value::Text(attribute.clone());
                self.namespaces[index].set(key, value, &self.budget)?;
            }
            Target::Tuple(targets) => {
                let items = value.items(&self.budget)?;
                if items.len() != targets.len() {
                    let (want, found) = (targets.len(), items.len());
                    return Err(Error::kind(if found < want {
                        format!("not enough values to unpack (expected {want}, got {found})")
                    } else {
                        format!("too many values to unpack (expected {want})")
                    }));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.bind(target, item, scope)?;
                }
            }
        }
        Ok(())
    }

    /// Appends to what is printed.
    fn write(&self, out: &mut String, text: &str) -> Result<()> {
        self.budget.text(text.len())?;
        self.budget.bytes(out.len() + text.len())?;
        out.push_str(text);
        Ok(())
    }

    fn body(&mut self, body: &'t [Node], scope: usize, out: &mut String) -> Result<Flow> {
        self.deeper(|this| {
            for node in body {
                let flow = this.statement(node, scope, out).map_err(|e| e.at(node.line))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    /// A body in a scope of its own, as a text.
    fn captured(&mut self, body: &'t [Node], scope: usize) -> Result<Arc<str>> {
        let mut out = String::new();
        self.scoped(scope, |this, scope| this.body(body, scope, &mut out))?;
        Ok(out.into())
    }

    fn statement(&mut self, node: &'t Node, scope: usize, out: &mut String) -> Result<Flow> {
        match &node.kind {
            Statement::Text(text) => self.write(out, text)?,
            Statement::Print(value) => {
                let value = self.value(value, scope)?;
                let text = print::text(&value, &self.budget)?;
                self.write(out, &text)?;
            }
            Statement::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.value(test, scope)?.truth() {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            Statement::For(parts) => {
                let items = self.value(&parts.items, scope)?.items(&self.budget)?;
                return self.repeat(parts, items.into(), scope, 0, out);
            }
            Statement::Set { target, value } => {
                let value = self.value(value, scope)?;
                self.bind(target, value, scope)?;
            }
            Statement::SetBlock { target, filters, body } => {
                let text = Value::Text(self.captured(body, scope)?);
                let value = self.through(filters, text, scope)?;
                self.bind(target, value, scope)?;
            }
            Statement::With { values, body } => {
                let values: Vec<(&Target, Value)> = values
                    .iter()
                    .map(|(target, value)| Ok((target, self.value(value, scope)?)))
                    .collect::<Result<_>>()?;
                return self.scoped(scope, |this, scope| {
                    for (target, value) in values {
                        this.bind(target, value, scope)?;
                    }
                    this.body(body, scope, out)
                });
            }
            Statement::Macro(routine) => {
                let value = self.closure(routine, scope);
                self.define(scope, &routine.name, value);
            }
            Statement::Call { caller, call } => {
                let Kind::Call(callee, arguments) = &call.kind else {
                    return Err(Error::kind("expected a call"));
                };
                let caller = self.closure(caller, scope);
                let callee = self.value(callee, scope)?;
                let mut args = self.arguments(arguments, scope)?;
                args.named.push(("caller".into(), caller));
                let value = self.call(&callee, args)?;
                let text = print::text(&value, &self.budget)?;
                self.write(out, &text)?;
            }
            Statement::FilterBlock { filters, body } => {
                let text = Value::Text(self.captured(body, scope)?);
                let value = self.through(filters, text, scope)?;
                let text = print::text(&value, &self.budget)?;
                self.write(out, &text)?;
            }
            Statement::Scope(body) => {
                return self.scoped(scope, |this, scope| this.body(body, scope, out));
            }
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn closure(&mut self, routine: &'t Macro, scope: usize) -> Value {
        self.macros.push((routine, scope));
        Value::Macro(self.macros.len() - 1)
    }

    fn through(&mut self, all: &'t [Filter], mut value: Value, scope: usize) -> Result<Value> {
        for filter in all {
            let args = self.arguments(&filter.arguments, scope)?;
            value = filters::apply(self, &filter.name, value, args)?;
        }
        Ok(value)
    }

    /// Runs a loop; `depth0` counts the calls of a recursive one.
    fn repeat(
        &mut self,
        parts: &'t For,
        items: VecDeque<Value>,
        scope: usize,
        depth0: usize,
        out: &mut String,
    ) -> Result<Flow> {
        self.loops.push(parts);
        let tree = self.loops.len() - 1;
        let state = Rc::new(Loop::new(items, depth0, scope, parts, tree)?);
        let mut is_first = true;
        loop {
            self.fill(&state, 1)?;
            let item = {
                let mut state = state.state.borrow_mut();
                let Some(item) = state.ready.pop_front() else { break };
                let last = state.current.replace(item.clone());
                if !is_first {
                    state.index0 += 1;
                }
                state.previous = last;
                item
            };
            is_first = false;
            let flow = self.scoped(scope, |this, scope| {
                this.define(scope, &"loop".into(), Value::Loop(state.clone()));
                this.bind(&parts.target, item, scope)?;
                this.body(&parts.body, scope, out)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        if is_first {
            return self.scoped(scope, |this, scope| this.body(&parts.otherwise, scope, out));
        }
        state.state.borrow_mut().raw.clear();
        if !parts.is_recursive {
            self.loops.truncate(tree);
        }
        Ok(Flow::Next)
    }

    /// Looks for items of a loop that pass its test, until `count` are ready or none is left.
    pub(super) fn fill(&mut self, of: &Rc<Loop>, count: usize) -> Result<()> {
        loop {
            let (item, tree) = {
                let mut state = of.state.borrow_mut();
                if state.ready.len() >= count {
                    return Ok(());
                }
                let Some(item) = state.raw.pop_front() else { return Ok(()) };
                (item, state.tree)
            };
            let Some(parts) = self.loops.get(tree).copied() else { return Ok(()) };
            let passes = match &parts.test {
                None => true,
                Some(test) => self.scoped(of.scope, |this, scope| {
                    this.bind(&parts.target, item.clone(), scope)?;
                    Ok(this.value(test, scope)?.truth())
                })?,
            };
            if passes {
                of.state.borrow_mut().ready.push_back(item);
            }
        }
    }

    /// A recursive loop's own call.
    pub(super) fn recurse(&mut self, of: &Rc<Loop>, items: &Value) -> Result<Value> {
        let tree = of.state.borrow().tree;
        let parts = self
            .loops
            .get(tree)
            .copied()
            .filter(|_| of.is_recursive)
            .ok_or_else(|| Error::kind("tried to call a loop that is not `recursive`"))?;
        let items = items.items(&self.budget)?;
        let mut out = String::new();
        self.deeper(|this| this.repeat(parts, items.into(), of.scope, of.depth0 + 1, &mut out))?;
        Ok(Value::text(out))
    }

    /// Runs a macro.
    pub(super) fn run_macro(&mut self, index: usize, args: Args) -> Result<Value> {
        let Some(&(routine, scope)) = self.macros.get(index) else {
            return Err(Error::kind("a macro of another template"));
        };
        let name = &routine.name;
        let mut positional = VecDeque::from(args.positional);
        let mut named = args.named;
        self.deeper(|this| {
            let mut out = String::new();
            this.scoped(scope, |this, scope| {
                for (parameter, default) in &routine.parameters {
                    let at = named.iter().position(|(n, _)| n == parameter);
                    let value = match (positional.pop_front(), at) {
                        (Some(_), Some(_)) => {
                            return Err(Error::kind(format!(
                                "macro '{name}' got multiple values for argument '{parameter}'"
                            )));
                        }
                        (Some(value), None) => value,
                        (None, Some(at)) => named.remove(at).1,
                        (None, None) => match default {
                            Some(default) => this.value(default, scope)?,
                            None => Value::undefined(format!(
                                "parameter '{parameter}' was not provided"
                            )),
                        },
                    };
                    this.define(scope, parameter, value);
                }
                let has_own_caller = routine.parameters.iter().any(|(n, _)| &**n == "caller");
                if routine.caller && !has_own_caller {
                    let at = named.iter().position(|(n, _)| &**n == "caller");
                    let caller = at.map_or_else(
                        || Value::undefined("No caller defined"),
                        |at| named.remove(at).1,
                    );
                    this.define(scope, &"caller".into(), caller);
                }
                if routine.kwargs {
                    let mut kwargs = Dict::default();
                    for (name, value) in named.drain(..) {
                        kwargs.set(Value::Text(name), value, &this.budget)?;
                    }
                    this.define(scope, &"kwargs".into(), Value::Dict(Rc::new(kwargs)));
                } else if let Some((unknown, _)) = named.first() {
                    return Err(Error::kind(format!(
                        "macro '{name}' takes no keyword argument '{unknown}'"
                    )));
                }
                if routine.varargs {
                    let rest = Value::tuple(positional.drain(..).collect())?;
                    this.define(scope, &"varargs".into(), rest);
                } else if !positional.is_empty() {
                    return Err(Error::kind(format!(
                        "macro '{name}' takes not more than {} argument(s)",
                        routine.parameters.len()
                    )));
                }
                this.body(&routine.body, scope, &mut out)
            })?;
            Ok(Value::text(out))
        })
    }
}
