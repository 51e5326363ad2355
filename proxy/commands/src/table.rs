//! The table of all commands: the entries, lookup, and everything that follows from an
//! entry alone.
//!
//! [`COMMANDS`] joins the tables of the families. A *container* (CLIENT, CONFIG, ...) has
//! an entry of its own, and so has each of its subcommands, named `client|id`.
//!
//! # Invariants
//! - Names are unique, in lower case and at most `NAME_MAX` bytes
//!   (`names_are_unique_and_short`).
//! - Every entry is used by a script (`tests/scripts.rs`).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::LazyLock;

use bytes::Bytes;

use crate::args::Argv;
use crate::{
    Args, Plan, PlanResult, Reply, client, command, config, connection, docs, expire, generic,
    hash, hash_expiry, latency, pegasus,
};
use crate::{errors, server, sort, string, transactions};

mod group;
mod keys;

pub use group::{Category, Group};
pub use keys::{
    BeginSearch, FindKeys, FoundKey, FoundKeys, KeyFinder, KeyFlags, KeySpec, Keys, LegacyRange,
};

/// The entry of one command.
pub struct Command {
    /// Lower case; a subcommand is `"client|id"`.
    pub name: &'static str,
    /// As Redis counts: the name included; negative = minimum.
    pub arity: i8,
    /// See [`flags`].
    pub flags: u64,
    /// Positions of its keys and the access to them.
    pub keys: Keys,
    /// The group in the documentation.
    pub group: Group,
    /// The Redis version (or Bridle's) that introduced it.
    pub since: &'static str,
    /// Big-O, in Redis's notation, true for Bridle.
    pub complexity: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// The arguments in Redis's notation (`key [NX | XX] [EX seconds]`); COMMAND DOCS'
    /// argument tree is parsed from it. Types that names do not tell: `timeout(double)`.
    pub syntax: &'static str,
    /// From arguments to a plan.
    pub plan: fn(Args) -> PlanResult,
}

/// Flags of COMMAND and of the proxy, with Redis's names.
pub mod flags {
    use super::Category;

    /// May change rows.
    pub const WRITE: u64 = 1 << 0;
    /// Only reads rows.
    pub const READONLY: u64 = 1 << 1;
    /// May increase the data: refused when the disk is full.
    pub const DENYOOM: u64 = 1 << 2;
    /// Constant or logarithmic time.
    pub const FAST: u64 = 1 << 3;
    /// For administrators.
    pub const ADMIN: u64 = 1 << 4;
    /// Publishes or subscribes.
    pub const PUBSUB: u64 = 1 << 5;
    /// Not for scripts.
    pub const NOSCRIPT: u64 = 1 << 6;
    /// May wait for others.
    pub const BLOCKING: u64 = 1 << 7;
    /// Allowed while data is being loaded.
    pub const LOADING: u64 = 1 << 8;
    /// Allowed on a lagging replica.
    pub const STALE: u64 = 1 << 9;
    /// Not shown to MONITOR.
    pub const SKIP_MONITOR: u64 = 1 << 10;
    /// Not recorded in the slow log.
    pub const SKIP_SLOWLOG: u64 = 1 << 11;
    /// Allowed before AUTH.
    pub const NO_AUTH: u64 = 1 << 12;
    /// Not allowed in MULTI.
    pub const NO_MULTI: u64 = 1 << 13;
    /// Allowed while a script exceeds its time limit.
    pub const ALLOW_BUSY: u64 = 1 << 14;
    /// May be called without any of the keys that its specifications name.
    pub const NO_MANDATORY_KEYS: u64 = 1 << 15;
    /// Has keys that no range of positions tells. Not set in entries, but derived from
    /// their keys.
    pub(crate) const MOVABLE_KEYS: u64 = 1 << 16;

