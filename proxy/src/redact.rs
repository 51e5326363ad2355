//! Redaction of secrets in the slow log, MONITOR and logs.

use bytes::Bytes;

/// Replacement of a secret, as in Redis.
const REDACTED: Bytes = Bytes::from_static(b"(redacted)");

/// Settings whose values are secrets.
const SECRET_SETTINGS: [&str; 4] =
    ["requirepass", "masterauth", "tls-key-file-pass", "tls-client-key-file-pass"];

/// `true` if the argument at this position is a secret.
///
/// These are the arguments of AUTH, those of HELLO after AUTH, of MIGRATE after AUTH or
/// AUTH2, and values of secret settings in CONFIG SET. Unknown commands follow the same
/// rules, so a misspelt option hides no less.
fn is_secret(argv: &[Bytes], at: usize) -> bool {
    let arg = |index: usize| argv.get(index).map_or(&b""[..], |arg| arg.as_ref());
    let named = |name: &str| arg(0).eq_ignore_ascii_case(name.as_bytes());
    let behind = |option: &str, reach: usize| {
        let from = at.saturating_sub(reach).max(1);
        (from..at).any(|index| arg(index).eq_ignore_ascii_case(option.as_bytes()))
    };
    match at {
        0 => false,
        _ if named("auth") => true,
        _ if named("hello") => behind("auth", 2),
        _ if named("migrate") => behind("auth", 1) || behind("auth2", 2),
        _ if named("acl") => arg(1).eq_ignore_ascii_case(b"setuser") && at > 2,
        // Both neighbours of the value are checked: a wrong number of arguments must not
        // reveal it.
        _ if named("config") && at > 2 => SECRET_SETTINGS.iter().any(|name| behind(name, 1)),
        _ => false,
    }
}

/// The arguments with secrets replaced. Copies nothing else.
pub(crate) fn redacted(argv: &[Bytes]) -> impl Iterator<Item = Bytes> + '_ {
    argv.iter()
        .enumerate()
        .map(move |(at, arg)| if is_secret(argv, at) { REDACTED } else { arg.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        let argv: Vec<Bytes> =
            line.split(' ').map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        redacted(&argv)
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
            ("migrate h 1 k 0 5 AUTH hunter2", "migrate h 1 k 0 5 AUTH (redacted)"),
            (
                "migrate h 1 k 0 5 AUTH2 bob hunter2",
                "migrate h 1 k 0 5 AUTH2 (redacted) (redacted)",
            ),
            ("acl setuser bob on >hunter2", "acl setuser bob (redacted) (redacted)"),
            ("set auth x", "set auth x"),
        ] {
            assert_eq!(shown(line), expected);
        }
    }
}
