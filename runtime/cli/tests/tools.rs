//! The other commands through the real program.

mod support;

use std::fs;
use std::path::Path;

use support::{pictures, put, run, secateur, texts};

#[test]
fn ask_streams_an_answer_and_tells_what_it_cost() {
    let folder = pictures(1);
    let args = ["ask", "--image", "in/000.png", "Describe the image.", "--max-tokens", "6"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.trim().len() > 1 && out.ends_with('\n'), "{out:?}");
    let stats = [&args[..], &["--stats", "--prune", "vtc_cls:keep=16"]].concat();
    let (code, _, err) = texts(&run(folder.path(), &stats));
    assert_eq!(code, 0);
    for word in ["encode", "prune", "prefill", "decode", "vtc_cls", "16", "memory", "tokens"] {
        assert!(err.contains(word), "{word}: {err}");
    }
    let (code, json, _) = texts(&run(folder.path(), &[&args[..], &["--json"]].concat()));
    assert_eq!(code, 0);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["schema"], "secateur.answer/1");
    assert_eq!(value["text"].as_str().unwrap().trim(), out.trim());
}

#[test]
fn ask_reads_a_picture_from_stdin() {
    use std::process::Stdio;
    let folder = pictures(1);
    let picture = fs::File::open(folder.path().join("in/000.png")).unwrap();
    let ended = secateur(folder.path())
        .args(["ask", "-a", "-", "What?", "--max-tokens", "2"])
        .stdin(Stdio::from(picture))
        .output()
        .unwrap();
    assert_eq!(texts(&ended).0, 0, "{}", texts(&ended).2);
}

#[test]
fn ask_takes_files_beside_the_question_or_says_what_to_type() {
    let folder = pictures(2);
    let ask = |args: &[&str]| {
        let args = [&["ask", "--max-tokens", "2", "--json"], args].concat();
        texts(&run(folder.path(), &args))
    };
    let answer = |args: &[&str]| {
        let (code, out, err) = ask(args);
        assert_eq!(code, 0, "{args:?}: {err}");
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        (answer["question"].clone(), answer["report"]["pictures"].clone())
    };
    let flags = answer(&["-i", "in/001.png", "-i", "in/000.png", "What is it?"]);
    assert_eq!(flags.1, serde_json::json!([[50, 25], [48, 24]]));
    assert_eq!(answer(&["in/001.png", "in/000.png", "What is it?"]), flags);
    assert_eq!(answer(&["in/001.png", "What is it?", "-i", "in/000.png"]), flags);
    // A question may be a file's name, and may end like one.
    put(&folder.path().join("why"), b"x");
    for question in ["why", "What is in cat.png"] {
        assert_eq!(answer(&[question, "-i", "in/000.png"]).0, question);
    }
    for (args, word) in [
        (&["in/000.png"][..], "secateur ask cat.jpg"),
        (&["no-such.png"], "question is missing"),
        (&["in/000.png", "What", "is it?"], "put it in quotes"),
        (&[], "secateur ask"),
    ] {
        let (code, _, err) = ask(args);
        assert_eq!(code, 2, "{args:?}");
        assert!(err.contains(word), "{args:?}: {err}");
    }
}

#[test]
fn a_placeholder_in_a_question_is_explained() {
    let folder = pictures(1);
    let (code, _, err) = texts(&run(folder.path(), &["ask", "in/000.png", "<image>\nWhat?"]));
    assert_eq!(code, 1);
    for word in ["the question holds `<image>`", "leave it out", "--raw-prompt"] {
        assert!(err.contains(word), "{err}");
    }
}

#[test]
fn explain_says_the_same_of_text_and_file() {
    let folder = pictures(0);
    let toml = "[[stage]]\ntype = \"vtc_cls\"\nkeep = 64\n\n[[stage]]\ntype = \"fastv\"\nlayer = 2\nkeep = 0.5\n";
    put(&folder.path().join("chain.toml"), toml.as_bytes());
    let inline =
        run(folder.path(), &["explain", "--prune", "vtc_cls:keep=64,fastv:layer=2:keep=0.5"]);
    let file = run(folder.path(), &["explain", "--prune", "chain.toml"]);
    let (code, out, err) = texts(&inline);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, texts(&file).1);
    for word in ["encoder", "decoder(2)", "64 -> 32"] {
        assert!(out.contains(word), "{out}");
    }
    let json = run(folder.path(), &["explain", "--json", "--prune", "chain.toml"]);
    let value: serde_json::Value = serde_json::from_str(&texts(&json).1).unwrap();
    assert_eq!(value["stages"][1]["tokens_kept"], 32);
}

