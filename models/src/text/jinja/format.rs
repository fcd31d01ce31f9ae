//! `'..' % values` and `str.format`, with the format of numbers and texts that both share.
//!
//! Invariants
//! - A width or precision is paid for before it is filled.

use super::eval::{Args, Interpreter};
use super::value::{Key, Value};
use super::{Budget, Error, Result, number, print};

/// How one value is written.
#[derive(Clone, Debug, Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^`, `=`
    align: Option<char>,
    /// `+` or a space
    sign: Option<char>,
    is_alternate: bool,
    width: usize,
    /// `,` or `_`
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format % values`.
///
/// # Errors
/// Values that do not fit, limits.
pub(super) fn printf(format: &str, values: &Value, budget: &Budget) -> Result<String> {
    let mut positional = match values {
        Value::Tuple(seq) => seq.items.clone().into_iter(),
        other => vec![other.clone()].into_iter(),
    };
    let mut is_keyed = false;
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut value = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let end = inside.find(')').ok_or_else(|| Error::kind("incomplete format key"))?;
            let Value::Dict(dict) = values else {
                return Err(Error::kind("format requires a mapping"));
            };
            let key = Key::Text(inside[..end].into());
            let found = dict.get(&key).cloned();
            value = Some(found.ok_or_else(|| Error::kind(format!("'{}'", &inside[..end])))?);
            is_keyed = true;
            rest = &inside[end + 1..];
        }
        let flags = rest.len() - rest.trim_start_matches(['-', '+', ' ', '#', '0']).len();
        let (flags, tail) = rest.split_at(flags);
        rest = tail;
        let mut spec = Spec { is_alternate: flags.contains('#'), ..Spec::default() };
        spec.sign = ['+', ' '].into_iter().find(|c| flags.contains(*c));
        let mut next = || {
            positional.next().ok_or_else(|| Error::kind("not enough arguments for format string"))
        };
        let mut size = |rest: &mut &str| -> Result<Option<i128>> {
            if let Some(tail) = rest.strip_prefix('*') {
                *rest = tail;
                let value = next()?;
                return value.int().map(Some).ok_or_else(|| Error::kind("* wants int"));
            }
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, tail) = rest.split_at(digits);
            *rest = tail;
            Ok(number.parse().ok())
        };
        let width = size(&mut rest)?.unwrap_or(0);
        spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        if let Some(tail) = rest.strip_prefix('.') {
            rest = tail;
            let precision = size(&mut rest)?.unwrap_or(0).max(0);
            spec.precision = Some(usize::try_from(precision).unwrap_or(usize::MAX));
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let kind = rest.chars().next().ok_or_else(|| Error::kind("incomplete format"))?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = value.map_or_else(next, Ok)?;
        let is_left = flags.contains('-') || width < 0;
        let is_number = !matches!(kind, 's' | 'r' | 'a' | 'c');
        spec.align = Some(if is_left { '<' } else { '>' });
        if is_number && flags.contains('0') && !is_left {
            (spec.fill, spec.align) = (Some('0'), Some('='));
        }
        let text = match kind {
            's' => cut(&print::text(&value, budget)?, spec.precision.take()),
            'r' | 'a' => {
                let mut text = String::new();
                print::repr(&value, &mut text, budget)?;
                cut(&text, spec.precision.take())
            }
            'c' => match &value {
                Value::Text(text) if text.chars().count() == 1 => text.to_string(),
                other => character(other)?,
            },
            'd' | 'i' | 'u' => {
                let value = match &value {
                    Value::Float(f) if f.is_finite() => Value::Int(f.trunc() as i128),
                    other => other.clone(),
                };
                if value.int().is_none() {
                    return Err(Error::kind(format!(
                        "%{kind} format: a real number is required, not {}",
                        value.type_name()
                    )));
                }
                let digits = spec.precision.take();
                let text = whole(&value, 'd', &spec)?;
                match digits {
                    Some(digits) => {
                        budget.text(digits)?;
                        let signed = text.len() - text.trim_start_matches(['+', '-', ' ']).len();
                        format!("{}{:0>digits$}", &text[..signed], &text[signed..])
                    }
                    None => text,
                }
            }
            'x' | 'X' | 'o' => whole(&value, kind, &spec)?,
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => real(&value, kind, &spec, budget)?,
            other => {
                return Err(Error::kind(format!("unsupported format character '{other}'")));
            }
        };
        out.push_str(&padded(text, &spec, budget)?);
        budget.bytes(out.len())?;
    }
    out.push_str(rest);
    // Python counts what has items by index as a map, whose values may be left over.
    let has_items =
        matches!(values, Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_));
    let takes_any = is_keyed || has_items;
    if positional.next().is_some() && !takes_any {
        return Err(Error::kind("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// `format.format(args)`.
///
/// # Errors
/// Fields that are not there, values that do not fit, limits.
pub(super) fn format(at: &mut Interpreter<'_>, format: &str, args: &Args) -> Result<String> {
    let mut counter = 0;
    fields(at, format, args, &mut counter, 0)
}

fn fields(
    at: &mut Interpreter<'_>,
    format: &str,
    args: &Args,
    counter: &mut usize,
    depth: usize,
) -> Result<String> {
    if depth > 2 {
        return Err(Error::kind("Max string recursion exceeded"));
    }
    let mut out = String::new();
    let mut rest = format;
    while let Some(begin) = rest.find(['{', '}']) {
        out.push_str(&rest[..begin]);
        let brace = rest.as_bytes()[begin];
        rest = &rest[begin + 1..];
        if rest.as_bytes().first() == Some(&brace) {
            out.push(brace as char);
            rest = &rest[1..];
            continue;
        }
        if brace == b'}' {
            return Err(Error::kind("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = rest.char_indices().find(|(_, c)| {
            open += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            open == 0
        });
        let (end, _) = end.ok_or_else(|| Error::kind("expected '}' before end of string"))?;
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = match name.split_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (name, None),
        };
        let mut value = named(at, name, args, counter)?;
        value = match conversion {
            None => value,
            Some("s") => Value::Text(print::text(&value, &at.budget)?),
            Some("r" | "a") => {
                let mut text = String::new();
                print::repr(&value, &mut text, &at.budget)?;
                Value::text(text)
            }
            Some(other) => {
                return Err(Error::kind(format!("Unknown conversion specifier {other}")));
            }
        };
        let spec = fields(at, spec, args, counter, depth + 1)?;
        out.push_str(&formatted(&value, &spec, &at.budget)?);
        at.budget.text(out.len())?;
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of a field: `0`, `name`, with `.attribute` and `[index]` behind.
fn named(at: &mut Interpreter<'_>, name: &str, args: &Args, counter: &mut usize) -> Result<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let position = if first.is_empty() {
        *counter += 1;
        Some(*counter - 1)
    } else {
        first.parse().ok()
    };
    let mut value = match position {
        Some(i) => args.positional.get(i).cloned().ok_or_else(|| {
            Error::kind(format!("Replacement index {i} out of range for positional args tuple"))
        })?,
        None => {
            let found = args.named.iter().find(|(n, _)| **n == *first);
            found.map(|(_, v)| v.clone()).ok_or_else(|| Error::kind(format!("'{first}'")))?
        }
    };
    while !path.is_empty() {
        if let Some(inside) = path.strip_prefix('[') {
            let end =
                inside.find(']').ok_or_else(|| Error::kind("Missing ']' in format string"))?;
            let index = match inside[..end].parse::<i128>() {
                Ok(i) => Value::Int(i),
                Err(_) => Value::text(&inside[..end]),
            };
            value = at.item(&value, &index)?;
            path = &inside[end + 1..];
        } else {
            let inside = path.strip_prefix('.').unwrap_or(path);
            let end = inside.find(['.', '[']).unwrap_or(inside.len());
            value = at.attribute(&value, &inside[..end].into())?;
            path = &inside[end..];
        }
    }
    Ok(value)
}

/// `format(value, spec)`.
fn formatted(value: &Value, text: &str, budget: &Budget) -> Result<String> {
    if text.is_empty() {
        return Ok(print::text(value, budget)?.to_string());
    }
    let mut spec = Spec::default();
    let letters: Vec<char> = text.chars().collect();
    let mut i = 0;
    let is_align = |c: Option<&char>| c.is_some_and(|c| "<>^=".contains(*c));
    if is_align(letters.get(1)) {
        (spec.fill, spec.align, i) = (Some(letters[0]), Some(letters[1]), 2);
    } else if is_align(letters.first()) {
        (spec.align, i) = (Some(letters[0]), 1);
    }
    let mut take = |set: &str| {
        let found = letters.get(i).copied().filter(|c| set.contains(*c));
        i += usize::from(found.is_some());
        found
    };
    spec.sign = take("+- ").filter(|c| *c != '-');
    spec.is_alternate = take("#").is_some();
    let is_zeroed = take("0").is_some();
    let mut digits = String::new();
    while let Some(c) = take("0123456789") {
        digits.push(c);
    }
    spec.width = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) };
    spec.grouping = take(",_");
    if take(".").is_some() {
        let mut digits = String::new();
        while let Some(c) = take("0123456789") {
            digits.push(c);
        }
        if digits.is_empty() {
            return Err(Error::kind("Format specifier missing precision"));
        }
        spec.precision = Some(digits.parse().unwrap_or(usize::MAX));
    }
    spec.kind = take("bcdeEfFgGnosxX%");
    if i != letters.len() {
        return Err(Error::kind(format!("Invalid format specifier '{text}'")));
    }
    let is_number = value.float().is_some();
    if is_zeroed && spec.align.is_none() {
        (spec.fill, spec.align) = (Some('0'), Some(if is_number { '=' } else { '<' }));
    }
    let kind = spec.kind;
    let body = match (value, kind) {
        (Value::Text(text), None | Some('s')) => cut(text, spec.precision),
        (_, Some('s')) | (Value::Text(_), _) => {
            return Err(Error::kind(format!(
                "Unknown format code '{}' for object of type '{}'",
                kind.unwrap_or('s'),
                value.type_name()
            )));
        }
        (Value::Int(_) | Value::Bool(_), None) => whole(value, 'd', &spec)?,
        (Value::Int(_) | Value::Bool(_), Some(k)) if "bdoxXn".contains(k) => {
            whole(value, k, &spec)?
        }
        (_, Some('c')) => character(value)?,
        (Value::Float(f), None) if spec.precision.is_none() => {
            let text = number::repr(f.abs());
            grouped(sign(f.is_sign_negative(), &spec), &text, &spec)
        }
        (Value::Float(_), None) => real(value, 'g', &spec, budget)?,
        (_, Some(k)) if is_number && "eEfFgGn%".contains(k) => real(value, k, &spec, budget)?,
        _ => {
            return Err(Error::kind(format!(
                "unsupported format string passed to {}.__format__",
                value.type_name()
            )));
        }
    };
    spec.align = spec.align.or(Some(if is_number { '>' } else { '<' }));
    padded(body, &spec, budget)
}

fn cut(text: &str, letters: Option<usize>) -> String {
    match letters {
        Some(letters) => text.chars().take(letters).collect(),
        None => text.to_owned(),
    }
}

fn character(value: &Value) -> Result<String> {
    let code = value.int().and_then(|i| u32::try_from(i).ok()).and_then(char::from_u32);
    Ok(code.ok_or_else(|| Error::kind("%c requires int or char"))?.to_string())
}

fn sign(is_negative: bool, spec: &Spec) -> String {
    match (is_negative, spec.sign) {
        (true, _) => "-".into(),
        (false, Some(sign)) => sign.into(),
        (false, None) => String::new(),
    }
}

/// A sign and digits, with marks between groups of three.
fn grouped(sign: String, digits: &str, spec: &Spec) -> String {
    let Some(mark) = spec.grouping else { return sign + digits };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut out = sign;
    for (i, c) in digits[..end].chars().enumerate() {
        if i > 0 && (end - i).is_multiple_of(3) {
            out.push(mark);
        }
        out.push(c);
    }
    out + &digits[end..]
}

fn whole(value: &Value, kind: char, spec: &Spec) -> Result<String> {
    let value = value.int().ok_or_else(|| {
        Error::kind(format!("%{kind} format: an integer is required, not {}", value.type_name()))
    })?;
    let size = value.unsigned_abs();
    let (prefix, digits) = match kind {
        'x' => ("0x", format!("{size:x}")),
        'X' => ("0X", format!("{size:X}")),
        'o' => ("0o", format!("{size:o}")),
        'b' => ("0b", format!("{size:b}")),
        _ => ("", size.to_string()),
    };
    let prefix = if spec.is_alternate { prefix } else { "" };
    Ok(grouped(sign(value < 0, spec) + prefix, &digits, spec))
}

fn real(value: &Value, kind: char, spec: &Spec, budget: &Budget) -> Result<String> {
    let x = value
        .float()
        .ok_or_else(|| Error::kind(format!("must be real number, not {}", value.type_name())))?;
    let precision = spec.precision.unwrap_or(6);
    budget.text(precision)?;
    // Rust's own limit; digits beyond are zeros.
    let precision = precision.min(60_000);
    let sign = sign(x.is_sign_negative(), spec);
    let size = x.abs();
    let digits = if !size.is_finite() {
        if size.is_nan() { "nan".to_owned() } else { "inf".to_owned() }
    } else {
        match kind.to_ascii_lowercase() {
            'f' => format!("{size:.precision$}"),
            '%' => format!("{:.precision$}%", size * 100.0),
            'e' => scientific(size, precision),
            _ => general(size, precision.max(1), spec.is_alternate),
        }
    };
    let digits = if kind.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
    Ok(grouped(sign, &digits, spec))
}

/// `1.5e+03`
fn scientific(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// `%g`: so many digits, scientific where that is shorter.
fn general(x: f64, digits: usize, keeps_zeros: bool) -> String {
    let text = scientific(x, digits - 1);
    let exponent: i64 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let strip = |text: &str| {
        if keeps_zeros || !text.contains('.') {
            return text.to_owned();
        }
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if x != 0.0 && !(-4..digits as i64).contains(&exponent) {
        let (mantissa, tail) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{tail}", strip(mantissa));
    }
    let after = (digits as i64 - 1 - exponent).max(0) as usize;
    strip(&format!("{x:.after$}"))
}

fn padded(text: String, spec: &Spec, budget: &Budget) -> Result<String> {
    let missing = spec.width.saturating_sub(text.chars().count());
    if missing == 0 {
        return Ok(text);
    }
    let fill = spec.fill.unwrap_or(' ');
    budget.text(missing.saturating_mul(fill.len_utf8()))?;
    let pad = |count: usize| fill.to_string().repeat(count);
    Ok(match spec.align {
        Some('<') => text + &pad(missing),
        Some('^') => pad(missing / 2) + &text + &pad(missing - missing / 2),
        Some('=') => {
            let digits = text.trim_start_matches(['+', '-', ' ']);
            let digits = ["0x", "0X", "0o", "0b"]
                .into_iter()
                .find_map(|p| digits.strip_prefix(p).filter(|_| spec.is_alternate))
                .unwrap_or(digits);
            let head = text.len() - digits.len();
            format!("{}{}{digits}", &text[..head], pad(missing))
        }
        _ => pad(missing) + &text,
    })
}
