//! A full disk: writes are refused with Redis's MISCONF, reads succeed, no process ends,
//! and writes resume automatically when there is space again.
//!
//! The disk is a small tmpfs in a mount namespace (Linux, root or user namespaces); the
//! test runs itself again inside, and prints a note where mounting is not permitted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use integration::{Client, Server, ServerBuilder, Value, within};

/// The mount point; set in the run inside the namespace.
const INSIDE: &str = "BRIDLE_TEST_SMALL_DISK";
/// Size of a value: the disk is full after some hundred writes.
const VALUE_BYTES: usize = 100_000;

/// Runs the named test again with a disk of 256 MB; true in that second run.
fn small_disk(test: &str) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(INSIDE) {
        return Some(disk.into());
    }
    let disk = tempfile::tempdir().expect("a directory");
    let namespace = |flags: &str| {
        let mut command = Command::new("unshare");
        command.arg(flags);
        command
    };
    let flags = ["-m", "-rm"].into_iter().find(|flags| {
        namespace(flags).arg("true").output().is_ok_and(|output| output.status.success())
    });
    let Some(flags) = flags else {
        eprintln!("SKIPPED: this system permits no mount namespace");
        return None;
    };
    let script =
        "mount -t tmpfs -o size=256m small \"$1\" && exec \"$2\" --exact \"$3\" --nocapture";
    let inner = namespace(flags)
        .args(["sh", "-c", script, "sh"])
        .arg(disk.path())
        .arg(std::env::current_exe().expect("a running test has a path"))
        .arg(test)
        .env(INSIDE, disk.path())
        .output()
        .expect("unshare ran a moment ago");
    let output = [inner.stdout, inner.stderr].concat();
    assert!(inner.status.success(), "{}", String::from_utf8_lossy(&output));
    None
}

/// A server with small settings on the small disk.
fn server(disk: &Path) -> ServerBuilder {
    Server::builder()
        .dir(&disk.join("data"))
        .flag("set", "raft_log.segment_size=1MiB")
        .flag("set", "storage.memtables=2MiB")
}

/// Fills the disk to its last byte.
fn fill(disk: &Path) -> PathBuf {
    let ballast = disk.join("ballast");
    fill_up(&ballast);
    ballast
}

/// Fills the space that has become free.
fn fill_up(ballast: &Path) {
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(ballast)
        .expect("a file's name needs no room");
    for size in [1 << 20, 4096, 1] {
        while std::io::Write::write(&mut file, &vec![1; size]).is_ok_and(|written| written > 0) {}
    }
}

/// An incompressible value that depends on the key.
fn value(n: usize) -> Vec<u8> {
    let mut state = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = Vec::with_capacity(VALUE_BYTES);
    while noise.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(VALUE_BYTES);
    noise
}

fn set(client: &mut Client, n: usize) -> Value {
    client.call(&[b"SET", format!("key:{n}").as_bytes(), &value(n)]).expect("the server lives")
}

/// Writes keys from `from` on until they are refused permanently, with Redis's error;
/// returns the number of acknowledged writes. A compaction or a flush may free some space
/// after a first refusal. The write in flight when the last byte is used may have an
/// unknown outcome; its reply must say so, and soon.
fn write_until_refused(client: &mut Client, from: usize) -> usize {
    let (mut n, mut refused) = (from, None::<Instant>);
    while refused.is_none_or(|since| since.elapsed() < Duration::from_secs(2)) {
        match set(client, n) {
            Value::Error(text) => {
                assert!(
                    text.starts_with("MISCONF ") || text.starts_with("UNKNOWNOUTCOME "),
                    "{text}"
                );
                refused.get_or_insert_with(Instant::now);
                std::thread::sleep(Duration::from_millis(50));
            }
            reply => {
                assert_eq!(reply, Value::ok());
                (n, refused) = (n + 1, None);
                // The server checks the disk four times a second: the writer must stay
                // within the reserve until then.
                std::thread::sleep(Duration::from_millis(4));
            }
        }
        assert!(n < from + 3000, "300 MB fit on a disk of 256");
    }
    n
}

fn check_all(client: &mut Client, acknowledged: usize) {
    for n in 0..acknowledged {
        let found = client.run(&format!("GET key:{n}"));
        assert!(
            found == Value::Bulk(value(n)),
            "key {n} of {acknowledged} is not what was acknowledged: {:.80}",
            found.text()
        );
    }
}

