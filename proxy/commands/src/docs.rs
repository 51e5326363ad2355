//! COMMAND DOCS and `proxy/COMMANDS.md`, generated from the entries; the arguments come
//! from `syntax`.
//!
//! # Layout
//! `syntax` is Redis's own notation:
//!
//! | notation | meaning |
//! |---|---|
//! | `key`, `EX` | an argument, a token |
//! | `EX seconds` | an argument after a token |
//! | `[...]`, `<...>` | optional, required |
//! | `a \| b` | one of these; only inside brackets |
//! | `field value [field value ...]` | once or more often |
//! | `timeout(double)` | an argument whose name does not tell its type |
//!
//! Types are not shown to users ([`usage`]).

use crate::command::text;
use crate::table::{Command, Group};
use crate::{Reply, table};

/// One argument of a command.
#[derive(Debug, Clone, PartialEq, Default)]
struct Arg {
    /// The name; for a token, the token in lower case.
    name: String,
    /// The token before the argument, or the argument itself if it is a token.
    token: Option<String>,
    shape: ArgShape,
    optional: bool,
    multiple: bool,
    /// `token` is repeated with each value.
    multiple_token: bool,
    /// The type, if the notation states it.
    stated: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Default)]
enum ArgShape {
    /// A value.
    #[default]
    Value,
    /// Just the token.
    Token,
    /// One of these.
    OneOf(Vec<Arg>),
    /// All of these.
    Block(Vec<Arg>),
}

/// COMMAND DOCS of one command.
pub(crate) fn doc(command: &Command) -> Reply {
    let mut doc = vec![
        (text("summary"), text(command.summary)),
        (text("since"), text(command.since)),
        (text("group"), text(command.group.name())),
        (text("complexity"), text(command.complexity)),
    ];
    let (args, mut keys) = (parse(command.syntax), 0);
    if !args.is_empty() {
        doc.push((
            text("arguments"),
            Reply::Array(args.iter().map(|arg| arg.reply(command, &mut keys)).collect()),
        ));
    }
    let subcommands: Vec<_> =
        command.subcommands().map(|sub| (text(sub.name), self::doc(sub))).collect();
    if !subcommands.is_empty() {
        doc.push((text("subcommands"), Reply::Map(subcommands)));
    }
    Reply::Map(doc)
}

/// The tables of `proxy/COMMANDS.md`: the commands of each group with their summaries.
pub fn command_tables() -> String {
    let mut page = String::new();
    for group in Group::ALL {
        let shown = |command: &&Command| {
            command.group == group
                && command.subcommands().next().is_none_or(|_| command.arity == -1)
                && !command.name.ends_with("|help")
        };
        let mut commands = table::all().filter(shown).peekable();
        if commands.peek().is_none() {
            continue;
        }
        let title = group.title();
        page.push_str(&format!("## {title}\n\n| command | what it does |\n|---|---|\n"));
        for command in commands {
            let line = format!(
                "{} {}",
                command.name.replace('|', " ").to_ascii_uppercase(),
                usage(command.syntax)
            );
            page.push_str(&format!(
                "| `{}` | {} |\n",
                line.trim_end().replace('|', "\\|"),
                command.summary
            ));
        }
        page.push('\n');
    }
    page
}

impl Arg {
    /// COMMAND DOCS of the argument; `keys` counts the keys before it that no option names.
    fn reply(&self, command: &Command, keys: &mut usize) -> Reply {
        let owned = |text: &str| Reply::Bulk(text.to_owned().into());
        let kind = self.kind(command);
        let mut reply = vec![(text("name"), owned(&self.name)), (text("type"), text(kind))];
        if matches!(self.shape, ArgShape::Value | ArgShape::Token) {
            reply.push((text("display_text"), owned(&self.name)));
        }
        if let Some(index) = self.key_spec_index(command, keys) {
            reply.push((text("key_spec_index"), Reply::Int(index as i64)));
        }
        if let Some(token) = &self.token {
            reply.push((text("token"), owned(token)));
        }
        let flags = [
            (self.optional, "optional"),
            (self.multiple, "multiple"),
            (self.multiple_token, "multiple_token"),
        ];
        let flags: Vec<_> = flags
            .into_iter()
            .filter(|(set, _)| *set)
            .map(|(_, name)| Reply::Status(name.into()))
            .collect();
        if !flags.is_empty() {
            reply.push((text("flags"), Reply::Set(flags)));
        }
        if let ArgShape::OneOf(args) | ArgShape::Block(args) = &self.shape {
            reply.push((
                text("arguments"),
                Reply::Array(args.iter().map(|arg| arg.reply(command, keys)).collect()),
            ));
        }
        Reply::Map(reply)
    }

