//! MULTI and WATCH. The session keeps the queue and the watched keys.

use crate::table::flags::{ALLOW_BUSY, FAST, LOADING, NOSCRIPT, SKIP_SLOWLOG, STALE};
use crate::table::{Command, Group, Keys};
use crate::{Args, LocalCommand, Plan, PlanResult};

/// Transaction commands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "multi",
        arity: 1,
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY,
        keys: Keys::NONE,
        group: Group::Transactions,
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
        group: Group::Transactions,
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
        group: Group::Transactions,
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
        group: Group::Transactions,
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
        group: Group::Transactions,
        since: "2.2.0",
        complexity: "O(1)",
        summary: "Forgets about watched keys of a transaction.",
        syntax: "",
        plan: unwatch,
    },
];

fn multi(_: Args) -> PlanResult {
    Ok(Plan::Local(LocalCommand::Multi))
}

fn exec(_: Args) -> PlanResult {
    Ok(Plan::Local(LocalCommand::Exec))
}

fn discard(_: Args) -> PlanResult {
    Ok(Plan::Local(LocalCommand::Discard))
}

fn watch(mut args: Args) -> PlanResult {
    Ok(Plan::Local(LocalCommand::Watch(args.rest())))
}

fn unwatch(_: Args) -> PlanResult {
    Ok(Plan::Local(LocalCommand::Unwatch))
}
