//! Runs the command scripts without a server: plan, `row::eval` on rows in memory, reply
//! builder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use commands::testscript::{Action, TestScript, Value, written};
use commands::{Plan, Reply, table};
use row::memory::Memory;
use row::view::Rules;
use row::{Edits, EvalError, Refusal, Stamp, Tx};

/// Start time of scripts, ms: 2023-11-14. Scripts that name points in time use later
/// ones.
const BEGIN_MS: u64 = 1_700_000_000_000;

/// A partition, and a client's protocol version.
struct World {
    rows: Memory,
    now_ms: u64,
    protocol: u8,
}

impl World {
    fn call(&mut self, argv: &[Bytes], seed: u64) -> Result<Value, String> {
        let reply = match table::plan(argv.iter().cloned().collect(), seed) {
            Err((_, reply)) => reply,
            Ok((_, Plan::Reply(reply))) => reply,
            Ok((_, Plan::Rows(rows))) => {
                let outcomes =
                    rows.ops.iter().map(|op| self.eval(op)).collect::<Result<Vec<_>, _>>()?;
                written(|reply| rows.builder.write(outcomes, reply))
            }
            Ok((command, Plan::Local(_) | Plan::Select(_) | Plan::Exec)) => {
                return Err(format!(
                    "{} needs a session: mark the script with a line `# live`",
                    command.name
                ));
            }
        };
        Ok(Value::of(reply, self.protocol))
    }

    fn eval(&mut self, op: &row::Op) -> Result<Result<row::Answer, Refusal>, String> {
        let mut edits = Edits::default();
        let stamp = Stamp { now_ms: self.now_ms, timetag: self.now_ms << 16 };
        let outcome = row::eval(
            op,
            &mut Tx { view: &self.rows, edits: &mut edits, stamp, rules: Rules::default() },
        );
        match outcome {
            Ok(answer) => {
                self.rows.apply(edits);
                Ok(Ok(answer))
            }
            Err(EvalError::Refused(refusal)) => Ok(Err(refusal)),
            Err(EvalError::Fault(fault)) => Err(fault.to_string()),
        }
    }

    fn run(script: &TestScript) -> Result<(), String> {
        let mut world = World { rows: Memory::new(), now_ms: BEGIN_MS, protocol: 2 };
        for step in &script.steps {
            let at = |fault| format!("line {}: {fault}", step.line);
            match &step.action {
                Action::Call { argv, expected } => {
                    let seen = world.call(argv, step.line as u64).map_err(at)?;
                    expected.check(&seen).map_err(at)?;
                }
                Action::Protocol(version) => world.protocol = *version,
                Action::Pass(ms) => world.now_ms += ms,
            }
        }
        Ok(())
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
    let failed: Vec<_> = scripts()
        .iter()
        .filter(|(_, script)| !script.live)
        .filter_map(|(path, script)| {
            Some(format!(
                "{}: {}\n  {}",
                path.display(),
                script.sentence,
                World::run(script).err()?
            ))
        })
        .collect();
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
        assert!(World::run(&TestScript::parse(text).unwrap()).is_err(), "{text}");
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
    assert_eq!(World::run(&TestScript::parse(text).unwrap()), Ok(()));
}

#[test]
fn replies_are_as_the_protocol_has_them() {
    assert_eq!(Value::of(Reply::Double(1.5), 2), Value::Bulk("1.5".into()));
    assert_eq!(Value::of(Reply::NilArray, 3), Value::Nil);
}
