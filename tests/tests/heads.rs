//! Heads read a run in the words in which pruners read it: attention rows by original index, with
//! what was cut before a layer unknown there, beside an answer that no bit changes.

use std::path::Path;
use std::sync::Arc;

use secateur::signal::Rows;
use secateur::{
    Answer, AttentionRead, AttentionRows, Error, ErrorKind, Finished, Head, ModelInfo, Queried,
    Reading, Reduction, Request, Vlm,
};
use secateur_tests::golden;

/// Hands out what it was given.
#[derive(Debug)]
struct Reader(Vec<AttentionRead>);

impl Head for Reader {
    fn name(&self) -> &str {
        "reader"
    }

    fn reads(&self, _model: &ModelInfo) -> Result<Vec<AttentionRead>, String> {
        Ok(self.0.clone())
    }

    fn read(&self, run: &Finished<'_>) -> Result<serde_json::Value, String> {
        let rows = |r: &AttentionRows| {
            let rows: Vec<Vec<f32>> = r.rows.rows().into_iter().map(|row| row.to_vec()).collect();
            serde_json::json!({ "rows": rows, "known": r.known, "elsewhere": r.elsewhere })
        };
        Ok(serde_json::json!({
            "reads": run.reads.iter().map(rows).collect::<Vec<_>>(),
            "probabilities": run.probabilities,
            "tokens": run.tokens.len(),
            "ids": run.ids,
        }))
    }
}

fn open(model: &str) -> Vlm {
    Vlm::builder(golden().join("models").join(model))
        .precision(secateur::Precision::F32)
        .threads(1)
        .open()
        .expect("it opens")
}

fn request(chain: &str) -> Request {
    let picture: &Path = &golden().join("images/shapes-160x120.png");
    let request = Request::new("What is this?").path(picture).expect("a picture");
    request.chain(chain).max_tokens(4).ignore_eos().detail()
}

fn ask(vlm: &Vlm, request: Request) -> Answer {
    vlm.session().ask(request).expect("it runs").finish().expect("it ends")
}

fn read(layer: usize, queries: Queried, heads: Reduction) -> AttentionRead {
    AttentionRead { layer, queries, heads }
}

fn rows(answer: &Answer, read: usize) -> Vec<Vec<f32>> {
    serde_json::from_value(answer.heads[0].output["reads"][read]["rows"].clone()).expect("rows")
}

fn known(answer: &Answer, read: usize) -> Vec<bool> {
    serde_json::from_value(answer.heads[0].output["reads"][read]["known"].clone()).expect("flags")
}

#[test]
fn rows_stand_at_original_indices_and_change_no_bit_of_the_answer() {
    // One-axis positions, M-RoPE, a prompt that sees itself, windows.
    for model in ["llava-1.5-tiny", "qwen2.5-vl-tiny", "paligemma-tiny", "internvl-tiny"] {
        let vlm = open(model);
        let heads = vlm.info().decoder.attn_heads;
        for chain in ["none", "grid:keep=5", "fastv:layer=1:keep=5"] {
            let reader = Arc::new(Reader(vec![
                read(0, Queried::Prompt(Rows::Instruction), Reduction::Mean),
                read(1, Queried::Prompt(Rows::Last), Reduction::Each),
                read(1, Queried::Generated, Reduction::Listed(vec![1, 0])),
                read(1, Queried::Generated, Reduction::Max),
            ]));
            let place = format!("{model}, {chain}");
            let plain = ask(&vlm, request(chain));
            let answer = ask(&vlm, request(chain).head(reader.clone()));
            assert_eq!(answer.ids, plain.ids, "{place}");
            assert_eq!(answer.report.logits, plain.report.logits, "{place}");
            assert!(plain.heads.is_empty() && answer.heads[0].error.is_none(), "{place}");

            let visual = answer.report.visual_in;
            let counts = [1, heads, 2 * answer.ids.len(), answer.ids.len()];
            for (i, count) in counts.into_iter().enumerate() {
                let rows = rows(&answer, i);
                assert_eq!(rows.len(), count, "{place}, read {i}");
                assert!(rows.iter().all(|row| row.len() == visual), "{place}, read {i}");
                let elsewhere = &answer.heads[0].output["reads"][i]["elsewhere"];
                for (row, rest) in rows.iter().zip(elsewhere.as_array().expect("one a row")) {
                    let sum = row.iter().sum::<f32>() + rest.as_f64().unwrap() as f32;
                    // Rows of single heads, or their mean, are whole; a maximum is more.
                    let is_whole = (sum - 1.0).abs() < 1e-4;
                    assert!(
                        if i == 3 { sum > 0.999 } else { is_whole },
                        "{place}: {i} sums to {sum}"
                    );
                }
            }
            // What a cut took away is unknown in the layers behind it, and in those alone.
            let kept = answer.report.stages.last().map_or(visual, |stage| stage.kept);
            let behind = known(&answer, 1).iter().filter(|k| **k).count();
            assert_eq!(behind, kept, "{place}");
            let ahead = if chain.starts_with("fastv") { visual } else { kept };
            assert_eq!(known(&answer, 0).iter().filter(|k| **k).count(), ahead, "{place}");
            if let Some(stage) = answer.report.stages.last() {
                for (index, known) in known(&answer, 1).into_iter().enumerate() {
                    assert_eq!(known, stage.indices.contains(&(index as u32)), "{place}: {index}");
                }
            }
            let [last, first] = [&rows(&answer, 1), &rows(&answer, 2)];
            assert_eq!(first[..2], [last[1].clone(), last[0].clone()], "{place}: token 0");
        }
    }
}

