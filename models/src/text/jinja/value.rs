//! The values of a template: Python's, without change after they are made.
//!
//! Invariants
//! - A value knows how deep it is nested and is never deeper than [`MAX_DEPTH`], so that printing,
//!   comparing and dropping one cannot exhaust a stack. Namespaces and macros are indices into the
//!   interpreter, so that they cannot make a ring.
//! - A map keeps its order of insertion; keys are equal as Python's are (`1`, `1.0`, `True`).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::For;
use super::{Budget, Error, Result};

/// Deepest nesting of lists and maps.
const MAX_DEPTH: u16 = 200;

/// A value.
#[derive(Clone, Debug)]
pub(in crate::text) enum Value {
    /// What is not there, and what to say when it is used.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    /// `keys()`, `values()`, `items()`.
    View(View, Rc<Dict>),
    Range(Range),
    /// What can be gone through once.
    Stream(Rc<Stream>),
    Namespace(usize),
    Macro(usize),
    Loop(Rc<Loop>),
    Cycler(Rc<(Rc<Seq>, Cell<usize>)>),
    Joiner(Rc<(Arc<str>, Cell<bool>)>),
    Function(Function),
    Method(Rc<Value>, Arc<str>),
}

/// Items with the depth of the whole.
#[derive(Debug, Default)]
pub(in crate::text) struct Seq {
    pub(super) items: Vec<Value>,
    depth: u16,
    /// A group of `groupby`: `grouper` and `list` are its names.
    pub(super) is_group: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum View {
    Keys,
    Values,
    Items,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) struct Range {
    pub(super) start: i128,
    pub(super) stop: i128,
    pub(super) step: i128,
}

#[derive(Debug)]
pub(in crate::text) struct Stream {
    pub(super) items: RefCell<VecDeque<Value>>,
    depth: u16,
}

/// The globals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::text) enum Function {
    Range,
    Dict,
    FromKeys,
    Namespace,
    Cycler,
    Joiner,
    Raise,
    Strftime,
}

/// The variable `loop`.
#[derive(Debug)]
pub(in crate::text) struct Loop {
    pub(super) state: RefCell<LoopState>,
    pub(super) depth0: usize,
    /// For a recursive one: the loop's place in the tree and its scope.
    pub(super) scope: usize,
    pub(super) is_recursive: bool,
    value_depth: u16,
}

#[derive(Debug)]
pub(in crate::text) struct LoopState {
    /// Items that were not looked at.
    pub(super) raw: VecDeque<Value>,
    /// Items that passed the loop's test and were not given.
    pub(super) ready: VecDeque<Value>,
    pub(super) index0: usize,
    pub(super) previous: Option<Value>,
    pub(super) current: Option<Value>,
    pub(super) changed: Option<Value>,
    /// The address of the loop in the tree, as the interpreter keeps it.
    pub(super) tree: usize,
}

impl Loop {
    pub(super) fn new(
        raw: VecDeque<Value>,
        depth0: usize,
        scope: usize,
        parts: &For,
        tree: usize,
    ) -> Result<Self> {
        let value_depth = deeper(raw.iter().map(Value::depth).max().unwrap_or(0))?;
        let state = LoopState {
            raw,
            ready: VecDeque::new(),
            index0: 0,
            previous: None,
            current: None,
            changed: None,
            tree,
        };
        let is_recursive = parts.is_recursive;
        Ok(Self { state: RefCell::new(state), depth0, scope, is_recursive, value_depth })
    }
}

/// A map in order of insertion.
#[derive(Clone, Debug, Default)]
pub(in crate::text) struct Dict {
    entries: Vec<(Value, Value)>,
    index: BTreeMap<Key, usize>,
    depth: u16,
}

/// A key as Python compares keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    None,
    Int(i128),
    Float(u64),
    Text(Arc<str>),
    Tuple(Vec<Key>),
    Other(usize),
}

