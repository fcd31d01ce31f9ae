//! Methods of Python's texts, lists, maps and numbers; those that write are refused, as in the
//! sandbox of transformers.

use std::rc::Rc;
use std::sync::Arc;

use super::eval::{Args, Interpreter};
use super::lexer::is_space;
use super::value::{Dict, Key, Value, View};
use super::{Error, Result, format, number, ops};

/// Methods of texts.
const TEXT: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const SEQUENCE: &[&str] = &["count", "index"];
const LIST: &[&str] = &["copy", "count", "index"];
const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
/// What writes to a value.
const LIST_WRITES: &[&str] =
    &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT_WRITES: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];

/// The method of a value under a name.
pub(super) fn find(value: &Value, name: &Arc<str>) -> Option<Value> {
    let (own, writes): (&[&str], &[&str]) = match value {
        Value::Text(_) => (TEXT, &[]),
        Value::List(_) => (LIST, LIST_WRITES),
        Value::Tuple(_) | Value::Range(_) => (SEQUENCE, &[]),
        Value::Dict(_) => (DICT, DICT_WRITES),
        Value::Float(_) => (&["is_integer"], &[]),
        Value::Int(_) | Value::Bool(_) => (&["bit_length"], &[]),
        _ => return None,
    };
    if writes.contains(&&**name) {
        return Some(Value::undefined(format!(
            "access to attribute '{name}' of '{}' object is unsafe.",
            value.type_name()
        )));
    }
    own.contains(&&**name).then(|| Value::Method(Rc::new(value.clone()), name.clone()))
}

/// Calls a method.
///
/// # Errors
/// Arguments that it does not take.
pub(super) fn call(at: &mut Interpreter<'_>, of: &Value, name: &str, args: Args) -> Result<Value> {
    match of {
        Value::Text(text) => self::text(at, text, name, args),
        Value::Dict(dict) => self::dict(at, dict, name, args),
        Value::Float(f) => Ok(Value::Bool(f.fract() == 0.0)),
        Value::Int(_) | Value::Bool(_) => {
            let size = of.int().unwrap_or(0).unsigned_abs();
            Ok(Value::Int(i128::from(128 - size.leading_zeros())))
        }
        other => {
            let [item, start, stop] = args.of(name, ["value", "start", "stop"])?;
            if name == "copy" {
                return Ok(other.clone());
            }
            let item = item.ok_or_else(|| Error::kind(format!("{name} needs an argument")))?;
            let all = other.items(&at.budget)?;
            let window = Window::of(start, stop, all.len())?;
            let mut found = Vec::new();
            for (i, one) in all.iter().enumerate() {
                if ops::equal(one, &item, &at.budget)? {
                    found.push(i);
                }
            }
            if name == "count" {
                return Ok(Value::Int(found.len() as i128));
            }
            let first = found.into_iter().find(|i| (window.start..window.stop).contains(i));
            let first = first.ok_or_else(|| {
                Error::kind(format!("the item is not in the {}", other.type_name()))
            })?;
            Ok(Value::Int(first as i128))
        }
    }
}

fn dict(at: &mut Interpreter<'_>, dict: &Rc<Dict>, name: &str, args: Args) -> Result<Value> {
    let of = Value::Dict(dict.clone());
    let view = |view| Interpreter::view(&of, view).unwrap_or(Value::None);
    match name {
        "get" => {
            let [key, default] = args.of("get", ["key", "default"])?;
            let key = key.ok_or_else(|| Error::kind("get expected at least 1 argument, got 0"))?;
            let found = dict.get(&Key::of(&key, &at.budget)?).cloned();
            Ok(found.or(default).unwrap_or(Value::None))
        }
        "fromkeys" => at.call(&Value::Function(super::value::Function::FromKeys), args),
        _ => {
            let [] = args.of(name, [])?;
            Ok(match name {
                "keys" => view(View::Keys),
                "values" => view(View::Values),
                "items" => view(View::Items),
                _ => of,
            })
        }
    }
}

/// A part of a text or list between two bounds, as Python clamps them.
struct Window {
    start: usize,
    stop: usize,
}

