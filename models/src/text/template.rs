//! Chat templates: messages with pictures to the one text that a model reads.
//!
//! Invariants
//! - Templates run in a sandbox of their own: they see the messages, the named special tokens and
//!   four helpers (`raise_exception`, `strftime_now`, `tojson`, Python's string and dict methods),
//!   and nothing of the machine but the clock.
//! - Whitespace rules are those of transformers: `trim_blocks` and `lstrip_blocks` on.
//!
//! Where a folder has several: `chat_template.jinja`, then `chat_template.json` (processors), then
//! `tokenizer_config.json`, then the fallback of the family.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use secateur_core::error::{ConfigError, RunError};
use secateur_core::files::ModelFiles;
use serde::Serialize;
use serde_json::Value;

use super::SpecialTokens;

const NAME: &str = "chat";

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// The next picture.
    Image,
    /// The next video.
    Video,
    /// Words.
    Text {
        /// The words.
        text: String,
    },
}

impl Part {
    /// A part of words.
    pub fn text(text: impl Into<String>) -> Self {
        Part::Text { text: text.into() }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What it says, in order.
    pub content: Vec<Part>,
}

impl Message {
    /// A user's question about pictures, which come first.
    pub fn user(pictures: usize, videos: usize, text: impl Into<String>) -> Self {
        let mut content = vec![Part::Image; pictures];
        content.resize(pictures + videos, Part::Video);
        content.push(Part::text(text));
        Self { role: "user".into(), content }
    }

    /// A turn of words alone.
    pub fn words(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: vec![Part::text(text)] }
    }
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    origin: String,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// Reads the template of a folder, or takes `fallback`.
    ///
    /// # Errors
    /// A malformed file, or a template that does not compile (with its line).
    pub fn load(
        files: &ModelFiles,
        fallback: &str,
        special: &SpecialTokens,
    ) -> Result<Self, ConfigError> {
        let (origin, source) = match find(files)? {
            Some((file, source)) => (files.label(file), source),
            None => ("the template of the family".to_owned(), fallback.to_owned()),
        };
        Self::compile(origin, &source, special)
    }

    /// Compiles a template; `origin` names it in errors.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn compile(
        origin: String,
        source: &str,
        special: &SpecialTokens,
    ) -> Result<Self, ConfigError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| failed(&origin, &e))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|e| failed(&origin, &e))?;
        Ok(Self { environment, origin, special: special.clone() })
    }

    /// The file it stands in.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The prompt of a conversation; `generate` opens the assistant's turn.
    ///
    /// # Errors
    /// What the template raises: a role order that it refuses, a part that it does not know.
    pub fn render(&self, messages: &[Message], generate: bool) -> Result<String, RunError> {
        let error =
            |e: minijinja::Error| RunError::Prompt(format!("{}: chat template: {e}", self.origin));
        let template = self.environment.get_template(NAME).map_err(error)?;
        let special: Jinja = self.special.iter().collect();
        let values = context! {
            messages => Jinja::from(Serde(messages)),
            add_generation_prompt => generate,
            tools => (),
            documents => (),
            ..special
        };
        template.render(values).map_err(error)
    }
}

fn failed(origin: &str, error: &minijinja::Error) -> ConfigError {
    ConfigError::Format {
        file: origin.to_owned(),
        reason: format!("the chat template does not compile: {error}"),
    }
}

/// The first template that a folder has.
fn find(files: &ModelFiles) -> Result<Option<(&'static str, String)>, ConfigError> {
    const JINJA: &str = "chat_template.jinja";
    if let Some(bytes) = files.bytes(JINJA)? {
        let text = String::from_utf8(bytes.into_owned()).map_err(|e| ConfigError::Format {
            file: files.label(JINJA),
            reason: format!("not UTF-8: {e}"),
        })?;
        return Ok(Some((JINJA, text)));
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let Some(value) = files.json(file)? else { continue };
        let Some(template) = value.get("chat_template").filter(|t| !t.is_null()) else { continue };
        let found = named(template).ok_or_else(|| ConfigError::Field {
            file: files.label(file),
            field: "chat_template".into(),
            expected: "a text, or a list of `{name, template}` with a `default`".into(),
            found: secateur_core::files::short(template),
        })?;
        return Ok(Some((file, found)));
    }
    Ok(None)
}

