//! Filters: the table, and those of one value. [`super::sequences`] has those of many.

use super::eval::{Args, Interpreter};
use super::value::{Value, View};
use super::{Error, Result, json, methods, number, ops, print, sequences};

/// A filter: the interpreter, the value, the arguments.
type Filter = fn(&mut Interpreter<'_>, Value, Args) -> Result<Value>;

const ALL: &[(&str, Filter)] = &[
    ("abs", abs),
    ("attr", attr),
    ("batch", sequences::batch),
    ("capitalize", |at, value, args| change(at, &value, args, methods::capitalized)),
    ("center", |at, value, args| method(at, &value, args, "center", &[Value::Int(80)])),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", sequences::dictsort),
    ("e", escape),
    ("escape", escape),
    ("filesizeformat", filesize),
    ("first", sequences::first),
    ("float", float),
    ("forceescape", escape),
    ("format", format),
    ("groupby", sequences::groupby),
    ("indent", indent),
    ("int", int),
    ("items", sequences::items),
    ("join", sequences::join),
    ("last", sequences::last),
    ("length", length),
    ("list", |at, value, args| {
        let [] = args.of("list", [])?;
        Value::list(value.items(&at.budget)?)
    }),
    ("lower", |at, value, args| change(at, &value, args, str::to_lowercase)),
    ("map", sequences::map),
    ("max", |at, value, args| sequences::extreme(at, &value, args, true)),
    ("min", |at, value, args| sequences::extreme(at, &value, args, false)),
    ("reject", |at, value, args| sequences::select(at, &value, args, false, false)),
    ("rejectattr", |at, value, args| sequences::select(at, &value, args, false, true)),
    ("replace", replace),
    ("reverse", sequences::reverse),
    ("round", round),
    ("safe", |at, value, args| change(at, &value, args, str::to_owned)),
    ("select", |at, value, args| sequences::select(at, &value, args, true, false)),
    ("selectattr", |at, value, args| sequences::select(at, &value, args, true, true)),
    ("slice", sequences::slice),
    ("sort", sequences::sort),
    ("string", |at, value, args| change(at, &value, args, str::to_owned)),
    ("striptags", |at, value, args| change(at, &value, args, without_tags)),
    ("sum", sequences::sum),
    ("title", |at, value, args| change(at, &value, args, title)),
    ("tojson", tojson),
    ("trim", trim),
    ("truncate", truncate),
    ("unique", sequences::unique),
    ("upper", |at, value, args| change(at, &value, args, str::to_uppercase)),
    ("urlencode", urlencode),
    ("wordcount", wordcount),
];

/// Whether there is a filter of that name.
pub(super) fn is_known(name: &str) -> bool {
    ALL.iter().any(|(n, _)| *n == name)
}

/// Runs a filter.
///
/// # Errors
/// No such filter, values or arguments that it does not take.
pub(super) fn apply(
    at: &mut Interpreter<'_>,
    name: &str,
    value: Value,
    args: Args,
) -> Result<Value> {
    at.budget.spend(1)?;
    let filter = ALL.iter().find(|(n, _)| *n == name);
    let (_, filter) = filter.ok_or_else(|| Error::kind(format!("No filter named '{name}'.")))?;
    filter(at, value, args)
}

/// A whole number among the arguments.
pub(super) fn whole(value: Option<Value>, default: i128, what: &str) -> Result<i128> {
    match value {
        None => Ok(default),
        Some(Value::Undefined(why)) => Err(Error::Undefined(why.to_string())),
        Some(value) => {
            value.int().ok_or_else(|| Error::kind(format!("{what}: a whole number is expected")))
        }
    }
}

/// A filter from text to text without arguments.
fn change(
    at: &mut Interpreter<'_>,
    value: &Value,
    args: Args,
    change: impl Fn(&str) -> String,
) -> Result<Value> {
    let [] = args.of("filter", [])?;
    let text = print::text(value, &at.budget)?;
    at.budget.text(text.len())?;
    Ok(Value::text(change(&text)))
}

/// A filter that is a method of texts, with defaults behind the arguments given.
fn method(
    at: &mut Interpreter<'_>,
    value: &Value,
    mut args: Args,
    name: &str,
    defaults: &[Value],
) -> Result<Value> {
    let text = Value::Text(print::text(value, &at.budget)?);
    if args.named.is_empty() {
        args.positional.extend(defaults.iter().skip(args.positional.len()).cloned());
    }
    methods::call(at, &text, name, args)
}

fn abs(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("abs", [])?;
    match &value {
        Value::Float(f) => Ok(Value::Float(f.abs())),
        other if other.int().is_some_and(|i| i < 0) => ops::signed(other, true),
        other => ops::signed(other, false),
    }
}

fn attr(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [name] = args.of("attr", ["name"])?;
    let Some(Value::Text(name)) = name else { return Err(Error::kind("attr() needs a name")) };
    // Attributes only: a map's items are none.
    match &value {
        Value::Dict(_) => Ok(methods::find(&value, &name).unwrap_or_else(|| {
            Value::undefined(format!("'dict object' has no attribute '{name}'"))
        })),
        other => at.attribute(other, &name),
    }
}

fn default(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [default, boolean] = args.of("default", ["default_value", "boolean"])?;
    let is_missing = matches!(value, Value::Undefined(_))
        || (boolean.is_some_and(|b| b.truth()) && !value.truth());
    Ok(if is_missing { default.unwrap_or_else(|| Value::text("")) } else { value })
}

fn escape(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    change(at, &value, args, |text| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        text.replace('\'', "&#39;").replace('"', "&#34;")
    })
}