#[test]
fn a_chain_that_does_not_fit_is_a_usage_error_that_says_why() {
    let folder = pictures(1);
    for (chain, word) in [
        ("fastv:layer=400:keep=0.5", "layers 1 to"),
        ("vtc_cls:kep=3", "keep"),
        ("vct_cls:keep=3", "vtc_cls"),
        ("vtc_cls:keep=0", "from 1 on"),
        ("fastv:layer=2:retain=0", "from 1 on"),
        ("debiased:iner={type=fastv;layer=2;keep=4}", "`iner` is unknown"),
        ("vflowopt:stages=[{layr=2;keep=0.5}]", "`layr` is unknown"),
        ("vision_zip:domnant=3", "`domnant` is unknown"),
        ("pyramid_drop:layers=[1]:ratio_s=[0.5]", "`ratio_s` is unknown"),
        ("fastv:layer=2:keep=8,vtc_cls:keep=4", "order"),
        ("no/such/chain.toml", "chain.toml"),
    ] {
        for command in ["explain", "caption"] {
            let mut args = vec![command, "--prune", chain];
            if command == "caption" {
                args.extend(["in", "--format", "jsonl"]);
            }
            let (code, out, err) = texts(&run(folder.path(), &args));
            assert_eq!((code, out.as_str()), (2, ""), "{chain}");
            assert!(err.contains(word), "{chain}: {err}");
        }
    }
}

#[test]
fn inspect_draws_a_picture_and_a_page() {
    let folder = pictures(1);
    for name in ["map.png", "map.html"] {
        let args = [
            "inspect",
            "--image",
            "in/000.png",
            "--prune",
            "vtc_cls:keep=64,fastv:layer=2:keep=16",
            "--max-tokens",
            "4",
            "--out",
            name,
        ];
        let (code, out, err) = texts(&run(folder.path(), &args));
        assert_eq!((code, out.as_str()), (0, ""), "{err}");
        assert!(err.contains("vtc_cls at encoder"), "{err}");
    }
    let png = image::open(folder.path().join("map.png")).unwrap();
    assert!(png.width() > 1000);
    let html = fs::read_to_string(folder.path().join("map.html")).unwrap();
    assert!(html.contains("data:image/png;base64,") && html.ends_with("</html>\n"));
    let (code, _, err) =
        texts(&run(folder.path(), &["inspect", "--image", "in/000.png", "--out", "map.bmp"]));
    assert_eq!(code, 2);
    assert!(err.contains(".png or .html"), "{err}");
}

