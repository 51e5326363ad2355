//! CONFIG: runtime settings. The proxy holds the list of settings.

use bytes::Bytes;

use crate::table::flags::{ADMIN, CONTAINER, LOADING, LONG_RUN, NOSCRIPT, SECRET_SETTINGS, STALE};
use crate::table::{Command, Group, Keys, container, help};
use crate::{Args, Plan, PlanResult};

/// CONFIG's subcommands.
#[allow(missing_docs, reason = "variants are the commands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum ConfigCommand {
    Get { globs: Vec<Bytes> },
    Set { pairs: Vec<(Bytes, Bytes)> },
    ResetStat,
    Rewrite,
}

/// CONFIG and its subcommands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "config",
        arity: -2,
        flags: CONTAINER,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.0.0",
        complexity: "Depends on subcommand.",
        summary: "A container for server configuration commands.",
        syntax: "",
        plan: container,
    },
    Command {
        name: "config|help",
        arity: 2,
        flags: LOADING | STALE,
        keys: Keys::NONE,
        group: Group::Server,
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Returns helpful text about the different subcommands.",
        syntax: "",
        plan: help,
    },
    Command {
        name: "config|get",
        arity: -3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.0.0",
        complexity: "O(N) when N is the number of configuration parameters provided",
        summary: "Returns the effective values of configuration parameters.",
        syntax: "parameter [parameter ...]",
        plan: get,
    },
    Command {
        name: "config|set",
        arity: -4,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN | SECRET_SETTINGS,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.0.0",
        complexity: "O(N) when N is the number of configuration parameters provided",
        summary: "Sets configuration parameters in-flight.",
        syntax: "parameter value [parameter value ...]",
        plan: set,
    },
    Command {
        name: "config|resetstat",
        arity: 2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.0.0",
        complexity: "O(1)",
        summary: "Resets the server's statistics.",
        syntax: "",
        plan: resetstat,
    },
    Command {
        name: "config|rewrite",
        arity: 2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Server,
        since: "2.8.0",
        complexity: "O(1)",
        summary: "Persists the effective configuration to file.",
        syntax: "",
        plan: rewrite,
    },
];

fn get(mut args: Args) -> PlanResult {
    Plan::local(ConfigCommand::Get { globs: args.rest() })
}

fn set(mut args: Args) -> PlanResult {
    if !args.left().is_multiple_of(2) {
        return Err(Args::syntax());
    }
    Plan::local(ConfigCommand::Set { pairs: args.pairs()? })
}

fn resetstat(_: Args) -> PlanResult {
    Plan::local(ConfigCommand::ResetStat)
}

fn rewrite(_: Args) -> PlanResult {
    Plan::local(ConfigCommand::Rewrite)
}
