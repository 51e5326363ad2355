//! The command scripts, which specify the commands, pass on a real server, too.
//!
//! `proxy/commands/tests/scripts/README.md` describes their notation; a new file there is
//! a new script.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use commands::testscript::TestScript;
use integration::Server;

/// A script without a reply fails instead of blocking.
const TIMEOUT: Duration = Duration::from_secs(20);

/// All scripts, sorted by path.
fn scripts() -> Vec<(PathBuf, TestScript)> {
    let mut folders =
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/commands/tests/scripts")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder of scripts is in the tree") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "script") {
                let text = std::fs::read_to_string(&path).expect("a script is text");
                let script = TestScript::parse(&text)
                    .unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
                found.push((path, script));
            }
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

/// Runs a script on a new connection.
fn run(server: &Server, script: &TestScript) -> Result<(), String> {
    let stream = TcpStream::connect(("127.0.0.1", server.port))
        .map_err(|error| format!("connect: {error}"))?;
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(TIMEOUT)))
        .map_err(|error| error.to_string())?;
    script.run(stream)
}

/// Runs all scripts that apply to a server, and reports those that fail with their first
/// sentence.
fn run_all(server: &Server) -> Vec<String> {
    let scripts = scripts();
    assert!(scripts.len() > 100, "where are the scripts? only {} were found", scripts.len());
    let live = scripts.iter().filter(|(_, script)| !script.pure);
    live.filter_map(|(path, script)| {
        Some(format!("{}: {}\n  {}", path.display(), script.sentence, run(server, script).err()?))
    })
    .collect()
}

#[test]
fn every_script_holds_on_a_server() {
    let server = Server::builder().flag("durability", "os").start();
    let failed = run_all(&server);
    assert!(
        failed.is_empty(),
        "{} scripts failed\n{}\nthe server said:\n{}",
        failed.len(),
        failed.join("\n"),
        server.output()
    );
}

#[test]
fn every_script_holds_when_rows_lie_in_many_partitions() {
    let server =
        Server::builder().flag("durability", "os").flag("set", "tables.partitions=8").start();
    // There, keys of different partitions cannot share a command: such scripts end with
    // that error.
    let (refused, failed): (Vec<_>, Vec<_>) =
        run_all(&server).into_iter().partition(|fault| fault.contains("CROSSSLOT"));
    eprintln!(
        "{} scripts need their keys in one partition:\n{}",
        refused.len(),
        refused.join("\n")
    );
    assert!(
        failed.is_empty(),
        "{} scripts failed\n{}\nthe server said:\n{}",
        failed.len(),
        failed.join("\n"),
        server.output()
    );
    assert!(
        (1..20).contains(&refused.len()),
        "{} scripts were refused:\n{}",
        refused.len(),
        refused.join("\n")
    );
}

#[test]
fn a_script_that_is_wrong_fails() {
    let server = Server::builder().flag("durability", "os").start();
    let script = TestScript::parse("# Wrong.\n> SET a 1\n+OK\n> GET a\n\"2\"\n").expect("a script");
    let fault = run(&server, &script).expect_err("the reply is another");
    assert!(fault.contains("line 4"), "{fault}");
}