impl Window {
    fn of(start: Option<Value>, stop: Option<Value>, length: usize) -> Result<Self> {
        let place = |bound: Option<Value>, default: usize| match bound {
            None | Some(Value::None) => Ok(default),
            Some(value) => {
                let i = value.int().ok_or_else(|| Error::kind("slice indices must be integers"))?;
                let i = if i < 0 { i.saturating_add(length as i128) } else { i };
                Ok(i.clamp(0, length as i128) as usize)
            }
        };
        Ok(Self { start: place(start, 0)?, stop: place(stop, length)? })
    }
}

/// Whether a text has letters and all have the case.
pub(super) fn is_cased(text: &str, is_upper: bool) -> bool {
    let has = text.chars().any(|c| c.is_uppercase() || c.is_lowercase());
    has && !text.chars().any(|c| if is_upper { c.is_lowercase() } else { c.is_uppercase() })
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        is_inside = c.is_alphabetic();
    }
    out
}

pub(super) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters.as_str().to_lowercase().chars()).collect()
}

/// Lines without their ends.
pub(super) fn lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            out.push(rest);
            break;
        };
        let c = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = if rest[at..].starts_with("\r\n") { at + 2 } else { at + c };
        out.push(if keeps_ends { &rest[..end] } else { &rest[..at] });
        rest = &rest[end..];
    }
    out
}

/// `strip` of both ends or one, of white space or of the letters given.
pub(super) fn strip<'a>(text: &'a str, letters: Option<&str>, left: bool, right: bool) -> &'a str {
    let goes = |c: char| letters.map_or_else(|| is_space(c), |letters| letters.contains(c));
    let text = if left { text.trim_start_matches(goes) } else { text };
    if right { text.trim_end_matches(goes) } else { text }
}

/// `split` and `rsplit`.
fn split(text: &str, separator: Option<&str>, most: i128, from_right: bool) -> Result<Vec<String>> {
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    let owned = |parts: Vec<&str>| parts.into_iter().map(str::to_owned).collect();
    match separator {
        Some("") => Err(Error::kind("empty separator")),
        Some(separator) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
            parts.reverse();
            Ok(owned(parts))
        }
        Some(separator) => Ok(owned(text.splitn(most + 1, separator).collect())),
        None => {
            let mut parts = Vec::new();
            let mut rest = if from_right {
                text.trim_end_matches(is_space)
            } else {
                text.trim_start_matches(is_space)
            };
            while !rest.is_empty() {
                let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(cut) = cut.filter(|_| parts.len() < most) else {
                    parts.push(rest);
                    break;
                };
                let width = rest[cut..].chars().next().map_or(1, char::len_utf8);
                let (before, after) = (&rest[..cut], &rest[cut + width..]);
                if from_right {
                    parts.push(after);
                    rest = before.trim_end_matches(is_space);
                } else {
                    parts.push(before);
                    rest = after.trim_start_matches(is_space);
                }
            }
            if from_right {
                parts.reverse();
            }
            Ok(owned(parts))
        }
    }
}

fn texts(parts: impl IntoIterator<Item = String>) -> Vec<Value> {
    parts.into_iter().map(Value::text).collect()
}

