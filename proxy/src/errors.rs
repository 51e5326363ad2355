//! Errors of the proxy: Redis's texts where Redis has one; otherwise what was not done,
//! and the remedy.

use cluster::{CallError, Fault, FaultKind};
use commands::Reply;

/// The client must authenticate first.
pub(crate) const NOAUTH: &str = "NOAUTH Authentication required.";
pub(crate) const NOAUTH_HELLO: &str = "NOAUTH HELLO must be called with the client already \
                                       authenticated, otherwise the HELLO <proto> AUTH <user> \
                                       <pass> option can be used to authenticate the client and \
                                       select the RESP protocol version at the same time";
pub(crate) const WRONGPASS: &str = "WRONGPASS invalid username-password pair or user is disabled.";
pub(crate) const NO_PASSWORD: &str = "ERR AUTH <password> called without any password configured \
                                      for the default user. Are you sure your configuration is \
                                      correct?";
pub(crate) const MAX_CLIENTS: &str = "ERR max number of clients reached";
pub(crate) const CROSSSLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot: they \
                                    are in several partitions, and nothing was done. Keys with a \
                                    common {tag} are in one partition, as are all keys of a table \
                                    with one partition (tables.partitions, bridle admin create \
                                    --partitions)";
pub(crate) const EXECABORT: &str = "EXECABORT Transaction discarded because of previous errors.";
pub(crate) const CLIENT_KILLED: &str = "ERR the client is being disconnected";
pub(crate) const NO_DATABASE: &str = "ERR DB index is out of range";

/// Redis's protected mode.
pub(crate) const DENIED: &str = "DENIED Redis is running in protected mode because protected \
                                 mode is enabled and no password is set for the default user. \
                                 In this mode connections are only accepted from the loopback \
                                 interface. If you want to connect from external computers to \
                                 Redis you may adopt one of the following solutions: 1) Just \
                                 disable protected mode sending the command 'CONFIG SET \
                                 protected-mode no' from the loopback interface by connecting \
                                 to Redis from the same host the server is running, however \
                                 MAKE SURE Redis is not publicly accessible from internet if \
                                 you do so. Use CONFIG REWRITE to make this change permanent. \
                                 2) Alternatively you can just disable the protected mode by \
                                 editing the Redis configuration file, and setting the \
                                 protected mode option to 'no', and then restarting the \
                                 server. 3) If you started the server manually just for \
                                 testing, restart it with the '--protected-mode no' option. \
                                 4) Set up an authentication password for the default user. \
                                 NOTE: You only need to do one of the above things in order \
                                 for the server to start accepting connections from the \
                                 outside.";

/// The reply when a call to a partition failed.
///
/// `UNKNOWNOUTCOME` is Bridle's own: the write may or may not have happened, so no client
/// library may repeat it blindly. All other errors mean that nothing was done. A full disk
/// is `MISCONF`, as in Redis, however it was noticed; other faults are `ERR`.
pub(crate) fn call_error(error: &CallError) -> Reply {
    Reply::error(match error {
        CallError::NoLeader(why) => format!(
            "CLUSTERDOWN The partition has no leader, nothing was done: {}",
            one_line(why.as_bytes())
        ),
        CallError::Overloaded => "BUSY Too many requests wait for this partition, nothing was \
                                  done, try again later"
            .to_owned(),
        CallError::OutOfMemory => "BUSY Pending requests use all the memory that the server has \
                                   for them, nothing was done, try again later"
            .to_owned(),
        CallError::ReadOnly(why) => {
            format!("MISCONF Writes are refused, reads go on: {}", one_line(why.as_bytes()))
        }
        CallError::NoTable => "ERR The table has been dropped, nothing was done".to_owned(),
        CallError::Unknown(why) => {
            format!(
                "UNKNOWNOUTCOME The write may or may not have happened, read before trying again: \
                 {}",
                one_line(why.as_bytes())
            )
        }
        CallError::Fault(fault) => {
            let why = one_line(fault.message.as_bytes());
            match fault.kind {
                FaultKind::Full => format!("MISCONF storage fault: {why}"),
                FaultKind::Damaged | FaultKind::Stalled | FaultKind::Io | FaultKind::Internal => {
                    format!("ERR storage fault: {why}")
                }
            }
        }
        CallError::TooLarge(why) => {
            format!("ERR The request is too large, nothing was done: {}", one_line(why.as_bytes()))
        }
    })
}

/// The reply when an op failed on a table that does not exist: no disk is behind it.
pub(crate) fn op_fault(fault: row::Fault) -> Reply {
    call_error(&CallError::Fault(Fault::internal(fault.message)))
}

/// The reply when a write was done in some partitions, and in others it was not or its
/// outcome is unknown.
pub(crate) fn partly_done(error: &CallError) -> Reply {
    let why = match call_error(error) {
        Reply::Error(line) => line.to_string(),
        _ => String::new(),
    };
    Reply::error(format!(
        "UNKNOWNOUTCOME The write was done for keys in some partitions; for the others: {why}"
    ))
}

/// The reply when a table could not be looked up or created.
pub(crate) fn catalogue_error(error: &CallError) -> Reply {
    match error {
        CallError::NoLeader(why) => {
            let why = one_line(why.as_bytes());
            Reply::error(format!(
                "CLUSTERDOWN The table can't be looked up or made now, nothing was done: {why}"
            ))
        }
        other => call_error(other),
    }
}

/// The reply when a named table does not exist.
pub(crate) fn no_table(name: &[u8]) -> Reply {
    Reply::error(format!("ERR no such table '{}'", one_line(name)))
}

/// A client's text made safe for an error line: at most 128 bytes, without line ends.
pub(crate) fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(128)]).replace(['\r', '\n', '\0'], " ")
}
