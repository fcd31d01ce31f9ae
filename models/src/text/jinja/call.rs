//! Attributes, items, calls, and the globals of a template.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::eval::{Args, Interpreter};
use super::value::{Dict, Function, Key, Loop, Range, Seq, Value, View};
use super::{Error, Result, clock, methods, ops, print};

/// Longest `range`, as in Jinja's sandbox.
const MOST_RANGE: usize = 100_000;

/// Names of [`Function`]s.
pub(super) fn global(name: &str) -> Option<Value> {
    let function = match name {
        "range" => Function::Range,
        "dict" => Function::Dict,
        "namespace" => Function::Namespace,
        "cycler" => Function::Cycler,
        "joiner" => Function::Joiner,
        "raise_exception" => Function::Raise,
        "strftime_now" => Function::Strftime,
        _ => return None,
    };
    Some(Value::Function(function))
}

impl Args {
    /// The arguments by the names of parameters.
    ///
    /// # Errors
    /// More than there are parameters, an unknown name, one that is given twice.
    pub(super) fn of<const N: usize>(
        self,
        what: &str,
        names: [&str; N],
    ) -> Result<[Option<Value>; N]> {
        let mut found = [const { None }; N];
        let count = self.positional.len();
        if count > N {
            return Err(Error::kind(format!(
                "{what}() takes at most {N} arguments ({count} given)"
            )));
        }
        for (place, value) in found.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let at = names.iter().position(|n| **n == *name).ok_or_else(|| {
                Error::kind(format!("{what}() got an unexpected keyword argument '{name}'"))
            })?;
            if found[at].replace(value).is_some() {
                let reason = format!("{what}() got multiple values for argument '{name}'");
                return Err(Error::kind(reason));
            }
        }
        Ok(found)
    }
}

/// What an undefined value says when it is used.
fn used(why: &str) -> Error {
    Error::Undefined(why.to_owned())
}

fn object(value: &Value) -> String {
    match value {
        Value::None => "None".into(),
        other => format!("{} object", other.type_name()),
    }
}