    /// In ACL category `@keyspace`, which does not follow from the group.
    pub const KEYSPACE: u64 = Category::Keyspace.flag();
    /// In ACL category `@connection`, which does not follow from the group.
    pub const CONNECTION: u64 = Category::Connection.flag();
    /// In ACL category `@dangerous` without being for administrators.
    pub const DANGEROUS: u64 = Category::Dangerous.flag();
    /// Planning takes time proportional to the bytes of the arguments.
    pub const LONG_PLAN: u64 = 1 << 30;
    /// A local command that neither changes nor asks for anything that a command before it
    /// may change, and does not wait: it runs at once, without them.
    pub const AT_ONCE: u64 = 1 << 17;
    /// Runs while MULTI queues commands, and is not queued.
    pub const RUNS_IN_MULTI: u64 = 1 << 18;
    /// Runs the commands that MULTI has queued: it may write if one of them may, and an
    /// error before it runs discards them.
    pub const RUNS_QUEUE: u64 = 1 << 19;
    /// Not allowed in MULTI, although Redis allows it: it does more than a transaction in
    /// one partition can. ([`NO_MULTI`] is what COMMAND shows.)
    pub const NOT_IN_PARTITION: u64 = 1 << 20;
    /// As [`NOT_IN_PARTITION`], if DB is among the arguments behind its two keys.
    pub const DB_NOT_IN_PARTITION: u64 = 1 << 21;
    /// Reads a key, so that it counts as a hit or a miss of the key space. (SET with GET
    /// says so in its plan.)
    pub const LOOKUP: u64 = 1 << 22;
    /// A local command whose work or reply has no fixed bound: other clients' threads do not
    /// wait for it.
    pub const LONG_RUN: u64 = 1 << 23;
    /// All its arguments are secrets.
    pub const SECRET_ARGS: u64 = 1 << 24;
    /// The two arguments behind AUTH are secrets.
    pub const SECRET_OPTION: u64 = 1 << 25;
    /// The values of secret settings are among its arguments.
    pub const SECRET_SETTINGS: u64 = 1 << 26;
    /// Has subcommands.
    pub const CONTAINER: u64 = 1 << 31;

    /// The flags that COMMAND shows, by name.
    pub(crate) const NAMES: [(u64, &str); 17] = [
        (WRITE, "write"),
        (READONLY, "readonly"),
        (DENYOOM, "denyoom"),
        (ADMIN, "admin"),
        (PUBSUB, "pubsub"),
        (NOSCRIPT, "noscript"),
        (BLOCKING, "blocking"),
        (LOADING, "loading"),
        (STALE, "stale"),
        (SKIP_MONITOR, "skip_monitor"),
        (SKIP_SLOWLOG, "skip_slowlog"),
        (FAST, "fast"),
        (NO_AUTH, "no_auth"),
        (NO_MANDATORY_KEYS, "no_mandatory_keys"),
        (NO_MULTI, "no_multi"),
        (MOVABLE_KEYS, "movablekeys"),
        (ALLOW_BUSY, "allow_busy"),
    ];
}

/// Every command, by family.
pub static COMMANDS: &[&[Command]] = &[
    connection::TABLE,
    client::TABLE,
    server::TABLE,
    config::TABLE,
    latency::TABLE,
    command::TABLE,
    generic::TABLE,
    expire::TABLE,
    sort::TABLE,
    string::TABLE,
    hash::TABLE,
    hash_expiry::TABLE,
    pegasus::TABLE,
    transactions::TABLE,
];

/// The longest name, bytes: names are folded to lower case on the stack.
const NAME_MAX: usize = 32;

