//! Scores of answers: what counts as right, by the kind of the true answer.
//!
//! Invariants
//! - A score lies in [0, 1]; an empty answer scores 0.
//! - Letter case, final points, articles and the spelling of grey do not matter.
//! - Only the first thing that could be meant counts: an answer that names two colours is judged
//!   by the first.

const COLOURS: [&str; 16] = [
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "pink",
    "black",
    "white",
    "grey",
    "brown",
    "cyan",
    "magenta",
    "turquoise",
    "violet",
    "beige",
];
const NUMBERS: [&str; 13] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
];

/// One object of a scene, as a caption may name it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object {
    /// A noun.
    pub(crate) kind: String,
    /// Its colour, where a caption would say it.
    pub(crate) colour: Option<String>,
}

/// The true answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Truth {
    /// None is known: only agreement with the unpruned model can be measured.
    Unknown,
    /// Yes or no.
    YesNo(bool),
    /// A number.
    Number(u64),
    /// A colour.
    Colour(String),
    /// A word that was to be read.
    Word(String),
    /// A few words, compared as a whole.
    Phrase(String),
    /// A letter among options.
    Choice {
        /// The right one.
        letter: char,
        /// All of them, with what they stand for.
        options: Vec<(char, String)>,
    },
    /// A box in bins of the picture: top, left, bottom, right.
    Box([f64; 4]),
    /// The objects of a scene.
    Objects(Vec<Object>),
}

impl Truth {
    /// The truth that an answer in words stands for: a box where it holds location tokens, yes or
    /// no, a number, a colour, else a phrase.
    pub(crate) fn guess(answer: &str) -> Self {
        let plain = normal(answer);
        if let Some(bins) = location_bins(answer) {
            return Truth::Box(bins);
        }
        match plain.as_str() {
            "yes" => Truth::YesNo(true),
            "no" => Truth::YesNo(false),
            word if number(word).is_some() => Truth::Number(number(word).unwrap_or_default()),
            word if COLOURS.contains(&word) => Truth::Colour(plain),
            _ => Truth::Phrase(plain),
        }
    }

    /// How right an answer is, in [0, 1]; `None` where the truth is not known.
    pub(crate) fn score(&self, answer: &str) -> Option<f64> {
        let right = match self {
            Truth::Unknown => return None,
            Truth::YesNo(truth) => {
                let said = words(answer).find(|w| w == "yes" || w == "no");
                said.is_some_and(|word| (word == "yes") == *truth)
            }
            Truth::Number(truth) => words(answer).find_map(|w| number(&w)) == Some(*truth),
            Truth::Colour(truth) => {
                words(answer).find(|w| COLOURS.contains(&w.as_str())).as_ref() == Some(truth)
            }
            Truth::Word(truth) => {
                let truth = truth.to_lowercase();
                words(answer).any(|w| w == truth)
            }
            Truth::Phrase(truth) => normal(answer) == *truth,
            Truth::Choice { letter, options } => chosen(answer, options) == Some(*letter),
            Truth::Box(truth) => {
                location_bins(answer).is_some_and(|guess| overlap(truth, &guess) > 0.5)
            }
            Truth::Objects(objects) => return Some(share_named(objects, answer)),
        };
        Some(f64::from(u8::from(right)))
    }
}

/// Lower-case words of letters and digits; `gray` is `grey`.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(|word| {
        let word = word.to_lowercase();
        if word == "gray" { "grey".to_owned() } else { word }
    })
}

/// Words without articles, one blank apart.
pub(super) fn normal(text: &str) -> String {
    let kept: Vec<String> =
        words(text).filter(|w| !matches!(w.as_str(), "a" | "an" | "the")).collect();
    kept.join(" ")
}

fn number(word: &str) -> Option<u64> {
    word.parse().ok().or_else(|| NUMBERS.iter().position(|n| *n == word).map(|n| n as u64))
}

/// The first four location tokens `<locNN>` of a text.
fn location_bins(text: &str) -> Option<[f64; 4]> {
    let mut bins = text
        .split("<loc")
        .skip(1)
        .filter_map(|rest| rest.split_once('>').and_then(|(digits, _)| digits.parse::<f64>().ok()));
    Some([bins.next()?, bins.next()?, bins.next()?, bins.next()?])
}

/// Intersection over union of boxes (top, left, bottom, right); 0 for boxes without area.
fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let area = |c: &[f64; 4]| (c[2] - c[0]).max(0.0) * (c[3] - c[1]).max(0.0);
    let both = side(0) * side(1);
    let either = area(a) + area(b) - both;
    if either > 0.0 { both / either } else { 0.0 }
}

/// The option that an answer names: a letter that stands alone, else an option's own words.
fn chosen(answer: &str, options: &[(char, String)]) -> Option<char> {
    let of_letter = |word: &str| {
        let mut letters = word.chars();
        let letter = letters.next()?;
        let is_alone = letters.next().is_none() && letter.is_uppercase();
        options.iter().map(|o| o.0).find(|&o| is_alone && o == letter)
    };
    let letter = answer
        .split(|c: char| !c.is_alphanumeric())
        .find_map(of_letter)
        // "a" in lower case is a letter only if nothing else was said.
        .or_else(|| of_letter(&answer.trim().trim_end_matches('.').to_uppercase()));
    letter.or_else(|| {
        let answer = normal(answer);
        let mut meant = options.iter().filter(|(_, text)| normal(text) == answer);
        meant.next().map(|o| o.0).filter(|_| meant.next().is_none())
    })
}

