//! Redis's error texts: the one file with the errors that several commands share.
//!
//! Clients and their tests match these texts, so they are Redis 7.4's to the letter.
//! Errors that Redis does not have state what was refused and, where there is one, the
//! remedy.

use bytes::Bytes;
use row::Refusal;

use crate::Reply;
use crate::args::CLOCK_MAX_MS;

/// The reply to a refused op.
pub fn refusal(refusal: Refusal) -> Reply {
    Reply::error(match refusal {
        Refusal::WrongType => "WRONGTYPE Operation against a key holding the wrong kind of value",
        Refusal::NotInteger => "ERR value is not an integer or out of range",
        Refusal::Overflow => "ERR increment or decrement would overflow",
        Refusal::NotFloat => "ERR value is not a valid float",
        Refusal::NanOrInfinity => "ERR increment would produce NaN or Infinity",
        Refusal::HashNotInteger => "ERR hash value is not an integer",
        Refusal::HashNotFloat => "ERR hash value is not a float",
        Refusal::NoSuchKey => "ERR no such key",
        Refusal::BusyKey => "BUSYKEY Target key name already exists.",
        // Redis names proto-max-bulk-len, which bounds a single argument.
        Refusal::TooLarge => {
            "ERR string exceeds maximum allowed size (max_write_size; the configuration file \
             changes it, at a restart)"
        }
        Refusal::TooManyFields => {
            "ERR command changes too much data for one log entry (max_write_size and 16 MiB; the \
             key is stored with every field): use fewer fields per command"
        }
        Refusal::TooMuch => {
            "BUSY Commands sent together change too much data for one log entry, nothing was \
             done: send fewer at a time"
        }
        Refusal::RowTooLarge => {
            "ERR the key is larger than max_write_size, the limit of one command: copy a hash in \
             parts with HSCAN and HSET, or raise the setting in the configuration file and restart"
        }
        Refusal::ExpiryTooFar => "ERR invalid expire time",
        Refusal::KeyTooLong => "ERR key is longer than 65535 bytes",
        Refusal::AnswerTooLarge => {
            "ERR answer is larger than max_answer_size (the configuration file changes it, at a \
             restart; at most maxmemory-clients), use HSCAN, HRANGE or GETRANGE to read in parts"
        }
        Refusal::CheckOperandNotInteger => {
            "ERR operand of the check is not an integer or out of range"
        }
        Refusal::CheckValueNotInteger => "ERR checked value is not an integer or out of range",
        Refusal::UnknownOp => {
            "ERR the leader of the partition runs an older version that does not know this \
             operation"
        }
    })
}

/// The argument is not an integer, or is out of range.
pub fn not_integer() -> Reply {
    refusal(Refusal::NotInteger)
}

/// The argument is not a float.
pub fn not_float() -> Reply {
    refusal(Refusal::NotFloat)
}

/// The integer is outside the range that the command accepts.
pub fn out_of_range() -> Reply {
    Reply::error("ERR value is out of range")
}

/// The integer is outside these bounds.
pub fn out_of_bounds(least: i64, most: i64) -> Reply {
    Reply::error(format!("ERR value is out of range, value must between {least} and {most}"))
}

/// Wrong number of arguments for `command` (lower case, `client|id` for a subcommand).
pub fn wrong_number(command: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{command}' command"))
}

/// The expiry is not positive or overflows.
pub fn invalid_expire(command: &str) -> Reply {
    Reply::error(format!("ERR invalid expire time in '{command}' command"))
}

/// EXPIRE does not know this condition.
pub fn unsupported_option(option: &[u8]) -> Reply {
    Reply::error(format!("ERR Unsupported option {}", one_line(option)))
}

/// Parses the timeout of WAIT and similar commands, ms; 0 = no timeout.
pub(crate) fn timeout_ms(number: &[u8]) -> Result<u64, Reply> {
    let ms = crate::args::integer(number)
        .ok_or_else(|| Reply::error("ERR timeout is not an integer or out of range"))?;
    if ms > i64::MAX - CLOCK_MAX_MS {
        return Err(Reply::error("ERR timeout is out of range"));
    }
    u64::try_from(ms).map_err(|_| Reply::error("ERR timeout is negative"))
}

/// No such command. About 128 bytes of the arguments are shown.
pub(crate) fn unknown_command(argv: &[Bytes]) -> Reply {
    let name = argv.first().map_or("".into(), |name| one_line(name));
    let mut args = String::new();
    for arg in argv.iter().skip(1) {
        if args.len() >= 128 {
            break;
        }
        let arg = one_line(&arg[..arg.len().min(128 - args.len())]);
        args.extend(["'", &arg, "' "]);
    }
    Reply::error(format!("ERR unknown command '{name}', with args beginning with: {args}"))
}

/// No such subcommand.
pub(crate) fn unknown_subcommand(container: &[u8], sub: &[u8]) -> Reply {
    let container = one_line(container).to_ascii_uppercase();
    Reply::error(format!("ERR unknown subcommand '{}'. Try {container} HELP.", one_line(sub)))
}

/// More arguments than any form of a subcommand takes.
pub(crate) fn wrong_subcommand(container: &[u8], sub: &[u8]) -> Reply {
    let container = one_line(container).to_ascii_uppercase();
    Reply::error(format!(
        "ERR unknown subcommand or wrong number of arguments for '{}'. Try {container} HELP.",
        one_line(sub)
    ))
}

/// A row cannot be copied or moved to itself.
pub fn same_object() -> Reply {
    Reply::error("ERR source and destination objects are the same")
}

/// The reply when an answer exceeds the limit of answers, which prints as a setting with
/// its value.
pub fn answer_too_large(limit: &dyn std::fmt::Display) -> Reply {
    Reply::error(format!(
        "ERR answer is larger than {limit}: read in parts, as with HSCAN, HRANGE, GETRANGE or SCAN"
    ))
}

/// The answer is missing, or its shape is not the op's: a bug of ours, or a node of
/// another version.
pub fn no_answer() -> Reply {
    Reply::error("ERR internal error: the storage node's answer does not fit the command")
}

/// A client's text made safe for an error line: at most 128 bytes, without line ends.
pub(crate) fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(128)]).replace(['\r', '\n', '\0'], " ")
}
