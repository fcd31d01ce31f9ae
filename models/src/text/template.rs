//! Chat templates: messages with pictures to the one text that a model reads.
//!
//! Invariants
//! - Templates see the messages, the named special tokens, `raise_exception` and `strftime_now`,
//!   and nothing of the machine but the clock; what they use up has limits (module `jinja`).
//! - A template that takes the words of a message as one text gets them so, with the placeholders
//!   of pictures in it, in the form that the family's own template gives them.
//! - Errors name the template's file.
//!
//! Where a folder has several: `chat_template.jinja`, then `chat_template.json` (processors), then
//! `tokenizer_config.json`, then the fallback of the family.

use secateur_core::error::{ConfigError, RunError};
use secateur_core::files::ModelFiles;
use serde_json::Value;

use super::SpecialTokens;
use super::jinja::{Dict, Limits, Template, Value as Jinja};

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// How a template takes what a message holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// A list of parts.
    Parts,
    /// A list of parts of words, with placeholders among the words.
    Marked(Media),
    /// One text.
    Text(Media),
}

/// What stands for a picture and for a video in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Media {
    image: String,
    video: String,
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    template: Template,
    origin: String,
    special: SpecialTokens,
    content: Content,
    limits: Limits,
}

impl ChatTemplate {
    /// Reads the template of a folder, or takes `fallback`, which is the family's own and takes
    /// parts.
    ///
    /// # Errors
    /// A malformed file, or a template that does not compile (with its line).
    pub fn load(
        files: &ModelFiles,
        fallback: &str,
        special: &SpecialTokens,
    ) -> Result<Self, ConfigError> {
        let own = Self::compile("the template of the family".to_owned(), fallback, special)?;
        let Some((file, source)) = find(files)? else { return Ok(own) };
        let mut found = Self::compile(files.label(file), &source, special)?;
        found.content = found.form(&own);
        Ok(found)
    }

    /// Compiles a template that takes parts; `origin` names it in errors.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn compile(
        origin: String,
        source: &str,
        special: &SpecialTokens,
    ) -> Result<Self, ConfigError> {
        Self::limited(origin, source, special, Limits::DEFAULT)
    }

    fn limited(
        origin: String,
        source: &str,
        special: &SpecialTokens,
        limits: Limits,
    ) -> Result<Self, ConfigError> {
        let template = Template::compile(source, limits).map_err(|error| ConfigError::Format {
            file: origin.clone(),
            reason: format!("the chat template does not compile: {error}"),
        })?;
        let special = special.clone();
        Ok(Self { template, origin, special, content: Content::Parts, limits })
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
        self.render_as(&self.content, messages, generate)
    }

    fn render_as(
        &self,
        content: &Content,
        messages: &[Message],
        generate: bool,
    ) -> Result<String, RunError> {
        let context = || {
            let messages = messages.iter().map(|message| value(message, content)).collect();
            let named = Dict::default()
                .with("messages", Jinja::list_of(messages))
                .with("tools", Jinja::None)
                .with("documents", Jinja::None)
                .with("add_generation_prompt", Jinja::Bool(generate));
            self.special.iter().fold(named, |all, (name, text)| all.with(name, Jinja::text(text)))
        };
        self.template
            .render(context, self.limits)
            .map_err(|e| RunError::Prompt(format!("{}: chat template: {e}", self.origin)))
    }

    /// How this template takes what a message holds, found by showing it words and pictures; `own`
    /// says what stands for a picture.
    fn form(&self, own: &ChatTemplate) -> Content {
        // A letter of private use: no template prints it by itself.
        const WORDS: &str = "\u{e0f0}words";
        const FIRST: &str = "\u{e0f1}";
        let shown = |template: &ChatTemplate, content: &Content, first: &[Part]| {
            let content_of = first.iter().cloned().chain([Part::text(WORDS)]).collect();
            let message = Message { role: "user".into(), content: content_of };
            template.render_as(content, &[message], true).ok()
        };
        let parts = shown(self, &Content::Parts, &[]);
        // A list that is printed shows its keys.
        let is_list = |text: &String| {
            text.contains(WORDS) && !["'type'", "\"type\""].iter().any(|key| text.contains(key))
        };
        let takes_parts = parts.as_ref().is_some_and(is_list);
        let takes = |part: Part| shown(self, &Content::Parts, &[part]) != parts;
        if takes_parts && takes(Part::Image) {
            return Content::Parts;
        }
        let stand_in = |part: Part| {
            // Between words: families write the beginning of a turn another way before a picture.
            let without = shown(own, &Content::Parts, &[Part::text(FIRST)])?;
            let with = shown(own, &Content::Parts, &[Part::text(FIRST), part])?;
            let head = with.bytes().zip(without.bytes()).take_while(|(a, b)| a == b).count();
            let length = with.len().checked_sub(without.len())?;
            with.get(head..head + length).map(str::to_owned).filter(|text| !text.is_empty())
        };
        let Some(image) = stand_in(Part::Image) else { return Content::Parts };
        let video = stand_in(Part::Video).unwrap_or_else(|| image.clone());
        let media = Media { image, video };
        if takes_parts {
            return Content::Marked(media);
        }
        let text = Content::Text(media);
        match shown(self, &text, &[]) {
            Some(prompt) if prompt.contains(WORDS) => text,
            _ => Content::Parts,
        }
    }
}

