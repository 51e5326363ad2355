//! CLIENT: the administrator's view of connections.

use bytes::Bytes;

use crate::args::integer;
use crate::connection::{check_name, is_printable};
use crate::table::flags::{
    ADMIN, AT_ONCE, CONNECTION, CONTAINER, LOADING, LONG_RUN, NOSCRIPT, STALE,
};
use crate::table::{Command, Group, Keys, container, help};
use crate::{Args, Plan, PlanResult, Reply, errors};

/// CLIENT's subcommands.
#[allow(missing_docs, reason = "variants are the subcommands, fields their arguments")]
#[derive(Debug, Clone, PartialEq)]
pub enum ClientCommand {
    Id,
    GetName,
    SetName(Bytes),
    SetInfo { library_name: Option<Bytes>, library_version: Option<Bytes> },
    Info,
    List { kind: Option<Bytes>, ids: Vec<u64> },
    Kill(KillFilter),
    NoEvict(bool),
    NoTouch(bool),
    Reply(ReplyMode),
    Pause { ms: u64, writes_only: bool },
    Unpause,
    Unblock { id: u64, with_error: bool },
}

/// Filter of CLIENT KILL; all conditions that are set must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KillFilter {
    /// `CLIENT KILL addr`: replies OK or an error instead of a count.
    pub old_form: bool,
    /// The client with this id.
    pub id: Option<u64>,
    /// Clients with this address.
    pub address: Option<Bytes>,
    /// Clients connected to this address of the server.
    pub local_address: Option<Bytes>,
    /// `normal`, `master`, `replica` (or `slave`) or `pubsub`, in any case.
    pub kind: Option<Bytes>,
    /// Clients authenticated as this user.
    pub user: Option<Bytes>,
    /// Not the calling connection.
    pub skip_me: bool,
    /// Clients connected for at least this many seconds.
    pub max_age_seconds: Option<u64>,
}

/// CLIENT REPLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReplyMode {
    On,
    Off,
    Skip,
}

