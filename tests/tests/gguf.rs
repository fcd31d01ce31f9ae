//! GGUF pairs that are not whole, and those of text-only decoders: what is missing is said or taken
//! from beside the file, never guessed.

use std::path::Path;

use secateur::{Precision, Request, Vlm};
use secateur_tests::golden;

/// Writes a file in one go: nobody reads the folder of a test meanwhile.
fn put(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("a file");
    file.write_all(bytes).expect("written");
}

/// Where the value of a key begins, behind its type.
fn value_of(bytes: &[u8], key: &str) -> usize {
    let at = bytes.windows(key.len()).position(|w| w == key.as_bytes());
    at.unwrap_or_else(|| panic!("no {key}")) + key.len() + 4
}

/// The pair of a tiny model in a folder of its own.
fn pair(model: &str) -> (tempfile::TempDir, [Vec<u8>; 2]) {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = ["model.gguf", "mmproj.gguf"].map(|file| {
        let bytes = std::fs::read(golden().join("gguf").join(model).join(file)).expect("the file");
        put(&folder.path().join(file), &bytes);
        bytes
    });
    (folder, bytes)
}

fn open(folder: &Path) -> Result<Vlm, String> {
    let model = folder.join("model.gguf");
    let opened = Vlm::builder(model).precision(Precision::F32).threads(1).open();
    opened.map_err(|error| error.to_string())
}

/// Text and visual tokens of an answer to a question about a picture.
fn answer(folder: &Path) -> Result<(String, usize), String> {
    let picture = golden().join("images/shapes-160x120.png");
    let request = Request::new("What is this?").path(&picture).expect("a picture").max_tokens(4);
    let vlm = open(folder)?;
    let mut session = vlm.session();
    let stream = session.ask(request).map_err(|e| e.to_string())?;
    let answer = stream.finish().map_err(|e| e.to_string())?;
    Ok((answer.text, answer.report.visual_in))
}

#[test]
fn a_file_that_holds_more_blocks_than_it_says_is_refused() {
    for (model, arch, unread) in [
        ("llava-1.5-tiny", "llama", 1),
        ("smolvlm-tiny", "llama", 0),
        ("internvl-tiny", "qwen2", 0),
        ("qwen2-vl-tiny", "qwen2vl", 0),
        ("qwen2.5-vl-tiny", "qwen2vl", 0),
        ("qwen3-vl-tiny", "qwen3vl", 0),
    ] {
        let (folder, truth) = pair(model);
        let keys = [format!("{arch}.block_count"), "clip.vision.block_count".to_owned()];
        let files = ["model.gguf", "mmproj.gguf"];
        for (((file, key), bytes), more) in files.iter().zip(&keys).zip(&truth).zip([1, unread + 1])
        {
            let at = value_of(bytes, key);
            let count = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
            let mut lie = bytes.clone();
            lie[at..at + 4].copy_from_slice(&(count - more).to_le_bytes());
            put(&folder.path().join(file), &lie);
            let error = open(folder.path()).expect_err("half a model");
            let words = [*file, key, &format!("is {}", count - more)];
            assert!(words.iter().all(|word| error.contains(word)), "{model}: {error}");
            put(&folder.path().join(file), bytes);
        }
        open(folder.path()).expect("the truth opens");
    }
}

#[test]
fn a_tokenizer_beside_the_file_serves_where_the_file_holds_no_vocabulary() {
    for model in ["llava-1.5-tiny", "qwen2-vl-tiny", "smolvlm-tiny"] {
        let (folder, [decoder, _]) = pair(model);
        let want = answer(folder.path()).expect("the whole file answers");
        // The same file with the list of tokens under a name that nobody reads.
        let mut bare = decoder.clone();
        let at = value_of(&decoder, "tokenizer.ggml.tokens") - 5;
        bare[at] = b'z';
        put(&folder.path().join("model.gguf"), &bare);
        let error = answer(folder.path()).expect_err("no vocabulary");
        assert!(error.contains("model.gguf") && error.contains("tokenizer.json"), "{error}");
        let beside = golden().join("models").join(model).join("tokenizer.json");
        std::fs::copy(beside, folder.path().join("tokenizer.json")).expect("a copy");
        assert_eq!(answer(folder.path()).as_ref(), Ok(&want), "{model}");
    }
}

#[test]
fn a_text_only_chat_template_gets_the_placeholder_in_the_text() {
    // As files of text-only decoders have them: the content is one text.
    let line = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}";
    for line in [line, "{{ message.role }}: {{ message.content }}"] {
        for model in ["llava-1.5-tiny", "internvl-tiny", "qwen2-vl-tiny", "smolvlm-tiny"] {
            let (folder, _) = pair(model);
            let (_, want) = answer(folder.path()).expect("the file's own template");
            let template = format!(
                "{{% for message in messages %}}{line}{{% endfor %}}\
                 {{% if add_generation_prompt %}}{{{{ 'assistant ' }}}}{{% endif %}}"
            );
            put(&folder.path().join("chat_template.jinja"), template.as_bytes());
            let (_, found) = answer(folder.path()).expect("it runs");
            assert_eq!(found, want, "{model}: {line}");
        }
    }
}
