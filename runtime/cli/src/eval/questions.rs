//! What is asked: lines of JSON (ours and POPE's), tables (VLMEvalKit's), or a folder of pictures.
//!
//! Invariants
//! - A line that cannot be used is an error that names file, line and field.
//! - Pictures are found beside the file, unless a folder is named; they are read when they are
//!   needed, so that a large folder costs nothing.
//! - Ids are unique.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use secateur::Clip;
use secateur::image::Limits;
use serde_json::{Map, Value};

use super::score::{Object, Truth, normal};
use crate::named::is_picture;

/// A picture that is asked about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Picture {
    /// A file.
    File(PathBuf),
    /// The bytes of one, with a name for errors.
    Bytes(String, Arc<[u8]>),
}

impl Picture {
    /// Decodes it.
    ///
    /// # Errors
    /// What is wrong with the picture.
    pub(crate) fn load(&self, limits: &Limits) -> Result<Clip, secateur::InputError> {
        match self {
            Picture::File(path) => secateur::image::load(path, limits),
            Picture::Bytes(name, bytes) => secateur::image::decode(name, bytes, limits),
        }
    }

    /// Its name: the unit of resampling.
    pub(crate) fn name(&self) -> String {
        match self {
            Picture::File(path) => path.display().to_string(),
            Picture::Bytes(name, _) => name.clone(),
        }
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Question {
    /// Unique within the file.
    pub(crate) id: String,
    /// What it is about.
    pub(crate) picture: Picture,
    /// A row of the table of tasks.
    pub(crate) task: String,
    /// What is asked.
    pub(crate) text: String,
    /// The right answer.
    pub(crate) truth: Truth,
}

/// Reads a file of questions; `.tsv` is a table, everything else lines of JSON. Pictures lie in
/// `pictures`, or beside the file.
///
/// # Errors
/// Files that cannot be read, lines that cannot be used, ids that occur twice, no question.
pub(crate) fn load(file: &Path, pictures: Option<&Path>) -> Result<Vec<Question>> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    let beside = file.parent().unwrap_or(Path::new(""));
    let pictures = pictures.unwrap_or(beside);
    let is_table = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let questions = if is_table {
        super::tables::read(&name, &text, pictures)?
    } else {
        read_lines(&name, &text, pictures)?
    };
    if questions.is_empty() {
        bail!("{name}: no question");
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = questions.iter().find(|q| !seen.insert(&q.id)) {
        bail!("{name}: the id `{}` occurs twice", twice.id);
    }
    Ok(questions)
}

/// One question about every picture of a folder, without a known answer.
///
/// # Errors
/// A folder that cannot be read or holds no picture.
pub(crate) fn folder(folder: &Path, prompts: &[String]) -> Result<Vec<Question>> {
    let name = folder.display();
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {name}"))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| is_picture(p) && p.is_file())
        .collect();
    paths.sort();
    if paths.is_empty() {
        bail!("{name}: no picture");
    }
    let ask = |(path, (i, prompt)): (&PathBuf, (usize, &String))| Question {
        id: format!("{}#{i}", path.file_name().unwrap_or_default().to_string_lossy()),
        picture: Picture::File(path.clone()),
        task: "picture".into(),
        text: prompt.clone(),
        truth: Truth::Unknown,
    };
    Ok(paths
        .iter()
        .flat_map(|p| prompts.iter().enumerate().map(move |q| (p, q)))
        .map(ask)
        .collect())
}

fn read_lines(name: &str, text: &str, pictures: &Path) -> Result<Vec<Question>> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            let context = || format!("{name}, line {}", i + 1);
            let object: Map<String, Value> =
                serde_json::from_str(line).context("not a JSON object").with_context(context)?;
            question(&object, pictures).with_context(context)
        })
        .collect()
}

fn question(object: &Map<String, Value>, pictures: &Path) -> Result<Question> {
    let text = |key: &str| match object.get(key) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(other) => bail!("`{key}` is {other}, expected a text"),
        None => bail!("no `{key}`"),
    };
    let word = |key: &str| match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) => bail!("`{key}` is {other}, expected a text or a number"),
        None => bail!("no `{key}`"),
    };
    let picture = Picture::File(pictures.join(text("image")?));
    if object.contains_key("question_id") {
        // POPE: question_id, image, text, label.
        let label = word("label")?;
        let truth = match normal(&label).as_str() {
            "yes" => true,
            "no" => false,
            _ => bail!("`label` is `{label}`, expected yes or no"),
        };
        return Ok(Question {
            id: word("question_id")?,
            picture,
            task: object.get("category").and_then(Value::as_str).unwrap_or("is-there").to_owned(),
            text: text("text")?,
            truth: Truth::YesNo(truth),
        });
    }
    let task = text("task")?;
    let answer = word("answer")?;
    let truth = match object.get("objects") {
        Some(Value::Array(objects)) if task == "describe" => {
            Truth::Objects(objects.iter().map(scene_object).collect::<Result<_>>()?)
        }
        _ if task == "read-the-word" => Truth::Word(answer),
        _ => Truth::guess(&answer),
    };
    Ok(Question { id: word("id")?, picture, task, text: text("question")?, truth })
}