/// CLIENT and its subcommands.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "client",
        arity: -2,
        flags: CONTAINER,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "2.4.0",
        complexity: "Depends on subcommand.",
        summary: "A container for client connection commands.",
        syntax: "",
        plan: container,
    },
    Command {
        name: "client|help",
        arity: 2,
        flags: LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Returns helpful text about the different subcommands.",
        syntax: "",
        plan: help,
    },
    Command {
        name: "client|getname",
        arity: 2,
        flags: NOSCRIPT | LOADING | STALE | CONNECTION | AT_ONCE,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "2.6.9",
        complexity: "O(1)",
        summary: "Returns the name of the connection.",
        syntax: "",
        plan: getname,
    },
    Command {
        name: "client|id",
        arity: 2,
        flags: NOSCRIPT | LOADING | STALE | CONNECTION | AT_ONCE,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "5.0.0",
        complexity: "O(1)",
        summary: "Returns the unique client ID of the connection.",
        syntax: "",
        plan: id,
    },
    Command {
        name: "client|info",
        arity: 2,
        flags: NOSCRIPT | LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "6.2.0",
        complexity: "O(1)",
        summary: "Returns information about the connection.",
        syntax: "",
        plan: info,
    },
    Command {
        name: "client|kill",
        arity: -3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "2.4.0",
        complexity: "O(N) where N is the number of client connections",
        summary: "Terminates open connections.",
        syntax: "<ip:port | <ID client-id | TYPE <NORMAL | MASTER | SLAVE | REPLICA | PUBSUB> | \
                 USER username | ADDR ip:port | LADDR ip:port | SKIPME <YES | NO> | MAXAGE \
                 maxage> [<ID client-id | TYPE <NORMAL | MASTER | SLAVE | REPLICA | PUBSUB> | \
                 USER username | ADDR ip:port | LADDR ip:port | SKIPME <YES | NO> | MAXAGE \
                 maxage> ...]>",
        plan: kill,
    },
    Command {
        name: "client|list",
        arity: -2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "2.4.0",
        complexity: "O(N) where N is the number of client connections",
        summary: "Lists open connections.",
        syntax: "[TYPE <NORMAL | MASTER | REPLICA | PUBSUB>] [ID client-id [client-id ...]]",
        plan: list,
    },
    Command {
        name: "client|no-evict",
        arity: 3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "7.0.0",
        complexity: "O(1)",
        summary: "Sets the client eviction mode of the connection.",
        syntax: "<ON | OFF>",
        plan: no_evict,
    },
    Command {
        name: "client|no-touch",
        arity: 3,
        flags: NOSCRIPT | LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "7.2.0",
        complexity: "O(1)",
        summary: "Controls whether commands sent by the client affect the LRU/LFU of accessed \
                  keys.",
        syntax: "<ON | OFF>",
        plan: no_touch,
    },
    Command {
        name: "client|pause",
        arity: -3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "3.0.0",
        complexity: "O(1)",
        summary: "Suspends commands processing.",
        syntax: "timeout(integer) [WRITE | ALL]",
        plan: pause,
    },
    Command {
        name: "client|reply",
        arity: 3,
        flags: NOSCRIPT | LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "3.2.0",
        complexity: "O(1)",
        summary: "Instructs the server whether to reply to commands.",
        syntax: "<ON | OFF | SKIP>",
        plan: reply,
    },
    Command {
        name: "client|setinfo",
        arity: 4,
        flags: NOSCRIPT | LOADING | STALE | CONNECTION | AT_ONCE,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "7.2.0",
        complexity: "O(1)",
        summary: "Sets information specific to the client or connection.",
        syntax: "<LIB-NAME libname | LIB-VER libver>",
        plan: setinfo,
    },
    Command {
        name: "client|setname",
        arity: 3,
        flags: NOSCRIPT | LOADING | STALE | CONNECTION | AT_ONCE,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "2.6.9",
        complexity: "O(1)",
        summary: "Sets the connection name.",
        syntax: "connection-name",
        plan: setname,
    },
    Command {
        name: "client|unblock",
        arity: -3,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION | LONG_RUN,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "5.0.0",
        complexity: "O(log N) where N is the number of client connections",
        summary: "Unblocks a client blocked by a blocking command from a different connection.",
        syntax: "client-id [TIMEOUT | ERROR]",
        plan: unblock,
    },
    Command {
        name: "client|unpause",
        arity: 2,
        flags: ADMIN | NOSCRIPT | LOADING | STALE | CONNECTION,
        keys: Keys::NONE,
        group: Group::Connection,
        since: "6.2.0",
        complexity: "O(N) Where N is the number of paused clients",
        summary: "Resumes processing commands from paused clients.",
        syntax: "",
        plan: unpause,
    },
];

fn id(_: Args) -> PlanResult {
    Plan::local(ClientCommand::Id)
}

fn getname(_: Args) -> PlanResult {
    Plan::local(ClientCommand::GetName)
}

fn setname(mut args: Args) -> PlanResult {
    let name = args.next_arg();
    check_name(&name)?;
    Plan::local(ClientCommand::SetName(name))
}

fn setinfo(mut args: Args) -> PlanResult {
    let (what, value) = (args.next_arg(), args.next_arg());
    let (library_name, library_version) = match what.to_ascii_lowercase().as_slice() {
        b"lib-name" => (Some(value.clone()), None),
        b"lib-ver" => (None, Some(value.clone())),
        _ => {
            return Err(Reply::error(format!(
                "ERR Unrecognized option '{}'",
                errors::one_line(&what)
            )));
        }
    };
    if !is_printable(&value) {
        let what = errors::one_line(&what);
        return Err(Reply::error(format!(
            "ERR {what} cannot contain spaces, newlines or special characters."
        )));
    }
    Plan::local(ClientCommand::SetInfo { library_name, library_version })
}

fn info(_: Args) -> PlanResult {
    Plan::local(ClientCommand::Info)
}

fn list(mut args: Args) -> PlanResult {
    let (mut kind, mut ids) = (None, Vec::new());
    if args.left() == 2 && args.flag("TYPE") {
        kind = Some(kind_of_client(args.next_arg())?);
    } else if args.left() >= 2 && args.flag("ID") {
        while let Some(id) = args.try_next() {
            ids.push(integer(&id).ok_or_else(|| Reply::error("ERR Invalid client ID"))?);
        }
        // No client has a negative id; 0, which none has either, keeps the list from
        // selecting all clients.
        ids.iter_mut().for_each(|id| *id = (*id).max(0));
    }
    args.end()?;
    Plan::local(ClientCommand::List { kind, ids: ids.into_iter().map(i64::unsigned_abs).collect() })
}