fn deeper(depth: u16) -> Result<u16> {
    if depth >= MAX_DEPTH {
        return Err(Error::Limit(format!("a value is nested more than {MAX_DEPTH} deep")));
    }
    Ok(depth + 1)
}

impl Seq {
    /// # Errors
    /// Too deep.
    pub(super) fn new(items: Vec<Value>) -> Result<Self> {
        let depth = deeper(items.iter().map(Value::depth).max().unwrap_or(0))?;
        Ok(Self { items, depth, is_group: false })
    }
}

impl Dict {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Value, Value)> {
        self.entries.iter()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        Some(&self.entries[*self.index.get(key)?].1)
    }

    pub(super) fn text(&self, key: &str) -> Option<&Value> {
        self.get(&Key::Text(key.into()))
    }

    /// Sets a key, in the place that it has if it is there.
    ///
    /// # Errors
    /// A key that is none, a value that is too deep.
    pub(super) fn set(&mut self, key: Value, value: Value, budget: &Budget) -> Result<()> {
        let index = Key::of(&key, budget)?;
        self.depth = self.depth.max(deeper(value.depth().max(key.depth()))?);
        match self.index.get(&index) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.index.insert(index, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    /// Sets a text's key, of a value that is no deeper than a conversation.
    pub(in crate::text) fn with(mut self, key: &str, value: Value) -> Self {
        let key: Arc<str> = key.into();
        self.depth = self.depth.max(value.depth() + 1);
        match self.index.get(&Key::Text(key.clone())) {
            Some(at) => self.entries[*at].1 = value,
            None => {
                self.index.insert(Key::Text(key.clone()), self.entries.len());
                self.entries.push((Value::Text(key), value));
            }
        }
        self
    }
}

impl Key {
    /// # Errors
    /// What cannot be a key.
    pub(super) fn of(value: &Value, budget: &Budget) -> Result<Self> {
        budget.spend(1)?;
        Ok(match value {
            Value::None => Key::None,
            Value::Bool(b) => Key::Int(i128::from(*b)),
            Value::Int(i) => Key::Int(*i),
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e30 => Key::Int(*f as i128),
            Value::Float(f) => Key::Float(f.to_bits()),
            Value::Text(text) => Key::Text(text.clone()),
            Value::Tuple(seq) => {
                let keys = seq.items.iter().map(|item| Key::of(item, budget));
                Key::Tuple(keys.collect::<Result<_>>()?)
            }
            Value::List(_) | Value::Dict(_) => {
                return Err(Error::kind(format!("unhashable type: '{}'", value.type_name())));
            }
            Value::Namespace(i) | Value::Macro(i) => Key::Other(*i),
            _ => Key::Other(usize::MAX),
        })
    }
}

impl Value {
    pub(in crate::text) fn text(text: impl Into<Arc<str>>) -> Self {
        Value::Text(text.into())
    }

    /// A list of values that are no deeper than a conversation.
    pub(in crate::text) fn list_of(items: Vec<Value>) -> Self {
        let depth = items.iter().map(Value::depth).max().unwrap_or(0) + 1;
        Value::List(Rc::new(Seq { items, depth, is_group: false }))
    }

    /// A map as a value.
    pub(in crate::text) fn of(dict: Dict) -> Self {
        Value::Dict(Rc::new(dict))
    }

    pub(super) fn undefined(why: impl Into<Arc<str>>) -> Self {
        Value::Undefined(why.into())
    }

    /// # Errors
    /// Too deep.
    pub(super) fn list(items: Vec<Value>) -> Result<Self> {
        Ok(Value::List(Rc::new(Seq::new(items)?)))
    }

    /// # Errors
    /// Too deep.
    pub(super) fn tuple(items: Vec<Value>) -> Result<Self> {
        Ok(Value::Tuple(Rc::new(Seq::new(items)?)))
    }

    /// # Errors
    /// Too deep.
    pub(super) fn stream(items: Vec<Value>) -> Result<Self> {
        let depth = deeper(items.iter().map(Value::depth).max().unwrap_or(0))?;
        Ok(Value::Stream(Rc::new(Stream { items: RefCell::new(items.into()), depth })))
    }

    fn depth(&self) -> u16 {
        match self {
            Value::List(seq) | Value::Tuple(seq) => seq.depth,
            Value::Dict(dict) | Value::View(_, dict) => dict.depth,
            Value::Stream(stream) => stream.depth,
            Value::Loop(l) => l.value_depth,
            Value::Cycler(c) => c.0.depth,
            // A method of a method there is not.
            Value::Method(value, _) => value.depth() + 1,
            _ => 0,
        }
    }

    /// The name of its type, as Python's messages say it.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::View(View::Keys, _) => "dict_keys",
            Value::View(View::Values, _) => "dict_values",
            Value::View(View::Items, _) => "dict_items",
            Value::Range(_) => "range",
            Value::Stream(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Macro(_) => "Macro",
            Value::Loop(_) => "LoopContext",
            Value::Cycler(_) => "Cycler",
            Value::Joiner(_) => "Joiner",
            Value::Function(_) => "function",
            Value::Method(..) => "builtin_function_or_method",
        }
    }

    /// Whether it counts as true.
    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(i) => *i != 0,
            Value::Float(f) => *f != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::Range(range) => range.len() > 0,
            Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::View(..) => {
                self.length() != Some(0)
            }
            _ => true,
        }
    }

    /// `len()`, of what has one.
    pub(super) fn length(&self) -> Option<usize> {
        Some(match self {
            Value::Undefined(_) => 0,
            Value::Text(text) => text.chars().count(),
            Value::List(seq) | Value::Tuple(seq) => seq.items.len(),
            Value::Dict(dict) | Value::View(_, dict) => dict.len(),
            Value::Range(range) => range.len(),
            _ => return None,
        })
    }

    /// A number, booleans included.
    pub(super) fn int(&self) -> Option<i128> {
        match self {
            Value::Int(i) => Some(*i),
            Value::Bool(b) => Some(i128::from(*b)),
            _ => None,
        }
    }

    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Value::Float(f) => Some(*f),
            other => other.int().map(|i| i as f64),
        }
    }

    /// Its items, in order.
    ///
    /// # Errors
    /// What has none.
    pub(super) fn items(&self, budget: &Budget) -> Result<Vec<Value>> {
        if let Value::Text(text) = self {
            budget.items(text.len())?;
        } else {
            budget.items(self.length().unwrap_or(0))?;
        }
        Ok(match self {
            Value::Undefined(_) => Vec::new(),
            Value::Text(text) => {
                text.chars().map(|c| Value::text(&*c.encode_utf8(&mut [0; 4]))).collect()
            }
            Value::List(seq) | Value::Tuple(seq) => seq.items.clone(),
            Value::Dict(dict) | Value::View(View::Keys, dict) => {
                dict.iter().map(|(key, _)| key.clone()).collect()
            }
            Value::View(View::Values, dict) => dict.iter().map(|(_, v)| v.clone()).collect(),
            Value::View(View::Items, dict) => dict
                .iter()
                .map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()]))
                .collect::<Result<_>>()?,
            Value::Range(range) => {
                (0..range.len()).map(|i| Value::Int(range.start + i as i128 * range.step)).collect()
            }
            Value::Stream(stream) => stream.items.take().into(),
            Value::Loop(_) => return Err(Error::kind("'LoopContext' is not gone through twice")),
            other => {
                return Err(Error::kind(format!("'{}' object is not iterable", other.type_name())));
            }
        })
    }

    /// Whether `items` would work.
    pub(super) fn is_iterable(&self) -> bool {
        matches!(
            self,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::View(..)
                | Value::Range(_)
                | Value::Stream(_)
                | Value::Loop(_)
        )
    }
}

impl Range {
    pub(super) fn len(&self) -> usize {
        let span = if self.step > 0 { self.stop - self.start } else { self.start - self.stop };
        let step = self.step.abs();
        usize::try_from((span + step - 1).max(0) / step).unwrap_or(usize::MAX)
    }
}
