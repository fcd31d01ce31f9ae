//! Tests: what stands behind `is`.

use super::ast::Comparison;
use super::eval::{Args, Interpreter};
use super::value::Value;
use super::{Error, Result, filters, ops, print};

/// Names of all tests, for `is test` and for errors.
const NAMES: [&str; 38] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
];

/// Whether a value passes a test.
///
/// # Errors
/// An unknown test, arguments or values that it does not take.
pub(super) fn holds(
    at: &mut Interpreter<'_>,
    name: &str,
    value: &Value,
    args: Args,
) -> Result<bool> {
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(Comparison::Equal),
        "ne" | "!=" => Some(Comparison::NotEqual),
        "lt" | "lessthan" | "<" => Some(Comparison::Less),
        "le" | "<=" => Some(Comparison::LessEqual),
        "gt" | "greaterthan" | ">" => Some(Comparison::Greater),
        "ge" | ">=" => Some(Comparison::GreaterEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    let takes_one = comparison.is_some() || matches!(name, "divisibleby" | "sameas");
    let [other] = args.of(name, ["other"])?;
    if other.is_some() != takes_one {
        let count = if takes_one { "one argument" } else { "no arguments" };
        return Err(Error::kind(format!("the test `{name}` takes {count}")));
    }
    let other = other.unwrap_or(Value::None);
    if let Some(comparison) = comparison {
        return at.compare(comparison, value, &other);
    }
    let modulo = |by: &Value| {
        let rest = ops::binary(super::ast::Operator::Modulo, value, by, &at.budget)?;
        rest.float().ok_or_else(|| Error::kind(format!("`{name}` of a {}", value.type_name())))
    };
    let text = || print::text(value, &at.budget);
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.float().is_some(),
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        // A length and items by index, which maps have too.
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Text(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
        ),
        "iterable" => value.is_iterable(),
        // An undefined value has the method of a call, which fails.
        "callable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Macro(_)
                | Value::Function(_)
                | Value::Method(..)
                | Value::Loop(_)
                | Value::Joiner(_)
        ),
        "escaped" => false,
        "sameas" => ops::same(value, &other),
        "odd" => modulo(&Value::Int(2))? == 1.0,
        "even" => modulo(&Value::Int(2))? == 0.0,
        "divisibleby" => modulo(&other)? == 0.0,
        "lower" => super::methods::is_cased(&text()?, false),
        "upper" => super::methods::is_cased(&text()?, true),
        "filter" => filters::is_known(&text()?),
        "test" => NAMES.contains(&&*text()?),
        _ => return Err(Error::kind(format!("No test named '{name}'."))),
    })
}
