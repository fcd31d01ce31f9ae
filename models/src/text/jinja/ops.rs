//! Operators.

use std::cmp::Ordering;
use std::sync::Arc;

use super::ast::Operator;
use super::value::{Key, Range, Value, View};
use super::{Budget, Error, Result, format};

fn undefined(value: &Value) -> Result<()> {
    match value {
        Value::Undefined(why) => Err(Error::Undefined(why.to_string())),
        _ => Ok(()),
    }
}

fn too_large() -> Error {
    Error::kind("a number beyond 128 bits")
}

/// `left operator right`.
///
/// # Errors
/// What the values do not have, as Python says it.
pub(super) fn binary(
    operator: Operator,
    left: &Value,
    right: &Value,
    budget: &Budget,
) -> Result<Value> {
    let symbol = match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Modulo => "%",
        Operator::Power => "** or pow()",
    };
    if let (Operator::Modulo, Value::Text(text)) = (operator, left) {
        return Ok(Value::text(format::printf(text, right, budget)?));
    }
    undefined(left)?;
    undefined(right)?;
    if let (Some(a), Some(b)) = (left.int(), right.int()) {
        return whole(operator, a, b);
    }
    if let (Some(a), Some(b)) = (left.float(), right.float()) {
        return real(operator, a, b);
    }
    match (operator, left, right) {
        (Operator::Add, Value::Text(a), Value::Text(b)) => {
            budget.text(a.len() + b.len())?;
            return Ok(Value::text(format!("{a}{b}")));
        }
        (Operator::Add, Value::List(a), Value::List(b)) => {
            budget.items(a.items.len() + b.items.len())?;
            return Value::list([&a.items[..], &b.items[..]].concat());
        }
        (Operator::Add, Value::Tuple(a), Value::Tuple(b)) => {
            budget.items(a.items.len() + b.items.len())?;
            return Value::tuple([&a.items[..], &b.items[..]].concat());
        }
        (Operator::Multiply, a, b) => {
            let repeated = match (a.int(), b.int()) {
                (None, Some(n)) => repeat(a, n, budget)?,
                (Some(n), None) => repeat(b, n, budget)?,
                _ => None,
            };
            if let Some(value) = repeated {
                return Ok(value);
            }
        }
        _ => {}
    }
    let (a, b) = (left.type_name(), right.type_name());
    Err(Error::kind(match (operator, left) {
        (Operator::Add, Value::Text(_)) => format!("can only concatenate str (not \"{b}\") to str"),
        _ => format!("unsupported operand type(s) for {symbol}: '{a}' and '{b}'"),
    }))
}

fn repeat(value: &Value, times: i128, budget: &Budget) -> Result<Option<Value>> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    Ok(Some(match value {
        Value::Text(text) => {
            budget.text(text.len().saturating_mul(times))?;
            Value::text(text.repeat(if text.is_empty() { 0 } else { times }))
        }
        Value::List(seq) | Value::Tuple(seq) => {
            budget.items(seq.items.len().saturating_mul(times).min(1 << 60))?;
            let times = if seq.items.is_empty() { 0 } else { times };
            let items: Vec<Value> = (0..times).flat_map(|_| seq.items.iter().cloned()).collect();
            match value {
                Value::List(_) => Value::list(items)?,
                _ => Value::tuple(items)?,
            }
        }
        _ => return Ok(None),
    }))
}

fn whole(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let zero = |what: &str| Error::kind(what.to_owned());
    let value = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return Err(zero("division by zero")),
        Operator::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        Operator::FloorDivide | Operator::Modulo if b == 0 => {
            return Err(zero("integer division or modulo by zero"));
        }
        Operator::FloorDivide => {
            a.checked_div(b).map(|q| q - i128::from(a % b != 0 && (a < 0) != (b < 0)))
        }
        Operator::Modulo => {
            a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
        }
        Operator::Power if b < 0 => return real(operator, a as f64, b as f64),
        Operator::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    value.map(Value::Int).ok_or_else(too_large)
}

fn real(operator: Operator, a: f64, b: f64) -> Result<Value> {
    let by_zero =
        b == 0.0 && matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Modulo);
    if by_zero || (operator == Operator::Power && a == 0.0 && b < 0.0) {
        return Err(Error::kind("float division by zero"));
    }
    let modulo = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => ((a - modulo()) / b).round(),
        Operator::Modulo => modulo(),
        Operator::Power if a < 0.0 && b.fract() != 0.0 => {
            return Err(Error::kind("complex numbers are not supported"));
        }
        Operator::Power => a.powf(b),
    }))
}

/// `-value`, `+value`.
///
/// # Errors
/// What is no number.
pub(super) fn signed(value: &Value, is_negative: bool) -> Result<Value> {
    undefined(value)?;
    if let Some(i) = value.int() {
        let i = if is_negative { i.checked_neg().ok_or_else(too_large)? } else { i };
        return Ok(Value::Int(i));
    }
    if let Value::Float(f) = value {
        return Ok(Value::Float(if is_negative { -f } else { *f }));
    }
    let sign = if is_negative { '-' } else { '+' };
    Err(Error::kind(format!("bad operand type for unary {sign}: '{}'", value.type_name())))
}

