//! Tables of questions as VLMEvalKit has them: tab-separated, one head line, columns `index`,
//! `question`, `answer`, a picture (`image` in base64 or `image_path`), options `A`, `B`, .., and
//! optionally `hint`, `category`.
//!
//! A short `image` that is another row's index names that row's picture.
//!
//! Choices are asked as LLaVA-1.5 was evaluated: question, one option a line, then "Answer with
//! the option's letter from the given choices directly."

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::questions::{Picture, Question};
use super::score::Truth;

const ASK_LETTER: &str = "Answer with the option's letter from the given choices directly.";
/// Texts up to that length are references to other rows, as in VLMEvalKit.
const LONGEST_REFERENCE: usize = 64;

/// Reads a table. `name` stands in errors.
///
/// # Errors
/// A missing column, a row that cannot be used, with its line.
pub(super) fn read(name: &str, text: &str, pictures: &Path) -> Result<Vec<Question>> {
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(text.as_bytes());
    let head = reader.headers().with_context(|| format!("{name}, line 1"))?.clone();
    let columns: BTreeMap<&str, usize> = head.iter().enumerate().map(|(i, h)| (h, i)).collect();
    for needed in ["index", "question", "answer"] {
        if !columns.contains_key(needed) {
            bail!("{name}, line 1: no column `{needed}`");
        }
    }
    if !columns.contains_key("image") && !columns.contains_key("image_path") {
        bail!("{name}, line 1: no column `image` or `image_path`");
    }
    let mut known: BTreeMap<String, Picture> = BTreeMap::new();
    let mut questions = Vec::new();
    for record in reader.records() {
        let record = record.with_context(|| name.to_owned())?;
        let line = record.position().map_or(0, csv::Position::line);
        let row = Row { record: &record, columns: &columns };
        let question =
            row.question(pictures, &mut known).with_context(|| format!("{name}, line {line}"))?;
        questions.push(question);
    }
    Ok(questions)
}

struct Row<'a> {
    record: &'a csv::StringRecord,
    columns: &'a BTreeMap<&'a str, usize>,
}

impl Row<'_> {
    /// A cell that holds something.
    fn cell(&self, column: &str) -> Option<&str> {
        let cell = self.record.get(*self.columns.get(column)?)?.trim();
        // pandas writes an absent option as nan.
        (!cell.is_empty() && cell != "nan").then_some(cell)
    }

    fn needed(&self, column: &str) -> Result<&str> {
        self.cell(column).with_context(|| format!("no `{column}`"))
    }

    fn question(&self, pictures: &Path, known: &mut BTreeMap<String, Picture>) -> Result<Question> {
        let id = self.needed("index")?.to_owned();
        let picture = self.picture(pictures, known, &id)?;
        known.insert(id.clone(), picture.clone());
        let options: Vec<(char, String)> =
            ('A'..='H').filter_map(|c| Some((c, self.cell(&c.to_string())?.to_owned()))).collect();
        let answer = self.needed("answer")?;
        let mut text = String::new();
        if let Some(hint) = self.cell("hint") {
            text.push_str(&format!("{hint}\n"));
        }
        text.push_str(self.needed("question")?);
        let truth = if options.is_empty() {
            Truth::guess(answer)
        } else {
            let letter = answer.chars().next().filter(|c| options.iter().any(|o| o.0 == *c));
            let Some(letter) = letter.filter(|_| answer.chars().count() == 1) else {
                bail!("`answer` is `{answer}`, expected the letter of an option");
            };
            for (letter, option) in &options {
                text.push_str(&format!("\n{letter}. {option}"));
            }
            text.push_str(&format!("\n{ASK_LETTER}"));
            Truth::Choice { letter, options }
        };
        let task = self.cell("category").unwrap_or("question").to_owned();
        Ok(Question { id, picture, task, text, truth })
    }

    fn picture(
        &self,
        pictures: &Path,
        known: &BTreeMap<String, Picture>,
        id: &str,
    ) -> Result<Picture> {
        let Some(data) = self.cell("image") else {
            return Ok(Picture::File(pictures.join(self.needed("image_path")?)));
        };
        if data.len() <= LONGEST_REFERENCE {
            return known.get(data).cloned().with_context(|| {
                format!("`image` is `{data}`, neither base64 nor the index of an earlier row")
            });
        }
        let bytes = STANDARD.decode(data).context("`image` is not base64")?;
        Ok(Picture::Bytes(format!("image {id}"), Arc::from(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &str) -> Result<Vec<Question>> {
        read("t.tsv", rows, Path::new("pics"))
    }

    #[test]
    fn rows_with_options_ask_for_a_letter() {
        let picture = STANDARD.encode([7u8; 90]);
        let questions = table(&format!(
            "index\timage\tquestion\tA\tB\tC\tanswer\tcategory\thint\n\
             1\t{picture}\t\"Two\nlines?\"\tcat\tdog\tnan\tB\tanimals\tLook.\n\
             2\t1\tAgain?\tx\ty\tz\tC\tanimals\t\n"
        ))
        .unwrap();
        let first = "Look.\nTwo\nlines?\nA. cat\nB. dog\nAnswer with the option's letter from the \
                     given choices directly.";
        assert_eq!(questions[0].text, first);
        assert_eq!(questions[0].task, "animals");
        assert_eq!(questions[1].truth.score("C"), Some(1.0));
        assert_eq!(questions[0].picture, questions[1].picture);
    }

    #[test]
    fn rows_without_options_take_the_answer_as_it_is() {
        let questions =
            table("index\timage_path\tquestion\tanswer\n5\ta.png\tHow many?\t3\n").unwrap();
        assert_eq!(questions[0].truth, Truth::Number(3));
        assert_eq!(questions[0].picture, Picture::File("pics/a.png".into()));
    }

    #[test]
    fn a_bad_row_is_named_with_its_line() {
        let head = "index\timage_path\tquestion\tA\tB\tanswer\n";
        for (rows, part) in [
            ("1\ta.png\tq?\tx\ty\tE\n", "t.tsv, line 2: `answer` is `E`"),
            ("1\ta.png\tq?\tx\ty\tA\n2\t\tq?\tx\ty\tA\n", "t.tsv, line 3: no `image_path`"),
            ("1\ta.png\tq?\tx\n", "found record with 4 fields"),
        ] {
            let error = format!("{:#}", table(&format!("{head}{rows}")).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        let error = table("index\tquestion\tanswer\n").unwrap_err().to_string();
        assert!(error.contains("no column `image`"), "{error}");
        let rows = "index\timage\tquestion\tanswer\n1\t9\tq?\tyes\n";
        let error = format!("{:#}", table(rows).unwrap_err());
        assert!(error.contains("neither base64 nor the index"), "{error}");
    }
}
