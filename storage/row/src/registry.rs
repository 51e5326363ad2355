//! The declarations of ops: everything about an op that is known without evaluating it,
//! in one line beside its function.
//!
//! [`ops!`](crate::ops) makes the enum of a family from such lines, `families!` the enum
//! [`Op`](crate::Op) of all families. Nothing about an op has a default:
//!
//! ```text
//! /// GETRANGE. -> `Bytes`, or `Nil` without the row
//! 72 GetRange { key: Key, start: i64, end: i64 } => get_range, Read, One, part(*start, *end);
//! ```
//!
//! | part of a line | meaning |
//! |---|---|
//! | `72` | the number on the wire, for ever: a changed body is a new number |
//! | `key: Key` | the fields; those of type [`Key`] are the rows that the op names |
//! | `get_range` | the function; it takes the transaction and the fields in order |
//! | `Read` | its [`Effect`] |
//! | `One` | its cost, a [`Look`] |
//! | `part(..)` | the possible size of its answer, an [`AnswerSize`] |
//!
//! The last three are expressions over the fields (references). The rows, the memory and
//! the bytes that an op carries follow from the types of its fields ([`Field`]).
//!
//! # Layout
//! An op on the wire is its number (u16), the length of its body, and the body: the
//! fields one after another, all in postcard's encoding. A server that does not know the
//! number refuses this op alone ([`Refusal::UnknownOp`](crate::Refusal::UnknownOp)).

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::eval::EvalResult;
use crate::expire::DueItem;
use crate::op::{
    Check, Deadline, ExpireCondition, Mutation, Range, RowContent, RowKind, Ttl, WriteCondition,
};
use crate::view::Tx;

/// A hashkey, as a field of an op: the op belongs to the partition of its row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub Bytes);

impl Deref for Key {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl<T: Into<Bytes>> From<T> for Key {
    fn from(bytes: T) -> Key {
        Key(bytes.into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The rows that an op names.
pub type Keys<'a> = SmallVec<[&'a Bytes; 2]>;

/// The effect of an op on the partition, and the place where it is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It only reads. Any thread may evaluate it on a snapshot.
    Read,
    /// It may change something, all of it or nothing: an op that looks at more than one
    /// record is refused if its changes exceed one log entry.
    Write,
    /// It may change something, and bounds its changes by itself: it does a part, and its
    /// answer says where it stopped.
    WritePart,
    /// It changes nothing, but only the partition's single writer, or its log, knows the
    /// answer.
    AskWriter,
}

/// The cost of an op: the number of records that it looks at, as far as it is known
/// before. A kilobyte of a value that is copied counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The head of each row that it names, and at most one cell.
    One,
    /// About this many records.
    Some(u64),
    /// All records of the first row that it names, and this many besides.
    Row(u64),
}

impl Look {
    /// The cost of an op that looks at one record for each of `items`.
    pub fn each(items: usize) -> Look {
        if items <= 1 { Look::One } else { Look::Some(items as u64) }
    }
}

/// The possible size of an op's answer, known before it is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerSize {
    /// A number, a word or a key; or at most as much as the op itself names.
    Small,
    /// A value, or many.
    Large,
}

impl AnswerSize {
    /// Large if the op asks for values.
    pub const fn large_if(is_large: bool) -> AnswerSize {
        if is_large { AnswerSize::Large } else { AnswerSize::Small }
    }
}

/// The bytes of keys, names and values, and the number of byte strings in lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Payload {
    /// Bytes of all byte strings.
    pub bytes: usize,
    /// Byte strings that are elements of lists: each takes memory besides its bytes.
    pub items: usize,
}

impl std::ops::Add for Payload {
    type Output = Payload;

    fn add(self, other: Payload) -> Payload {
        Payload { bytes: self.bytes + other.bytes, items: self.items + other.items }
    }
}

/// A type of an op's fields.
pub trait Field {
    /// The type in which an op's function takes it.
    type Arg<'a>
    where
        Self: 'a;

    /// The argument of the op's function.
    fn arg(&self) -> Self::Arg<'_>;

    /// Adds the rows that it names.
    fn add_keys<'a>(&'a self, keys: &mut Keys<'a>);

    /// The bytes that it carries.
    fn payload(&self) -> Payload;
}