fn kill(mut args: Args) -> PlanResult {
    if args.left() == 1 {
        let old = KillFilter { old_form: true, address: args.try_next(), ..KillFilter::default() };
        return Plan::local(ClientCommand::Kill(old));
    }
    let mut filter = KillFilter { skip_me: true, ..KillFilter::default() };
    while args.left() >= 2 {
        match () {
            () if args.flag("ID") => {
                let id = args.int_at_least(1, "ERR client-id should be greater than 0")?;
                filter.id = Some(id.unsigned_abs());
            }
            () if args.flag("MAXAGE") => {
                let age =
                    args.int_at_least(i64::MIN, "ERR maxage is not an integer or out of range")?;
                if age <= 0 {
                    return Err(Reply::error("ERR maxage should be greater than 0"));
                }
                filter.max_age_seconds = Some(age.unsigned_abs());
            }
            () if args.flag("TYPE") => filter.kind = Some(kind_of_client(args.next_arg())?),
            () if args.flag("ADDR") => filter.address = args.try_next(),
            () if args.flag("LADDR") => filter.local_address = args.try_next(),
            () if args.flag("USER") => filter.user = args.try_next(),
            () if args.flag("SKIPME") => filter.skip_me = yes_or_no(&mut args, "YES", "NO")?,
            () => return Err(Args::syntax()),
        }
    }
    args.end()?;
    Plan::local(ClientCommand::Kill(filter))
}

fn no_evict(mut args: Args) -> PlanResult {
    Plan::local(ClientCommand::NoEvict(yes_or_no(&mut args, "ON", "OFF")?))
}

fn no_touch(mut args: Args) -> PlanResult {
    Plan::local(ClientCommand::NoTouch(yes_or_no(&mut args, "ON", "OFF")?))
}

fn reply(mut args: Args) -> PlanResult {
    let mode = match () {
        () if args.flag("ON") => ReplyMode::On,
        () if args.flag("OFF") => ReplyMode::Off,
        () if args.flag("SKIP") => ReplyMode::Skip,
        () => return Err(Args::syntax()),
    };
    Plan::local(ClientCommand::Reply(mode))
}

fn pause(mut args: Args) -> PlanResult {
    let timeout = args.next_arg();
    let writes_only = args.flag("WRITE");
    if args.left() > usize::from(!writes_only) {
        return Err(args.wrong_subcommand());
    }
    if !writes_only && args.left() > 0 && !args.flag("ALL") {
        return Err(Reply::error("ERR CLIENT PAUSE mode must be WRITE or ALL"));
    }
    Plan::local(ClientCommand::Pause { ms: errors::timeout_ms(&timeout)?, writes_only })
}

fn unpause(_: Args) -> PlanResult {
    Plan::local(ClientCommand::Unpause)
}

fn unblock(mut args: Args) -> PlanResult {
    let id = args.next_arg();
    let with_error = args.flag("ERROR");
    if args.left() > 1 || (with_error && args.left() > 0) {
        return Err(args.wrong_subcommand());
    }
    if args.left() > 0 && !args.flag("TIMEOUT") {
        return Err(Reply::error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"));
    }
    let id = integer(&id).ok_or_else(errors::not_integer)?;
    Plan::local(ClientCommand::Unblock { id: u64::try_from(id).unwrap_or(0), with_error })
}

/// The next argument as one of two tokens; any other is a syntax error.
fn yes_or_no(args: &mut Args, yes: &str, no: &str) -> Result<bool, Reply> {
    match () {
        () if args.flag(yes) => Ok(true),
        () if args.flag(no) => Ok(false),
        () => Err(Args::syntax()),
    }
}

/// A client type of Redis.
fn kind_of_client(kind: Bytes) -> Result<Bytes, Reply> {
    match kind.to_ascii_lowercase().as_slice() {
        b"normal" | b"master" | b"replica" | b"slave" | b"pubsub" => Ok(kind),
        _ => Err(Reply::error(format!("ERR Unknown client type '{}'", errors::one_line(&kind)))),
    }
}