/// All commands but writes succeed.
fn reads_go_on(server: &Server, acknowledged: usize) {
    let mut client = server.client();
    assert_eq!(client.run("PING"), Value::Status("PONG".into()));
    assert!(client.run("DBSIZE").int() >= acknowledged as i64);
    assert_eq!(client.run("EXISTS key:0"), Value::Int(1));
    assert!(!client.run("SCAN 0").is_error());
    check_all(&mut client, acknowledged);
    let (ready, why) = server.page("/health/ready");
    match ready {
        503 => assert!(!why.is_empty()),
        // A late compaction may have freed space.
        _ => assert_eq!(client.run("SET late 1"), Value::ok(), "{ready} {why}"),
    }
    assert_eq!(server.page("/health/live").0, 200);
}

fn writes_return(client: &mut Client, n: usize) {
    within(30, "writes go on by themselves", || match set(client, n) {
        Value::Error(text) => {
            assert!(text.starts_with("MISCONF "), "{text}");
            false
        }
        reply => reply == Value::ok(),
    });
}

/// Writes fill the disk; after files are deleted by hand, writes resume.
#[test]
fn a_full_disk_loses_nothing_and_freed_space_resumes_writes() {
    let Some(disk) = small_disk("a_full_disk_loses_nothing_and_freed_space_resumes_writes") else {
        return;
    };
    // A file of the operator that can be deleted later.
    std::fs::write(disk.join("something"), vec![1; 150 << 20]).expect("the disk is empty");
    let mut server = server(&disk).start();
    let mut client = server.client();
    let acknowledged = write_until_refused(&mut client, 0);
    assert!(acknowledged > 50, "{acknowledged} writes filled the disk");
    for command in ["INCR counter", "HSET hash field value", "FLUSHALL", "SELECT 7"] {
        let reply = client.run(command);
        assert_eq!(
            reply.text().starts_with("MISCONF "),
            command != "SELECT 7",
            "{command}: {reply:?}"
        );
    }
    // Another table has its own store, for which the space freed by a failed compaction
    // may suffice.
    let reply = client.run("SET in-a-new-table 1");
    assert!(reply == Value::ok() || reply.text().starts_with("MISCONF "), "{reply:?}");
    reads_go_on(&server, acknowledged);

    // The state survives a crash.
    server.restart();
    reads_go_on(&server, acknowledged);
    let mut client = server.client();
    // The start may have freed a little space.
    let acknowledged = write_until_refused(&mut client, acknowledged);
    check_all(&mut client, acknowledged);

    std::fs::remove_file(disk.join("something")).expect("make room");
    writes_return(&mut client, acknowledged);
    check_all(&mut client, acknowledged + 1);
    server.restart();
    check_all(&mut server.client(), acknowledged + 1);
    assert!(!server.output().contains("panicked"), "{}", server.output());
}

/// Another process fills the disk to the last byte under load.
#[test]
fn a_disk_filled_by_another_process_loses_nothing() {
    let Some(disk) = small_disk("a_disk_filled_by_another_process_loses_nothing") else {
        return;
    };
    let mut server = server(&disk).start();
    let mut client = server.client();
    for n in 0..100 {
        assert_eq!(set(&mut client, n), Value::ok());
    }
    let ballast = fill(&disk);
    let acknowledged = write_until_refused(&mut client, 100);
    reads_go_on(&server, acknowledged);
    std::fs::remove_file(ballast).expect("make room");
    writes_return(&mut client, acknowledged);

    // The disk is filled to the last byte again; the server is killed and restarted in
    // that state.
    let ballast = fill(&disk);
    let acknowledged = write_until_refused(&mut client, acknowledged + 1);
    server.kill();
    fill_up(&ballast);
    serves_or_says_why(&disk);
    std::fs::remove_file(ballast).expect("make room");
    server.restart();
    let mut client = server.client();
    writes_return(&mut client, acknowledged);
    check_all(&mut client, acknowledged + 1);
    assert!(server.stop().success());
    server.restart();
    check_all(&mut server.client(), acknowledged + 1);
    assert!(!server.output().contains("panicked"), "{}", server.output());
}

/// RocksDB needs some bytes to open. Without any, the start fails with the reason; it
/// must not serve a part of the data.
fn serves_or_says_why(disk: &Path) {
    let mut server = server(disk).spawn();
    let reads =
        |port| Client::connect(port).and_then(|mut client| client.call(&["EXISTS", "key:0"]));
    let mut serves = false;
    within(60, "it serves or ends", || {
        serves = reads(server.port).is_ok_and(|reply| reply == Value::Int(1));
        serves || server.has_ended()
    });
    if !serves {
        assert!(!server.wait().success());
        let output = server.output();
        let why = output
            .lines()
            .find(|line| line.starts_with("bridle: "))
            .unwrap_or_else(|| panic!("it does not say why it ended:\n{output}"));
        assert!(why.contains("the disk is full") || why.contains("no space left"), "{why}");
    }
}