#[test]
fn a_head_and_a_pruner_that_read_the_same_rows_see_the_same() {
    let vlm = open("llava-1.5-tiny");
    let mean = read(1, Queried::Prompt(Rows::Last), Reduction::Mean);
    let answer = ask(&vlm, request("fastv:layer=2:keep=5").head(Arc::new(Reader(vec![mean]))));
    let (index, scores) = answer.report.stages[0].scores.clone().expect("the scores of the cut");
    let row = &rows(&answer, 0)[0];
    assert!(index.iter().zip(&scores).all(|(&i, score)| row[i as usize] == *score));
}

#[test]
fn requests_side_by_side_and_streams_read_what_they_read_alone() {
    let vlm = open("llava-1.5-tiny");
    let reads = vec![
        read(2, Queried::Prompt(Rows::Last), Reduction::GroupMax),
        read(2, Queried::Generated, Reduction::Each),
    ];
    let reader: Arc<dyn Head> = Arc::new(Reader(reads));
    let chains = ["none", "grid:keep=5", "fastv:layer=1:keep=7"];
    let asked = |chain: &&str| request(chain).head(reader.clone());
    let alone: Vec<Answer> = chains.iter().map(|chain| ask(&vlm, asked(chain))).collect();
    let beside = vlm.batch(chains.iter().map(asked).collect());
    for (alone, beside) in alone.iter().zip(beside) {
        assert_eq!(beside.expect("it runs").heads, alone.heads);
    }
    let mut session = vlm.session();
    let mut stream = session.ask(asked(&chains[1])).expect("it runs");
    assert!(stream.by_ref().all(|piece| piece.is_ok()));
    assert_eq!(stream.finish().expect("it ends").heads, alone[1].heads);
}

#[test]
fn a_later_turn_reads_its_whole_prompt_for_a_head_that_looks_at_it() {
    let vlm = open("llava-1.5-tiny");
    let mean = read(0, Queried::Prompt(Rows::Instruction), Reduction::Mean);
    let looks: Arc<dyn Head> = Arc::new(Reader(vec![mean]));
    let counts: Arc<dyn Head> = Arc::new(Reader(Vec::new()));
    let mut session = vlm.session();
    let mut turn = |head: &Arc<dyn Head>| {
        let asked = request("none").turn("What?", "A thing.").head(head.clone());
        session.ask(asked).expect("it runs").finish().expect("it ends")
    };
    assert_eq!(turn(&looks).report.reuse.read, Reading::First);
    let again = turn(&looks);
    assert_eq!(again.report.reuse.read, Reading::ForHeads);
    assert_eq!(again.heads, turn(&looks).heads);
    // One that looks at no row loses nothing by what is held.
    let held = turn(&counts);
    assert_eq!(held.report.reuse.read, Reading::Continued);
    assert_eq!(held.heads[0].output["ids"], again.heads[0].output["ids"]);
}

#[test]
fn probabilities_are_those_of_the_logits() {
    let vlm = open("llava-1.5-tiny");
    let answer = ask(&vlm, request("none").head(Arc::new(Reader(Vec::new()))));
    let given: Vec<f32> =
        serde_json::from_value(answer.heads[0].output["probabilities"].clone()).expect("numbers");
    assert_eq!(given.len(), answer.ids.len());
    for ((logits, &id), given) in answer.report.logits.iter().zip(&answer.ids).zip(given) {
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = f64::from(logits[id as usize]).exp() / sum;
        assert!((expected - f64::from(given)).abs() < 1e-6);
    }
}

#[test]
fn what_a_head_cannot_do_is_said() {
    let vlm = open("llava-1.5-tiny");
    let refused = |chain: &str, head: AttentionRead| {
        let asked = request(chain).head(Arc::new(Reader(vec![head])));
        let error = vlm.session().ask(asked).map(drop).expect_err("it cannot");
        assert_eq!(error.kind(), ErrorKind::Head, "{error}");
        error.to_string()
    };
    let layer = refused("none", read(99, Queried::Generated, Reduction::Mean));
    assert!(layer.contains("`reader`") && layer.contains("layer 99"), "{layer}");
    let head = refused("none", read(0, Queried::Generated, Reduction::Listed(vec![0, 64])));
    assert!(head.contains("attention head 64"), "{head}");

    /// Refuses every answer, or throws.
    #[derive(Debug)]
    struct Broken(bool);
    impl Head for Broken {
        fn name(&self) -> &str {
            "broken"
        }
        fn reads(&self, _: &ModelInfo) -> Result<Vec<AttentionRead>, String> {
            Ok(Vec::new())
        }
        fn read(&self, run: &Finished<'_>) -> Result<serde_json::Value, String> {
            assert!(self.0, "thrown");
            Err(format!("`{}` is no box", run.text))
        }
    }
    let both = request("none").head(Arc::new(Broken(true))).head(Arc::new(Broken(false)));
    let answer = ask(&vlm, both);
    assert!(answer.heads[0].error.as_ref().is_some_and(|e| e.contains("is no box")));
    assert!(answer.heads[1].error.as_ref().is_some_and(|e| e.contains("thrown")));
    assert_eq!(answer.ids, ask(&vlm, request("none")).ids);
    let late = request("none").head(Arc::new(Broken(true))).deadline(std::time::Instant::now());
    assert!(matches!(vlm.session().ask(late), Err(Error::Cancelled { .. })));
}
