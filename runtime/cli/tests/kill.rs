//! Killed, interrupted, refused: no output is ever half there (T9, T10 of the specification).
//!
//! `SECATEUR_FULL=1` runs the full numbers: 300 pictures, 100 kills.
#![cfg(unix)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{is_full, pictures, put, records, run, secateur, texts, tree};

const QUICK: [&str; 6] = ["--max-tokens", "4", "--dtype", "f32", "-b", "2"];

fn start(folder: &Path, args: &[&str]) -> Child {
    secateur(folder)
        .arg("caption")
        .args(args)
        .args(QUICK)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(status.is_ok());
}

/// Instants from 20 ms to `most`, spread evenly but in no order.
fn instant(i: u64, most: Duration) -> Duration {
    let share = (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / f64::from(1u32 << 24);
    Duration::from_millis(20) + most.mul_f64(share)
}

/// Kills the job again and again, then lets it end; compares with an undisturbed run.
fn survives(args: &[&str], output: &str) {
    let (count, kills) = if is_full() { (300, 100) } else { (100, 9) };
    let calm = pictures(count);
    let began = Instant::now();
    assert!(start(calm.path(), args).wait().expect("the end").success());
    let whole = began.elapsed();

    let folder = pictures(count);
    for i in 0..kills {
        let mut child = start(folder.path(), args);
        std::thread::sleep(instant(i, whole / 3));
        signal(&child, ["-KILL", "-TERM", "-INT"][i as usize % 3]);
        let status = child.wait().expect("the end");
        let expected = [Some(0), Some(130), Some(143)];
        assert!(
            expected.contains(&status.code()) || status.signal().is_some(),
            "{status:?}: a signal ends the job with 130 or 143, or it was done"
        );
    }
    let mut runs = 0;
    while !start(folder.path(), args).wait().expect("the end").success() {
        runs += 1;
        assert!(runs < 3, "a rerun ends with 0");
    }
    let (disturbed, undisturbed) = (tree(folder.path()), tree(calm.path()));
    assert_eq!(disturbed.keys().collect::<Vec<_>>(), undisturbed.keys().collect::<Vec<_>>());
    for (name, bytes) in &disturbed {
        if name.extension().is_some_and(|e| e == "txt" || e == "png") {
            assert_eq!(Some(bytes), undisturbed.get(name), "{}", name.display());
        }
    }
    let read = |folder: &Path| fs::read_to_string(folder.join(output)).expect("records");
    let (mine, theirs) = (read(folder.path()), read(calm.path()));
    assert_eq!(records(&mine), records(&theirs));
    // A kill costs at most one batch of two.
    let lines = |text: &str| text.lines().filter(|l| l.contains("\"path\"")).count();
    assert!(lines(&mine) <= lines(&theirs) + 2 * kills as usize);
}

#[test]
fn text_files_survive_being_killed() {
    survives(&["in"], "in/.secateur/journal.jsonl");
}

#[test]
fn json_lines_survive_being_killed() {
    survives(&["in", "-o", "out.jsonl"], "out.jsonl");
}

#[test]
fn appending_survives_being_killed_and_never_appends_twice() {
    let (count, kills) = if is_full() { (100, 60) } else { (8, 6) };
    let folder = pictures(count);
    for i in 0..count {
        put(&folder.path().join(format!("in/{i:03}.txt")), b"mine");
    }
    let args = ["in", "--on-existing", "append", "--separator", "|"];
    for i in 0..kills {
        let mut child = start(folder.path(), &args);
        std::thread::sleep(instant(i, Duration::from_millis(700)));
        signal(&child, "-KILL");
        child.wait().unwrap();
    }
    assert!(start(folder.path(), &args).wait().unwrap().success());
    for i in 0..count {
        let text = fs::read_to_string(folder.path().join(format!("in/{i:03}.txt"))).unwrap();
        assert_eq!(text.matches('|').count(), 1, "{text}");
        assert!(text.starts_with("mine|"));
    }
}

#[test]
fn the_first_signal_finishes_the_batch_and_says_how_to_go_on() {
    let folder = pictures(if is_full() { 300 } else { 40 });
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let child = secateur(folder.path())
            .args(["caption", "in", "-o", "out.jsonl"])
            .args(QUICK)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let path = folder.path().join("out.jsonl");
        let lines = || fs::read_to_string(&path).map_or(0, |t| t.lines().count());
        let before = lines();
        let patience = Instant::now();
        while lines() == before && patience.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(&child, name);
        let ended = child.wait_with_output().unwrap();
        let (status, _, err) = texts(&ended);
        assert_eq!(status, code, "{err}");
        assert!(err.contains("run the same command again"), "{err}");
        assert!(fs::read_to_string(&path).unwrap().ends_with("}\n"));
    }
}

#[test]
fn a_second_writer_is_refused() {
    let folder = pictures(if is_full() { 300 } else { 40 });
    for (args, lock) in [
        (["in", "--on-existing", "skip"], "in/.secateur/lock"),
        (["in", "-o", "out.jsonl"], ".out.jsonl.lock"),
    ] {
        let mut first = start(folder.path(), &args);
        let lock = folder.path().join(lock);
        let patience = Instant::now();
        while fs::metadata(&lock).map_or(0, |m| m.len()) == 0
            && patience.elapsed() < Duration::from_secs(60)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let second = run(folder.path(), &[&["caption"], &args[..], &QUICK].concat());
        let (code, _, err) = texts(&second);
        signal(&first, "-KILL");
        first.wait().unwrap();
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(&format!("process {}", first.id())), "{err}");
    }
}

#[test]
fn an_output_that_cannot_be_written_ends_the_job_with_its_cause() {
    let folder = pictures(2);
    // A file where a folder must be made: refused for everybody, administrators included.
    put(&folder.path().join("flat"), b"");
    let (code, _, err) =
        texts(&run(folder.path(), &[&["caption", "in", "-o", "flat/out"], &QUICK[..]].concat()));
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("flat/out"), "{err}");

    let sealed = folder.path().join("sealed");
    fs::create_dir(&sealed).unwrap();
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::File::create(sealed.join("probe")).is_ok() {
        return; // An administrator writes anywhere.
    }
    let (code, _, err) =
        texts(&run(folder.path(), &[&["caption", "in", "-o", "sealed"], &QUICK[..]].concat()));
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("sealed"), "{err}");
}

#[test]
fn a_full_disk_leaves_whole_lines_only() {
    // Every write to this device fails with "no space left".
    if !Path::new("/dev/full").exists() {
        return;
    }
    let folder = pictures(2);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = secateur(folder.path())
        .args(["caption", "in", "--format", "jsonl"])
        .args(QUICK)
        .stdout(Stdio::from(full))
        .output()
        .unwrap();
    let (code, _, err) = texts(&ended);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("stdout"), "{err}");
}

#[test]
fn a_reader_that_goes_away_ends_the_job_quietly() {
    use std::io::Read;
    let folder = pictures(8);
    let mut child = secateur(folder.path())
        .args(["caption", "in", "--format", "jsonl"])
        .args(QUICK)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ended = child.wait_with_output().unwrap();
    let (code, _, err) = texts(&ended);
    assert_eq!((code, err.as_str()), (0, ""));
}