/// The entry, if the name is known, and the error reply.
pub type LookupError = (Option<&'static Command>, Reply);

impl Command {
    /// `true` if the entry has this flag.
    pub const fn is(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// The container and the subcommand, for a subcommand.
    pub fn parts(&self) -> Option<(&'static str, &'static str)> {
        self.name.split_once('|')
    }

    /// The subcommands of a container.
    pub fn subcommands(&self) -> impl Iterator<Item = &'static Command> {
        let container = self.is(flags::CONTAINER).then_some(self.name);
        all().filter(move |command| {
            container.is_some() && command.parts().map(|(name, _)| name) == container
        })
    }

    /// The keys among the arguments. None for a command that may have keys: the arguments
    /// are invalid, or it needs none.
    pub fn find_keys(&self, argv: &[Bytes]) -> FoundKeys {
        self.keys.find(argv, self.implied_access())
    }

    /// The access to keys whose specification names none.
    pub(crate) fn implied_access(&self) -> KeyFlags {
        if self.is(flags::READONLY) { KeyFlags::READ } else { KeyFlags::WRITE }
    }

    /// `true` if the arity allows this number of arguments, the name included.
    pub fn takes(&self, argv: usize) -> bool {
        let arity = isize::from(self.arity);
        if arity < 0 { argv >= arity.unsigned_abs() } else { argv == arity.unsigned_abs() }
    }

    /// The plan of a call with these arguments, the name included, as many as the arity
    /// allows. It draws random numbers from `seed`.
    pub fn plan_call(&self, argv: Argv, seed: u64) -> PlanResult {
        let name_args = 1 + usize::from(self.parts().is_some());
        let mut plan = (self.plan)(Args::new(argv, name_args, seed));
        if let Ok(Plan::Rows(rows)) = &mut plan {
            rows.is_lookup |= self.is(flags::LOOKUP);
        }
        plan
    }

    /// True if the call may not be queued by MULTI, by its name and arguments alone: it
    /// would block, or do more than a transaction in one partition can.
    pub fn is_refused_by_multi(&self, argv: &Argv) -> bool {
        let names_db = || argv.iter().skip(3).any(|arg| arg.eq_ignore_ascii_case(b"db"));
        self.is(flags::NO_MULTI | flags::NOT_IN_PARTITION)
            || (self.is(flags::DB_NOT_IN_PARTITION) && names_db())
    }

    /// Its ACL categories.
    pub fn categories(&self) -> impl Iterator<Item = Category> {
        Category::ALL.into_iter().filter(|category| self.is_in(*category))
    }

    /// `true` if it is in an ACL category, by its group, by its flags or because its entry
    /// names the category.
    pub fn is_in(&self, category: Category) -> bool {
        // A container that can't be called alone is in no category of its group.
        let has_group = !(self.is(flags::CONTAINER) && self.arity < -1);
        let implied = match category {
            Category::Read => self.is(flags::READONLY) && self.group != Group::Scripting,
            Category::Write => self.is(flags::WRITE),
            Category::PubSub => self.is(flags::PUBSUB),
            Category::Admin | Category::Dangerous => self.is(flags::ADMIN),
            Category::Fast => self.is(flags::FAST),
            Category::Slow => !self.is(flags::FAST),
            Category::Blocking => self.is(flags::BLOCKING),
            Category::Keyspace
            | Category::Set
            | Category::SortedSet
            | Category::List
            | Category::Hash
            | Category::String
            | Category::Bitmap
            | Category::HyperLogLog
            | Category::Geo
            | Category::Stream
            | Category::Connection
            | Category::Transaction
            | Category::Scripting => false,
        };
        implied
            || self.is(category.flag())
            || (has_group && self.group.category() == Some(category))
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Command({})", self.name)
    }
}

/// Every command and subcommand, each container before its subcommands.
pub fn all() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().copied().flatten()
}

/// The commands that are not subcommands, as COMMAND counts them.
pub fn top() -> impl Iterator<Item = &'static Command> {
    all().filter(|command| command.parts().is_none())
}

/// The entry for a name in any case; for a container (`client`), `sub` is the
/// subcommand's name.
pub fn find(name: &[u8], sub: Option<&[u8]>) -> Option<&'static Command> {
    let len = name.len() + sub.map_or(0, |sub| sub.len() + 1);
    if len > NAME_MAX || name.contains(&b'|') {
        return None;
    }
    let mut folded = [0; NAME_MAX];
    folded[..name.len()].copy_from_slice(name);
    if let Some(sub) = sub {
        folded[name.len()] = b'|';
        folded[name.len() + 1..len].copy_from_slice(sub);
    }
    folded.make_ascii_lowercase();
    BY_NAME.get(&folded[..len]).copied()
}

/// The entry for these arguments, whose number is checked.
pub fn lookup(argv: &[Bytes]) -> Result<&'static Command, LookupError> {
    let Some(mut command) = argv.first().and_then(|name| find(name, None)) else {
        return Err((None, errors::unknown_command(argv)));
    };
    if command.is(flags::CONTAINER) && argv.len() > 1 {
        command = find(&argv[0], Some(&argv[1]))
            .ok_or_else(|| (None, errors::unknown_subcommand(&argv[0], &argv[1])))?;
    }
    if command.takes(argv.len()) {
        Ok(command)
    } else {
        Err((Some(command), errors::wrong_number(command.name)))
    }
}

/// From arguments to a plan. The plan draws random numbers from `seed`.
pub fn plan(argv: Argv, seed: u64) -> Result<(&'static Command, Plan), LookupError> {
    let command = lookup(&argv)?;
    match command.plan_call(argv, seed) {
        Ok(plan) => Ok((command, plan)),
        Err(reply) => Err((Some(command), reply)),
    }
}

