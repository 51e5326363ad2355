//! SLOWLOG and LATENCY: slow commands and events.

use bytes::Bytes;

use crate::table::flags::{ADMIN, CONTAINER, LOADING, LONG_RUN, NOSCRIPT, STALE};
use crate::table::{Command, Group, Keys, container, help};
use crate::{Args, Plan, PlanResult};

/// Default number of entries of SLOWLOG GET.
const SLOWLOG_SHOWN: i64 = 10;

/// SLOWLOG's subcommands.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum SlowlogCommand {
    /// -1: all entries.
    Get {
        count: i64,
    },
    Len,
    Reset,
}

/// LATENCY's subcommands.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum LatencyCommand {
    Latest,
    History {
        event: Bytes,
    },
    /// No events: all.
    Reset {
        events: Vec<Bytes>,
    },
    Doctor,
    /// No names: all commands.
    Histogram {
        names: Vec<Bytes>,
    },
}

/// SLOWLOG, LATENCY and their subcommands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "slowlog",
        arity: -2,
        flags: CONTAINER,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.2.12",
        complexity: "Depends on subcommand.",
        summary: "A container for slow log commands.",
        syntax: "",
        plan: container,
    },
    Command {
        name: "slowlog|help",
        arity: 2,
        flags: LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Show helpful text about the different subcommands",
        syntax: "",
        plan: help,
    },
    Command {
        name: "slowlog|get",
        arity: -2,
        flags: ADMIN | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.2.12",
        complexity: "O(N) where N is the number of entries returned",
        summary: "Returns the slow log's entries.",
        syntax: "[count]",
        plan: slowlog_get,
    },
    Command {
        name: "slowlog|len",
        arity: 2,
        flags: ADMIN | LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.2.12",
        complexity: "O(1)",
        summary: "Returns the number of entries in the slow log.",
        syntax: "",
        plan: slowlog_len,
    },
    Command {
        name: "slowlog|reset",
        arity: 2,
        flags: ADMIN | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.2.12",
        complexity: "O(N) where N is the number of entries in the slowlog",
        summary: "Clears all entries from the slow log.",
        syntax: "",
        plan: slowlog_reset,
    },
    Command {
        name: "latency",
        arity: -2,
        flags: CONTAINER,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "Depends on subcommand.",
        summary: "A container for latency diagnostics commands.",
        syntax: "",
        plan: container,
    },
    Command {
        name: "latency|help",
        arity: 2,
        flags: LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(1)",
        summary: "Returns helpful text about the different subcommands.",
        syntax: "",
        plan: help,
    },
    Command {
        name: "latency|doctor",
        arity: 2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(1)",
        summary: "Returns a human-readable latency analysis report.",
        syntax: "",
        plan: latency_doctor,
    },
    Command {
        name: "latency|histogram",
        arity: -2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "7.0.0",
        complexity: "O(N) where N is the number of commands with latency information being \
                     retrieved.",
        summary: "Returns the cumulative distribution of latencies of a subset or all commands.",
        syntax: "[command [command ...]]",
        plan: latency_histogram,
    },
    Command {
        name: "latency|history",
        arity: 3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(1)",
        summary: "Returns timestamp-latency samples for an event.",
        syntax: "event",
        plan: latency_history,
    },
    Command {
        name: "latency|latest",
        arity: 2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(1)",
        summary: "Returns the latest latency samples for all events.",
        syntax: "",
        plan: latency_latest,
    },
    Command {
        name: "latency|reset",
        arity: -2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.13",
        complexity: "O(1)",
        summary: "Resets the latency data for one or more events.",
        syntax: "[event [event ...]]",
        plan: latency_reset,
    },
];

fn slowlog_get(mut args: Args) -> PlanResult {
    let count = match args.left() {
        0 => SLOWLOG_SHOWN,
        1 => args.int_at_least(-1, "ERR count should be greater than or equal to -1")?,
        _ => return Err(args.wrong_subcommand()),
    };
    Plan::local(SlowlogCommand::Get { count })
}

fn slowlog_len(_: Args) -> PlanResult {
    Plan::local(SlowlogCommand::Len)
}

fn slowlog_reset(_: Args) -> PlanResult {
    Plan::local(SlowlogCommand::Reset)
}

fn latency_latest(_: Args) -> PlanResult {
    Plan::local(LatencyCommand::Latest)
}

fn latency_history(mut args: Args) -> PlanResult {
    Plan::local(LatencyCommand::History { event: args.next_arg() })
}

fn latency_reset(mut args: Args) -> PlanResult {
    Plan::local(LatencyCommand::Reset { events: args.rest() })
}

fn latency_doctor(_: Args) -> PlanResult {
    Plan::local(LatencyCommand::Doctor)
}

fn latency_histogram(mut args: Args) -> PlanResult {
    Plan::local(LatencyCommand::Histogram { names: args.rest() })
}
