//! Typed access to the parameters of one entry of a chain.
//!
//! Every getter names the pruner, the field, what was expected and what stands there; a key that
//! no getter asked for is refused at the end ([`Params::finish`]).

use std::cell::RefCell;
use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::error::ChainError;
use crate::prune::{Budget, PositionPolicy};

/// What a budget may be.
pub const BUDGET: &str =
    "a number of tokens from 1 on, a share in (0, 1], or \"mass:M\" with M in (0, 1]";

/// Reads a pruner's parameters and finds those that it does not have.
#[derive(Debug)]
pub struct Params<'a> {
    pruner: &'a str,
    table: &'a Table,
    seen: RefCell<BTreeSet<String>>,
    missing: RefCell<Option<ChainError>>,
}

impl<'a> Params<'a> {
    /// Parameters of `pruner`.
    pub fn new(pruner: &'a str, table: &'a Table) -> Self {
        Self { pruner, table, seen: RefCell::default(), missing: RefCell::default() }
    }

    /// Name under which the pruner was called.
    pub fn pruner(&self) -> &str {
        self.pruner
    }

    /// The raw value of a key.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(key.to_owned());
        self.table.get(key)
    }

    /// An error about one parameter.
    pub fn error(&self, field: &str, expected: &str) -> ChainError {
        ChainError::Parameter {
            pruner: self.pruner.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            found: self.table.get(field).map_or_else(|| "absent".to_owned(), inline_text),
        }
    }

    /// Notes that a key is needed and absent, and stands in for it until [`Params::finish`] says
    /// so. Reading goes on, so that an unknown key is named first: it may be the needed one,
    /// misspelt.
    pub fn missing<T>(&self, key: &str, expected: &str, stand_in: T) -> T {
        self.seen.borrow_mut().insert(key.to_owned());
        self.missing.borrow_mut().get_or_insert_with(|| self.error(key, expected));
        stand_in
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn count(&self, key: &str) -> Result<Option<usize>, ChainError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(i)) if *i >= 0 => Ok(Some(*i as usize)),
            Some(_) => Err(self.error(key, "a whole number, 0 or more")),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn number(&self, key: &str) -> Result<Option<f64>, ChainError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(i)) => Ok(Some(*i as f64)),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(_) => Err(self.error(key, "a number")),
        }
    }

    /// A number in `(0, 1]`.
    ///
    /// # Errors
    /// If the value is of another kind or outside.
    pub fn share(&self, key: &str) -> Result<Option<f64>, ChainError> {
        match self.number(key)? {
            Some(x) if x <= 0.0 || x > 1.0 => Err(self.error(key, "a share in (0, 1]")),
            other => Ok(other),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ChainError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Boolean(b)) => Ok(Some(*b)),
            Some(_) => Err(self.error(key, "true or false")),
        }
    }

    /// A word.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ChainError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.error(key, "a word")),
        }
    }

    /// One word of a closed list, as the value beside it.
    ///
    /// # Errors
    /// Another word; the error lists the known ones.
    pub fn choice<T: Copy>(&self, key: &str, known: &[(&str, T)]) -> Result<Option<T>, ChainError> {
        let Some(word) = self.text(key)? else { return Ok(None) };
        match known.iter().find(|(name, _)| *name == word) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                Err(self.error(key, &format!("one of {}", names.join(", "))))
            }
        }
    }

    /// A list of non-negative integers.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>, ChainError> {
        let expected = "a list of whole numbers, 0 or more";
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_integer().and_then(|i| usize::try_from(i).ok()))
                .collect::<Option<Vec<_>>>()
                .map(Some)
                .ok_or_else(|| self.error(key, expected)),
            Some(_) => Err(self.error(key, expected)),
        }
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ChainError> {
        let number = |item: &Value| item.as_float().or(item.as_integer().map(|i| i as f64));
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| number(item).filter(|x| x.is_finite()))
                .collect::<Option<Vec<_>>>()
                .map(Some)
                .ok_or_else(|| self.error(key, "a list of numbers")),
            Some(_) => Err(self.error(key, "a list of numbers")),
        }
    }

    /// A table, as parameters of its own.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn table(&self, key: &str) -> Result<Option<Params<'a>>, ChainError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Params::new(self.pruner, table))),
            Some(_) => Err(self.error(key, "a table")),
        }
    }

    /// A list of tables, each as parameters of its own.
    ///
    /// # Errors
    /// If the value is of another kind.
    pub fn tables(&self, key: &str) -> Result<Option<Vec<Params<'a>>>, ChainError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_table().map(|t| Params::new(self.pruner, t)))
                .collect::<Option<Vec<_>>>()
                .map(Some)
                .ok_or_else(|| self.error(key, "a list of tables")),
            Some(_) => Err(self.error(key, "a list of tables")),
        }
    }

    /// A budget: `64`, `0.25` or `"mass:0.9"`.
    ///
    /// # Errors
    /// If the value is of another kind or outside its range.
    pub fn budget(&self, key: &str) -> Result<Option<Budget>, ChainError> {
        let expected = BUDGET;
        let in_unit = |x: f64| x > 0.0 && x <= 1.0;
        let mass = |text: &str| text.strip_prefix("mass:")?.parse::<f64>().ok();
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integer(i)) if *i >= 1 => Ok(Some(Budget::Count(*i as usize))),
            Some(Value::Float(x)) if in_unit(*x) => Ok(Some(Budget::Share(*x))),
            Some(Value::String(s)) if mass(s).is_some_and(in_unit) => Ok(mass(s).map(Budget::Mass)),
            Some(_) => Err(self.error(key, expected)),
        }
    }

    /// `positions = "keep" | "renumber"`.
    ///
    /// # Errors
    /// Another word.
    pub fn positions(&self, default: PositionPolicy) -> Result<PositionPolicy, ChainError> {
        let known = [("keep", PositionPolicy::Keep), ("renumber", PositionPolicy::Renumber)];
        Ok(self.choice("positions", &known)?.unwrap_or(default))
    }

    /// Refuses keys that nobody asked for, and keys that are missing. Call it last.
    ///
    /// # Errors
    /// The first unknown key, with the nearest known one; else the first missing one.
    pub fn finish(&self) -> Result<(), ChainError> {
        let seen = self.seen.borrow();
        let Some(unknown) = self.table.keys().find(|k| !seen.contains(k.as_str())) else {
            return self.missing.borrow().clone().map_or(Ok(()), Err);
        };
        let known = nearest_first(unknown, seen.iter().map(String::as_str)).join(", ");
        Err(ChainError::Parameter {
            pruner: self.pruner.to_owned(),
            field: unknown.clone(),
            expected: format!("one of the parameters {known}"),
            found: "unknown".into(),
        })
    }
}

/// A value as the inline form of a chain writes it.
pub(crate) fn inline_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Integer(i) => i.to_string(),
        // `{:?}` keeps the point, so that the value reads back as a float.
        Value::Float(x) => format!("{x:?}"),
        Value::Boolean(b) => b.to_string(),
        Value::Datetime(d) => d.to_string(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(inline_text).collect::<Vec<_>>().join(";"))
        }
        Value::Table(table) => {
            let items: Vec<String> =
                table.iter().map(|(k, v)| format!("{k}={}", inline_text(v))).collect();
            format!("{{{}}}", items.join(";"))
        }
    }
}

/// Names by rising edit distance to `word`.
pub fn nearest_first<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_by_key(|name| edit_distance(word, name));
    names
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
