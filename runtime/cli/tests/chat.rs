//! `chat` through the real program, its lines from a pipe: one question a line, answers on stdout.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::{repository, run, secateur, texts};

/// Runs `chat` with these lines typed.
fn chat(folder: &Path, args: &[&str], typed: &[u8]) -> Output {
    let mut child = secateur(folder)
        .arg("chat")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(typed).expect("it reads");
    child.wait_with_output().expect("it ends")
}

#[test]
fn questions_are_answered_line_by_line_and_the_picture_is_encoded_once() {
    let folder = support::pictures(1);
    let picture = "in/000.png";
    let args = ["-i", picture, "--max-tokens", "12", "--dtype", "f32"];
    let typed = b"What is this?\n/stats\n\nIs it red?\n/stats\n/quit\nNot asked\n";
    let (code, out, err) = texts(&chat(folder.path(), &args, typed));
    assert_eq!(code, 0, "{err}");
    let answers: Vec<&str> = out.lines().collect();
    assert_eq!(answers.len(), 2, "{out}");
    assert!(!out.contains('>') && !err.contains("/help"), "no prompt for a pipe: {out}{err}");
    let asked = run(folder.path(), &[&["ask"], &args[..], &["What is this?"]].concat());
    assert_eq!(texts(&asked).1.trim_end(), answers[0]);
    let how: Vec<&str> = err.lines().filter(|l| l.starts_with("encoded ")).collect();
    assert_eq!(how.len(), 2, "{err}");
    assert!(how[0].contains("all: no rows") && how[1].contains("not again"), "{how:?}");
    assert!(err.contains("keys and values"), "{err}");

    // The second answer is that of the whole conversation: without the first question it differs.
    let alone = chat(folder.path(), &args, b"What is this?\n/reset\nIs it red?\n/stats\n");
    let (code, again, err) = texts(&alone);
    assert_eq!((code, again.lines().next()), (0, Some(answers[0])));
    let text = |err: &str| -> Vec<String> {
        err.lines().filter(|l| l.starts_with("tokens ")).map(str::to_owned).collect()
    };
    assert!(text(&err).len() == 1 && err.contains("a new conversation, 1 picture"), "{err}");
}

#[test]
fn another_chain_and_another_picture_in_the_middle() {
    let folder = support::pictures(2);
    let typed = b"/prune vtc_cls:keep=32\nWhat?\n/stats\n/image in/001.png\nWhat?\n/stats\n\
                  /image\n/prune none\nWhat?\n/stats\n/prune\n/reset all\n/image\n";
    let args = ["--image", "in/000.png", "--max-tokens", "4"];
    let (code, out, err) = texts(&chat(folder.path(), &args, typed));
    assert_eq!((code, out.lines().count()), (0, 3), "{err}");
    let how: Vec<&str> = err.lines().filter(|l| l.starts_with("encoded ")).collect();
    assert!(how[0].contains("all:") && how[1].contains("1 of 2"), "{how:?}");
    assert!(how[2].contains("not again"), "a chain that reads less: {how:?}");
    assert!(err.contains("vtc_cls") && err.contains("no stage: all"), "{err}");
    assert!(err.contains("2 pictures") && err.trim_end().ends_with("no picture"), "{err}");
}

#[test]
fn what_goes_wrong_is_said_and_the_conversation_goes_on() {
    let folder = support::pictures(1);
    std::fs::copy(folder.path().join("in/000.png"), folder.path().join("cut.png")).expect("a copy");
    let cut = std::fs::OpenOptions::new().write(true).open(folder.path().join("cut.png"));
    cut.expect("a file").set_len(60).expect("shorter");
    let long = "word ".repeat(9000);
    let typed = [
        &b"/nothing\n/image missing.png\n/image cut.png\n/image -\n/prune vct_cls\n/stats now\n"[..],
        b"/prune fastv:layer=99:keep=4\n\xff\xfe\n",
        long.as_bytes(),
        b"\n/\nWhat?\n",
    ];
    let args = ["-i", "in/000.png", "--max-tokens", "4"];
    let (code, out, err) = texts(&chat(folder.path(), &args, &typed.concat()));
    assert_eq!((code, out.lines().count()), (3, 1), "{out}{err}");
    assert_eq!(err.lines().filter(|l| l.starts_with("error:")).count(), 10, "{err}");
    for said in ["`/nothing`", "missing.png", "cut.png", "vct_cls", "UTF-8", "/reset forgets"] {
        assert!(err.contains(said), "{said}: {err}");
    }
    assert!(!err.contains("panic"), "{err}");
    // What keeps it from beginning ends it: a usage error, a picture that is not there.
    let begun = |args: &[&str]| texts(&chat(folder.path(), args, b"What?\n"));
    assert_eq!(begun(&["--prune", "vct_cls"]).0, 2);
    assert_eq!(begun(&["-i", "missing.png"]).0, 1);
    assert_eq!(begun(&["-i", "-"]).0, 1);
}

#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    let folder = support::pictures(1);
    let model = repository().join("tests/golden/models/llava-1.5-tiny");
    let mut child = secateur(folder.path())
        .args(["chat", "-i", "in/000.png", "--max-tokens", "1900", "--dtype", "f32", "-m"])
        .arg(model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut typed = child.stdin.take().expect("a pipe");
    let mut out = child.stdout.take().expect("a pipe");
    // Ready before the answer begins: to start a program may take longer than the answer.
    let mut interrupt = Command::new("sh")
        .args(["-c", "read go; kill -INT $0", &child.id().to_string()])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut go = interrupt.stdin.take().expect("a pipe");
    typed.write_all(b"Tell me a long story.\n").expect("it reads");
    // The first words are there, some 1,900 tokens are not.
    let mut first = [0; 1];
    out.read_exact(&mut first).expect("an answer begins");
    go.write_all(b"now\n").expect("the shell reads");
    assert!(interrupt.wait().is_ok_and(|s| s.success()));
    typed.write_all(b"/stats\n/reset\n/quit\n").expect("it goes on");
    out.read_to_end(&mut Vec::new()).expect("its end");
    let ended = child.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{err}");
    assert!(err.contains("stopped") && err.contains("a new conversation"), "{err}");
    let tokens =
        err.lines().find(|l| l.starts_with("tokens ")).expect("the stats of what was said");
    let said: usize = tokens
        .rsplit(", ")
        .next()
        .and_then(|n| n.split(' ').next()?.parse().ok())
        .expect("a number");
    assert!(said < 1900, "{tokens}");
}

#[test]
fn an_interrupt_between_answers_ends_a_program_that_reads_a_pipe() {
    let folder = support::pictures(1);
    let mut child = secateur(folder.path())
        .args(["chat", "-i", "in/000.png", "--max-tokens", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut typed = child.stdin.take().expect("a pipe");
    typed.write_all(b"What?\n/image\n").expect("it reads");
    // The line behind the answer was dealt with: nothing runs any more.
    let mut err = child.stderr.take().expect("a pipe");
    let mut seen = Vec::new();
    while !seen.ends_with(b"000.png\n") {
        let mut byte = [0; 1];
        err.read_exact(&mut byte).expect("the list of pictures");
        seen.push(byte[0]);
    }
    let id = child.id().to_string();
    let interrupt = || Command::new("kill").args(["-INT", &id]).status();
    // One that comes before the program waits again is that of the line before.
    while child.try_wait().expect("a state").is_none() {
        assert!(interrupt().is_ok());
    }
    assert_eq!(child.wait().expect("the end").code(), Some(130));
    drop(typed);
}
