//! Plans, reply builders and machines end in a plan or one complete reply and never in a
//! panic, for any arguments and any answers.

use bolero::TypeGenerator;
use bytes::Bytes;
use commands::args::Argv;
use commands::rounds::{
    Answers, Failure, InTransaction, Round, TableAnswer, TableFacts, TableHandle, UnitAnswer,
};
use commands::testscript::written;
use commands::{Args, COMMANDS, Command, Plan, Reply};
use row::Refusal;
use row::op::{Answer, RowContent, RowInfo, RowKind, WatchToken};

/// An argument that a client may send: one with a meaning in some command, or any bytes.
#[derive(Debug, Clone, TypeGenerator)]
enum Word {
    ResolvedCommand(u8),
    Number(i8),
    Text(Vec<u8>),
}

/// Arguments that are options, numbers and bounds.
const KNOWN: [&str; 64] = [
    "NX",
    "XX",
    "GT",
    "LT",
    "GET",
    "EX",
    "PX",
    "EXAT",
    "PXAT",
    "KEEPTTL",
    "PERSIST",
    "FNX",
    "FXX",
    "FIELDS",
    "1",
    "2",
    "3",
    "0",
    "-1",
    "",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "1.5",
    "inf",
    "nan",
    "[a",
    "(b",
    "-",
    "+",
    "MATCH",
    "PREFIX",
    "POSTFIX",
    "ANYWHERE",
    "REV",
    "LIMIT",
    "MAXBYTES",
    "NOVALUES",
    "WITHVALUES",
    "COUNT",
    "TYPE",
    "LEN",
    "IDX",
    "MINMATCHLEN",
    "WITHMATCHLEN",
    "NONE",
    "EXIST",
    "NOTEXIST",
    "BYTES",
    "INT",
    "EQ",
    "GE",
    "PUT",
    "DEL",
    "REPLACE",
    "ABSTTL",
    "DB",
    "BY",
    "STORE",
    "ASC",
    "ALPHA",
    "ID",
    "AUTH",
    "SETNAME",
];

impl Word {
    fn bytes(&self) -> Bytes {
        match self {
            Word::ResolvedCommand(which) => {
                Bytes::from_static(KNOWN[usize::from(*which) % KNOWN.len()].as_bytes())
            }
            Word::Number(number) => number.to_string().into(),
            Word::Text(bytes) => bytes.clone().into(),
        }
    }
}

/// One answer of each shape.
fn answers() -> Vec<Result<Answer, Refusal>> {
    let bytes = || Bytes::from_static(b"x");
    let row = RowInfo {
        kind: RowKind::Hash,
        expires_at_ms: Some(u64::MAX),
        written_at_ms: u64::MAX,
        len: u64::MAX,
        now_ms: 0,
    };
    let cells = || vec![(bytes(), bytes())];
    vec![
        Ok(Answer::Nil),
        Ok(Answer::Ok),
        Ok(Answer::Int(i64::MIN)),
        Ok(Answer::Ints(vec![i64::MIN, -1, i64::MAX])),
        Ok(Answer::Bytes(bytes())),
        Ok(Answer::Values(Default::default())),
        Ok(Answer::Values([None, Some(bytes())].into_iter().collect())),
        Ok(Answer::Row(None)),
        Ok(Answer::Row(Some(row))),
        Ok(Answer::Written { done: true, old: Some(bytes()) }),
        Ok(Answer::Cells { cells: cells(), next: Some(bytes()) }),
        Ok(Answer::Cells { cells: vec![], next: None }),
        Ok(Answer::CellsPage { cells: cells(), next: u64::MAX }),
        Ok(Answer::Page { keys: vec![bytes()], next: u64::MAX, count: u64::MAX }),
        Ok(Answer::Expired {
            rows: u64::MAX,
            fields: u64::MAX,
            done: u64::MAX,
            part: u64::MAX,
            left_ms: Some(u64::MAX),
        }),
        Ok(Answer::Deleted { count: u64::MAX, next: Some(bytes()) }),
        Ok(Answer::RowContent {
            content: RowContent::Hash(vec![
                (bytes(), bytes(), Some(u64::MAX)),
                (bytes(), bytes(), Some(0)),
            ]),
            expires_at_ms: Some(0),
        }),
        Ok(Answer::RowContent { content: RowContent::String(bytes()), expires_at_ms: None }),
        Ok(Answer::Checked { done: true, value: Some(None) }),
        Ok(Answer::WatchToken(WatchToken {
            key: bytes(),
            term: 1,
            touched: 1,
            expires_at_ms: None,
            existed: true,
        })),
        Err(Refusal::WrongType),
        Err(Refusal::TooLarge),
    ]
}

