//! Durability "always": the fsync precedes the reply; and the data directory is guarded.

use std::path::Path;
use std::process::Command;

use integration::{Server, Value};

/// A system call as printed by strace: start, name, arguments, result.
struct Call {
    began: f64,
    took: f64,
    name: String,
    line: String,
}

/// Parses the output of `strace -f -ttt -T`, and joins calls that were interrupted by
/// other threads.
fn calls(file: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(file).expect("strace wrote its file");
    let mut unfinished = std::collections::HashMap::<String, (f64, String)>::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        // Thread ids are padded: several blanks may follow.
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((stamp, rest)) = rest.trim_start().split_once(' ') else { continue };
        let mut began =
            stamp.parse::<f64>().expect("strace -ttt begins each line with a thread and a time");
        let mut rest = rest.trim_start().to_owned();
        if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread.to_owned(), (began, head.to_owned()));
            continue;
        }
        if rest.starts_with("<... ") {
            let Some((from, head)) = unfinished.remove(thread) else { continue };
            let tail = rest.split_once("resumed>").map_or("", |(_, tail)| tail);
            (began, rest) = (from, format!("{head}{tail}"));
        }
        let name = rest.split('(').next().unwrap_or_default().to_owned();
        let took = rest
            .rsplit('<')
            .next()
            .and_then(|text| text.trim_end_matches('>').parse().ok())
            .unwrap_or(0.0);
        calls.push(Call { began, took, name, line: rest });
    }
    calls.sort_by(|a, b| a.began.total_cmp(&b.began));
    calls
}

/// Starts a server under strace, executes `SET marker-<n>` a few times, and returns the
/// system calls.
fn traced(durability: &str, writes: usize) -> Vec<Call> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("trace");
    let path = file.display().to_string();
    let trace = [
        "strace",
        "-f",
        "-ttt",
        "-T",
        "-s",
        "64",
        "-e",
        "trace=fsync,fdatasync,write,writev,sendto,sendmsg,recvfrom,read",
        "-o",
        &path,
    ];
    let mut server = Server::builder().flag("durability", durability).under(&trace).start();
    let mut client = server.client();
    client.run("SET warm up");
    for n in 0..writes {
        assert_eq!(
            client.call(&["SET", &format!("marker-{n}"), "v"]).expect("a live server"),
            Value::ok()
        );
    }
    // The traced process is strace's child: it is stopped by a command.
    client.send(&["SHUTDOWN", "NOSAVE"]).expect("a live server");
    server.wait();
    calls(&file)
}

/// For each marked write: true if a sync began after the command was read and ended
/// before the reply was sent.
fn synced_before_reply(calls: &[Call], writes: usize) -> Vec<bool> {
    (0..writes)
        .map(|n| {
            let marker = format!("marker-{n}\\r\\n");
            let read = calls.iter().find(|call| {
                call.line.contains(&marker) && (call.name == "recvfrom" || call.name == "read")
            });
            let read = read.unwrap_or_else(|| panic!("no read of {marker} in the trace"));
            let reply = calls.iter().find(|call| {
                call.began > read.began
                    && call.line.contains("+OK\\r\\n")
                    && ["write", "writev", "sendto", "sendmsg"].contains(&&*call.name)
            });
            let reply = reply.unwrap_or_else(|| panic!("no reply to {marker} in the trace"));
            calls.iter().any(|call| {
                (call.name == "fsync" || call.name == "fdatasync")
                    && call.began >= read.began
                    && call.began + call.took <= reply.began
            })
        })
        .collect()
}

#[test]
fn with_always_the_fsync_ends_before_the_reply_begins() {
    let calls = traced("always", 20);
    assert!(synced_before_reply(&calls, 20).into_iter().all(|synced| synced));
}

#[test]
fn with_os_no_reply_waits_for_an_fsync() {
    // The same test on a server with a weaker durability: it must tell the difference.
    let calls = traced("os", 20);
    let synced = synced_before_reply(&calls, 20).into_iter().filter(|synced| *synced).count();
    assert!(synced <= 2, "{synced} of 20 replies came after an fsync");
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let server = Server::start();
    let mut second = Server::builder().dir(server.dir()).spawn();
    assert!(!second.wait().success());
    let output = second.output();
    assert!(output.contains("in use") || output.contains("another process"), "{output}");
    assert_eq!(server.client().run("PING"), Value::Status("PONG".into()));
}