    /// The index of the key specification that finds this argument: that of its option, or
    /// that of its number among the other keys; the last specification finds all that
    /// remain.
    fn key_spec_index(&self, command: &Command, keys: &mut usize) -> Option<usize> {
        if self.shape != ArgShape::Value {
            return None;
        }
        let option = self.token.as_deref();
        option.and_then(|option| command.keys.spec_of_option(option)).or_else(|| {
            let last = command.keys.specs().len().checked_sub(1)?;
            let number = *keys;
            (self.kind(command) == "key").then(|| {
                *keys += 1;
                number.min(last)
            })
        })
    }

    /// The argument's type: as stated, or as its name tells.
    fn kind(&self, command: &Command) -> &'static str {
        let of_name = |(_, names): &&(&str, &[&str])| names.contains(&self.name.as_str());
        match self.shape {
            ArgShape::Token => "pure-token",
            ArgShape::OneOf(_) => "oneof",
            ArgShape::Block(_) => "block",
            ArgShape::Value => match (self.stated, TYPES.iter().find(of_name)) {
                (Some(stated), _) => stated,
                // CLUSTER KEYSLOT's key, for example, is just a string.
                (None, Some(("key", _))) if !command.keys.may_exist() => "string",
                (None, Some((kind, _))) => kind,
                (None, None) => "string",
            },
        }
    }
}

/// Types, with the names of their arguments: in Redis all arguments of these names have
/// that type.
const TYPES: [(&str, &[&str]); 6] = [
    ("string", &[]),
    ("key", &["key", "key1", "key2", "newkey", "source", "destination", "destkey", "sourcekey"]),
    ("pattern", &["pattern"]),
    ("unix-time", &["unix-time-seconds", "unix-time-milliseconds"]),
    ("double", &["longitude", "latitude", "radius", "width", "height", "score"]),
    (
        "integer",
        &[
            "bit",
            "bytes",
            "client-id",
            "count",
            "cursor",
            "db",
            "decrement",
            "destination-db",
            "index",
            "len",
            "limit",
            "maxage",
            "milliseconds",
            "min-match-len",
            "num-matches",
            "number",
            "numfields",
            "numkeys",
            "numlocal",
            "numreplicas",
            "offset",
            "protover",
            "rank",
            "seconds",
            "ttl",
            "version",
            "weight",
        ],
    ),
];

/// The notation as users read it: without types.
pub(crate) fn usage(syntax: &str) -> String {
    let mut parts = syntax.split('(');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |usage, part| usage + part.split_once(')').map_or("", |(_, rest)| rest))
}

/// An argument list from its notation.
fn parse(syntax: &str) -> Vec<Arg> {
    let spaced = ["[", "]", "<", ">", "|"]
        .iter()
        .fold(syntax.to_owned(), |text, mark| text.replace(mark, &format!(" {mark} ")));
    Parser { tokens: spaced.split_whitespace() }
        .alternatives()
        .0
        .into_iter()
        .next()
        .unwrap_or_default()
}

struct Parser<'a> {
    tokens: std::str::SplitWhitespace<'a>,
}

