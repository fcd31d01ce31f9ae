//! Values as text: `str` and `repr` of Python.

use std::sync::Arc;

use super::value::{Value, View};
use super::{Budget, Result, number};

/// `str(value)`, which is what a template prints.
///
/// # Errors
/// Limits.
pub(super) fn text(value: &Value, budget: &Budget) -> Result<Arc<str>> {
    Ok(match value {
        Value::Text(text) => text.clone(),
        Value::Undefined(_) => "".into(),
        other => {
            let mut out = String::new();
            repr(other, &mut out, budget)?;
            out.into()
        }
    })
}

/// `repr(value)`, written behind `out`.
///
/// # Errors
/// Limits.
pub(super) fn repr(value: &Value, out: &mut String, budget: &Budget) -> Result<()> {
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Float(f) => out.push_str(&number::repr(*f)),
        Value::Text(text) => {
            budget.text(text.len())?;
            quoted(text, out);
        }
        Value::List(seq) => list(&seq.items, ["[", "]"], out, budget)?,
        Value::Tuple(seq) if seq.items.len() == 1 => list(&seq.items, ["(", ",)"], out, budget)?,
        Value::Tuple(seq) => list(&seq.items, ["(", ")"], out, budget)?,
        Value::Dict(dict) => {
            out.push('{');
            for (i, (key, value)) in dict.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(key, out, budget)?;
                out.push_str(": ");
                repr(value, out, budget)?;
            }
            out.push('}');
        }
        Value::View(view, _) => {
            let ends = match view {
                View::Keys => ["dict_keys([", "])"],
                View::Values => ["dict_values([", "])"],
                View::Items => ["dict_items([", "])"],
            };
            list(&value.items(budget)?, ends, out, budget)?;
        }
        Value::Range(r) if r.step == 1 => {
            out.push_str(&format!("range({}, {})", r.start, r.stop));
        }
        Value::Range(r) => {
            out.push_str(&format!("range({}, {}, {})", r.start, r.stop, r.step));
        }
        // Python prints addresses, which differ from run to run.
        other => out.push_str(&format!("<{}>", other.type_name())),
    }
    budget.spend(1)?;
    budget.bytes(out.len())
}

fn list(items: &[Value], ends: [&str; 2], out: &mut String, budget: &Budget) -> Result<()> {
    out.push_str(ends[0]);
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        repr(item, out, budget)?;
    }
    out.push_str(ends[1]);
    Ok(())
}

/// A text in Python's quotes.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x10000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
}

/// `str.isprintable`, but for letters that no version of Unicode has yet.
fn is_printable(c: char) -> bool {
    let is_format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..);
    !is_format && !c.is_control() && (c == ' ' || !c.is_whitespace())
}