/// The plan of a container, which is never executed: its arity or [`lookup`] prevents it.
pub(crate) fn container(args: Args) -> PlanResult {
    Err(args.wrong_number())
}

/// The reply to HELP of the container in the arguments.
pub(crate) fn help(args: Args) -> PlanResult {
    args.end()?;
    let name = args.name();
    let container = name.split('|').next().unwrap_or_default();
    let title = format!(
        "{} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        container.to_ascii_uppercase()
    );
    let subcommands = find(container.as_bytes(), None).into_iter().flat_map(Command::subcommands);
    let named = subcommands
        .filter_map(|command| Some((command.parts()?.1, command)))
        .filter(|(sub, _)| *sub != "help");
    let lines = named.flat_map(|(sub, command)| {
        let usage = format!("{} {}", sub.to_ascii_uppercase(), docs::usage(command.syntax));
        [usage.trim_end().to_owned(), format!("    {}", command.summary)]
    });
    let end = ["HELP", "    Print this help."].map(str::to_owned);
    Ok(Plan::Reply(Reply::Array(
        [title]
            .into_iter()
            .chain(lines)
            .chain(end)
            .map(|line| Reply::Status(line.into()))
            .collect(),
    )))
}

static BY_NAME: LazyLock<HashMap<&[u8], &Command, BuildHasherDefault<Fnv>>> =
    LazyLock::new(|| all().map(|command| (command.name.as_bytes(), command)).collect());

/// FNV-1a, the fastest hash of a few bytes. All names are ours, so collisions cannot be
/// provoked.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_usize(&mut self, _len: usize) {
        // The length that precedes a hashed slice adds nothing: names hold no NUL.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(line: &str) -> Argv {
        line.split(' ').map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect()
    }

    fn refused(line: &str) -> String {
        match lookup(&argv(line)) {
            Err((_, Reply::Error(text))) => text.into_owned(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn names_are_unique_and_short() {
        let mut names = std::collections::HashSet::new();
        for command in all() {
            assert!(names.insert(command.name), "{} is there twice", command.name);
            assert!(command.name.len() <= NAME_MAX, "{}", command.name);
            assert_eq!(command.name, command.name.to_ascii_lowercase());
            if let Some((container, _)) = command.parts() {
                assert!(
                    find(container.as_bytes(), None).is_some_and(|it| it.is(flags::CONTAINER)),
                    "{}",
                    command.name
                );
            }
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(find(b"GeT", None).map(|command| command.name), Some("get"));
        assert_eq!(find(b"CLIENT", Some(b"id")).map(|command| command.name), Some("client|id"));
        for name in ["", "gett", "ge", "client|id", "a name that is longer than any command's is"] {
            assert!(find(name.as_bytes(), None).is_none(), "{name}");
        }
    }

    #[test]
    fn keys_are_where_the_entry_says() {
        let keys = |line: &str| {
            let argv = argv(line);
            let command = lookup(&argv).unwrap();
            let found = command.find_keys(&argv);
            found
                .iter()
                .map(|key| String::from_utf8_lossy(&argv[key.at]).into_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(keys("get a"), ["a"]);
        assert_eq!(keys("rename a b"), ["a", "b"]);
        assert_eq!(keys("mset a 1 b 2"), ["a", "b"]);
        assert_eq!(keys("mset a 1 b"), ["a", "b"]);
        assert_eq!(keys("del a b c"), ["a", "b", "c"]);
        assert_eq!(keys("object encoding a"), ["a"]);
        assert!(keys("ping a").is_empty());
    }

    #[test]
    fn unknown_commands_get_redis_errors() {
        assert_eq!(refused("foo"), "ERR unknown command 'foo', with args beginning with: ");
        assert_eq!(
            refused("foo a\r\nb c"),
            "ERR unknown command 'foo', with args beginning with: 'a  b' 'c' "
        );
        assert_eq!(refused("client Foo"), "ERR unknown subcommand 'Foo'. Try CLIENT HELP.");
        assert_eq!(refused("client"), "ERR wrong number of arguments for 'client' command");
        assert_eq!(refused("Client ID 1"), "ERR wrong number of arguments for 'client|id' command");
        assert_eq!(refused("GET"), "ERR wrong number of arguments for 'get' command");
        let long = refused(&format!("foo {} b", "a".repeat(200)));
        assert_eq!(
            long,
            format!("ERR unknown command 'foo', with args beginning with: '{}' ", "a".repeat(128))
        );
    }
}