/// `a == b`.
///
/// # Errors
/// Limits.
pub(super) fn equal(a: &Value, b: &Value, budget: &Budget) -> Result<bool> {
    budget.spend(1)?;
    if let (Some(a), Some(b)) = (a.int(), b.int()) {
        return Ok(a == b);
    }
    if let (Some(a), Some(b)) = (a.float(), b.float()) {
        return Ok(a == b);
    }
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Text(a), Value::Text(b)) => {
            budget.spend(a.len().min(b.len()) as u64 / 64)?;
            a == b
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, budget)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a.iter() {
                match b.get(&Key::of(key, budget)?) {
                    Some(other) if equal(value, other, budget)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(a), Value::Range(b)) => a == b,
        (Value::Namespace(a), Value::Namespace(b)) | (Value::Macro(a), Value::Macro(b)) => a == b,
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => same(a, b),
    })
}

/// `a is b`, as far as it can be told.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    use std::rc::Rc;
    match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b && (-5..=256).contains(a),
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Stream(a), Value::Stream(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) | (Value::Macro(a), Value::Macro(b)) => a == b,
        _ => false,
    }
}

/// The order of two values; `None` where a NaN has none.
///
/// # Errors
/// Values that have none.
pub(super) fn order(
    a: &Value,
    b: &Value,
    symbol: &str,
    budget: &Budget,
) -> Result<Option<Ordering>> {
    budget.spend(1)?;
    undefined(a)?;
    undefined(b)?;
    if let (Some(a), Some(b)) = (a.int(), b.int()) {
        return Ok(Some(a.cmp(&b)));
    }
    if let (Some(a), Some(b)) = (a.float(), b.float()) {
        return Ok(a.partial_cmp(&b));
    }
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => {
            budget.spend(a.len().min(b.len()) as u64 / 64)?;
            Ok(Some(a.cmp(b)))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, budget)? {
                    return order(a, b, symbol, budget);
                }
            }
            Ok(Some(a.items.len().cmp(&b.items.len())))
        }
        _ => Err(Error::kind(format!(
            "'{symbol}' not supported between instances of '{}' and '{}'",
            a.type_name(),
            b.type_name()
        ))),
    }
}

/// `item in container`.
///
/// # Errors
/// What holds nothing.
pub(super) fn contains(container: &Value, item: &Value, budget: &Budget) -> Result<bool> {
    Ok(match container {
        Value::Text(text) => match item {
            Value::Text(part) => {
                budget.spend(text.len() as u64 / 64)?;
                text.contains(&**part)
            }
            Value::Undefined(why) => return Err(Error::Undefined(why.to_string())),
            other => {
                return Err(Error::kind(format!(
                    "'in <string>' requires string as left operand, not {}",
                    other.type_name()
                )));
            }
        },
        Value::Dict(dict) | Value::View(View::Keys, dict) => {
            dict.get(&Key::of(item, budget)?).is_some()
        }
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            let name = container.type_name();
            return Err(Error::kind(format!("argument of type '{name}' is not iterable")));
        }
        other => {
            for one in other.items(budget)? {
                if equal(&one, item, budget)? {
                    return Ok(true);
                }
            }
            false
        }
    })
}

/// `value[start:stop:step]`.
///
/// # Errors
/// Bounds that are no numbers, a value that has no slices.
pub(super) fn slice(value: &Value, parts: [&Value; 3], budget: &Budget) -> Result<Value> {
    undefined(value)?;
    let length = match value {
        Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => value.length(),
        _ => None,
    };
    let none = || Error::kind(format!("'{}' object has no slices", value.type_name()));
    let length = length.ok_or_else(none)?;
    let mut bounds = [None; 3];
    for (bound, part) in bounds.iter_mut().zip(parts) {
        *bound = match part {
            Value::None => None,
            other => Some(other.int().ok_or_else(|| {
                Error::kind("slice indices must be integers or None or have an __index__ method")
            })?),
        };
    }
    let step = bounds[2].unwrap_or(1).clamp(-(1 << 62), 1 << 62);
    if step == 0 {
        return Err(Error::kind("slice step cannot be zero"));
    }
    let n = length as i128;
    // Where a bound lies: a negative one counts from the end.
    let place = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(i) => {
            let i = if i < 0 { i.saturating_add(n) } else { i };
            if step > 0 { i.clamp(0, n) } else { i.clamp(-1, n - 1) }
        }
    };
    let (start, stop) = if step > 0 {
        (place(bounds[0], 0), place(bounds[1], n))
    } else {
        (place(bounds[0], n - 1), place(bounds[1], -1))
    };
    let range = Range { start, stop, step };
    let taken = range.len();
    let at = |i: usize| (start + i as i128 * step) as usize;
    Ok(match value {
        Value::Text(text) => {
            budget.text(text.len())?;
            if step == 1 {
                let part: String = text.chars().skip(start as usize).take(taken).collect();
                return Ok(Value::text(part));
            }
            budget.text(text.len() * 4)?;
            let letters: Vec<char> = text.chars().collect();
            let part: String = (0..taken).map(|i| letters[at(i)]).collect();
            Value::Text(Arc::from(part))
        }
        Value::Range(r) => Value::Range(Range {
            start: r.start + start * r.step,
            stop: r.start + stop * r.step,
            step: r.step.checked_mul(step).ok_or_else(too_large)?,
        }),
        Value::List(seq) | Value::Tuple(seq) => {
            budget.items(taken)?;
            let items = (0..taken).map(|i| seq.items[at(i)].clone()).collect();
            if matches!(value, Value::List(_)) { Value::list(items)? } else { Value::tuple(items)? }
        }
        _ => return Err(none()),
    })
}
