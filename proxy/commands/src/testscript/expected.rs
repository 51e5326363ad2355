//! Expected replies of a script.

use super::Value;

/// An expected reply; parts of it may be left open.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// `...`: anything; in a list, any number of elements.
    Any,
    /// `+OK`, `-ERR ...`, `"text"`, `="text"`: the sign, and the text, in which `...`
    /// stands for anything.
    Text(Sign, String),
    /// `:5`, `:5..9`: a number in a range.
    Int(i64, i64),
    /// `none`: no reply at all (CLIENT REPLY OFF).
    None,
    /// `nil`
    Nil,
    /// `nil-array`
    NilArray,
    /// `,1.5`
    Double(f64),
    /// `#t`, `#f`
    Bool(bool),
    /// `[...]`: a list in order. Pushes are `>[...]`.
    List {
        /// The elements.
        elements: Vec<Expected>,
        /// A push, not an array.
        push: bool,
    },
    /// `~[...]`: an array or a set, in any order.
    Bag(Vec<Expected>),
    /// `{key => value, ...}`: a map, in any order.
    Map(Vec<(Expected, Expected)>, bool),
}

/// Kinds of text replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sign {
    Status,
    Error,
    Bulk,
    Verbatim,
}

impl Expected {
    /// Parses the notation, which is one line.
    pub fn parse(line: &str) -> Result<Expected, String> {
        let bare = |sign| Ok(Expected::Text(sign, line[1..].bytes().map(char::from).collect()));
        match line.as_bytes() {
            // At the top level, a status or an error extends to the end of the line.
            [b'+', second, ..] if *second != b'"' => bare(Sign::Status),
            [b'-', second, ..] if *second != b'"' => bare(Sign::Error),
            _ => {
                let mut parser = Parser { rest: line };
                let expected = parser.value()?;
                if parser.rest.trim().is_empty() {
                    Ok(expected)
                } else {
                    Err(format!("left over: {}", parser.rest))
                }
            }
        }
    }

    /// Compares a reply; the error shows the actual one.
    pub fn check(&self, seen: &Value) -> Result<(), String> {
        if self.fits(seen) {
            Ok(())
        } else {
            Err(format!("the reply was\n    {seen}\nexpected\n    {self:?}"))
        }
    }

    fn fits(&self, seen: &Value) -> bool {
        match (self, seen) {
            (Expected::Any, _)
            | (Expected::Nil, Value::Nil)
            | (Expected::NilArray, Value::NilArray) => true,
            (Expected::Text(Sign::Status, text), Value::Status(seen)) => {
                like(text, seen.as_bytes())
            }
            (Expected::Text(Sign::Error, text), Value::Error(seen)) => like(text, seen.as_bytes()),
            (Expected::Text(Sign::Bulk, text), Value::Bulk(seen)) => like(text, seen),
            (Expected::Text(Sign::Verbatim, text), Value::Text(seen)) => like(text, seen),
            (Expected::Int(least, most), Value::Int(seen)) => (least..=most).contains(&seen),
            (Expected::Double(number), Value::Double(seen)) => number == seen,
            (Expected::Bool(bool), Value::Bool(seen)) => bool == seen,
            (Expected::List { elements, push: false }, Value::Array(seen))
            | (Expected::List { elements, push: true }, Value::Push(seen)) => {
                in_order(elements, seen)
            }
            (Expected::Bag(elements), Value::Array(seen) | Value::Set(seen)) => {
                any_order(elements, seen)
            }
            (Expected::Map(pairs, open), Value::Map(seen)) => {
                (*open || pairs.len() == seen.len())
                    && pairs.iter().all(|(key, value)| {
                        seen.iter().any(|(seen_key, seen_value)| {
                            key.fits(seen_key) && value.fits(seen_value)
                        })
                    })
            }
            _ => false,
        }
    }
}

