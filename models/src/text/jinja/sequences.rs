//! Filters of many values.

use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use super::eval::{Args, Interpreter};
use super::filters::whole;
use super::value::{Seq, Value, View};
use super::{Budget, Error, Result, checks, filters, ops, print};

fn count(value: Option<Value>, what: &str) -> Result<usize> {
    let count = value.ok_or_else(|| Error::kind(format!("{what}() needs a number")))?;
    let count = whole(Some(count), 1, what)?;
    let count = usize::try_from(count).ok().filter(|n| *n > 0);
    count.ok_or_else(|| Error::kind(format!("{what}() needs a number above 0")))
}

/// `a.b.0` as steps.
fn path(attribute: &Value) -> Vec<Value> {
    match attribute {
        Value::Text(text) => text
            .split('.')
            .map(|part| match part.parse::<u32>() {
                Ok(index) => Value::Int(i128::from(index)),
                Err(_) => Value::text(part),
            })
            .collect(),
        other => vec![other.clone()],
    }
}

/// The value at a path below `value`; `default` where a step leads nowhere.
fn reached(
    at: &mut Interpreter<'_>,
    value: &Value,
    path: &[Value],
    default: Option<&Value>,
) -> Result<Value> {
    let mut value = value.clone();
    for step in path {
        value = at.item(&value, step)?;
        if let (Value::Undefined(_), Some(default)) = (&value, default) {
            value = default.clone();
        }
    }
    Ok(value)
}

/// Texts as they compare where case does not count.
fn folded(value: Value, is_cased: bool) -> Value {
    match &value {
        Value::Text(text) if !is_cased => Value::text(text.to_lowercase()),
        _ => value,
    }
}

/// Indices in the order of values, equal ones as they stand.
///
/// # Errors
/// Values that have no order.
pub(super) fn sorted(keys: &[Value], budget: &Budget) -> Result<Vec<usize>> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    budget.items(keys.len())?;
    let mut failed = None;
    order.sort_by(|a, b| {
        if failed.is_some() {
            return Ordering::Equal;
        }
        match ops::order(&keys[*a], &keys[*b], "<", budget) {
            Ok(order) => order.unwrap_or(Ordering::Equal),
            Err(error) => {
                failed = Some(error);
                Ordering::Equal
            }
        }
    });
    failed.map_or(Ok(order), Err)
}

pub(super) fn batch(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [size, fill] = args.of("batch", ["linecount", "fill_with"])?;
    let size = count(size, "batch")?;
    let items = value.items(&at.budget)?;
    let mut rows: Vec<Vec<Value>> = items.chunks(size).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (fill.filter(|f| !matches!(f, Value::None)), rows.last_mut())
    {
        at.budget.items(size)?;
        last.resize(size, fill);
    }
    Value::stream(rows.into_iter().map(Value::list).collect::<Result<_>>()?)
}

pub(super) fn slice(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [slices, fill] = args.of("slice", ["slices", "fill_with"])?;
    let slices = count(slices, "slice")?;
    let items = value.items(&at.budget)?;
    at.budget.items(slices)?;
    let (each, more) = (items.len() / slices, items.len() % slices);
    let fill = fill.filter(|f| !matches!(f, Value::None));
    let mut from = 0;
    let mut rows = Vec::new();
    for i in 0..slices {
        let length = each + usize::from(i < more);
        let mut row = items[from..from + length].to_vec();
        from += length;
        if i >= more
            && let Some(fill) = &fill
        {
            row.push(fill.clone());
        }
        rows.push(Value::list(row)?);
    }
    Value::stream(rows)
}

pub(super) fn dictsort(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [cased, by, reverse] = args.of("dictsort", ["case_sensitive", "by", "reverse"])?;
    let cased = cased.is_some_and(|c| c.truth());
    let by = by.map_or(Ok("key".into()), |by| print::text(&by, &at.budget))?;
    let Value::Dict(dict) = &value else {
        return Err(Error::kind("dictsort: a mapping is expected"));
    };
    let pairs = Value::View(View::Items, dict.clone()).items(&at.budget)?;
    let of = match &*by {
        "key" => 0,
        "value" => 1,
        _ => return Err(Error::kind("You can only sort by either \"key\" or \"value\"")),
    };
    let keys = dict.iter().map(|(k, v)| if of == 0 { k } else { v }.clone());
    let keys: Vec<Value> = keys.map(|k| folded(k, cased)).collect();
    ordered(at, &pairs, &keys, reverse.is_some_and(|r| r.truth()))
}