#[test]
fn a_directory_of_another_cluster_is_refused() {
    let mut server = Server::builder().config("[cluster]\nname = \"one\"").start();
    server.stop();
    let mut other = Server::builder().dir(server.dir()).config("[cluster]\nname = \"two\"").spawn();
    assert!(!other.wait().success());
    let output = other.output();
    assert!(output.contains("one") && output.contains("two"), "{output}");
}

#[test]
fn a_graceful_stop_keeps_everything() {
    let mut server = Server::builder().flag("durability", "os").start();
    let mut client = server.client();
    for n in 0..1000 {
        client.run(&format!("SET key:{n} {n}"));
    }
    assert!(server.stop().success());
    server.restart();
    let mut client = server.client();
    assert_eq!(client.run("DBSIZE"), Value::Int(1000));
    assert_eq!(client.run("GET key:999"), Value::bulk("999"));
}

/// Files of the server's directory with this suffix, largest first.
fn files(dir: &Path, ending: &str) -> Vec<std::path::PathBuf> {
    let output = Command::new("find")
        .arg(dir)
        .args(["-type", "f", "-name", &format!("*{ending}")])
        .output()
        .expect("find is everywhere");
    let mut found: Vec<std::path::PathBuf> =
        String::from_utf8_lossy(&output.stdout).lines().map(Into::into).collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().map_or(0, |meta| meta.len())));
    found
}

/// The report names the file, and its content is never returned as data.
#[test]
fn a_corrupt_table_file_is_reported_and_never_read() {
    let mut server = Server::start();
    let mut client = server.client();
    for n in 0..2000 {
        client.run(&format!("SET key:{n} {}", "x".repeat(100)));
    }
    assert!(server.stop().success());
    let damaged =
        files(server.dir(), ".sst").into_iter().next().expect("a stop flushes to table files");
    let mut bytes = std::fs::read(&damaged).expect("read the table file");
    let middle = bytes.len() / 3;
    bytes[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&damaged, bytes).expect("damage the table file");
    server.restart();
    let mut client = server.client();
    let replies: Vec<Value> = (0..2000).map(|n| client.run(&format!("GET key:{n}"))).collect();
    assert!(replies.iter().any(Value::is_error), "the damage was not noticed");
    for reply in &replies {
        assert!(
            reply.is_error() || *reply == Value::bulk(&"x".repeat(100)),
            "a damaged file gave {reply:?}"
        );
    }
    let name = damaged.file_name().expect("a file").to_string_lossy().into_owned();
    assert!(server.output().contains(&name), "the log does not name {name}:\n{}", server.output());
}

/// strace attached to a running server; detached on drop.
struct Traced(std::process::Child);

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill").arg(self.0.id().to_string()).status();
        self.0.wait().expect("strace ends");
    }
}

#[test]
fn pages_do_not_wait_for_a_stalled_disk() {
    let server = Server::builder().start();
    server.client().run("SET k v");
    assert_eq!((server.page("/health/ready").0, server.page("/metrics").0), (200, 200));
    // Each call of statfs takes ten seconds.
    let inject = "inject=statfs,fstatfs:delay_enter=10000000";
    let mut strace = std::process::Command::new("strace");
    strace.args([
        "-f",
        "-q",
        "-e",
        "trace=statfs,fstatfs",
        "-e",
        inject,
        "-o",
        "/dev/null",
        "-p",
        &server.pid().to_string(),
    ]);
    let traced = Traced(strace.spawn().expect("strace"));
    let ask = |path: &str| {
        let began = std::time::Instant::now();
        let (status, page) = server.page(path);
        assert!(
            began.elapsed() < std::time::Duration::from_secs(5),
            "{path} took {:?}",
            began.elapsed()
        );
        assert_eq!(status, 200, "{page}");
        page
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !ask("/health/ready").contains("waits for a disk") {
        assert!(std::time::Instant::now() < deadline, "strace stalls nothing");
    }
    let metrics = ask("/metrics");
    let age = metrics
        .lines()
        .find_map(|line| line.strip_prefix("bridle_gauges_age_seconds "))
        .expect("the metric");
    assert!(age.parse::<f64>().expect("a number") > 0.5, "{age}");
    drop(traced);
}
