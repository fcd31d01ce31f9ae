//! The files of the built-in model, as bytes of the program.
//!
//! `embedded/README.md` is its card, `embedded/train.py` makes it.

macro_rules! model_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../embedded/", $name)).as_slice())
    };
}

/// Configuration, tokenizer and template, as `(name, content)`.
pub static FILES: &[(&str, &[u8])] = &[
    model_file!("config.json"),
    model_file!("generation_config.json"),
    model_file!("preprocessor_config.json"),
    model_file!("processor_config.json"),
    model_file!("tokenizer.json"),
    model_file!("tokenizer_config.json"),
    model_file!("chat_template.jinja"),
];

/// The safetensors file.
pub static WEIGHTS: &[u8] = include_bytes!("../embedded/model.safetensors");