fn ordered(at: &Interpreter<'_>, items: &[Value], keys: &[Value], reverse: bool) -> Result<Value> {
    let mut order = sorted(keys, &at.budget)?;
    if reverse {
        // Python keeps equal ones in their order there too.
        let turned: Vec<Value> = keys.iter().rev().cloned().collect();
        order = sorted(&turned, &at.budget)?;
        order.iter_mut().for_each(|i| *i = keys.len() - 1 - *i);
        order.reverse();
    }
    Value::list(order.into_iter().map(|i| items[i].clone()).collect())
}

pub(super) fn sort(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [reverse, cased, attribute] =
        args.of("sort", ["reverse", "case_sensitive", "attribute"])?;
    let cased = cased.is_some_and(|c| c.truth());
    let items = value.items(&at.budget)?;
    let keys = match attribute.filter(|a| !matches!(a, Value::None)) {
        None => items.iter().map(|item| folded(item.clone(), cased)).collect(),
        Some(attribute) => {
            let paths: Vec<Vec<Value>> = match &attribute {
                Value::Text(text) => text.split(',').map(|p| path(&Value::text(p))).collect(),
                other => vec![path(other)],
            };
            let mut keys = Vec::new();
            for item in &items {
                let mut key = Vec::new();
                for path in &paths {
                    key.push(folded(reached(at, item, path, None)?, cased));
                }
                keys.push(Value::list(key)?);
            }
            keys
        }
    };
    ordered(at, &items, &keys, reverse.is_some_and(|r| r.truth()))
}

/// Keys of items by one attribute, or the items themselves.
fn keys(
    at: &mut Interpreter<'_>,
    items: &[Value],
    attribute: Option<Value>,
    default: Option<&Value>,
    is_cased: bool,
) -> Result<Vec<Value>> {
    let path = attribute.filter(|a| !matches!(a, Value::None)).map_or_else(Vec::new, |a| path(&a));
    let mut keys = Vec::new();
    for item in items {
        keys.push(folded(reached(at, item, &path, default)?, is_cased));
    }
    Ok(keys)
}

pub(super) fn unique(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [cased, attribute] = args.of("unique", ["case_sensitive", "attribute"])?;
    let items = value.items(&at.budget)?;
    let keys = keys(at, &items, attribute, None, cased.is_some_and(|c| c.truth()))?;
    let mut seen = std::collections::BTreeSet::new();
    let mut out = Vec::new();
    for (item, key) in items.into_iter().zip(&keys) {
        if seen.insert(super::value::Key::of(key, &at.budget)?) {
            out.push(item);
        }
    }
    Value::stream(out)
}

pub(super) fn extreme(
    at: &mut Interpreter<'_>,
    value: &Value,
    args: Args,
    is_max: bool,
) -> Result<Value> {
    let [cased, attribute] = args.of("min", ["case_sensitive", "attribute"])?;
    let items = value.items(&at.budget)?;
    let keys = keys(at, &items, attribute, None, cased.is_some_and(|c| c.truth()))?;
    let mut best = 0;
    for i in 1..items.len() {
        let order = ops::order(&keys[i], &keys[best], if is_max { ">" } else { "<" }, &at.budget)?;
        let wanted = if is_max { Ordering::Greater } else { Ordering::Less };
        if order == Some(wanted) {
            best = i;
        }
    }
    let found = items.into_iter().nth(best);
    Ok(found.unwrap_or_else(|| Value::undefined("No aggregated item, sequence was empty.")))
}

pub(super) fn groupby(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [attribute, default, cased] =
        args.of("groupby", ["attribute", "default", "case_sensitive"])?;
    let cased = cased.is_some_and(|c| c.truth());
    let attribute = attribute.ok_or_else(|| Error::kind("groupby() needs an attribute"))?;
    let items = value.items(&at.budget)?;
    let plain = keys(at, &items, Some(attribute), default.as_ref(), true)?;
    let keys: Vec<Value> = plain.iter().map(|key| folded(key.clone(), cased)).collect();
    let mut groups: Vec<(usize, Vec<Value>)> = Vec::new();
    for i in sorted(&keys, &at.budget)? {
        match groups.last_mut() {
            Some((first, group)) if ops::equal(&keys[*first], &keys[i], &at.budget)? => {
                group.push(items[i].clone());
            }
            _ => groups.push((i, vec![items[i].clone()])),
        }
    }
    let groups = groups.into_iter().map(|(first, group)| {
        let mut pair = Seq::new(vec![plain[first].clone(), Value::list(group)?])?;
        pair.is_group = true;
        Ok(Value::Tuple(Rc::new(pair)))
    });
    Value::list(groups.collect::<Result<_>>()?)
}

pub(super) fn first(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("first", [])?;
    let none = || Value::undefined("No first item, sequence was empty.");
    match &value {
        // What can be gone through once loses one item only.
        Value::Stream(stream) => Ok(stream.items.borrow_mut().pop_front().unwrap_or_else(none)),
        Value::Text(text) => {
            let c = text.chars().next();
            Ok(c.map_or_else(none, |c| Value::text(&*c.encode_utf8(&mut [0; 4]))))
        }
        other => Ok(other.items(&at.budget)?.into_iter().next().unwrap_or_else(none)),
    }
}