fn filesize(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [binary] = args.of("filesizeformat", ["binary"])?;
    let is_binary = binary.is_some_and(|b| b.truth());
    let bytes = to_float(&value).ok_or_else(|| Error::kind("filesizeformat: not a number"))?;
    let _ = at;
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::text("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::text(format!("{} Bytes", bytes as i128)));
    }
    let letters = ['k', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'];
    let mut power = 1;
    while power < letters.len() && bytes >= base.powi(power as i32 + 1) {
        power += 1;
    }
    let letter = letters[power - 1];
    let unit =
        if is_binary { format!("{}iB", letter.to_ascii_uppercase()) } else { format!("{letter}B") };
    Ok(Value::text(format!("{:.1} {unit}", bytes / base.powi(power as i32))))
}

fn to_float(value: &Value) -> Option<f64> {
    match value {
        Value::Text(text) => number::parse_float(text),
        other => other.float(),
    }
}

/// What an undefined value says where a number is needed.
fn defined(value: &Value) -> Result<()> {
    match value {
        Value::Undefined(why) => Err(Error::Undefined(why.to_string())),
        _ => Ok(()),
    }
}

fn float(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [default] = args.of("float", ["default"])?;
    defined(&value)?;
    Ok(to_float(&value).map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
}

fn int(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [default, base] = args.of("int", ["default", "base"])?;
    defined(&value)?;
    let base = u32::try_from(whole(base, 10, "int")?).unwrap_or(1);
    let found = methods::to_int(&value, base).map(Value::Int);
    Ok(found.unwrap_or_else(|| default.unwrap_or(Value::Int(0))))
}

fn format(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let text = print::text(&value, &at.budget)?;
    if !args.named.is_empty() && !args.positional.is_empty() {
        return Err(Error::kind("can't handle positional and keyword arguments at the same time"));
    }
    let values = if args.named.is_empty() {
        Value::tuple(args.positional)?
    } else {
        let mut dict = super::Dict::default();
        for (name, value) in args.named {
            dict.set(Value::Text(name), value, &at.budget)?;
        }
        Value::Dict(std::rc::Rc::new(dict))
    };
    Ok(Value::text(super::format::printf(&text, &values, &at.budget)?))
}

fn indent(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.of("indent", ["width", "first", "blank"])?;
    defined(&value)?;
    let Value::Text(text) = value else {
        return Err(Error::kind(format!("indent: a text is expected, not {}", value.type_name())));
    };
    let indent = match &width {
        Some(Value::Text(text)) => text.to_string(),
        other => {
            let width = usize::try_from(whole(other.clone(), 4, "indent")?.max(0)).unwrap_or(0);
            at.budget.text(width)?;
            " ".repeat(width)
        }
    };
    let is_set = |flag: Option<Value>| flag.is_some_and(|f| f.truth());
    let (first, blank) = (is_set(first), is_set(blank));
    let with_end = format!("{text}\n");
    let lines = methods::lines(&with_end, false);
    at.budget.text(text.len().saturating_add(indent.len().saturating_mul(lines.len())))?;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let is_indented = if i == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if is_indented { &indent } else { "" });
        out.push_str(line);
    }
    Ok(Value::text(out))
}

fn length(_: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("length", [])?;
    Ok(Value::Int(length_of(&value)? as i128))
}

fn length_of(value: &Value) -> Result<usize> {
    value
        .length()
        .ok_or_else(|| Error::kind(format!("object of type '{}' has no len()", value.type_name())))
}

fn replace(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [old, new, count] = args.of("replace", ["old", "new", "count"])?;
    let (Some(old), Some(new)) = (old, new) else {
        return Err(Error::kind("replace() needs `old` and `new`"));
    };
    let count = match count {
        Some(Value::None) => -1,
        other => whole(other, -1, "replace")?,
    };
    let text = print::text(&value, &at.budget)?;
    let (old, new) = (print::text(&old, &at.budget)?, print::text(&new, &at.budget)?);
    Ok(Value::text(methods::replaced(at, &text, &old, &new, count)?))
}

