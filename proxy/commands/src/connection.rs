//! Connection commands: authentication, protocol version, selected table.

use bytes::Bytes;

use crate::args::integer;
use crate::generic::check_db;
use crate::table::flags::{
    ALLOW_BUSY, CONNECTION, FAST, LOADING, NO_AUTH, NOSCRIPT, RUNS_IN_MULTI, SECRET_ARGS,
    SECRET_OPTION, STALE,
};
use crate::table::{Command, Group, Keys};
use crate::{Args, Plan, PlanResult, Reply, errors};

/// Connection commands that need the session.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum ConnectionCommand {
    Hello(Hello),
    Auth { user: Option<Bytes>, password: Bytes },
    Quit,
    Reset,
}

/// HELLO's arguments.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hello {
    /// 2, 3 or unchanged.
    pub protocol: Option<u8>,
    /// AUTH user password.
    pub auth: Option<(Bytes, Bytes)>,
    /// SETNAME, already checked.
    pub name: Option<Bytes>,
}

/// Connection commands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "ping",
        arity: -1,
        flags: FAST | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns the server's liveliness response.",
        syntax: "[message]",
        plan: ping,
    },
    Command {
        name: "echo",
        arity: 2,
        flags: LOADING | STALE | FAST | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Returns the given string.",
        syntax: "message",
        plan: echo,
    },
    Command {
        name: "hello",
        arity: -1,
        flags: NOSCRIPT
            | LOADING
            | STALE
            | FAST
            | NO_AUTH
            | ALLOW_BUSY
            | CONNECTION
            | SECRET_OPTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "6.0.0",
        complexity: "O(1)",
        summary: "Handshakes with the Redis server.",
        syntax: "[protover [AUTH username password] [SETNAME clientname]]",
        plan: hello,
    },
    Command {
        name: "auth",
        arity: -2,
        flags: NOSCRIPT | LOADING | STALE | FAST | NO_AUTH | ALLOW_BUSY | CONNECTION | SECRET_ARGS,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(N) where N is the number of passwords defined for the user",
        summary: "Authenticates the connection.",
        syntax: "[username] password",
        plan: auth,
    },
    Command {
        name: "select",
        arity: 2,
        flags: LOADING | STALE | FAST | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Changes the selected database: db0 to db15 by number, any other table by its \
                  name.",
        syntax: "index",
        plan: select,
    },
    Command {
        name: "quit",
        arity: -1,
        flags: NOSCRIPT
            | LOADING
            | STALE
            | FAST
            | NO_AUTH
            | ALLOW_BUSY
            | CONNECTION
            | RUNS_IN_MULTI,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "1.0.0",
        complexity: "O(1)",
        summary: "Closes the connection.",
        syntax: "",
        plan: quit,
    },
    Command {
        name: "reset",
        arity: 1,
        flags: NOSCRIPT
            | LOADING
            | STALE
            | FAST
            | NO_AUTH
            | ALLOW_BUSY
            | CONNECTION
            | RUNS_IN_MULTI,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Resets the connection.",
        syntax: "",
        plan: reset,
    },
];

fn ping(mut args: Args) -> PlanResult {
    let message = args.try_next();
    if args.left() > 0 {
        return Err(args.wrong_number());
    }
    Ok(Plan::Reply(message.map_or(Reply::Status("PONG".into()), Reply::Bulk)))
}

fn echo(mut args: Args) -> PlanResult {
    Ok(Plan::Reply(Reply::Bulk(args.next_arg())))
}

fn hello(mut args: Args) -> PlanResult {
    let mut hello = Hello::default();
    if args.left() > 0 {
        let version =
            args.int_at_least(i64::MIN, "ERR Protocol version is not an integer or out of range")?;
        let version = u8::try_from(version).ok().filter(|version| (2..=3).contains(version));
        hello.protocol =
            Some(version.ok_or_else(|| Reply::error("NOPROTO unsupported protocol version"))?);
    }
    while args.left() > 0 {
        if args.left() >= 3 && args.flag("AUTH") {
            hello.auth = Some((args.next_arg(), args.next_arg()));
        } else if let Some(name) = args.option("SETNAME") {
            check_name(&name)?;
            hello.name = Some(name);
        } else {
            let option = errors::one_line(&args.next_arg());
            return Err(Reply::error(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    Plan::local(ConnectionCommand::Hello(hello))
}

fn auth(mut args: Args) -> PlanResult {
    let first = args.next_arg();
    let (user, password) = match args.try_next() {
        Some(password) => (Some(first), password),
        None => (None, first),
    };
    args.end()?;
    Plan::local(ConnectionCommand::Auth { user, password })
}

fn select(mut args: Args) -> PlanResult {
    let table = args.next_arg();
    if integer(&table).is_some() {
        check_db(&table)?;
    }
    Ok(Plan::Select(table))
}

fn quit(_: Args) -> PlanResult {
    Plan::local(ConnectionCommand::Quit)
}

fn reset(_: Args) -> PlanResult {
    Plan::local(ConnectionCommand::Reset)
}

/// CLIENT LIST separates by spaces and line ends, so a name may contain neither. The
/// empty name removes the name.
pub(crate) fn check_name(name: &Bytes) -> Result<(), Reply> {
    if is_printable(name) {
        Ok(())
    } else {
        Err(Reply::error("ERR Client names cannot contain spaces, newlines or special characters."))
    }
}

/// `true` if all bytes are printable ASCII without spaces.
pub(crate) fn is_printable(text: &[u8]) -> bool {
    text.iter().all(|byte| (b'!'..=b'~').contains(byte))
}