pub(super) fn last(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("last", [])?;
    if let Value::Stream(_) = value {
        return Err(Error::kind("'generator' object is not reversible"));
    }
    let last = value.items(&at.budget)?.pop();
    Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
}

pub(super) fn items(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("items", [])?;
    match &value {
        Value::Undefined(_) => Value::stream(Vec::new()),
        Value::Dict(dict) => {
            Value::stream(Value::View(View::Items, dict.clone()).items(&at.budget)?)
        }
        _ => Err(Error::kind("Can only get item pairs from a mapping.")),
    }
}

pub(super) fn join(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [separator, attribute] = args.of("join", ["d", "attribute"])?;
    let separator = separator.map_or(Ok("".into()), |s| print::text(&s, &at.budget))?;
    let mut items = value.items(&at.budget)?;
    if let Some(attribute) = attribute.filter(|a| !matches!(a, Value::None)) {
        let path = path(&attribute);
        for item in &mut items {
            *item = reached(at, item, &path, None)?;
        }
    }
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        let text: Arc<str> = print::text(item, &at.budget)?;
        at.budget.text(text.len() + separator.len())?;
        out.push_str(if i > 0 { &separator } else { "" });
        out.push_str(&text);
        at.budget.bytes(out.len())?;
    }
    Ok(Value::text(out))
}

/// Items for the filters that give nothing for what counts as false, whatever it is.
fn some(value: &Value, budget: &Budget) -> Result<Vec<Value>> {
    if value.truth() { value.items(budget) } else { Ok(Vec::new()) }
}

/// `map(attribute=..)` or `map('filter', ..)`.
pub(super) fn map(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let items = some(&value, &at.budget)?;
    let mut out = Vec::with_capacity(items.len());
    if args.positional.is_empty() {
        let [attribute, default] = args.of("map", ["attribute", "default"])?;
        let attribute = attribute.ok_or_else(|| Error::kind("map requires a filter argument"))?;
        let path = path(&attribute);
        for item in &items {
            out.push(reached(at, item, &path, default.as_ref())?);
        }
    } else {
        let mut positional = args.positional.into_iter();
        let name = positional.next().unwrap_or(Value::None);
        let name = print::text(&name, &at.budget)?;
        let rest: Vec<Value> = positional.collect();
        for item in items {
            let args = Args { positional: rest.clone(), named: args.named.clone() };
            out.push(filters::apply(at, &name, item, args)?);
        }
    }
    Value::stream(out)
}

/// `select`, `reject` and those of an attribute.
pub(super) fn select(
    at: &mut Interpreter<'_>,
    value: &Value,
    args: Args,
    keeps: bool,
    by_attribute: bool,
) -> Result<Value> {
    let mut positional = args.positional.into_iter();
    let path = if by_attribute {
        let attribute =
            positional.next().ok_or_else(|| Error::kind("Missing parameter for attribute name"))?;
        path(&attribute)
    } else {
        Vec::new()
    };
    let test = positional.next().map(|test| print::text(&test, &at.budget)).transpose()?;
    let rest: Vec<Value> = positional.collect();
    let mut out = Vec::new();
    for item in some(value, &at.budget)? {
        let tested = reached(at, &item, &path, None)?;
        let holds = match &test {
            None => tested.truth(),
            Some(test) => {
                let args = Args { positional: rest.clone(), named: args.named.clone() };
                checks::holds(at, test, &tested, args)?
            }
        };
        if holds == keeps {
            out.push(item);
        }
    }
    Value::stream(out)
}

pub(super) fn reverse(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [] = args.of("reverse", [])?;
    let mut items = match &value {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            return Err(Error::kind("argument must be iterable"));
        }
        other => other.items(&at.budget)?,
    };
    items.reverse();
    if let Value::Text(_) = value {
        let text: String = items
            .iter()
            .filter_map(|item| match item {
                Value::Text(text) => Some(&**text),
                _ => None,
            })
            .collect();
        return Ok(Value::text(text));
    }
    Value::stream(items)
}

pub(super) fn sum(at: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
    let [attribute, start] = args.of("sum", ["attribute", "start"])?;
    let items = value.items(&at.budget)?;
    let path = attribute.filter(|a| !matches!(a, Value::None)).map_or_else(Vec::new, |a| path(&a));
    let mut sum = start.unwrap_or(Value::Int(0));
    if let Value::Text(_) = sum {
        return Err(Error::kind("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    for item in &items {
        let item = reached(at, item, &path, None)?;
        sum = ops::binary(super::ast::Operator::Add, &sum, &item, &at.budget)?;
    }
    Ok(sum)
}
