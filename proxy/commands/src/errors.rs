//! Redis's words for what is refused: the one file where error texts that several
//! commands share are written.
//!
//! Clients and their tests match on these texts, so they are Redis 7.4's to the letter;
//! those that Redis has no words for say what was refused and, where there is one, the
//! way round.

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
            "ERR the command changes more than one log entry holds (max_write_size and 16 MiB), \
             the key counted with each field: name fewer at once"
        }
        Refusal::TooMuch => {
            "BUSY Commands sent together change more than one log entry holds: nothing was done, \
             send fewer at once"
        }
        Refusal::RowTooLarge => {
            "ERR the key holds more than max_write_size, which is what one command writes at most: \
             copy a hash in parts with HSCAN and HSET, or raise the setting, in the configuration \
             file and at a restart"
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
    })
}

/// An integer that is none, or too large.
pub fn not_integer() -> Reply {
    refusal(Refusal::NotInteger)
}

/// A float that is none.
pub fn not_float() -> Reply {
    refusal(Refusal::NotFloat)
}

/// An integer outside what the command takes.
pub fn out_of_range() -> Reply {
    Reply::error("ERR value is out of range")
}

/// An integer outside the bounds that it must be in.
pub fn out_of_bounds(least: i64, most: i64) -> Reply {
    Reply::error(format!("ERR value is out of range, value must between {least} and {most}"))
}

/// More or fewer arguments than `command` (lower case, `client|id` for a subcommand)
/// takes.
pub fn wrong_number(command: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{command}' command"))
}

/// An expiry that is not positive or does not fit.
pub fn invalid_expire(command: &str) -> Reply {
    Reply::error(format!("ERR invalid expire time in '{command}' command"))
}

/// A condition that EXPIRE does not know.
pub fn unsupported_option(option: &[u8]) -> Reply {
    Reply::error(format!("ERR Unsupported option {}", one_line(option)))
}

/// How long WAIT and its like wait, ms; 0 = for ever.
pub(crate) fn timeout_ms(number: &[u8]) -> Result<u64, Reply> {
    let ms = crate::args::integer(number)
        .ok_or_else(|| Reply::error("ERR timeout is not an integer or out of range"))?;
    if ms > i64::MAX - CLOCK_MAX_MS {
        return Err(Reply::error("ERR timeout is out of range"));
    }
    u64::try_from(ms).map_err(|_| Reply::error("ERR timeout is negative"))
}

/// A command that is none. Of the arguments, about 128 bytes are shown.
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

/// A subcommand that is none.
pub(crate) fn unknown_subcommand(container: &[u8], sub: &[u8]) -> Reply {
    let container = one_line(container).to_ascii_uppercase();
    Reply::error(format!("ERR unknown subcommand '{}'. Try {container} HELP.", one_line(sub)))
}

/// Too many arguments for any form of a subcommand.
pub(crate) fn wrong_subcommand(container: &[u8], sub: &[u8]) -> Reply {
    let container = one_line(container).to_ascii_uppercase();
    Reply::error(format!(
        "ERR unknown subcommand or wrong number of arguments for '{}'. Try {container} HELP.",
        one_line(sub)
    ))
}

/// A plan asked and got no answer, or one of another shape than the op promises: a bug of
/// ours, or a node of another version.
pub fn no_answer() -> Reply {
    Reply::error("ERR internal error: the storage node's answer does not fit the command")
}

/// Words of a client inside an error line: nothing that could end the line, not too long.
pub(crate) fn one_line(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(128)]).replace(['\r', '\n', '\0'], " ")
}
