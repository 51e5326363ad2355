//! Runs the command scripts without a server: plan, ops on rows in memory, reply builder
//! or machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use commands::rounds::memory::MemoryTables;
use commands::testscript::{Action, TestScript, Value};
use commands::{Plan, Reply, table};

/// Start time of scripts, ms: 2023-11-14. Scripts that name points in time use later
/// ones.
const BEGIN_MS: u64 = 1_700_000_000_000;

/// Tables, and a client's protocol version.
struct World {
    tables: MemoryTables,
    protocol: u8,
}

impl World {
    fn call(&mut self, argv: &[Bytes], seed: u64) -> Result<Value, String> {
        let reply = match table::plan(argv.iter().cloned().collect(), seed) {
            Err((_, reply)) => reply,
            Ok((_, Plan::Select(arg))) => self.tables.select(&arg),
            Ok((command, plan)) => self.tables.execute(plan)?.ok_or_else(|| {
                format!("{} needs a session: mark the script with a line `# live`", command.name)
            })?,
        };
        Ok(Value::of(reply, self.protocol))
    }

    /// Runs a script on tables with this many partitions.
    fn run(script: &TestScript, partitions: u32) -> Result<(), String> {
        let mut world = World { tables: MemoryTables::new(partitions), protocol: 2 };
        world.tables.now_ms = BEGIN_MS;
        for step in &script.steps {
            let at = |fault| format!("line {}: {fault}", step.line);
            match &step.action {
                Action::Call { argv, expected } => {
                    let seen = world.call(argv, step.line as u64).map_err(at)?;
                    expected.check(&seen).map_err(at)?;
                }
                Action::Protocol(version) => world.protocol = *version,
                Action::Pass(ms) => world.tables.now_ms += ms,
            }
        }
        Ok(())
    }

    /// Runs all scripts that need no server, and reports those that fail with their first
    /// sentence.
    fn run_all(partitions: u32) -> Vec<String> {
        let scripts = scripts();
        let pure = scripts.iter().filter(|(_, script)| !script.live);
        pure.filter_map(|(path, script)| {
            let fault = World::run(script, partitions).err()?;
            Some(format!("{}: {}\n  {fault}", path.display(), script.sentence))
        })
        .collect()
    }
}

fn scripts() -> Vec<(PathBuf, TestScript)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the folder of scripts is in the tree") {
            let path = entry.expect("its entries can be read").path();
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
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(!found.is_empty());
    found
}

#[test]
fn every_script_holds() {
    let failed = World::run_all(1);
    assert!(failed.is_empty(), "{} scripts failed\n{}", failed.len(), failed.join("\n"));
}

/// There, keys of different partitions cannot share a command: such scripts end with that
/// error.
#[test]
fn every_script_holds_in_many_partitions() {
    let failed: Vec<_> =
        World::run_all(8).into_iter().filter(|fault| !fault.contains("CROSSSLOT")).collect();
    assert!(failed.is_empty(), "{} scripts failed\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_command_is_in_a_script() {
    let scripts = scripts();
    let tried: BTreeSet<&str> = scripts
        .iter()
        .flat_map(|(_, script)| script.calls())
        .filter_map(|argv| table::lookup(argv).ok())
        .map(|command| command.name)
        .collect();
    let callable = |command: &&table::Command| command.subcommands().next().is_none();
    let missing: Vec<_> = table::all()
        .filter(callable)
        .map(|command| command.name)
        .filter(|name| !tried.contains(name))
        .collect();
    assert!(missing.is_empty(), "no script tries {missing:?}");
}

#[test]
fn a_script_that_is_wrong_fails() {
    for text in [
        "# Wrong value.\n> SET a 1\n+OK\n> GET a\n\"2\"",
        "# Needs a session.\n> CLIENT ID\n:1",
        "# Wrong kind.\n> GET a\n\"\"",
    ] {
        assert!(World::run(&TestScript::parse(text).unwrap(), 1).is_err(), "{text}");
    }
    for text in [
        "",
        "> GET a\nnil",
        "# No reply.\n> GET a",
        "# Nonsense.\n> GET a\nnothing",
        "# Nonsense.\nGET a",
    ] {
        assert!(TestScript::parse(text).is_err(), "{text}");
    }
}

#[test]
fn time_passes_when_told() {
    let text = "# Time.\n> SET a 1 PX 1500\n+OK\n@ +1499\n> PTTL a\n:1\n@ +1\n> GET a\nnil";
    assert_eq!(World::run(&TestScript::parse(text).unwrap(), 1), Ok(()));
}

#[test]
fn replies_are_as_the_protocol_has_them() {
    assert_eq!(Value::of(Reply::Double(1.5), 2), Value::Bulk("1.5".into()));
    assert_eq!(Value::of(Reply::NilArray, 3), Value::Nil);
}
