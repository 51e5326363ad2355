//! Replies as values, so that tests can compare what a builder writes.

use crate::{Reply, ReplyWriter};

/// The reply that `write` writes. Panics unless it is exactly one value, complete.
pub fn written(write: impl FnOnce(&mut dyn ReplyWriter)) -> Reply {
    let mut tree = ReplyTree::default();
    write(&mut tree);
    assert!(tree.open.is_empty(), "values are missing: {:?}", tree.open);
    tree.reply.expect("a reply is written")
}

/// The values so far.
#[derive(Default)]
struct ReplyTree {
    /// Arrays, maps and the like that are not complete, the innermost last.
    open: Vec<OpenValue>,
    reply: Option<Reply>,
}

#[derive(Debug)]
struct OpenValue {
    kind: OpenKind,
    /// Number of values when it is complete.
    len: usize,
    values: Vec<Reply>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum OpenKind {
    Array,
    Set,
    Push,
    Map,
    Pairs,
}

impl OpenValue {
    fn reply(self) -> Reply {
        let pairs = |values: Vec<Reply>| {
            let mut values = values.into_iter();
            std::iter::from_fn(|| Some((values.next()?, values.next()?))).collect()
        };
        match self.kind {
            OpenKind::Array => Reply::Array(self.values),
            OpenKind::Set => Reply::Set(self.values),
            OpenKind::Push => Reply::Push(self.values),
            OpenKind::Map => Reply::Map(pairs(self.values)),
            OpenKind::Pairs => Reply::Pairs(pairs(self.values)),
        }
    }
}

impl ReplyTree {
    fn value(&mut self, mut value: Reply) {
        loop {
            let Some(open) = self.open.last_mut() else {
                assert_eq!(self.reply, None, "a second value: {value:?}");
                self.reply = Some(value);
                return;
            };
            open.values.push(value);
            if open.values.len() < open.len {
                return;
            }
            value = self.open.pop().expect("there is an innermost one").reply();
        }
    }

    fn head(&mut self, kind: OpenKind, len: usize) {
        let head = OpenValue { kind, len, values: Vec::new() };
        if len == 0 { self.value(head.reply()) } else { self.open.push(head) }
    }
}

impl ReplyWriter for ReplyTree {
    fn status(&mut self, text: &str) {
        self.value(Reply::Status(text.to_owned().into()));
    }

    fn error(&mut self, line: &str) {
        self.value(Reply::error(line.to_owned()));
    }

    fn int(&mut self, number: i64) {
        self.value(Reply::Int(number));
    }

    fn bulk(&mut self, bytes: &[u8]) {
        self.value(Reply::Bulk(bytes.to_vec().into()));
    }

    fn text(&mut self, text: &str) {
        self.value(Reply::Text(text.to_owned()));
    }

    fn nil(&mut self) {
        self.value(Reply::Nil);
    }

    fn nil_array(&mut self) {
        self.value(Reply::NilArray);
    }

    fn double(&mut self, number: f64) {
        self.value(Reply::Double(number));
    }

    fn bool(&mut self, yes: bool) {
        self.value(Reply::Bool(yes));
    }

    fn array(&mut self, len: usize) {
        self.head(OpenKind::Array, len);
    }

    fn set(&mut self, len: usize) {
        self.head(OpenKind::Set, len);
    }

    fn push(&mut self, len: usize) {
        self.head(OpenKind::Push, len);
    }

    fn map(&mut self, len: usize) {
        self.head(OpenKind::Map, 2 * len);
    }

    fn pairs(&mut self, len: usize) {
        self.head(OpenKind::Pairs, 2 * len);
    }

    fn pair(&mut self) {
        let open = self.open.last().map(|open| (open.kind, open.values.len() % 2));
        assert_eq!(open, Some((OpenKind::Pairs, 0)), "a pair begins where none is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_writes_itself() {
        let word = || Reply::Bulk("word".into());
        let reply = Reply::Array(vec![
            Reply::OK,
            Reply::error("ERR no"),
            Reply::Map(vec![(word(), Reply::Int(1)), (Reply::Nil, Reply::Set(vec![word()]))]),
            Reply::Pairs(vec![(word(), Reply::Pairs(vec![(Reply::NilArray, word())]))]),
            Reply::Array(vec![]),
            Reply::Pairs(vec![]),
            Reply::Push(vec![Reply::Text("text".into()), Reply::Double(1.5), Reply::Bool(true)]),
        ]);
        assert_eq!(written(|to| reply.write(to)), reply);
    }

    #[test]
    #[should_panic(expected = "values are missing")]
    fn an_incomplete_reply_is_a_panic() {
        written(|reply| {
            reply.map(1);
            reply.nil();
        });
    }

    #[test]
    #[should_panic(expected = "a second value")]
    fn a_second_reply_is_a_panic() {
        written(|reply| {
            reply.array(0);
            reply.nil();
        });
    }
}