/// Compares a text; `...` matches anything. The escapes of the expected text are kept as
/// chars below 256, one per byte.
fn like(expected: &str, seen: &[u8]) -> bool {
    let bytes = |text: &str| text.chars().map(|char| char as u8).collect::<Vec<u8>>();
    let mut parts = expected.split("...").map(bytes);
    let Some(mut rest) = parts.next().and_then(|first| seen.strip_prefix(first.as_slice())) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = find(rest, part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    (0..=text.len().checked_sub(part.len())?).find(|&at| text[at..].starts_with(part))
}

fn in_order(elements: &[Expected], seen: &[Value]) -> bool {
    match (elements.split_first(), seen.split_first()) {
        (None, None) => true,
        (Some((Expected::Any, rest)), _) => {
            (0..=seen.len()).any(|skip| in_order(rest, &seen[skip..]))
        }
        (Some((first, elements)), Some((value, seen))) => {
            first.fits(value) && in_order(elements, seen)
        }
        _ => false,
    }
}

fn any_order(elements: &[Expected], seen: &[Value]) -> bool {
    let mut left: Vec<_> = seen.iter().collect();
    let open = elements.contains(&Expected::Any);
    let all = elements.iter().filter(|element| **element != Expected::Any).all(|element| {
        let found = left.iter().position(|value| element.fits(value));
        found.map(|at| left.swap_remove(at)).is_some()
    });
    all && (open || left.is_empty())
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, mark: &str) -> bool {
        self.rest = self.rest.trim_start();
        let found = self.rest.strip_prefix(mark);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn value(&mut self) -> Result<Expected, String> {
        let signs = [
            ("+\"", Sign::Status),
            ("-\"", Sign::Error),
            ("=\"", Sign::Verbatim),
            ("\"", Sign::Bulk),
        ];
        if let Some((_, sign)) = signs.into_iter().find(|(mark, _)| self.take(mark)) {
            return Ok(Expected::Text(sign, self.text()?));
        }
        match () {
            () if self.take("...") => Ok(Expected::Any),
            () if self.take("none") => Ok(Expected::None),
            () if self.take("nil-array") => Ok(Expected::NilArray),
            () if self.take("nil") => Ok(Expected::Nil),
            () if self.take("#t") => Ok(Expected::Bool(true)),
            () if self.take("#f") => Ok(Expected::Bool(false)),
            () if self.take("~[") => Ok(Expected::Bag(self.list()?)),
            () if self.take(">[") => Ok(Expected::List { elements: self.list()?, push: true }),
            () if self.take("[") => Ok(Expected::List { elements: self.list()?, push: false }),
            () if self.take("{") => self.map(),
            () if self.take(",") => {
                self.token().parse().map(Expected::Double).map_err(|error| error.to_string())
            }
            () if self.take(":") => self.int(),
            () if self.take("+") => Ok(Expected::Text(Sign::Status, self.token())),
            () if self.take("-") => Ok(Expected::Text(Sign::Error, self.token())),
            () => Err(format!("no reply starts like this: {}", self.rest)),
        }
    }

    fn int(&mut self) -> Result<Expected, String> {
        let word = self.token();
        let number = |text: &str| text.parse::<i64>().map_err(|error| format!("{text}: {error}"));
        match word.split_once("..") {
            Some((_, ".")) => Ok(Expected::Int(i64::MIN, i64::MAX)),
            Some((least, most)) => Ok(Expected::Int(number(least)?, number(most)?)),
            None => number(&word).map(|number| Expected::Int(number, number)),
        }
    }

    /// Reads to a comma, a bracket or a blank.
    fn token(&mut self) -> String {
        let end = self.rest.find([',', ']', '}', ' ']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    /// Reads to the closing quote; each byte becomes one char.
    fn text(&mut self) -> Result<String, String> {
        let mut text = Vec::new();
        let rest = super::quoted(b'"', self.rest.as_bytes(), &mut text)?;
        self.rest = &self.rest[self.rest.len() - rest.len()..];
        Ok(text.into_iter().map(char::from).collect())
    }

    fn list(&mut self) -> Result<Vec<Expected>, String> {
        let mut elements = Vec::new();
        while !self.take("]") {
            elements.push(self.value()?);
            if !self.take(",") && !self.rest.trim_start().starts_with(']') {
                return Err(format!("neither `,` nor `]`: {}", self.rest));
            }
        }
        Ok(elements)
    }

    fn map(&mut self) -> Result<Expected, String> {
        let (mut pairs, mut open) = (Vec::new(), false);
        while !self.take("}") {
            if self.take("...") {
                open = true;
            } else {
                let key = self.value()?;
                if !self.take("=>") {
                    return Err(format!("no `=>`: {}", self.rest));
                }
                pairs.push((key, self.value()?));
            }
            if !self.take(",") && !self.rest.trim_start().starts_with('}') {
                return Err(format!("neither `,` nor `}}`: {}", self.rest));
            }
        }
        Ok(Expected::Map(pairs, open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reply;

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.to_owned().into())
    }

    #[test]
    fn expectations_match_only_the_expected_replies() {
        let ab = Value::Array(vec![bulk("a"), bulk("b")]);
        for (line, value, fits) in [
            ("+OK", Value::Status("OK".into()), true),
            ("+OK", bulk("OK"), false),
            ("-ERR unknown...", Value::Error("ERR unknown command".into()), true),
            ("-ERR known...", Value::Error("ERR unknown command".into()), false),
            ("\"\\x00\\xff\"", Value::Bulk(vec![0, 255].into()), true),
            ("\"a...c...\"", bulk("abcd"), true),
            ("\"a...d\"", bulk("abc"), false),
            (":5", Value::Int(5), true),
            (":5..7", Value::Int(8), false),
            (":...", Value::Int(-8), true),
            ("[\"a\", \"b\"]", ab.clone(), true),
            ("[\"b\", \"a\"]", ab.clone(), false),
            ("[...]", ab.clone(), true),
            ("[..., \"b\"]", ab.clone(), true),
            ("[\"b\", ...]", ab.clone(), false),
            ("~[\"b\", \"a\"]", ab.clone(), true),
            ("~[\"b\", \"b\"]", ab.clone(), false),
            ("~[\"b\", ...]", ab.clone(), true),
            ("~[\"b\"]", ab, false),
            ("[]", Value::Array(vec![]), true),
            ("{\"a\" => :1}", Value::Map(vec![(bulk("a"), Value::Int(1))]), true),
            (
                "{\"a\" => :1, ...}",
                Value::Map(vec![(bulk("b"), Value::Int(2)), (bulk("a"), Value::Int(1))]),
                true,
            ),
            ("{\"a\" => :2}", Value::Map(vec![(bulk("a"), Value::Int(1))]), false),
            ("nil", Value::Nil, true),
            ("nil", Value::NilArray, false),
            (",3.5", Value::Double(3.5), true),
            ("#t", Value::Bool(false), false),
        ] {
            assert_eq!(
                Expected::parse(line).unwrap().check(&value).is_ok(),
                fits,
                "{line} {value}"
            );
        }
    }

    #[test]
    fn displayed_replies_parse_as_expectations() {
        let reply = Reply::Array(vec![
            Reply::Status("a, b".into()),
            Reply::Error("ERR x".into()),
            Reply::Bulk(vec![0, b'"', b'\n', 200].into()),
            Reply::Map(vec![(Reply::Int(1), Reply::Bool(true))]),
            Reply::Set(vec![Reply::NilArray, Reply::Double(0.5)]),
            Reply::Text("text".into()),
        ]);
        for protocol in [2, 3] {
            let value = Value::of(reply.clone(), protocol);
            Expected::parse(&value.to_string()).unwrap().check(&value).unwrap();
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["", "OK", "[", "[\"a\"", "\"a", ":x", "{\"a\"}", "[:1 :2]", ":1 :2"] {
            assert!(Expected::parse(line).is_err(), "{line}");
        }
    }
}