impl Parser<'_> {
    /// Alternatives between bars, up to the closing bracket; `true` if they end in `...`.
    fn alternatives(&mut self) -> (Vec<Vec<Arg>>, bool) {
        let (mut lists, mut repeated) = (vec![Vec::<Arg>::new()], false);
        let mut token: Option<String> = None;
        while let Some(word) = self.tokens.next() {
            let list = lists.last_mut().expect("`lists` begins with one list and only grows");
            match word {
                "]" | ">" => break,
                "..." => repeated = true,
                "[" | "<" => {
                    // A token belongs to a following `<...>`; before `[` it is complete.
                    let before = token.take();
                    let (before, complete) =
                        if word == "<" { (before, None) } else { (None, before) };
                    list.extend(complete.map(pure));
                    let (inner, again) = self.alternatives();
                    if again {
                        repeat(list, inner.into_iter().next().unwrap_or_default());
                    } else {
                        list.push(group(inner, before, word == "["));
                    }
                }
                "|" => {
                    list.extend(token.take().map(pure));
                    lists.push(Vec::new());
                }
                word if is_token(word) => list.extend(token.replace(word.to_owned()).map(pure)),
                word => {
                    let (name, kind) = word.split_once('(').unwrap_or((word, ""));
                    let kind = kind.trim_end_matches(')');
                    let stated = TYPES.iter().map(|(kind, _)| *kind).find(|it| *it == kind);
                    let (name, token) = (name.to_owned(), token.take());
                    list.push(Arg { name, token, stated, ..Arg::default() });
                }
            }
        }
        lists
            .last_mut()
            .expect("`lists` begins with one list and only grows")
            .extend(token.map(pure));
        (lists, repeated)
    }
}

/// Tokens are written without lower-case letters.
fn is_token(word: &str) -> bool {
    !word.contains(|letter: char| letter.is_ascii_lowercase())
}

fn pure(token: String) -> Arg {
    Arg {
        name: token.to_ascii_lowercase(),
        token: Some(token),
        shape: ArgShape::Token,
        ..Arg::default()
    }
}

/// The contents of brackets as one argument.
fn group(mut lists: Vec<Vec<Arg>>, token: Option<String>, optional: bool) -> Arg {
    let inner = if lists.len() == 1 {
        sequence(lists.pop().unwrap_or_default())
    } else {
        Arg {
            name: "choice".into(),
            shape: ArgShape::OneOf(lists.into_iter().map(sequence).collect()),
            ..Arg::default()
        }
    };
    match token {
        None => Arg { optional: optional || inner.optional, ..inner },
        Some(token) if inner.token.is_none() => Arg { token: Some(token), optional, ..inner },
        Some(token) => Arg {
            token: Some(token),
            optional,
            name: inner.name.clone(),
            shape: ArgShape::Block(vec![inner]),
            ..Arg::default()
        },
    }
}

/// Several arguments as one.
fn sequence(mut args: Vec<Arg>) -> Arg {
    match args.len() {
        1 => args.remove(0),
        _ => Arg {
            name: args.first().map_or_else(String::new, |arg| arg.name.clone()),
            shape: ArgShape::Block(args),
            ..Arg::default()
        },
    }
}