/// A template as a text, as a list of named ones or as a map of them.
fn named(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let default =
                list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            let one = default.or(if list.len() == 1 { list.first() } else { None })?;
            one.get("template")?.as_str().map(str::to_owned)
        }
        Value::Object(map) => {
            let one =
                map.get("default").or(if map.len() == 1 { map.values().next() } else { None })?;
            one.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// `{% generation %}` marks what training is masked to; it prints nothing.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|e| start + e + 2) else { break };
        out.push_str(&rest[..start]);
        let tag = &rest[start..end];
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as Python's `json.dumps` writes it: `", "` and `": "`, no escapes for HTML; but keys stand
/// in alphabetical order.
fn to_json(value: &Jinja, indent: Option<usize>) -> Result<Jinja, minijinja::Error> {
    let bad = |e: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, "not JSON").with_source(e)
    };
    let value = serde_json::to_value(value).map_err(bad)?;
    let mut out = String::new();
    write_json(&value, indent, 0, &mut out);
    Ok(Jinja::from_safe_string(out))
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(list) if !list.is_empty() => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                if i > 0 {
                    out.push_str(comma);
                }
                line(out, depth + 1);
                write_json(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                if i > 0 {
                    out.push_str(comma);
                }
                line(out, depth + 1);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        leaf => out.push_str(&leaf.to_string()),
    }
}

/// The time now in UTC, in the `strftime` letters that templates use.
fn strftime_now(format: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(format, now)
}

fn strftime(format: &str, unix_seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    let (weekday, name) = (DAYS[(days % 7) as usize], MONTHS[month - 1]);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(c) = letters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match letters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(name),
            Some('b') => out.push_str(&name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{:02}", second / 3600)),
            Some('M') => out.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", second % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a count of days since 1970-01-01 (Gregorian).
fn civil(days: u64) -> (u64, usize, u64) {
    // Years are counted from March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::compile("test".into(), source, &SpecialTokens::default()).unwrap()
    }

    #[test]
    fn days_are_civil() {
        assert_eq!(strftime("%Y-%m-%d %A %H:%M:%S", 0), "1970-01-01 Thursday 00:00:00");
        assert_eq!(strftime("%d %b %y", 951_782_400), "29 Feb 00");
        assert_eq!(strftime("%a %d %B %Y", 1_700_000_000), "Tue 14 November 2023");
    }

    #[test]
    fn generation_marks_print_nothing() {
        let t = template("a{% generation %}b{%- endgeneration -%} c");
        assert_eq!(t.render(&[], true).unwrap(), "abc");
    }

    #[test]
    fn a_template_can_refuse() {
        let t = template("{{ raise_exception('roles must alternate') }}");
        let error = t.render(&[], true).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn the_template_of_the_llava_hub_files_renders() {
        // Method calls, tests in filters and generation marks in one.
        let t = template(
            "{% for message in messages %}{% if message['role'] != 'system' %}\
             {{ message['role'].upper() + ': '}}{% endif %}\
             {% for content in message['content'] | selectattr('type', 'equalto', 'image') %}\
             {{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}\
             {% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
             {{ content['text'] + ' '}}{% endfor %}{% else %}\
             {% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
             {% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}\
             {% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        );
        let prompt = t.render(&[Message::user(2, 0, "Which?")], true).unwrap();
        assert_eq!(prompt, "USER: <image>\n<image>\nWhich? ASSISTANT:");
    }

    #[test]
    fn json_is_written_as_python_does() {
        let t = template("{{ messages[0] | tojson }}");
        let json = t.render(&[Message::words("user", "a < \"b\"")], false).unwrap();
        assert_eq!(json, r#"{"content": [{"text": "a < \"b\"", "type": "text"}], "role": "user"}"#);
    }
}
