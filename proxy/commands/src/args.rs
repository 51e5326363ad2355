//! The arguments of one command, taken in order.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::Reply;

/// A command's words; `words[0]` is its name. Arity was checked against the table before a plan sees them.
pub type Words = SmallVec<[Bytes; 4]>;

/// Takes words one after another. (To be widened: integers, floats, pairs, options, in Redis's error words.)
#[derive(Debug)]
pub struct Args {
    words: Words,
    at: usize,
}

impl Args {
    /// Behind the name (and the subcommand, if it has one).
    pub fn new(words: Words, name_words: usize) -> Args {
        Args { words, at: name_words }
    }

    /// The next word; the arity promised it.
    pub fn word(&mut self) -> Bytes {
        let word = std::mem::take(&mut self.words[self.at]);
        self.at += 1;
        word
    }

    /// The next word, if any.
    pub fn next(&mut self) -> Option<Bytes> {
        (self.at < self.words.len()).then(|| self.word())
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.words.len() - self.at
    }

    /// `-ERR syntax error`
    pub fn syntax() -> Reply {
        Reply::error("ERR syntax error")
    }
}