fn round(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [precision, way] = args.of("round", ["precision", "method"])?;
    defined(&value)?;
    let precision = whole(precision, 0, "round")?;
    let way = way.map_or(Ok("common".into()), |way| print::text(&way, &at.budget))?;
    let wrong = || Error::kind(format!("round: not a number but a {}", value.type_name()));
    let x = value.float().ok_or_else(wrong)?;
    let power = 10f64.powi(i32::try_from(precision.clamp(-400, 400)).unwrap_or(0));
    Ok(match (&*way, value.int()) {
        ("common", Some(i)) => Value::Int(number::round_int(i, precision).ok_or_else(wrong)?),
        ("common", None) => Value::Float(number::round(x, precision)),
        ("ceil", _) => Value::Float((x * power).ceil() / power),
        ("floor", _) => Value::Float((x * power).floor() / power),
        _ => return Err(Error::kind("method must be common, ceil or floor")),
    })
}

/// Text without what looks like a tag, white space joined.
fn without_tags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let Some(end) = rest[at..].find('>') else { break };
        out.push_str(&rest[..at]);
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Words begin after spaces and opening marks, not after apostrophes.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        let is_gap = c.is_whitespace() || "-({[<".contains(c);
        match (is_gap, is_inside) {
            (true, _) => out.push(c),
            (false, false) => out.extend(c.to_uppercase()),
            (false, true) => out.extend(c.to_lowercase()),
        }
        is_inside = !is_gap;
    }
    out
}

fn tojson(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = args.of("tojson", names)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Text(text)) => Some(text.to_string()),
        other => {
            let width = usize::try_from(whole(other, 0, "tojson: indent")?.max(0)).unwrap_or(0);
            at.budget.text(width)?;
            Some(" ".repeat(width))
        }
    };
    let (item, key) = match separators {
        None | Some(Value::None) => {
            (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
        }
        Some(pair) => {
            let pair = <[Value; 2]>::try_from(pair.items(&at.budget)?);
            match pair.as_ref().map(|p| p.each_ref()) {
                Ok([Value::Text(item), Value::Text(key)]) => (item.to_string(), key.to_string()),
                _ => return Err(Error::kind("tojson: separators are two texts")),
            }
        }
    };
    let is_set = |flag: Option<Value>| flag.is_some_and(|f| f.truth());
    let style =
        json::Style { indent, item, key, is_ascii: is_set(ascii), is_sorted: is_set(sorted) };
    let mut out = String::new();
    json::write(&value, &style, 0, &mut out, &at.budget)?;
    Ok(Value::text(out))
}

fn trim(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [letters] = args.of("trim", ["chars"])?;
    let letters = match &letters {
        None | Some(Value::None) => None,
        Some(value) => Some(print::text(value, &at.budget)?),
    };
    let text = print::text(&value, &at.budget)?;
    at.budget.text(text.len())?;
    Ok(Value::text(methods::strip(&text, letters.as_deref(), true, true)))
}

fn truncate(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [length, kills, end, leeway] =
        args.of("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = usize::try_from(whole(length, 255, "truncate")?).unwrap_or(0);
    let leeway = usize::try_from(whole(leeway, 5, "truncate")?).unwrap_or(0);
    let end = end.map_or(Ok("...".into()), |end| print::text(&end, &at.budget))?;
    if length_of(&value)? <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let Value::Text(text) = value else {
        return Err(Error::kind(format!(
            "truncate: a text is expected, not {}",
            value.type_name()
        )));
    };
    at.budget.text(text.len())?;
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = if kills.is_some_and(|k| k.truth()) {
        &*kept
    } else {
        kept.rsplit_once(' ').map_or(&*kept, |(head, _)| head)
    };
    Ok(Value::text(format!("{kept}{end}")))
}

fn urlencode(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("urlencode", [])?;
    let pairs = match &value {
        Value::Dict(dict) => Value::View(View::Items, dict.clone()).items(&at.budget)?,
        other if other.is_iterable() && !matches!(other, Value::Text(_)) => {
            other.items(&at.budget)?
        }
        other => {
            let text = print::text(other, &at.budget)?;
            at.budget.text(text.len() * 3)?;
            return Ok(Value::text(quoted(&text, false)));
        }
    };
    let mut out = String::new();
    for pair in pairs {
        let pair = <[Value; 2]>::try_from(pair.items(&at.budget)?);
        let [key, value] = pair.map_err(|_| Error::kind("urlencode: pairs are expected"))?;
        let (key, value) = (print::text(&key, &at.budget)?, print::text(&value, &at.budget)?);
        at.budget.text(3 * (key.len() + value.len()))?;
        out.push_str(if out.is_empty() { "" } else { "&" });
        out.push_str(&format!("{}={}", quoted(&key, true), quoted(&value, true)));
        at.budget.bytes(out.len())?;
    }
    Ok(Value::text(out))
}

/// Percent signs for what an address does not take; of a query, `+` for spaces.
fn quoted(text: &str, is_query: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' if is_query => out.push('+'),
            b'/' if !is_query => out.push('/'),
            _ if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn wordcount(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("wordcount", [])?;
    let text = print::text(&value, &at.budget)?;
    at.budget.spend(text.len() as u64 / 8)?;
    let words = text.split(|c: char| c != '_' && !c.is_alphanumeric());
    Ok(Value::Int(words.filter(|w| !w.is_empty()).count() as i128))
}