/// Fields that are passed by value, name no row and carry no bytes.
macro_rules! scalars {
    ($($ty:ty)*) => {$(
        impl Field for $ty {
            type Arg<'a> = $ty;

            fn arg(&self) -> $ty {
                *self
            }

            fn add_keys<'a>(&'a self, _: &mut Keys<'a>) {}

            fn payload(&self) -> Payload {
                Payload::default()
            }
        }
    )*};
}

scalars!(bool u64 i64 Option<RowKind> Deadline Ttl WriteCondition ExpireCondition Check);

/// Fields that are passed by reference and name no row.
macro_rules! references {
    ($($ty:ty => $arg:ty: |$field:ident| $payload:expr;)*) => {$(
        impl Field for $ty {
            type Arg<'a> = &'a $arg;

            fn arg(&self) -> &$arg {
                self
            }

            fn add_keys<'a>(&'a self, _: &mut Keys<'a>) {}

            fn payload(&self) -> Payload {
                let $field = self;
                $payload
            }
        }
    )*};
}

references! {
    Bytes => Bytes: |field| Payload { bytes: field.len(), items: 0 };
    Vec<Bytes> => [Bytes]: |field| list(field);
    SmallVec<[Bytes; 1]> => [Bytes]: |field| list(field);
    Vec<(Bytes, Bytes)> => [(Bytes, Bytes)]: |field| Payload {
        bytes: field.iter().map(|(name, value)| name.len() + value.len()).sum(),
        items: 2 * field.len(),
    };
    Range => Range: |field| Payload { bytes: field.bytes(), items: 0 };
    RowContent => RowContent: |field| Payload { bytes: field.bytes(), items: field.items() };
    Vec<Mutation> => [Mutation]: |field| Payload {
        bytes: field.iter().map(Mutation::bytes).sum(),
        items: 3 * field.len(),
    };
    Vec<DueItem> => [DueItem]: |field| Payload {
        bytes: field.iter().map(DueItem::bytes).sum(),
        items: field.iter().map(DueItem::size).sum(),
    };
}

fn list(items: &[Bytes]) -> Payload {
    Payload { bytes: items.iter().map(Bytes::len).sum(), items: items.len() }
}

impl Field for Key {
    type Arg<'a> = &'a Key;

    fn arg(&self) -> &Key {
        self
    }

    fn add_keys<'a>(&'a self, keys: &mut Keys<'a>) {
        keys.push(&self.0);
    }

    fn payload(&self) -> Payload {
        Payload { bytes: self.len(), items: 0 }
    }
}

impl Field for Vec<Key> {
    type Arg<'a> = &'a [Key];

    fn arg(&self) -> &[Key] {
        self
    }

    fn add_keys<'a>(&'a self, keys: &mut Keys<'a>) {
        keys.extend(self.iter().map(|key| &key.0));
    }

    fn payload(&self) -> Payload {
        Payload { bytes: self.iter().map(|key| key.len()).sum(), items: self.len() }
    }
}

impl Field for Vec<(Key, Bytes)> {
    type Arg<'a> = &'a [(Key, Bytes)];

    fn arg(&self) -> &[(Key, Bytes)] {
        self
    }

    fn add_keys<'a>(&'a self, keys: &mut Keys<'a>) {
        keys.extend(self.iter().map(|(key, _)| &key.0));
    }

    fn payload(&self) -> Payload {
        let bytes = self.iter().map(|(key, value)| key.len() + value.len()).sum();
        Payload { bytes, items: 2 * self.len() }
    }
}

impl Field for Option<Bytes> {
    type Arg<'a> = Option<&'a Bytes>;

    fn arg(&self) -> Option<&Bytes> {
        self.as_ref()
    }

    fn add_keys<'a>(&'a self, _: &mut Keys<'a>) {}

    fn payload(&self) -> Payload {
        Payload { bytes: self.as_ref().map_or(0, Bytes::len), items: 0 }
    }
}