/// Words and photos have a colour that no caption says.
fn scene_object(value: &Value) -> Result<Object> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_lowercase);
    let Some(kind) = text("kind") else { bail!("an entry of `objects` has no text `kind`") };
    let colour = text("colour").filter(|_| !matches!(kind.as_str(), "word" | "photo"));
    Ok(Object { kind, colour })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn write(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        (folder, path)
    }

    const OURS: &str = r#"{"id": "1-d", "image": "1.png", "task": "describe", "question": "Describe.", "answer": "a red circle.", "objects": [{"kind": "circle", "colour": "red"}, {"kind": "word", "colour": "blue", "text": "HI"}]}
{"id": "1-w", "image": "1.png", "task": "where-is", "question": "Where?", "answer": "<loc01><loc02><loc03><loc04>"}

{"id": "1-r", "image": "1.png", "task": "read-the-word", "question": "Read.", "answer": "HI"}
"#;

    #[test]
    fn our_lines_are_read() {
        let (folder, path) = write("q.jsonl", OURS);
        let questions = load(&path, None).unwrap();
        assert_eq!(questions.len(), 3);
        assert_eq!(questions[0].picture, Picture::File(folder.path().join("1.png")));
        let word = Object { kind: "word".into(), colour: None };
        let circle = Object { kind: "circle".into(), colour: Some("red".into()) };
        assert_eq!(questions[0].truth, Truth::Objects(vec![circle, word]));
        assert_eq!(questions[1].truth, Truth::Box([1.0, 2.0, 3.0, 4.0]));
        assert_eq!(questions[2].truth, Truth::Word("HI".into()));
    }

    #[test]
    fn pope_lines_are_read() {
        let line =
            r#"{"question_id": 7, "image": "a.jpg", "text": "Is there a dog?", "label": "no"}"#;
        let (_folder, path) = write("pope.json", line);
        let question = load(&path, Some(Path::new("pics"))).unwrap().remove(0);
        assert_eq!((question.id.as_str(), question.task.as_str()), ("7", "is-there"));
        assert_eq!(question.picture, Picture::File("pics/a.jpg".into()));
        assert_eq!(question.truth, Truth::YesNo(false));
    }

    #[test]
    fn a_bad_line_is_named_with_file_line_and_field() {
        for (line, part) in [
            ("{", "not a JSON object"),
            ("[1]", "not a JSON object"),
            (r#"{"id": "x", "task": "t", "question": "q", "answer": "a"}"#, "no `image`"),
            (r#"{"image": 5}"#, "`image` is 5, expected a text"),
            (r#"{"question_id": 1, "image": "i", "text": "t", "label": "perhaps"}"#, "`label`"),
            (
                r#"{"id": "x", "image": "i", "task": "describe", "question": "q", "answer": "a", "objects": [{}]}"#,
                "`kind`",
            ),
        ] {
            let good = OURS.lines().next().unwrap();
            let (_folder, path) = write("q.jsonl", &format!("{good}\n{line}\n"));
            let error = format!("{:#}", load(&path, None).unwrap_err());
            assert!(error.contains("q.jsonl, line 2") && error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn ids_that_occur_twice_and_empty_files_are_refused() {
        let line = OURS.lines().next().unwrap();
        let (_folder, path) = write("q.jsonl", &format!("{line}\n{line}\n"));
        assert!(load(&path, None).unwrap_err().to_string().contains("`1-d` occurs twice"));
        let (_folder, path) = write("q.jsonl", "\n");
        assert!(load(&path, None).unwrap_err().to_string().contains("no question"));
    }

    #[test]
    fn a_folder_asks_every_prompt_about_every_picture() {
        let (folder, _) = write("b.PNG", "");
        std::fs::File::create(folder.path().join("a.jpg")).unwrap();
        std::fs::File::create(folder.path().join("notes.txt")).unwrap();
        let questions = super::folder(folder.path(), &["p".into(), "q".into()]).unwrap();
        let ids: Vec<&str> = questions.iter().map(|q| q.id.as_str()).collect();
        assert_eq!(ids, ["a.jpg#0", "a.jpg#1", "b.PNG#0", "b.PNG#1"]);
    }
}