impl Interpreter<'_> {
    /// `value.name`: an attribute, else an item.
    ///
    /// # Errors
    /// Of an undefined value.
    pub(super) fn attribute(&mut self, value: &Value, name: &Arc<str>) -> Result<Value> {
        if let Some(found) = self.own_attribute(value, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(found) = dict.get(&Key::Text(name.clone()))
        {
            return Ok(found.clone());
        }
        Ok(Value::undefined(format!("'{}' has no attribute '{name}'", object(value))))
    }

    /// `value[index]`: an item, else an attribute.
    ///
    /// # Errors
    /// Of an undefined value.
    pub(super) fn item(&mut self, value: &Value, index: &Value) -> Result<Value> {
        let place = |length: usize| {
            let i = index.int()?;
            let i = if i < 0 { i.saturating_add(length as i128) } else { i };
            usize::try_from(i).ok().filter(|i| *i < length)
        };
        let found = match value {
            Value::Undefined(why) => return Err(used(why)),
            Value::Text(text) => {
                self.budget.spend(text.len() as u64 / 64)?;
                let length = if index.int().is_some() { text.chars().count() } else { 0 };
                let c = place(length).and_then(|i| text.chars().nth(i));
                c.map(|c| Value::text(&*c.encode_utf8(&mut [0; 4])))
            }
            Value::List(seq) | Value::Tuple(seq) => {
                place(seq.items.len()).map(|i| seq.items[i].clone())
            }
            Value::Range(r) => place(r.len()).map(|i| Value::Int(r.start + i as i128 * r.step)),
            // A list cannot be a key, and is in no map.
            Value::Dict(dict) => match Key::of(index, &self.budget) {
                Ok(key) => dict.get(&key).cloned(),
                Err(Error::Type(_)) => None,
                Err(error) => return Err(error),
            },
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        if let Value::Text(name) = index
            && let Some(found) = self.own_attribute(value, name)?
        {
            return Ok(found);
        }
        let index = match index {
            Value::Text(name) => format!("attribute '{name}'"),
            other => format!("element {}", print::text(other, &self.budget)?),
        };
        Ok(Value::undefined(format!("'{}' has no {index}", object(value))))
    }

    /// An attribute that a value has by its type.
    fn own_attribute(&mut self, value: &Value, name: &Arc<str>) -> Result<Option<Value>> {
        if let Value::Undefined(why) = value {
            return Err(used(why));
        }
        if name.starts_with("__") {
            let reason = format!(
                "access to attribute '{name}' of '{}' object is unsafe.",
                value.type_name()
            );
            return Ok(Some(Value::undefined(reason)));
        }
        Ok(match value {
            Value::Namespace(index) => self.namespaces[*index].text(name).cloned(),
            Value::Loop(of) => self.loop_attribute(of, name)?,
            Value::Macro(index) => self.macros.get(*index).and_then(|(routine, _)| match &**name {
                "name" => Some(Value::Text(routine.name.clone())),
                "caller" => Some(Value::Bool(routine.caller)),
                "catch_kwargs" => Some(Value::Bool(routine.kwargs)),
                "catch_varargs" => Some(Value::Bool(routine.varargs)),
                _ => None,
            }),
            Value::Cycler(cycler) => match &**name {
                "current" => cycler.0.items.get(cycler.1.get()).cloned(),
                "next" | "reset" => Some(Value::Method(Rc::new(value.clone()), name.clone())),
                _ => None,
            },
            Value::Tuple(seq) if seq.is_group && matches!(&**name, "grouper" | "list") => {
                seq.items.get(usize::from(&**name == "list")).cloned()
            }
            Value::Function(Function::Dict) if &**name == "fromkeys" => {
                Some(Value::Function(Function::FromKeys))
            }
            other => methods::find(other, name),
        })
    }

    fn loop_attribute(&mut self, of: &Rc<Loop>, name: &str) -> Result<Option<Value>> {
        match name {
            "length" | "revindex" | "revindex0" => self.fill(of, usize::MAX)?,
            "last" | "nextitem" => self.fill(of, 1)?,
            _ => {}
        }
        let state = of.state.borrow();
        let int = |n: usize| Some(Value::Int(n as i128));
        let nothing = |what: &str| Some(Value::undefined(format!("there is no {what} item")));
        let left = state.ready.len();
        Ok(match name {
            "index0" => int(state.index0),
            "index" => int(state.index0 + 1),
            "first" => Some(Value::Bool(state.index0 == 0)),
            "last" => Some(Value::Bool(left == 0)),
            "length" => int(state.index0 + 1 + left),
            "revindex" => int(left + 1),
            "revindex0" => int(left),
            "depth0" => int(of.depth0),
            "depth" => int(of.depth0 + 1),
            "previtem" => state.previous.clone().or_else(|| nothing("previous")),
            "nextitem" => state.ready.front().cloned().or_else(|| nothing("next")),
            "cycle" | "changed" => {
                Some(Value::Method(Rc::new(Value::Loop(of.clone())), name.into()))
            }
            _ => None,
        })
    }

    /// `callee(args)`.
    ///
    /// # Errors
    /// What cannot be called, what the call says.
    pub(super) fn call(&mut self, callee: &Value, args: Args) -> Result<Value> {
        match callee {
            Value::Undefined(why) => Err(used(why)),
            Value::Macro(index) => self.run_macro(*index, args),
            Value::Loop(of) => {
                let [items] = args.of("loop", ["iterable"])?;
                let items = items.ok_or_else(|| Error::kind("loop() needs what to go through"))?;
                self.recurse(of, &items)
            }
            Value::Joiner(joiner) => {
                let is_used = joiner.1.replace(true);
                Ok(Value::Text(if is_used { joiner.0.clone() } else { "".into() }))
            }
            Value::Method(of, name) => self.method(of, name, args),
            Value::Function(function) => self.function(*function, args),
            other => Err(Error::kind(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    fn method(&mut self, of: &Value, name: &str, args: Args) -> Result<Value> {
        match of {
            Value::Loop(of) if name == "cycle" => {
                if args.positional.is_empty() {
                    return Err(Error::kind("no items for cycling given"));
                }
                let index = of.state.borrow().index0 % args.positional.len();
                Ok(args.positional[index].clone())
            }
            Value::Loop(of) => {
                let value = Value::tuple(args.positional)?;
                let last = of.state.borrow_mut().changed.replace(value.clone());
                let is_same = match &last {
                    Some(last) => ops::equal(last, &value, &self.budget)?,
                    None => false,
                };
                Ok(Value::Bool(!is_same))
            }
            Value::Cycler(cycler) => {
                if name == "reset" {
                    cycler.1.set(0);
                    return Ok(Value::None);
                }
                let at = cycler.1.get();
                cycler.1.set((at + 1) % cycler.0.items.len().max(1));
                Ok(cycler.0.items.get(at).cloned().unwrap_or(Value::None))
            }
            other => methods::call(self, other, name, args),
        }
    }

    fn function(&mut self, function: Function, args: Args) -> Result<Value> {
        match function {
            Function::Raise => {
                let [message] = args.of("raise_exception", ["message"])?;
                let message = message.unwrap_or(Value::None);
                Err(Error::Raised(print::text(&message, &self.budget)?.to_string()))
            }
            Function::Strftime => {
                let [format] = args.of("strftime_now", ["format"])?;
                let Some(Value::Text(format)) = format else {
                    return Err(Error::kind("strftime_now() needs a format"));
                };
                self.budget.text(format.len().saturating_mul(16))?;
                Ok(Value::text(clock::now(&format)))
            }
            Function::Range => {
                let bounds: Option<Vec<i128>> = args.positional.iter().map(Value::int).collect();
                let (start, stop, step) = match bounds.as_deref() {
                    Some([stop]) => (0, *stop, 1),
                    Some([start, stop]) => (*start, *stop, 1),
                    Some([start, stop, step]) => (*start, *stop, *step),
                    _ => return Err(Error::kind("range() takes one to three whole numbers")),
                };
                let fits = |n: i128| (-(1 << 62)..=(1 << 62)).contains(&n);
                if step == 0 || ![start, stop, step].into_iter().all(fits) {
                    return Err(Error::kind("range() arg 3 must not be zero"));
                }
                let range = Range { start, stop, step };
                if range.len() > MOST_RANGE {
                    return Err(Error::Limit(format!(
                        "range of {} items; the most are {MOST_RANGE}",
                        range.len()
                    )));
                }
                Ok(Value::Range(range))
            }
            Function::Dict => self.dict(args).map(|dict| Value::Dict(Rc::new(dict))),
            Function::FromKeys => {
                let [keys, value] = args.of("fromkeys", ["iterable", "value"])?;
                let keys = keys.ok_or_else(|| Error::kind("fromkeys() needs keys"))?;
                let value = value.unwrap_or(Value::None);
                let mut dict = Dict::default();
                for key in keys.items(&self.budget)? {
                    dict.set(key, value.clone(), &self.budget)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            Function::Namespace => {
                let dict = self.dict(args)?;
                let hidden = dict.iter().find_map(|(key, _)| match key {
                    Value::Text(name) if name.starts_with('_') => Some(name.clone()),
                    _ => None,
                });
                if let Some(name) = hidden {
                    return Err(Error::kind(format!(
                        "a namespace takes no name that begins with an underscore: '{name}'"
                    )));
                }
                self.namespaces.push(dict);
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
            Function::Cycler => {
                if args.positional.is_empty() {
                    return Err(Error::kind("at least one item has to be provided"));
                }
                let items = Rc::new(Seq::new(args.positional)?);
                Ok(Value::Cycler(Rc::new((items, Cell::new(0)))))
            }
            Function::Joiner => {
                let [separator] = args.of("joiner", ["sep"])?;
                let separator = match separator {
                    None => ", ".into(),
                    Some(value) => print::text(&value, &self.budget)?,
                };
                Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
            }
        }
    }

    /// `dict(...)`: a map or pairs, then names.
    fn dict(&mut self, args: Args) -> Result<Dict> {
        self.budget.items(args.named.len() * 2)?;
        let mut dict = Dict::default();
        match args.positional.first() {
            None => {}
            Some(Value::Dict(from)) => {
                self.budget.items(from.len() * 2)?;
                dict = (**from).clone();
            }
            Some(other) => {
                for pair in other.items(&self.budget)? {
                    let pair = pair.items(&self.budget)?;
                    let [key, value] = <[Value; 2]>::try_from(pair).map_err(|_| {
                        Error::kind("dictionary update sequence element is no pair")
                    })?;
                    dict.set(key, value, &self.budget)?;
                }
            }
        }
        for (name, value) in args.named {
            dict.set(Value::Text(name), value, &self.budget)?;
        }
        Ok(dict)
    }

    /// The view that `keys()`, `values()` or `items()` gives.
    pub(super) fn view(value: &Value, view: View) -> Option<Value> {
        match value {
            Value::Dict(dict) => Some(Value::View(view, dict.clone())),
            _ => None,
        }
    }
}