/// Share of the objects that a caption names with kind and colour; a clause names one object.
fn share_named(objects: &[Object], caption: &str) -> f64 {
    if objects.is_empty() {
        return 0.0;
    }
    let mut clauses: Vec<Vec<String>> = caption
        .replace(" and ", ",")
        .split([',', '.', ';'])
        .map(|clause| words(clause).collect())
        .collect();
    let mut named = 0;
    for object in objects {
        let fits = |clause: &Vec<String>| {
            let says = |word: &String| clause.iter().any(|w| w == word);
            says(&object.kind) && object.colour.as_ref().is_none_or(says)
        };
        if let Some(at) = clauses.iter().position(fits) {
            clauses.swap_remove(at);
            named += 1;
        }
    }
    f64::from(named) / objects.len() as f64
}

/// Share of words that two answers have in common (F1 of the two bags of words); 1 for two empty
/// answers.
pub(super) fn common_words(a: &str, b: &str) -> f64 {
    let (a, mut b): (Vec<String>, Vec<String>) = (words(a).collect(), words(b).collect());
    let total = a.len() + b.len();
    if total == 0 {
        return 1.0;
    }
    let mut common = 0;
    for word in &a {
        if let Some(at) = b.iter().position(|w| w == word) {
            b.swap_remove(at);
            common += 1;
        }
    }
    2.0 * f64::from(common) / total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, colour: Option<&str>) -> Object {
        Object { kind: kind.into(), colour: colour.map(Into::into) }
    }

    #[test]
    fn each_kind_of_truth_is_scored() {
        let choice = Truth::Choice {
            letter: 'B',
            options: vec![('A', "a cat".into()), ('B', "a red dog".into())],
        };
        let scene = Truth::Objects(vec![
            object("circle", Some("red")),
            object("circle", Some("blue")),
            object("word", None),
        ]);
        for (truth, answer, score) in [
            (Truth::YesNo(true), "Yes, there is no doubt.", 1.0),
            (Truth::YesNo(false), "yes", 0.0),
            (Truth::YesNo(false), "maybe", 0.0),
            (Truth::Number(3), "There are three.", 1.0),
            (Truth::Number(3), "3", 1.0),
            (Truth::Number(3), "2 or 3", 0.0),
            (Truth::Colour("grey".into()), "It is Gray.", 1.0),
            (Truth::Colour("red".into()), "blue, not red", 0.0),
            (Truth::Word("BUSY".into()), "busy", 1.0),
            (Truth::Word("BUSY".into()), "BUS", 0.0),
            (Truth::Phrase("green square".into()), "the green square.", 1.0),
            (Truth::Phrase("green square".into()), "square", 0.0),
            (choice.clone(), "B", 1.0),
            (choice.clone(), "(B) a red dog", 1.0),
            (choice.clone(), "The red dog", 1.0),
            (choice.clone(), "b.", 1.0),
            (choice.clone(), "A", 0.0),
            (choice, "a bird", 0.0),
            (scene.clone(), "a big red circle at the left, the word HI, a blue circle.", 1.0),
            (scene.clone(), "a red circle and a green circle", 1.0 / 3.0),
            (scene, "", 0.0),
        ] {
            assert_eq!(truth.score(answer), Some(score), "{truth:?} against {answer:?}");
        }
        assert_eq!(Truth::Unknown.score("anything"), None);
    }

    #[test]
    fn boxes_are_right_above_half_an_overlap() {
        let truth = Truth::guess("<loc10><loc10><loc20><loc20>");
        assert_eq!(truth, Truth::Box([10.0, 10.0, 20.0, 20.0]));
        assert_eq!(truth.score("<loc10><loc10><loc20><loc16>"), Some(1.0));
        assert_eq!(truth.score("<loc10><loc10><loc20><loc15>"), Some(0.0));
        assert_eq!(truth.score("<loc10><loc10><loc20>"), Some(0.0));
        assert_eq!(truth.score("<loc20><loc20><loc10><loc10>"), Some(0.0));
    }

    #[test]
    fn truths_are_guessed_from_their_words() {
        assert_eq!(Truth::guess("Yes"), Truth::YesNo(true));
        assert_eq!(Truth::guess("seven"), Truth::Number(7));
        assert_eq!(Truth::guess("gray"), Truth::Colour("grey".into()));
        assert_eq!(Truth::guess("the green square"), Truth::Phrase("green square".into()));
    }

    #[test]
    fn common_words_count_each_word_once() {
        assert_eq!(common_words("a b", "b a"), 1.0);
        assert_eq!(common_words("a a", "a"), 2.0 / 3.0);
        assert_eq!(common_words("x", "y"), 0.0);
        assert_eq!(common_words("", ""), 1.0);
    }
}