/// Marks the last argument of `list` as repeated, as `again` says.
fn repeat(list: &mut Vec<Arg>, again: Vec<Arg>) {
    let multiple_token =
        again.first().is_some_and(|arg| arg.token.is_some() && arg.shape == ArgShape::Value);
    let once = list.split_off(list.len().saturating_sub(again.len()));
    list.push(Arg { multiple: true, multiple_token, ..sequence(once) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::BeginSearch;

    /// An argument list in a short notation, for assertions.
    fn shown(syntax: &str) -> String {
        fn one(arg: &Arg) -> String {
            let list = |args: &[Arg], between: &str| {
                args.iter().map(one).collect::<Vec<_>>().join(between)
            };
            let inner = match &arg.shape {
                ArgShape::Value => arg.name.clone(),
                ArgShape::Token => String::new(),
                ArgShape::OneOf(args) => format!("<{}>", list(args, "|")),
                ArgShape::Block(args) => format!("({})", list(args, " ")),
            };
            let token = arg.token.as_ref().map_or(String::new(), |token| format!("{token}:"));
            let mark = |set, mark| if set { mark } else { "" };
            format!(
                "{token}{inner}{}{}{}",
                mark(arg.optional, "?"),
                mark(arg.multiple, "+"),
                mark(arg.multiple_token, "+")
            )
        }
        parse(syntax).iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn notation_is_understood() {
        for (syntax, tree) in [
            ("", ""),
            ("key", "key"),
            ("key [key ...]", "key+"),
            ("key value [key value ...]", "(key value)+"),
            ("key [NX | XX]", "key <NX:|XX:>?"),
            ("key [EX seconds | KEEPTTL] [GET]", "key <EX:seconds|KEEPTTL:>? GET:?"),
            ("[section [section ...]]", "section?+"),
            ("key [count [WITHVALUES]]", "key (count WITHVALUES:?)?"),
            (
                "[LIMIT offset count] [GET pattern [GET pattern ...]]",
                "(LIMIT:offset count)? GET:pattern?++",
            ),
            ("FIELDS numfields field [field ...]", "FIELDS:numfields field+"),
            ("<ON | OFF>", "<ON:|OFF:>"),
            (
                "[MATCH <PREFIX | POSTFIX> pattern] [REV]",
                "(MATCH:<PREFIX:|POSTFIX:> pattern)? REV:?",
            ),
            (
                "<PUT field value | DEL field> [<PUT field value | DEL field> ...]",
                "<(PUT:field value)|DEL:field>+",
            ),
            ("key LEN [IDX]", "key LEN: IDX:?"),
        ] {
            assert_eq!(shown(syntax), tree, "{syntax}");
        }
    }

    #[test]
    fn names_of_several_types_state_theirs() {
        const SEVERAL: [&str; 8] =
            ["start", "end", "stop", "min", "max", "timeout", "increment", "min-idle-time"];
        fn check(command: &Command, args: &[Arg]) -> usize {
            let of_one = |arg: &Arg| {
                let is_stated = arg.stated.is_some();
                let name = arg.name.as_str();
                assert!(
                    arg.shape != ArgShape::Value || is_stated || !SEVERAL.contains(&name),
                    "{} {name}",
                    command.name
                );
                match &arg.shape {
                    ArgShape::Value => usize::from(is_stated),
                    ArgShape::Token => 0,
                    ArgShape::OneOf(inner) | ArgShape::Block(inner) => check(command, inner),
                }
            };
            args.iter().map(of_one).sum()
        }
        for command in table::all() {
            let stated = check(command, &parse(command.syntax));
            assert_eq!(stated, command.syntax.matches('(').count(), "{}", command.name);
        }
        assert_eq!(usage("key [start(string) [end(unix-time)]] x"), "key [start [end]] x");
    }

    #[test]
    fn every_syntax_is_balanced_and_leaves_nothing_nameless() {
        fn check(command: &Command, args: &[Arg]) {
            for arg in args {
                assert!(!arg.name.is_empty(), "{}: {args:?}", command.name);
                if let ArgShape::OneOf(inner) | ArgShape::Block(inner) = &arg.shape {
                    assert!(inner.len() > 1, "{}: {args:?}", command.name);
                    check(command, inner);
                }
            }
        }
        for command in table::all() {
            let count = |mark| command.syntax.matches(mark).count();
            assert_eq!((count("["), count("<")), (count("]"), count(">")), "{}", command.name);
            check(command, &parse(command.syntax));
        }
    }

    /// A new command whose key has a name that [`Arg::kind`] does not know is found here.
    #[test]
    fn every_specification_has_a_key_in_the_syntax() {
        fn collect(command: &Command, args: &[Arg], keys: &mut usize, found: &mut Vec<usize>) {
            for arg in args {
                found.extend(arg.key_spec_index(command, keys));
                if let ArgShape::OneOf(inner) | ArgShape::Block(inner) = &arg.shape {
                    collect(command, inner, keys, found);
                }
            }
        }
        for command in table::all() {
            let (mut keys, mut found) = (0, Vec::new());
            collect(command, &parse(command.syntax), &mut keys, &mut found);
            for (index, spec) in command.keys.specs().iter().enumerate() {
                // An option that is not supported yet may be missing.
                let is_optional = matches!(spec.begin, BeginSearch::Unknown { .. });
                assert!(is_optional || found.contains(&index), "{} {index}", command.name);
            }
        }
    }

    #[test]
    fn options_name_the_keys_of_their_specification() {
        let command = table::find(b"sort", None).expect("SORT exists");
        let index = |syntax: &str| parse(syntax)[0].key_spec_index(command, &mut 0);
        assert_eq!(index("key"), Some(0));
        assert_eq!(index("[BY pattern]"), Some(1));
        assert_eq!(index("[STORE destination]"), Some(2));
        assert_eq!(index("[LIMIT offset]"), None);
    }

    #[test]
    fn the_page_names_every_command_that_can_be_called() {
        let page = command_tables();
        assert!(page.contains("| `EXPIRE key seconds [NX \\| XX \\| GT \\| LT]` |"), "{page}");
        assert!(page.contains("| `CLIENT ID` |"), "{page}");
        assert!(!page.contains("| `CLIENT` |"), "{page}");
    }
}