#[test]
fn trace_writes_tensors_under_the_golden_names() {
    let folder = pictures(1);
    let args = [
        "trace",
        "--dtype",
        "f32",
        "--image",
        "in/000.png",
        "--prompt",
        "What?",
        "--max-tokens",
        "3",
        "--ignore-eos",
        "--prune",
        "vtc_cls:keep=16",
        "--out",
        "t.safetensors",
    ];
    let (code, _, err) = texts(&run(folder.path(), &args));
    assert_eq!(code, 0, "{err}");
    let bytes = fs::read(folder.path().join("t.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("stage.0.kept"), [16]);
    assert_eq!(shape("greedy_ids"), [3]);
    assert_eq!(shape("layer.0.kv_len"), [1]);
    for name in ["encoder.hidden", "encoder.tokens", "input_ids", "logits", "stage.0.scores"] {
        assert!(file.tensor(name).is_ok(), "{name}");
    }
}

#[test]
fn a_model_folder_that_lies_is_an_error_that_names_file_and_field() {
    let folder = pictures(1);
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let ask = |word: &str| {
        let args = ["ask", "-m", "./model", "--image", "in/000.png", "What?"];
        let (code, out, err) = texts(&run(folder.path(), &args));
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(word), "{word}: {err}");
    };
    ask("config.json");
    put(&model.join("config.json"), b"{\"model_type\": \"nothing_known\"}");
    ask("nothing_known");
    put(&model.join("config.json"), b"{ not json");
    ask("config.json");
    let (code, _, err) = texts(&run(folder.path(), &["ask", "-m", "./gone", "What?"]));
    assert_eq!(code, 1);
    assert!(err.contains("gone"), "{err}");
}

#[test]
fn models_lists_families_and_describes_folders() {
    let folder = pictures(0);
    let (code, out, _) = texts(&run(folder.path(), &["models"]));
    assert_eq!(code, 0);
    assert!(out.contains("LLaVA-1.5") && out.contains("llava"), "{out}");
    let (code, out, _) = texts(&run(folder.path(), &["models", "--json"]));
    assert_eq!(code, 0);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(value["families"].as_array().is_some_and(|f| !f.is_empty()));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/embedded");
    let (code, out, err) = texts(&run(folder.path(), &["models", &golden.display().to_string()]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("vision tower") && out.contains("visual tokens"), "{out}");
}

#[test]
fn too_many_pictures_are_no_matter_of_frames() {
    let folder = pictures(8);
    let names: Vec<String> = (0..8).map(|i| format!("in/{i:03}.png")).collect();
    let mut args = vec!["ask", "What is it?"];
    args.extend(names.iter().flat_map(|name| ["-i", name.as_str()]));
    let (code, _, err) = texts(&run(folder.path(), &args));
    assert_eq!(code, 1);
    assert!(err.contains("2048") && !err.contains("--max-frames"), "{err}");
}

#[test]
fn tokens_are_counted() {
    let folder = pictures(1);
    let args = ["tokens", "--image", "in/000.png", "--size", "640x480", "--json"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!(code, 0, "{err}");
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(value["pictures"][0]["tokens"].as_u64().is_some_and(|n| n >= 256));
    assert_eq!(value["pictures"][1]["width"], 640);
}

/// A family with a video input merges frames in pairs; any other takes each as a picture.
#[test]
fn tokens_of_videos_are_counted() {
    let folder = pictures(1);
    std::fs::create_dir(folder.path().join("film")).unwrap();
    let frame = std::fs::read(folder.path().join("in/000.png")).unwrap();
    for name in ["0.png", "1.png", "2.png"] {
        put(&folder.path().join("film").join(name), &frame);
    }
    for (args, tokens) in [
        // 448 pixels are 32 patches and 16 tokens a side; eight frames are four pairs.
        (["--shape", "qwen2.5-vl-3b", "--size", "448x448x8"], 4 * 16 * 16),
        (["--shape", "llava-1.5-7b", "--size", "640x480x3"], 3 * 576),
        (["--shape", "llava-1.5-7b", "--frames", "film"], 3 * 576),
    ] {
        let all = [&["tokens", "--json"][..], &args].concat();
        let (code, out, err) = texts(&run(folder.path(), &all));
        assert_eq!(code, 0, "{args:?}: {err}");
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["pictures"][0]["tokens"], tokens, "{args:?}");
    }
    for size in ["64x64x0", "64x64x2x2", "64"] {
        let (code, _, err) = texts(&run(folder.path(), &["tokens", "--size", size]));
        assert!(code != 0 && err.contains("WIDTHxHEIGHTxFRAMES"), "{size}: {err}");
    }
}

#[test]
fn tokens_and_chains_need_no_weights() {
    let folder = pictures(0);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/embedded");
    std::fs::create_dir(folder.path().join("m")).unwrap();
    for file in ["config.json", "preprocessor_config.json"] {
        put(&folder.path().join("m").join(file), &std::fs::read(model.join(file)).unwrap());
    }
    let args = ["tokens", "--model", "./m", "--size", "640x480"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!((code, out.contains("256  16x16")), (0, true), "{out}{err}");
    let args = ["explain", "--model", "./m", "--prune", "vtc_cls:keep=64"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!((code, out.contains("256 -> 64")), (0, true), "{out}{err}");
    let (code, _, err) = texts(&run(folder.path(), &["explain", "--shape", "llava-1.5-8b"]));
    assert!(code != 0 && err.contains("llava-1.5-7b"), "{err}");
    let args = ["explain", "--shape", "llava-1.5-7b", "--prune", "preset:vtc-cls-llava1.5-64"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!((code, out.contains("576 -> 64")), (0, true), "{out}{err}");
}

#[test]
fn settings_come_from_flag_then_environment_then_file() {
    let folder = pictures(0);
    put(&folder.path().join("secateur.toml"), b"max_tokens = 7\n[caption]\nbatch_size = 3\n");
    let show = |environment: &[(&str, &str)]| {
        let ended = secateur(folder.path())
            .args(["config", "show", "--origin"])
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let (code, out, err) = texts(&ended);
        assert_eq!(code, 0, "{err}");
        out.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let lines = show(&[]);
    for line in
        ["batch_size = 3 secateur.toml", "max_tokens = 7 secateur.toml", "top_p = 1 default"]
    {
        assert!(lines.contains(&line.to_owned()), "{line}: {lines:#?}");
    }
    let lines = show(&[("SECATEUR_BATCH_SIZE", "5")]);
    assert!(lines.contains(&"batch_size = 5 SECATEUR_BATCH_SIZE".to_owned()), "{lines:#?}");

    put(&folder.path().join("secateur.toml"), b"max_tokns = 7\n");
    let (code, _, err) = texts(&run(folder.path(), &["caption", "in"]));
    assert_eq!(code, 2);
    assert!(err.contains("did you mean `max_tokens`"), "{err}");
}

#[test]
fn a_named_file_wins_over_the_local_one() {
    let folder = pictures(0);
    put(&folder.path().join("secateur.toml"), b"max_tokens = 7\n");
    put(&folder.path().join("other.toml"), b"max_tokens = 9\n");
    let args = ["config", "show", "--origin", "--config", "other.toml"];
    let (code, out, _) = texts(&run(folder.path(), &args));
    assert_eq!(code, 0);
    assert!(
        out.lines()
            .any(|l| l.starts_with("max_tokens") && l.contains("9") && l.contains("other.toml"))
    );
}

#[test]
fn completions_exist_for_the_usual_shells() {
    let folder = pictures(0);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, _) = texts(&run(folder.path(), &["completions", shell]));
        assert_eq!(code, 0);
        assert!(out.contains("caption"), "{shell}");
    }
}

#[test]
fn version_and_help_go_to_stdout() {
    let folder = pictures(0);
    let (code, out, _) = texts(&run(folder.path(), &["--version"]));
    assert_eq!(code, 0);
    assert!(out.starts_with(concat!("secateur ", env!("CARGO_PKG_VERSION"))), "{out}");
    assert!(out.contains("kernels") && out.contains("features"), "{out}");
    let (code, out, _) = texts(&run(folder.path(), &["--help"]));
    assert_eq!(code, 0);
    assert!(out.contains("secateur caption PICTURES/"), "{out}");
    let (code, out, err) = texts(&run(folder.path(), &["capton"]));
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("caption"), "{err}");
}

#[test]
fn colours_obey_the_environment() {
    let folder = pictures(0);
    let coloured = |environment: &[(&str, &str)], args: &[&str]| {
        let ended = secateur(folder.path())
            .args(["inspect", "--image", "x", "--out", "x.bmp"])
            .args(args)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        texts(&ended).2.contains('\u{1b}')
    };
    assert!(!coloured(&[], &[]), "no colours without a terminal");
    assert!(coloured(&[("CLICOLOR_FORCE", "1")], &[]));
    assert!(!coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], &[]));
    assert!(coloured(&[("NO_COLOR", "1")], &["--color", "always"]));
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_hub_id_that_is_not_in_the_cache_has_two_ways_out() {
    let folder = pictures(1);
    for args in [
        &["ask", "-m", "tests/tiny", "-i", "in/000.png", "What?"][..],
        &["tokens", "-m", "tests/tiny", "--size", "9x9"],
        &["models", "tests/tiny", "--offline"],
    ] {
        let (code, _, err) = texts(&run(folder.path(), args));
        assert_eq!(code, 1, "{err}");
        for word in ["not in the hub cache", "hf download tests/tiny", "--features hub"] {
            assert!(err.contains(word), "{word}: {err}");
        }
    }
}

#[test]
fn a_mistyped_variable_is_named_with_the_nearest_one() {
    let folder = pictures(0);
    let explain = |name: &str, args: &[&str]| {
        let mut command = secateur(folder.path());
        texts(&command.env(name, "8").arg("explain").args(args).output().unwrap())
    };
    let (code, _, err) = explain("SECATEUR_BATCH_SIZ", &[]);
    assert_eq!(code, 0);
    assert!(err.contains("SECATEUR_BATCH_SIZ is set"), "{err}");
    assert!(err.contains("did you mean SECATEUR_BATCH_SIZE?"), "{err}");
    for (name, args) in
        [("SECATEUR_BATCH_SIZE", &[][..]), ("SECATEUR_BATCH_SIZ", &["-q"]), ("SECATEURX", &[])]
    {
        let (code, _, err) = explain(name, args);
        assert_eq!((code, err.as_str()), (0, ""), "{name}");
    }
}

#[test]
fn explain_says_what_the_run_keeps_and_which_budgets_cut_nothing() {
    let folder = pictures(0);
    let mut square = image::RgbImage::new(256, 256);
    square.enumerate_pixels_mut().for_each(|(x, y, p)| p.0 = [x as u8, y as u8, (x * y) as u8]);
    square.save(folder.path().join("s.png")).unwrap();
    let json = |args: &[&str]| -> serde_json::Value {
        let (code, out, err) = texts(&run(folder.path(), args));
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    for (chain, note) in [
        ("vtc_cls:keep=32,pool:keep=8", None),
        ("vtc_cls:keep=999,grid:keep=9", Some("`keep=999` cuts nothing: 256 tokens are there")),
        ("grid:retain=64,fastv:layer=2:keep=64", None),
    ] {
        let plan = json(&["explain", "--json", "--prune", chain]);
        let ask = ["ask", "s.png", "What?", "--max-tokens", "1", "--json", "--prune", chain];
        let ran = json(&ask);
        let counts = |of: &serde_json::Value, keys: [&str; 2]| -> Vec<(u64, u64)> {
            let number = |stage: &serde_json::Value, key: &str| stage[key].as_u64().unwrap();
            let stages = of.as_array().unwrap().iter();
            stages.map(|s| (number(s, keys[0]), number(s, keys[1]))).collect()
        };
        let planned = counts(&plan["stages"], ["tokens_in", "tokens_kept"]);
        assert_eq!(planned, counts(&ran["report"]["stages"], ["before", "kept"]), "{chain}");
        for notes in [&plan["notes"], &ran["report"]["notes"]] {
            let said = notes.to_string();
            assert_eq!(said.contains("cuts nothing"), note.is_some(), "{said}");
            assert!(said.contains(note.unwrap_or_default()), "{said}");
        }
    }
}

#[test]
fn a_limit_on_memory_makes_batches_smaller_or_says_what_is_needed() {
    let folder = pictures(3);
    let caption = |limit: &str| {
        let args =
            ["caption", "in", "--format", "jsonl", "--max-tokens", "2", "--max-memory", limit];
        texts(&run(folder.path(), &[&args[..], &["--jobs", "1"]].concat()))
    };
    let (code, out, err) = caption("16GiB");
    assert_eq!((code, out.lines().count()), (0, 3), "{err}");
    assert!(!err.contains("--max-memory"), "{err}");
    let (code, out, err) = caption("1MiB");
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    for word in ["--max-memory 1 MiB", "needs about", "weights", "keys and values", "pictures"] {
        assert!(err.contains(word), "{word}: {err}");
    }
    // Between the two lies a limit that one request fits and a usual batch does not.
    let need = |err: &str| {
        let mib = err.split("needs about ").nth(1).unwrap().split(' ').next().unwrap();
        mib.parse::<u64>().unwrap()
    };
    let (code, out, err) = caption(&format!("{}MiB", need(&err) + 2));
    assert_eq!((code, out.lines().count()), (0, 3), "{err}");
    assert!(err.contains("in flight instead of 8"), "{err}");
    for command in ["ask", "inspect"] {
        let mut args = vec![command, "-i", "in/000.png", "--max-memory", "1MiB"];
        args.extend(if command == "ask" { vec!["What?"] } else { vec!["--out", "o.png"] });
        let (code, _, err) = texts(&run(folder.path(), &args));
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("needs about"), "{err}");
    }
    let judges: [&[&str]; 3] = [
        &["eval", "in", "--out", "out"],
        &["tune", "--images", "in", "--keep", "16", "--out", "out"],
        &["calibrate", "--images", "in", "--layer", "2", "--out", "t.json"],
    ];
    for judge in judges {
        let (code, _, err) =
            texts(&run(folder.path(), &[judge, &["--max-memory", "1MiB"]].concat()));
        assert_eq!(code, 1, "{judge:?}: {err}");
        assert!(err.contains("needs about"), "{judge:?}: {err}");
        assert!(!folder.path().join("out").exists());
    }
}