/// The arguments and the plan of a command; `None`: it is refused.
fn plan_of(command: &Command, tail: &[Word]) -> Option<(Argv, Plan)> {
    let parts = command.name.split('|');
    let name_args = parts.clone().count();
    let argv =
        parts.map(|part| Bytes::from_static(part.as_bytes())).chain(tail.iter().map(Word::bytes));
    let argv: Argv = argv.collect();
    let arity = usize::from(command.arity.unsigned_abs());
    if argv.len() < arity || (command.arity > 0 && argv.len() > arity) {
        return None;
    }
    let plan = (command.plan)(Args::new(argv.clone(), name_args, 1)).ok()?;
    Some((argv, plan))
}

#[test]
fn plans_and_replies_never_panic() {
    let commands: Vec<&Command> = COMMANDS.iter().copied().flatten().collect();
    let answers = answers();
    bolero::check!().with_type::<(u8, u8, Vec<Word>)>().for_each(|(command, answer, tail)| {
        let command = commands[usize::from(*command) % commands.len()];
        let Some((_, Plan::Rows(rows))) = plan_of(command, tail) else { return };
        // Sometimes fewer answers than ops: a node may send anything.
        let count = rows.ops.len().min(usize::from(*answer) % 8 + 1);
        let outcomes =
            (0..count).map(|at| answers[(usize::from(*answer) + at * 7) % answers.len()].clone());
        written(|reply| rows.builder.write(outcomes, reply));
    });
}

/// Answers to a round: mostly such that fit, of any content.
fn answers_to(round: &Round, byte: u8, outcomes: &[Result<Answer, Refusal>]) -> Answers {
    let found =
        || TableFacts { handle: TableHandle(0), name: "db0".into(), first_slots: [0, 9000].into() };
    let error = || Reply::error("ERR");
    match (byte % 16, round) {
        (0, _) => Answers::Begin,
        (1, _) => Answers::Table(Err(error())),
        (2, _) => Answers::Table(Ok(TableAnswer::Missing("db0".into()))),
        (3, _) => Answers::Units(Vec::new()),
        (4, Round::Units(units)) => {
            Answers::Units(units.iter().map(|_| UnitAnswer::Touched).collect())
        }
        (5, Round::Units(units)) => {
            let failed = || UnitAnswer::Failed(Failure::Unknown(error()));
            Answers::Units(units.iter().map(|_| failed()).collect())
        }
        (other, Round::Units(units)) => {
            let mut at = usize::from(byte) + usize::from(other);
            let mut next = || {
                at += 7;
                outcomes[at % outcomes.len()].clone()
            };
            let done = units
                .iter()
                .map(|unit| UnitAnswer::Done(unit.ops.iter().map(|_| next()).collect()));
            Answers::Units(done.collect())
        }
        (other, _) if other % 2 == 0 => Answers::Table(Ok(TableAnswer::Found(found()))),
        _ => Answers::Table(Ok(TableAnswer::Name { name: "db1".into(), is_selected: false })),
    }
}

#[test]
fn machines_never_panic() {
    let commands: Vec<&Command> = COMMANDS.iter().copied().flatten().collect();
    let outcomes = answers();
    bolero::check!().with_type::<(Vec<u8>, Vec<Word>)>().for_each(|(bytes, tail)| {
        for command in &commands {
            let Some((_, Plan::Rounds(mut machine))) = plan_of(command, tail) else { continue };
            let mut answers = Answers::Begin;
            for byte in bytes {
                let Ok(round) = machine.next(answers) else { break };
                machine.held_bytes();
                machine.too_large(&"the limit");
                if let Round::Done(_) = round {
                    break;
                }
                answers = answers_to(&round, *byte, &outcomes);
            }
            let Some((argv, Plan::Rounds(machine))) = plan_of(command, tail) else { continue };
            let is_refused = matches!(machine.in_transaction(), InTransaction::Refused);
            assert_eq!(is_refused, command.is_refused_by_multi(&argv), "{argv:?}");
        }
    });
}