/// A family of ops: an enum that [`ops!`](crate::ops) has made.
pub trait OpFamily: Sized {
    /// The numbers and the names of its ops, in the order of their lines.
    const OPS: &'static [(u16, &'static str)];

    /// The op's number on the wire.
    fn number(&self) -> u16;

    /// The op's name.
    fn name(&self) -> &'static str;

    /// The op's effect.
    fn effect(&self) -> Effect;

    /// The op's cost.
    fn look(&self) -> Look;

    /// The possible size of the op's answer.
    fn answer_size(&self) -> AnswerSize;

    /// Adds the rows that the op names.
    fn add_keys<'a>(&'a self, keys: &mut Keys<'a>);

    /// The bytes that the op carries.
    fn payload(&self) -> Payload;

    /// Evaluates the op, without a bound of its changes.
    fn answer(&self, tx: &mut Tx<'_>) -> EvalResult;

    /// The op's fields as they travel.
    fn encode(&self) -> postcard::Result<Vec<u8>>;

    /// The op of a number with these fields; `None` if no op of the family has the number.
    fn decode(number: u16, fields: &[u8]) -> Option<postcard::Result<Self>>;
}

/// Decodes fields, which must take all bytes.
pub fn decode_fields<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> postcard::Result<T> {
    let (fields, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(fields) } else { Err(postcard::Error::DeserializeBadEncoding) }
}

/// Makes the enum of a family of ops and its [`OpFamily`] from one line an op; see
/// [`registry`](crate::registry).
#[macro_export]
macro_rules! ops {
    (
        $(#[$about:meta])*
        $vis:vis enum $Family:ident {
            $(
                $(#[$doc:meta])*
                $number:literal $Op:ident $({ $($field:ident: $ty:ty),* $(,)? })?
                    => $function:path, $effect:expr, $look:expr, $answer_size:expr;
            )*
        }
    ) => {
        $(#[$about])*
        #[allow(missing_docs, reason = "an op's line says what its fields are")]
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        $vis enum $Family {
            $(
                $(#[$doc])*
                $Op $({ $($field: $ty),* })?,
            )*
        }

        #[allow(unused_variables, unused_imports, reason = "some ops have no fields")]
        impl $crate::registry::OpFamily for $Family {
            const OPS: &'static [(u16, &'static str)] = &[$(($number, stringify!($Op))),*];

            fn number(&self) -> u16 {
                match self {
                    $(Self::$Op $({ $($field: _),* })? => $number,)*
                }
            }

            fn name(&self) -> &'static str {
                match self {
                    $(Self::$Op $({ $($field: _),* })? => stringify!($Op),)*
                }
            }

            fn effect(&self) -> $crate::registry::Effect {
                use $crate::registry::Effect::*;
                match self {
                    $(Self::$Op $({ $($field),* })? => $effect,)*
                }
            }

            fn look(&self) -> $crate::registry::Look {
                use $crate::registry::Look::{self, *};
                match self {
                    $(Self::$Op $({ $($field),* })? => $look,)*
                }
            }

            fn answer_size(&self) -> $crate::registry::AnswerSize {
                use $crate::registry::AnswerSize::{self, *};
                match self {
                    $(Self::$Op $({ $($field),* })? => $answer_size,)*
                }
            }

            fn add_keys<'a>(&'a self, keys: &mut $crate::registry::Keys<'a>) {
                use $crate::registry::Field;
                match self {
                    $(Self::$Op $({ $($field),* })? => { $($($field.add_keys(keys);)*)? })*
                }
            }

            fn payload(&self) -> $crate::registry::Payload {
                use $crate::registry::{Field, Payload};
                match self {
                    $(Self::$Op $({ $($field),* })? => {
                        Payload::default() $($(+ $field.payload())*)?
                    })*
                }
            }

            fn answer(&self, tx: &mut $crate::Tx<'_>) -> $crate::eval::EvalResult {
                use $crate::registry::Field;
                match self {
                    $(Self::$Op $({ $($field),* })? => $function(tx, $($($field.arg()),*)?),)*
                }
            }

            fn encode(&self) -> postcard::Result<Vec<u8>> {
                match self {
                    $(Self::$Op $({ $($field),* })? => postcard::to_stdvec(&($($($field,)*)?)),)*
                }
            }

            fn decode(number: u16, fields: &[u8]) -> Option<postcard::Result<Self>> {
                match number {
                    $($number => Some($crate::registry::decode_fields(fields).map(
                        |($($($field,)*)?): ($($($ty,)*)?)| Self::$Op $({ $($field),* })?,
                    )),)*
                    _ => None,
                }
            }
        }
    };
}
