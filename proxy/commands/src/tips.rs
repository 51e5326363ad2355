//! Command tips of COMMAND INFO, as in Redis 7.4: how a client of several servers routes
//! a command and merges its replies, and when replies may differ.
//!
//! Sorted by tip and not by command, as most commands have none.

use crate::table::Command;

const ALL_NODES: &str = "request_policy:all_nodes";
const ALL_SHARDS: &str = "request_policy:all_shards";
const MULTI_SHARD: &str = "request_policy:multi_shard";
const ALL_SUCCEEDED: &str = "response_policy:all_succeeded";
const AGG_SUM: &str = "response_policy:agg_sum";
const AGG_MIN: &str = "response_policy:agg_min";
const SPECIAL: &str = "response_policy:special";
const ANY: &str = "nondeterministic_output";
const ANY_ORDER: &str = "nondeterministic_output_order";

/// Commands that have the same tips.
static TIPS: &[(&[&str], &[&str])] = &[
    (&["del", "unlink", "exists", "touch"], &[MULTI_SHARD, AGG_SUM]),
    (&["mget"], &[MULTI_SHARD]),
    (&["mset"], &[MULTI_SHARD, ALL_SUCCEEDED]),
    (&["flushdb", "flushall", "ping"], &[ALL_SHARDS, ALL_SUCCEEDED]),
    (&["dbsize"], &[ALL_SHARDS, AGG_SUM]),
    (&["wait", "waitaof"], &[ALL_SHARDS, AGG_MIN]),
    (&["keys"], &[ALL_SHARDS, ANY_ORDER]),
    (&["randomkey"], &[ALL_SHARDS, SPECIAL, ANY]),
    (&["scan"], &[ANY, "request_policy:special", SPECIAL]),
    (&["info", "memory|doctor", "memory|stats"], &[ANY, ALL_SHARDS, SPECIAL]),
    (
        &["latency|doctor", "latency|histogram", "latency|history", "latency|latest"],
        &[ANY, ALL_NODES, SPECIAL],
    ),
    (&["latency|reset"], &[ALL_NODES, AGG_SUM]),
    (
        &[
            "config|set",
            "config|resetstat",
            "config|rewrite",
            "client|setname",
            "client|setinfo",
            "slowlog|reset",
        ],
        &[ALL_NODES, ALL_SUCCEEDED],
    ),
    (&["slowlog|get"], &[ALL_NODES, ANY]),
    (&["slowlog|len"], &[ALL_NODES, AGG_SUM, ANY]),
    (
        &[
            "client|info",
            "client|list",
            "dump",
            "hrandfield",
            "hscan",
            "time",
            "ttl",
            "pttl",
            "httl",
            "hpttl",
        ],
        &[ANY],
    ),
    (&["object|encoding", "object|freq", "object|idletime", "object|refcount"], &[ANY]),
    (
        &["command", "command|docs", "command|info", "command|list", "hgetall", "hkeys", "hvals"],
        &[ANY_ORDER],
    ),
];

/// A command's tips.
pub(crate) fn of(command: &Command) -> &'static [&'static str] {
    TIPS.iter().find(|(names, _)| names.contains(&command.name)).map_or(&[], |(_, tips)| tips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_command_once() {
        let mut names: Vec<&str> = TIPS.iter().flat_map(|(names, _)| *names).copied().collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|one, two| one < two), "{names:?}");
        for name in names {
            assert!(crate::table::all().any(|command| command.name == name), "{name}");
        }
    }
}