/// A message as a template sees it.
fn value(message: &Message, content: &Content) -> Jinja {
    let kind = |kind: &str| Dict::default().with("type", Jinja::text(kind));
    let words = |text: &str| Jinja::of(kind("text").with("text", Jinja::text(text)));
    let mark = |part: &Part, media: &Media| match part {
        Part::Image => media.image.clone(),
        Part::Video => media.video.clone(),
        Part::Text { text } => text.clone(),
    };
    let parts = message.content.iter();
    let content = match content {
        Content::Parts => Jinja::list_of(
            parts
                .map(|part| match part {
                    Part::Image => Jinja::of(kind("image")),
                    Part::Video => Jinja::of(kind("video")),
                    Part::Text { text } => words(text),
                })
                .collect(),
        ),
        Content::Marked(media) => {
            Jinja::list_of(parts.map(|part| words(&mark(part, media))).collect())
        }
        Content::Text(media) => {
            Jinja::text(parts.map(|part| mark(part, media)).collect::<String>())
        }
    };
    Jinja::of(Dict::default().with("role", Jinja::text(&*message.role)).with("content", content))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::compile("test".into(), source, &SpecialTokens::default()).unwrap()
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
        assert_eq!(error, "prompt: test: chat template: line 1: roles must alternate");
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
        assert_eq!(json, r#"{"role": "user", "content": [{"type": "text", "text": "a < \"b\""}]}"#);
    }

    /// A family's own template: a word for a picture, in front of what was said.
    const OWN: &str = "{% for m in messages %}{% for p in m.content %}\
        {% if p.type == 'image' %}<image>\n{% elif p.type == 'video' %}<video>{% else %}{{ p.text }}\
        {% endif %}{% endfor %}{% endfor %}";

    fn beside_own(source: &str) -> ChatTemplate {
        let mut found = template(source);
        found.content = found.form(&template(OWN));
        found
    }

    #[test]
    fn a_template_of_texts_gets_the_placeholder_in_the_text() {
        let message = Message::user(2, 1, "Why?");
        for source in [
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
            "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{% endfor %}",
            "{% for m in messages %}{% if m.content is not string %}{{ raise_exception('no') }}\
             {% endif %}{{ m.role }}: {{ m.content }}{% endfor %}",
            // Takes parts and passes over those that are no words.
            "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text }}{% endfor %}\
             {% endfor %}",
        ] {
            let prompt = beside_own(source).render(std::slice::from_ref(&message), true).unwrap();
            assert_eq!(prompt, "user: <image>\n<image>\n<video>Why?", "{source}");
        }
        // What takes parts, pictures too, gets parts.
        let source = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
            {% for p in m.content %}{{ p.text or '[' ~ p.type ~ ']' }}{% endfor %}{% endif %}\
            {% endfor %}";
        let prompt = beside_own(source).render(&[message], true).unwrap();
        assert_eq!(prompt, "[image][image][video]Why?");
    }

    #[test]
    fn what_a_template_uses_up_has_limits_and_the_error_names_the_file() {
        const SOURCE: &str = "{% for i in range(1000) %}{{ i ~ ', ' }}{% endfor %}";
        let none = SpecialTokens::default();
        let render = |source: &str, limits: Limits| {
            let file = "m/chat_template.jinja".to_owned();
            ChatTemplate::limited(file, source, &none, limits)
                .map_err(|e| e.to_string())
                .and_then(|t| t.render(&[], true).map_err(|e| e.to_string()))
        };
        assert!(render(SOURCE, Limits::DEFAULT).unwrap().ends_with("999, "));
        let nested = format!("{}1{}", "(1 + ".repeat(40), ")".repeat(40));
        let calls = "{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}\
            {{ m(90) }}";
        for (source, limits, words) in [
            (SOURCE, Limits { fuel: 2000, ..Limits::DEFAULT }, "more than 2000 steps"),
            (SOURCE, Limits { text: 1000, ..Limits::DEFAULT }, "more than 1000 bytes"),
            (SOURCE, Limits { source: 20, ..Limits::DEFAULT }, "read are 20"),
            (calls, Limits { depth: 50, ..Limits::DEFAULT }, "more than 50 calls"),
            (
                &format!("{{{{ {nested} }}}}"),
                Limits { depth: 20, ..Limits::DEFAULT },
                "more than 20",
            ),
            ("{{ 'a' * 10 ** 9 }}", Limits::DEFAULT, "bytes"),
            ("{{ '%999999999d' % 1 }}", Limits::DEFAULT, "bytes"),
            ("{{ '{:>999999999}'.format(1) }}", Limits::DEFAULT, "bytes"),
            ("{{ [0] * 10 ** 9 }}", Limits::DEFAULT, "steps"),
            ("{{ range(10 ** 9) }}", Limits::DEFAULT, "range"),
        ] {
            let error = render(source, limits).unwrap_err();
            assert!(error.contains("m/chat_template.jinja") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn nesting_ends_in_an_error_at_the_real_limits() {
        let deep = |n: usize| format!("{{{{ {}1{} }}}}", "(".repeat(n), ")".repeat(n));
        assert_eq!(template(&deep(50)).render(&[], true).unwrap(), "1");
        let long = format!("{{{{ 1{} }}}}", " + 1".repeat(200));
        assert_eq!(template(&long).render(&[], true).unwrap(), "201");
        let none = SpecialTokens::default();
        for source in [deep(100_000), format!("{{{{ 1{} }}}}", " + 1".repeat(100_000))] {
            let error = ChatTemplate::compile("test".into(), &source, &none).unwrap_err();
            assert!(error.to_string().contains("deep"), "{error}");
        }
        // A macro that calls itself, a list that holds itself one deeper each time.
        for source in [
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}",
            "{% for i in [[0]] recursive %}{{ loop([[0]]) }}{% endfor %}",
        ] {
            let error = template(source).render(&[], true).unwrap_err().to_string();
            assert!(error.contains("nest"), "{source}: {error}");
        }
    }
}
