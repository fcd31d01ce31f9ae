//! Every construct of `tests/golden/templates/table.json`, which transformers made, gives its text.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Dict, Error, Limits, Template, Value};

/// JSON with the order of its keys.
#[derive(Clone, Debug)]
enum Ordered {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Ordered>),
    Map(Vec<(String, Ordered)>),
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Ordered;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Ordered, E> {
                Ok(Ordered::None)
            }
            fn visit_bool<E>(self, b: bool) -> Result<Ordered, E> {
                Ok(Ordered::Bool(b))
            }
            fn visit_i64<E>(self, i: i64) -> Result<Ordered, E> {
                Ok(Ordered::Int(i))
            }
            fn visit_u64<E: serde::de::Error>(self, i: u64) -> Result<Ordered, E> {
                i64::try_from(i).map(Ordered::Int).map_err(E::custom)
            }
            fn visit_f64<E>(self, f: f64) -> Result<Ordered, E> {
                Ok(Ordered::Float(f))
            }
            fn visit_str<E>(self, text: &str) -> Result<Ordered, E> {
                Ok(Ordered::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Ordered, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = from.next_element()? {
                    all.push(one);
                }
                Ok(Ordered::List(all))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Ordered, A::Error> {
                let mut all: Vec<(String, Ordered)> = Vec::new();
                while let Some((key, value)) = from.next_entry::<String, Ordered>()? {
                    if all.iter().any(|(k, _)| *k == key) {
                        return Err(A::Error::custom("a key stands there twice"));
                    }
                    all.push((key, value));
                }
                Ok(Ordered::Map(all))
            }
        }
        from.deserialize_any(Any)
    }
}

impl Ordered {
    fn value(&self) -> Value {
        match self {
            Ordered::None => Value::None,
            Ordered::Bool(b) => Value::Bool(*b),
            Ordered::Int(i) => Value::Int(i128::from(*i)),
            Ordered::Float(f) => Value::Float(*f),
            Ordered::Text(text) => Value::Text(Arc::from(&**text)),
            Ordered::List(all) => Value::list_of(all.iter().map(Ordered::value).collect()),
            Ordered::Map(_) => Value::of(self.dict()),
        }
    }

    fn dict(&self) -> Dict {
        let Ordered::Map(all) = self else { panic!("a map is expected") };
        all.iter().fold(Dict::default(), |dict, (key, value)| dict.with(key, value.value()))
    }
}

#[derive(Deserialize)]
struct Table {
    context: Ordered,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    template: String,
    expected: Option<String>,
    error: Option<serde_json::Value>,
}

/// What our engine makes of a case, if that is not what the table says.
fn difference(case: &Case, context: &Ordered) -> Option<String> {
    let rendered = Template::compile(&case.template, Limits::DEFAULT)
        .and_then(|template| template.render(|| context.dict(), Limits::DEFAULT));
    match (rendered, &case.expected, &case.error) {
        (Ok(found), Some(want), None) if found == *want => None,
        (Ok(found), want, _) => Some(format!("want  {want:?}\n  found {found:?}")),
        (Err(error), None, Some(words)) => {
            let raised = match &error {
                Error::At { error, .. } => match &**error {
                    Error::Raised(words) => Some(words.as_str()),
                    _ => None,
                },
                _ => None,
            };
            let is_limit = matches!(&error, Error::Limit(_));
            (raised != words.as_str() || is_limit).then(|| format!("want {words}, found {error}"))
        }
        (Err(error), want, _) => Some(format!("want  {want:?}\n  error {error}")),
    }
}

#[test]
fn templates_print_what_they_print_under_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/templates/table.json");
    let table = std::fs::read(path).expect("the table");
    let table: Table = serde_json::from_slice(&table).expect("a table");
    let names: BTreeSet<&str> = table.cases.iter().map(|case| case.name.as_str()).collect();
    assert!(names.len() == table.cases.len() && names.len() >= 200, "{}", names.len());
    let differences: Vec<String> = table
        .cases
        .iter()
        .filter_map(|case| Some(format!("{}\n  {}", case.name, difference(case, &table.context)?)))
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
