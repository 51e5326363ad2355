//! MULTI and WATCH. The session keeps the queue and the watched keys.

use crate::table::flags::{ALLOW_BUSY, FAST, LOADING, NOSCRIPT, SKIP_SLOWLOG, STALE};
use crate::table::{Command, Keys};
use crate::{Args, Plan, Planned, Session};

/// Commands on transactions.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "multi",
        arity: 1,
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY,
        keys: Keys::NONE,
        group: "transactions",
        since: "1.2.0",
        complexity: "O(1)",
        summary: "Starts a transaction.",
        syntax: "",
        plan: multi,
    },
    Command {
        name: "exec",
        arity: 1,
        flags: NOSCRIPT | LOADING | STALE | SKIP_SLOWLOG,
        keys: Keys::NONE,
        group: "transactions",
        since: "1.2.0",
        complexity: "Depends on commands in the transaction.",
        summary: "Executes all commands in a transaction.",
        syntax: "",
        plan: exec,
    },
    Command {
        name: "discard",
        arity: 1,
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY,
        keys: Keys::NONE,
        group: "transactions",
        since: "2.0.0",
        complexity: "O(N), when N is the number of queued commands",
        summary: "Discards a transaction.",
        syntax: "",
        plan: discard,
    },
    Command {
        name: "watch",
        arity: -2,
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY,
        keys: Keys::ALL.with("RO"),
        group: "transactions",
        since: "2.2.0",
        complexity: "O(1) for every key.",
        summary: "Monitors changes to keys to determine the execution of a transaction.",
        syntax: "key [key ...]",
        plan: watch,
    },
    Command {
        name: "unwatch",
        arity: 1,
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY,
        keys: Keys::NONE,
        group: "transactions",
        since: "2.2.0",
        complexity: "O(1)",
        summary: "Forgets about watched keys of a transaction.",
        syntax: "",
        plan: unwatch,
    },
];

fn multi(_: Args) -> Planned {
    Ok(Plan::Session(Session::Multi))
}

fn exec(_: Args) -> Planned {
    Ok(Plan::Session(Session::Exec))
}

fn discard(_: Args) -> Planned {
    Ok(Plan::Session(Session::Discard))
}

fn watch(mut args: Args) -> Planned {
    Ok(Plan::Session(Session::Watch(args.rest())))
}

fn unwatch(_: Args) -> Planned {
    Ok(Plan::Session(Session::Unwatch))
}