fn text(at: &mut Interpreter<'_>, text: &Arc<str>, name: &str, args: Args) -> Result<Value> {
    at.budget.spend(text.len() as u64 / 16)?;
    let string = |value: &Option<Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text.clone())),
        Some(Value::Undefined(why)) => Err(Error::Undefined(why.to_string())),
        Some(other) => {
            Err(Error::kind(format!("{name}: a str is expected, not {}", other.type_name())))
        }
    };
    let needed = |value: &Option<Value>| {
        string(value)?.ok_or_else(|| Error::kind(format!("{name}: a str is expected")))
    };
    let int = |value: &Option<Value>, default: i128| match value {
        None => Ok(default),
        Some(value) => value.int().ok_or_else(|| Error::kind(format!("{name}: not a number"))),
    };
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let made = |made: String| {
        at.budget.text(made.len())?;
        Ok(Value::text(made))
    };
    Ok(match name {
        "format" => return Ok(Value::text(format::format(at, text, &args)?)),
        "format_map" => {
            let [map] = args.of(name, ["map"])?;
            let Some(Value::Dict(map)) = map else {
                return Err(Error::kind("format_map() needs a mapping"));
            };
            let named = map.iter().filter_map(|(key, value)| match key {
                Value::Text(name) => Some((name.clone(), value.clone())),
                _ => None,
            });
            let args = Args { positional: Vec::new(), named: named.collect() };
            return Ok(Value::text(format::format(at, text, &args)?));
        }
        "strip" | "lstrip" | "rstrip" => {
            let [letters] = args.of(name, ["chars"])?;
            let letters = string(&letters)?;
            made(strip(text, letters.as_deref(), name != "rstrip", name != "lstrip").into())?
        }
        "split" | "rsplit" => {
            let [separator, most] = args.of(name, ["sep", "maxsplit"])?;
            at.budget.items(text.len() / 4)?;
            let separator = string(&separator)?;
            let parts = split(text, separator.as_deref(), int(&most, -1)?, name == "rsplit")?;
            Value::list(texts(parts))?
        }
        "splitlines" => {
            let [keeps] = args.of(name, ["keepends"])?;
            at.budget.items(text.len() / 4)?;
            let keeps = keeps.is_some_and(|k| k.truth());
            Value::list(texts(lines(text, keeps).into_iter().map(str::to_owned)))?
        }
        "partition" | "rpartition" => {
            let [separator] = args.of(name, ["sep"])?;
            let separator = needed(&separator)?;
            if separator.is_empty() {
                return Err(Error::kind("empty separator"));
            }
            let parts = if name == "partition" {
                text.split_once(&*separator)
            } else {
                text.rsplit_once(&*separator)
            };
            let parts = match parts {
                Some((a, b)) => [a, &separator, b],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::tuple(parts.into_iter().map(Value::text).collect())?
        }
        "startswith" | "endswith" => {
            let [what, start, stop] = args.of(name, ["prefix", "start", "end"])?;
            let part = if start.is_none() && stop.is_none() {
                text.to_string()
            } else {
                let window = Window::of(start, stop, text.chars().count())?;
                let length = window.stop.saturating_sub(window.start);
                text.chars().skip(window.start).take(length).collect()
            };
            let one = |affix: &str| {
                if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) }
            };
            Value::Bool(match what {
                Some(Value::Tuple(all)) => {
                    let mut found = false;
                    for affix in &all.items {
                        found = found || one(&needed(&Some(affix.clone()))?);
                    }
                    found
                }
                other => one(&needed(&other)?),
            })
        }
        "removeprefix" => {
            let [affix] = args.of(name, ["prefix"])?;
            made(text.strip_prefix(&*needed(&affix)?).unwrap_or(text).into())?
        }
        "removesuffix" => {
            let [affix] = args.of(name, ["suffix"])?;
            made(text.strip_suffix(&*needed(&affix)?).unwrap_or(text).into())?
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [what, start, stop] = args.of(name, ["sub", "start", "end"])?;
            let what = needed(&what)?;
            let window = Window::of(start, stop, text.chars().count())?;
            let length = window.stop.saturating_sub(window.start);
            let part: String = text.chars().skip(window.start).take(length).collect();
            if name == "count" {
                return Ok(Value::Int(part.matches(&*what).count() as i128));
            }
            let found = if name.starts_with('r') { part.rfind(&*what) } else { part.find(&*what) };
            let found = found.map(|at| (window.start + part[..at].chars().count()) as i128);
            if found.is_none() && name.ends_with("index") {
                return Err(Error::kind("substring not found"));
            }
            Value::Int(found.unwrap_or(-1))
        }
        "replace" => {
            let [old, new, count] = args.of(name, ["old", "new", "count"])?;
            let (old, new) = (needed(&old)?, needed(&new)?);
            Value::text(replaced(at, text, &old, &new, int(&count, -1)?)?)
        }
        "join" => {
            let [items] = args.of(name, ["iterable"])?;
            let items = items.ok_or_else(|| Error::kind("join() takes exactly one argument"))?;
            let mut out = String::new();
            for (i, item) in items.items(&at.budget)?.iter().enumerate() {
                let Value::Text(item) = item else {
                    return Err(Error::kind(format!(
                        "sequence item {i}: expected str instance, {} found",
                        item.type_name()
                    )));
                };
                at.budget.text(text.len() + item.len())?;
                out.push_str(if i > 0 { text } else { "" });
                out.push_str(item);
                at.budget.bytes(out.len())?;
            }
            Value::text(out)
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = args.of(name, ["width", "fillchar"])?;
            let width = usize::try_from(int(&width, 0)?.max(0)).unwrap_or(usize::MAX);
            let fill = if name == "zfill" { Some("0".into()) } else { string(&fill)? };
            let fill = fill.as_deref().unwrap_or(" ");
            if fill.chars().count() != 1 {
                return Err(Error::kind("The fill character must be exactly one character long"));
            }
            let missing = width.saturating_sub(text.chars().count());
            at.budget.text(missing.saturating_mul(fill.len()))?;
            let signed = if name == "zfill" && text.starts_with(['+', '-']) { 1 } else { 0 };
            let left = match name {
                "ljust" => 0,
                // Python puts the odd one to the left where the width is odd.
                "center" => missing / 2 + (missing & width & 1),
                _ => missing,
            };
            let (head, tail) = text.split_at(signed);
            made(format!("{head}{}{tail}{}", fill.repeat(left), fill.repeat(missing - left)))?
        }
        "expandtabs" => {
            let [size] = args.of(name, ["tabsize"])?;
            let size = usize::try_from(int(&size, 8)?.clamp(0, 1 << 16)).unwrap_or(0);
            let mut out = String::new();
            let mut column = 0;
            for c in text.chars() {
                if c == '\t' {
                    let spaces = if size == 0 { 0 } else { size - column % size };
                    at.budget.text(spaces)?;
                    at.budget.bytes(out.len() + spaces)?;
                    out.push_str(&" ".repeat(spaces));
                    column += spaces;
                } else {
                    out.push(c);
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                }
            }
            Value::text(out)
        }
        _ => {
            if name == "encode" {
                return Err(Error::kind("bytes are not supported"));
            }
            let [] = args.of(name, [])?;
            match name {
                "upper" => made(text.to_uppercase())?,
                "lower" | "casefold" => made(text.to_lowercase())?,
                "title" => made(title(text))?,
                "capitalize" => made(capitalized(text))?,
                "swapcase" => {
                    let mut out = String::new();
                    for c in text.chars() {
                        if c.is_uppercase() {
                            out.extend(c.to_lowercase());
                        } else {
                            out.extend(c.to_uppercase());
                        }
                    }
                    made(out)?
                }
                "isalnum" => Value::Bool(all(char::is_alphanumeric)),
                "isalpha" => Value::Bool(all(char::is_alphabetic)),
                "isascii" => Value::Bool(text.is_ascii()),
                "isdecimal" | "isdigit" => Value::Bool(all(|c| c.is_ascii_digit())),
                "isnumeric" => Value::Bool(all(char::is_numeric)),
                "isspace" => Value::Bool(all(is_space)),
                "islower" => Value::Bool(is_cased(text, false)),
                "isupper" => Value::Bool(is_cased(text, true)),
                _ => {
                    let cased = text.chars().any(|c| c.is_uppercase() || c.is_lowercase());
                    Value::Bool(cased && title(text) == **text)
                }
            }
        }
    })
}

/// `replace`, at most `count` times; all where it is negative.
pub(super) fn replaced(
    at: &Interpreter<'_>,
    text: &str,
    old: &str,
    new: &str,
    count: i128,
) -> Result<String> {
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let grown = found.min(most).saturating_mul(new.len());
    at.budget.text(text.len().saturating_add(grown))?;
    Ok(text.replacen(old, new, most))
}

/// `int(value)` of the filter: numbers and texts.
pub(super) fn to_int(value: &Value, base: u32) -> Option<i128> {
    match value {
        Value::Text(text) => number::parse_int(text, base).or_else(|| {
            number::parse_float(text).filter(|f| f.is_finite()).map(|f| f.trunc() as i128)
        }),
        Value::Float(f) if f.is_finite() => Some(f.trunc() as i128),
        other => other.int(),
    }
}
