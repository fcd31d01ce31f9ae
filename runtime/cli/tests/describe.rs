//! The commands that describe: `pruners`, `presets`, `man`, the costs of `explain`, and what
//! `inspect`, `eval` and `bench` say of what they show.

mod support;

use std::fs;

use support::{pictures, run, texts};

fn ok(folder: &std::path::Path, args: &[&str]) -> String {
    let (code, out, err) = texts(&run(folder, args));
    assert_eq!(code, 0, "{args:?}: {err}");
    out
}

fn value(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn pruners_lists_each_with_its_site_and_what_it_keeps() {
    let folder = pictures(0);
    let list = ok(folder.path(), &["pruners"]);
    for name in ["vtc_cls", "trans_prune", "debiased", "vla_pruner", "vflowopt", "pool"] {
        let line = list.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{list}"));
        assert!(line.len() > 30, "{line}");
    }
    assert_eq!(list.lines().count(), 1 + 14);
}

#[test]
fn a_pruner_is_described_with_paper_parameters_defaults_and_presets() {
    let folder = pictures(0);
    let page = ok(folder.path(), &["pruners", "vtc_cls"]);
    for part in [
        "Training-free Efficient MLLMs",
        "--prune vtc_cls:keep=64",
        "vtc-cls-llava1.5-64",
        "  ensemble_layers = 3\n",
        "  fallback = none\n",
        "also ratio, keep_ratio, retain, drop_ratio",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let json = value(&ok(folder.path(), &["pruners", "debiased", "--json"]));
    assert_eq!(json["pruners"][0]["parameters"][0]["name"], "inner");
}

#[test]
fn pruners_of_a_model_say_which_fit_it_and_why_others_do_not() {
    let folder = pictures(0);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/qwen3-vl-tiny");
    let json = value(&ok(folder.path(), &["pruners", "-m", model, "--json"]));
    let of = |name: &str| {
        json["pruners"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap().clone()
    };
    assert_eq!(of("pool")["fits"], true);
    assert_eq!(of("vtc_cls")["fits"], false);
    assert!(of("vtc_cls")["obstacle"].as_str().unwrap().contains("no class token"));
    let page = ok(folder.path(), &["pruners", "vtc_cls", "-m", model]);
    assert!(page.contains("it does not run on"), "{page}");
}

#[test]
fn a_name_that_is_mistyped_names_the_nearest() {
    let folder = pictures(0);
    for (args, nearest) in [
        (["pruners", "vct_cls"], "known are vtc_cls"),
        (["presets", "fastv-llava1.5"], "fastv-llava1.5-k2-r50"),
        (["man", "captoin"], "known are caption"),
    ] {
        let (code, out, err) = texts(&run(folder.path(), &args));
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(nearest), "{args:?}: {err}");
    }
}

#[test]
fn a_preset_is_printed_as_a_chain_file_that_runs() {
    let folder = pictures(0);
    let list = ok(folder.path(), &["presets"]);
    assert!(list.contains("fastv-llava1.5-k2-r50") && list.contains("FastV with K = 2"), "{list}");
    let text = ok(folder.path(), &["presets", "preset:fastv-llava1.5-k2-r50"]);
    support::put(&folder.path().join("chain.toml"), text.as_bytes());
    let explained = ok(folder.path(), &["explain", "--prune", "chain.toml"]);
    let named = ok(folder.path(), &["explain", "--prune", "preset:fastv-llava1.5-k2-r50"]);
    assert_eq!(explained, named);
    let json = value(&ok(folder.path(), &["presets", "--json"]));
    assert!(json["presets"].as_array().unwrap().len() > 20);
}

#[test]
fn man_pages_name_every_flag_of_every_command() {
    let folder = pictures(0);
    let page = ok(folder.path(), &["man"]);
    assert!(page.contains(".TH secateur 1") && page.contains("secateur\\-caption"), "{page}");
    ok(folder.path(), &["man", "--out", "man1"]);
    let caption = fs::read_to_string(folder.path().join("man1/secateur-caption.1")).unwrap();
    for flag in ["on\\-existing", "max\\-failures", "prune"] {
        assert!(caption.contains(flag), "{flag}");
    }
    assert!(folder.path().join("man1/secateur-config-show.1").is_file());
    assert_eq!(caption, ok(folder.path(), &["man", "caption"]));
}

#[test]
fn explain_says_what_a_chain_costs_beside_the_dense_run() {
    let folder = pictures(0);
    let args = ["explain", "--shape", "llava-1.5-7b", "--text", "0", "--prune"];
    let chain = "fastv:layer=2:keep=144";
    let page = ok(folder.path(), &[&args[..], &[chain]].concat());
    assert!(
        page.contains("prefill 7.55 TFLOP -> ") && page.contains("KV cache 288.0 MiB ->"),
        "{page}"
    );
    let json = value(&ok(folder.path(), &[&args[..], &[chain, "--json"]].concat()));
    let costs = &json["costs"];
    // 576 tokens in two layers and 144 in thirty, half a MiB a token and 32 layers.
    let kv = (2 * 576 + 30 * 144) * 2 * 4096 * 2;
    assert_eq!(costs["pruned"]["kv_bytes"], kv);
    assert_eq!(costs["dense"]["kv_bytes"], 576 * 32 * 2 * 4096 * 2);
    let none = ok(folder.path(), &[&args[..], &["none"]].concat());
    assert!(none.contains("costs      prefill 7.55 TFLOP; KV cache 288.0 MiB"), "{none}");
    let open = ok(folder.path(), &[&args[..], &["frame_diff"]].concat());
    assert!(open.contains("the picture decides"), "{open}");
}

#[test]
fn inspect_shows_both_answers_and_what_was_pooled() {
    let folder = pictures(1);
    let args = ["inspect", "-i", "in/000.png", "--prune", "pool:keep=64", "--max-tokens", "4"];
    ok(folder.path(), &[&args[..], &["--out", "map.html"]].concat());
    let html = fs::read_to_string(folder.path().join("map.html")).unwrap();
    let start = html.find("id=\"data\">").unwrap() + "id=\"data\">".len();
    let data = value(&html[start..start + html[start..].find("</script>").unwrap()]);
    for told in ["dense", "pruned"] {
        assert!(data[told]["times"].as_str().unwrap().contains("ms, first token after"), "{told}");
    }
    // Every cell of the picture is part of one of 64 sums of four.
    assert_eq!(data["rows"][1]["fates"], "ca");
    let line = data["views"][0]["lines"][1].as_str().unwrap();
    assert_eq!(line, "64 of 256 left (25 %), 192 summed into others");
    let groups = data["views"][0]["group"][0].as_array().unwrap();
    let mut sizes = std::collections::BTreeMap::new();
    for group in groups {
        *sizes.entry(group.as_u64().unwrap()).or_insert(0) += 1;
    }
    assert_eq!((sizes.len(), sizes.values().all(|n| *n == 4)), (64, true));
}

#[test]
fn bench_of_one_round_prints_no_spread_and_of_none_is_refused() {
    let folder = pictures(0);
    let args = ["bench", "--keep", "16", "--decode", "1", "--text", "4", "--repeats"];
    let page = ok(folder.path(), &[&args[..], &["1"]].concat());
    assert!(page.contains("one round, so no spread") && !page.contains("0 %"), "{page}");
    let json = value(&ok(folder.path(), &[&args[..], &["1", "--json"]].concat()));
    assert!(json["runs"][0]["ms"]["spread"].is_null(), "{json}");
    assert_eq!(texts(&run(folder.path(), &[&args[..], &["0"]].concat())).0, 2);
}

#[test]
fn bench_of_captions_counts_the_passes_of_both_ways() {
    let folder = pictures(0);
    let args = ["bench", "--captions", "3", "--in-flight", "2", "--repeats", "1", "--text", "4"];
    let json = value(&ok(folder.path(), &[&args[..], &["--keep", "8", "--json"]].concat()));
    let passes = |way: &str| json[way]["passes"].as_u64().unwrap() as f64;
    let ideal = json["ideal_passes"].as_f64().unwrap();
    assert_eq!(json["tokens"].as_f64().unwrap(), 2.0 * ideal);
    assert!(ideal <= passes("engine") && passes("engine") <= passes("waiting"), "{json}");
    assert!(json["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{json}");
    let page = ok(folder.path(), &args);
    assert!(page.contains("captions a minute") && page.contains("ratio"), "{page}");
}

#[test]
fn bench_of_turns_encodes_nothing_in_later_turns_of_a_held_chat() {
    let folder = pictures(0);
    let args = ["bench", "--turns", "3", "--repeats", "1", "--text", "4", "--decode", "2"];
    let json = value(&ok(folder.path(), &[&args[..], &["--keep", "8", "--json"]].concat()));
    let encode = |way: &str| json[way]["encode"].as_f64().unwrap();
    assert_eq!(encode("held"), 0.0, "{json}");
    assert!(encode("anew") > 0.0, "{json}");
    let page = ok(folder.path(), &args);
    assert!(page.contains("3 turns about one picture") && page.contains("ratio"), "{page}");
    let one = texts(&run(folder.path(), &["bench", "--turns", "1"]));
    assert!(one.0 == 2 && one.2.contains("at least 2"), "{one:?}");
}

#[test]
fn eval_does_not_compare_the_unpruned_model_with_itself() {
    let folder = pictures(2);
    let args = ["eval", "in", "--chains", "grid:keep={keep}", "--keep", "256,16", "--max-tokens"];
    let rest = ["4", "--json", "--theme", "dark"];
    let report = value(&ok(folder.path(), &[&args[..], &rest].concat()));
    let rows = report["rows"].as_array().unwrap();
    let of = |name: &str, keep: Option<u64>| {
        rows.iter().find(|r| r["name"] == name && r["keep"].as_u64() == keep).unwrap()
    };
    // The unpruned model, and a chain that keeps all of its 256 tokens.
    for row in [of("none", None), of("grid", Some(256))] {
        assert_eq!((&row["words"]["exact"], &row["words"]["mean"]), (&true.into(), &1.0.into()));
        assert!(row["difference"].is_null());
    }
    assert!(of("grid", Some(16))["words"]["exact"].is_null());
    let svg = fs::read_to_string(folder.path().join("secateur-eval/score.svg")).unwrap();
    assert!(svg.contains("prefers-color-scheme: dark"));
    let png = image::open(folder.path().join("secateur-eval/score.png")).unwrap().to_rgb8();
    assert!(png.get_pixel(0, 0).0.iter().all(|c| *c < 64), "{:?}", png.get_pixel(0, 0));
}

#[test]
fn models_and_doctor_forecast_memory_and_say_whether_it_fits() {
    let folder = pictures(0);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/qwen3-vl-tiny");
    let page = ok(folder.path(), &["models", model]);
    for part in ["memory ", "weights ", "keys and values ", "fits "] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let json = value(&ok(folder.path(), &["models", model, "--json"]));
    let parts = json["memory_forecast"].as_object().unwrap();
    assert!(parts["weights"].as_u64().unwrap() > 0 && parts["cache"].as_u64().unwrap() > 0);
    // A tiny model fits wherever this test runs, or the system does not say.
    assert!(["fits", "unknown"].contains(&json["fit"].as_str().unwrap()), "{json}");
    let page = ok(folder.path(), &["doctor"]);
    assert!(page.contains("llava-1.5-7b ("), "{page}");
    let json = value(&ok(folder.path(), &["doctor", "--json"]));
    assert_eq!(json["forecasts"].as_array().unwrap().len(), 4);
}
