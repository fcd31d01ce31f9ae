//! The order of pictures and videos: as they were given where the template has no order of its own,
//! and as the placeholders stand in a prompt that is whole.

use secateur::trace::{Histories, Tensors, Values};
use secateur::{Precision, Request, Vlm};
use secateur_tests::golden;

/// Families with videos, and a prompt with a video before a picture.
const PROMPTS: &[(&str, &str)] = &[
    ("internvl-tiny", "<video>then<IMG_CONTEXT>What?"),
    ("llava-onevision-tiny", "<video>then<image>What?"),
    ("qwen2-vl-tiny", QWEN),
    ("qwen2.5-vl-tiny", QWEN),
    ("qwen3-vl-tiny", QWEN),
    ("smolvlm-tiny", "<video>then<image>What?"),
];

const QWEN: &str = "<|vision_start|><|video_pad|><|vision_end|>then<|vision_start|><|image_pad|>\
                    <|vision_end|>What?";

/// 1 at tokens of pictures, 2 at those of videos, each run once.
fn kinds(tensors: &Tensors) -> Vec<i64> {
    let Some((_, Values::Ints(values))) = tensors.get("mm_token_type_ids") else {
        panic!("the kinds of tokens are traced");
    };
    let mut kinds: Vec<i64> = values.iter().copied().filter(|&v| v > 0).collect();
    kinds.dedup();
    kinds
}

fn vlm(family: &str) -> Vlm {
    let folder = golden().join("models").join(family);
    Vlm::builder(folder).precision(Precision::F32).threads(2).open().expect("a model")
}

/// The request with a picture and a video, in that order or the other.
fn with_media(request: Request, video_first: bool) -> Request {
    let images = golden().join("images");
    let frames = (0..4).flat_map(|i| {
        let path = images.join(format!("b_clip_{i}.png"));
        let clip = secateur::image::load(&path, &secateur::image::Limits::default());
        clip.expect("a frame").frames().to_vec()
    });
    let frames = frames.collect();
    let picture = |r: Request| r.path(images.join("b_small.png")).expect("a picture");
    let video = |r: Request| r.frames("clip", frames, Some(2.0)).expect("a video");
    if video_first { picture(video(request)) } else { video(picture(request)) }
}

#[test]
fn the_placeholders_of_a_raw_prompt_take_the_next_medium_of_their_kind() {
    for (family, prompt) in PROMPTS {
        let vlm = vlm(family);
        let run = |video_first: bool| {
            let request = with_media(Request::new(*prompt).raw_prompt(), video_first);
            vlm.trace(&request, &Histories::default()).unwrap_or_else(|e| panic!("{family}: {e}"))
        };
        let (first, last) = (run(true), run(false));
        assert_eq!(first, last, "{family}");
        assert_eq!(kinds(&first), [2, 1], "{family}");
    }
}

#[test]
fn media_stand_in_a_templated_prompt_as_they_were_given() {
    for (family, _) in PROMPTS {
        let vlm = vlm(family);
        let run = |video_first: bool| {
            let request = with_media(Request::new("What?"), video_first);
            let trace = vlm.trace(&request, &Histories::default());
            kinds(&trace.unwrap_or_else(|e| panic!("{family}: {e}")))
        };
        assert_eq!((run(true), run(false)), (vec![2, 1], vec![1, 2]), "{family}");
    }
}

#[test]
fn what_is_missing_is_said_by_kind() {
    let vlm = vlm("qwen2-vl-tiny");
    let said = |prompt: &str| {
        let request = with_media(Request::new(prompt).raw_prompt(), true);
        vlm.trace(&request, &Histories::default()).expect_err("it does not fit").to_string()
    };
    let given = "1 picture and 1 video given, but the prompt holds placeholders for ";
    for (prompt, held) in [
        ("What?", "0 pictures (`<|image_pad|>`)"),
        ("<|image_pad|><|image_pad|>", "2 pictures (`<|image_pad|>`)"),
        ("<|video_pad|>", "1 video (`<|video_pad|>`)"),
    ] {
        let said = said(prompt);
        assert!(said.contains(&format!("{given}{held}")), "{said}");
    }
}
