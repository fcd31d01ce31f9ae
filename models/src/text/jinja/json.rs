//! The filter `tojson`: `json.dumps` with the arguments that transformers lets through.

use super::value::Value;
use super::{Budget, Error, Result, number};

/// How JSON is written.
pub(super) struct Style {
    pub(super) indent: Option<String>,
    pub(super) item: String,
    pub(super) key: String,
    pub(super) is_ascii: bool,
    pub(super) is_sorted: bool,
}

/// Writes a value.
///
/// # Errors
/// Values that JSON does not have, keys that are none, limits.
pub(super) fn write(
    value: &Value,
    style: &Style,
    level: usize,
    out: &mut String,
    budget: &Budget,
) -> Result<()> {
    budget.spend(1)?;
    budget.bytes(out.len())?;
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Float(f) => out.push_str(&real(*f)),
        Value::Text(text) => {
            budget.text(text.len())?;
            quoted(text, style, out);
        }
        Value::List(seq) | Value::Tuple(seq) => {
            let items = seq.items.iter().map(|item| (None, item));
            all(items, ['[', ']'], style, level, out, budget)?;
        }
        Value::Dict(dict) => {
            let mut entries: Vec<(&Value, &Value)> = dict.iter().map(|(k, v)| (k, v)).collect();
            if style.is_sorted {
                let keys: Vec<Value> = entries.iter().map(|(k, _)| (*k).clone()).collect();
                let order = super::sequences::sorted(&keys, budget)?;
                entries = order.into_iter().map(|i| entries[i]).collect();
            }
            let entries: Result<Vec<_>> =
                entries.into_iter().map(|(k, v)| Ok((Some(key(k)?), v))).collect();
            all(entries?.into_iter(), ['{', '}'], style, level, out, budget)?;
        }
        other => {
            let name = other.type_name();
            return Err(Error::kind(format!("Object of type {name} is not JSON serializable")));
        }
    }
    Ok(())
}

fn all<'v>(
    items: impl Iterator<Item = (Option<String>, &'v Value)>,
    ends: [char; 2],
    style: &Style,
    level: usize,
    out: &mut String,
    budget: &Budget,
) -> Result<()> {
    out.push(ends[0]);
    let line = |out: &mut String, level: usize| {
        let Some(indent) = &style.indent else { return Ok(()) };
        budget.text(indent.len().saturating_mul(level))?;
        out.push('\n');
        (0..level).for_each(|_| out.push_str(indent));
        Ok(())
    };
    let mut is_empty = true;
    for (key, value) in items {
        if !is_empty {
            out.push_str(&style.item);
        }
        is_empty = false;
        line(out, level + 1)?;
        if let Some(key) = key {
            quoted(&key, style, out);
            out.push_str(&style.key);
        }
        write(value, style, level + 1, out, budget)?;
    }
    if !is_empty {
        line(out, level)?;
    }
    out.push(ends[1]);
    Ok(())
}

fn key(key: &Value) -> Result<String> {
    Ok(match key {
        Value::Text(text) => text.to_string(),
        Value::None => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Float(f) => real(*f),
        other => {
            return Err(Error::kind(format!(
                "keys must be str, int, float, bool or None, not {}",
                other.type_name()
            )));
        }
    })
}

fn real(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".into(),
        x if x.is_infinite() => {
            if x > 0.0 {
                "Infinity".into()
            } else {
                "-Infinity".into()
            }
        }
        x => number::repr(x),
    }
}

fn quoted(text: &str, style: &Style, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if style.is_ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            // DEL is escaped by nobody.
            c => out.push(c),
        }
    }
    out.push('"');
}
