//! MULTI and WATCH. The session keeps the queue and the watched keys.

use bytes::Bytes;

use crate::table::flags::{
    ALLOW_BUSY, AT_ONCE, FAST, LOADING, NOSCRIPT, RUNS_IN_MULTI, RUNS_QUEUE, SKIP_SLOWLOG, STALE,
};
use crate::table::{Command, Group, Keys};
use crate::{Args, Plan, PlanResult};

/// Transaction commands, but for EXEC, which is a plan of its own.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum TransactionCommand {
    Multi,
    Discard,
    Watch { keys: Vec<Bytes> },
    Unwatch,
}

/// Transaction commands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "multi",
        arity: 1,
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | AT_ONCE | RUNS_IN_MULTI,
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
        flags: NOSCRIPT | LOADING | STALE | SKIP_SLOWLOG | RUNS_IN_MULTI | RUNS_QUEUE,
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
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | AT_ONCE | RUNS_IN_MULTI,
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
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | RUNS_IN_MULTI,
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
        flags: NOSCRIPT | LOADING | STALE | FAST | ALLOW_BUSY | AT_ONCE,
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
    Plan::local(TransactionCommand::Multi)
}

fn exec(_: Args) -> PlanResult {
    Ok(Plan::Exec)
}

fn discard(_: Args) -> PlanResult {
    Plan::local(TransactionCommand::Discard)
}

fn watch(mut args: Args) -> PlanResult {
    Plan::local(TransactionCommand::Watch { keys: args.rest() })
}

fn unwatch(_: Args) -> PlanResult {
    Plan::local(TransactionCommand::Unwatch)
}
