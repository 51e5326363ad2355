//! Redaction of secrets in the slow log, MONITOR and logs.

use bytes::Bytes;
use commands::Command;
use commands::table::flags;

/// Replacement of a secret, as in Redis.
const REDACTED: Bytes = Bytes::from_static(b"(redacted)");

/// Settings whose values are secrets.
const SECRET_SETTINGS: [&str; 4] =
    ["requirepass", "masterauth", "tls-key-file-pass", "tls-client-key-file-pass"];

/// True if the argument at this position is a secret: by the flags of its command, of
/// which [`flags::SECRET_ARGS`] is the first.
fn is_secret(command: &Command, argv: &[Bytes], at: usize) -> bool {
    let behind = |option: &str, reach: usize| {
        let from = at.saturating_sub(reach).max(1);
        argv[from..at].iter().any(|arg| arg.eq_ignore_ascii_case(option.as_bytes()))
    };
    // Both neighbours of a setting's value are checked: a wrong number of arguments must
    // not reveal it.
    at > 0
        && (command.is(flags::SECRET_ARGS)
            || (command.is(flags::SECRET_OPTION) && behind("auth", 2))
            || (command.is(flags::SECRET_SETTINGS)
                && at > 2
                && SECRET_SETTINGS.iter().any(|name| behind(name, 1))))
}

/// The arguments of a command with secrets replaced. Copies nothing else.
pub(crate) fn redacted<'a>(
    command: &'a Command,
    argv: &'a [Bytes],
) -> impl ExactSizeIterator<Item = Bytes> + 'a {
    argv.iter().enumerate().map(
        move |(at, arg)| {
            if is_secret(command, argv, at) { REDACTED } else { arg.clone() }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        let argv: Vec<Bytes> =
            line.split(' ').map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        let command = commands::find(&argv[0], None).expect("it is in the table");
        let command = commands::find(&argv[0], Some(&argv[1])).unwrap_or(command);
        redacted(command, &argv)
            .map(|arg| String::from_utf8_lossy(&arg).into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn secrets_are_replaced_and_nothing_else() {
        for (line, expected) in [
            ("AUTH hunter2", "AUTH (redacted)"),
            ("auth bob hunter2", "auth (redacted) (redacted)"),
            ("hello 3 AUTH bob hunter2 SETNAME x", "hello 3 AUTH (redacted) (redacted) SETNAME x"),
            ("hello 3 setname auth", "hello 3 setname auth"),
            (
                "config set maxclients 5 RequirePass hunter2",
                "config set maxclients 5 RequirePass (redacted)",
            ),
            ("config set requirepass", "config set requirepass"),
            ("config get requirepass", "config get requirepass"),
            ("set auth x", "set auth x"),
        ] {
            assert_eq!(shown(line), expected);
        }
    }
}
