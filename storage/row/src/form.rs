//! The forms of a row's head: the kinds of rows that there are, and the parts of their
//! heads.
//!
//! A *form* is one way in which a kind of row is stored; its number is the byte behind
//! the head's header. Everything that depends on the form of a row is decided by
//! [`Body`], whose variants are listed once, below; the functions of a form are those of
//! its [`Form`]. Most kinds have cells: these implement [`Collection`], and if each
//! member is a cell [`NamedMembers`]; `members.rs` does the rest for them.
//!
//! # How to add a kind
//! Add a variant to [`RowKind`] and a line to the list of bodies. A kind with cells
//! implements [`Collection`] for a type that holds the kind's own part of the head; any
//! other form, such as a small row in its head, implements [`Form`]. The content of a row
//! of the kind, as DUMP and COPY carry it, is a variant of [`RowContent`], which
//! `generic.rs` writes by [`members::replace`](crate::members::replace). A second kind in
//! `members/tests.rs` shows all of it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::eval::EvalError;
use crate::expire::{DueMembers, ExpiryStep};
use crate::hash::Hash;
use crate::head::Row;
use crate::key::{KeyBuf, KeySpace};
#[cfg(test)]
use crate::members::tests::Tags;
use crate::members::{Members, Writer};
use crate::op::{Refusal, RowContent, RowKind};
use crate::value::Expiries;
use crate::view::{Fault, Tx};

/// A bound of the size of a content that is being read, bytes: a refusal if it is larger.
pub(crate) type CheckSize<'a> = &'a dyn Fn(usize) -> Result<(), Refusal>;

/// The body of a head in one form. An encoded body is the whole rest of the record.
pub(crate) trait Form: Sized {
    /// The kind of the row; its number is the low nibble of the form's.
    const KIND: RowKind;

    /// True if the body is the row's value, of which a write that replaces it need not
    /// know: the [metadata](crate::value::metadata) of the head is without it, and an
    /// empty body is decoded.
    const IS_VALUE: bool;

    /// The exact size of its encoding, bytes.
    fn encoded_len(&self) -> usize;

    /// Appends its encoding.
    fn encode(&self, out: &mut BytesMut);

    /// Decodes all of `rest`; `keep` makes bytes of parts of it. `None` if it is none.
    fn decode(rest: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Option<Self>;

    /// The length of the row in its unit: bytes or members.
    fn len(&self) -> u64;

    /// Its generation, count and expiries; `None` if the row has no cells.
    fn collection(&self) -> Option<CollectionSummary<'_>>;

    /// The size of a row's cells, bytes, before compression: that of the first `samples`
    /// members (0 = all), scaled to their number.
    fn cells_bytes(&self, tx: &Tx<'_>, row: &Row, samples: u64) -> Result<u64, Fault>;

    /// The whole content of a row, if its size passes `check`.
    fn content(
        &self,
        tx: &Tx<'_>,
        row: &Row,
        check: CheckSize<'_>,
    ) -> Result<RowContent, EvalError>;

    /// The encoding that Redis would report.
    fn encoding(&self, tx: &Tx<'_>, row: &Row) -> Result<&'static str, Fault>;

    /// Deletes members that have expired, as a step of the expiry cycle; returns the
    /// number of members that are done.
    fn expire_members(
        tx: &mut Tx<'_>,
        step: &mut ExpiryStep,
        row: Row,
        found: &DueMembers,
    ) -> Result<usize, EvalError>;
}

/// A collection's variant of [`Body`].
pub(crate) trait InBody: Sized {
    /// The head of the collection, if the body is one of this kind.
    fn head_in(body: &Body) -> Option<&CollectionHead<Self>>;

    /// Makes a body of a head.
    fn body_of(head: CollectionHead<Self>) -> Body;
}

/// Declares the forms: each is a variant, the type of its body, the [`Collection`] if it
/// is one, and its number. A function of a body is that of its form.
macro_rules! bodies {
    ($(
        $(#[doc = $doc:literal])*
        $(#[cfg($cfg:meta)])?
        $name:ident($form:ty) $(of $own:ty)? = $number:literal,
    )*) => {
        /// The body of a head: the row's value, or the summary of its members.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Body {
            $( $(#[doc = $doc])* $(#[cfg($cfg)])? $name($form), )*
        }

        $( $(#[cfg($cfg)])? const _: () = {
            assert!(
                $number & 0x0f == <$form as Form>::KIND as u8,
                "the low nibble of a form is its kind"
            );

            $( impl InBody for $own {
                fn head_in(body: &Body) -> Option<&CollectionHead<Self>> {
                    if let Body::$name(head) = body { Some(head) } else { None }
                }

                fn body_of(head: CollectionHead<Self>) -> Body {
                    Body::$name(head)
                }
            } )?
        }; )*

        impl Body {
            /// The kind of the row.
            pub fn kind(&self) -> RowKind {
                match self { $( $(#[cfg($cfg)])? Body::$name(_) => <$form as Form>::KIND, )* }
            }

            /// The size of its encoding without the number of the form, bytes.
            pub(crate) fn encoded_len(&self) -> usize {
                match self { $( $(#[cfg($cfg)])? Body::$name(form) => form.encoded_len(), )* }
            }

            /// Appends the number of its form and its encoding.
            pub(crate) fn encode(&self, out: &mut BytesMut) {
                match self { $( $(#[cfg($cfg)])? Body::$name(form) => {
                    out.put_u8($number);
                    form.encode(out);
                } )* }
            }

            /// Decodes a body of a form, as [`Form::decode`].
            pub(crate) fn decode(
                form: u8,
                rest: &[u8],
                keep: impl Fn(&[u8]) -> Bytes,
            ) -> Option<Body> {
                match form {
                    $( $(#[cfg($cfg)])? $number => {
                        Some(Body::$name(<$form as Form>::decode(rest, keep)?))
                    } )*
                    _ => None,
                }
            }

            /// True if bodies of a form are [values](Form::IS_VALUE).
            pub(crate) fn is_value(form: u8) -> bool {
                match form {
                    $( $(#[cfg($cfg)])? $number => <$form as Form>::IS_VALUE, )*
                    _ => false,
                }
            }

            /// The length of the row in its unit: bytes or members, expired ones that are
            /// not yet removed included.
            pub(crate) fn len(&self) -> u64 {
                match self { $( $(#[cfg($cfg)])? Body::$name(form) => Form::len(form), )* }
            }

            /// The generation, count and expiries of members; `None` if the row has no
            /// cells.
            pub fn collection(&self) -> Option<CollectionSummary<'_>> {
                match self { $( $(#[cfg($cfg)])? Body::$name(form) => form.collection(), )* }
            }

            /// As [`Form::cells_bytes`].
            pub(crate) fn cells_bytes(
                &self,
                tx: &Tx<'_>,
                row: &Row,
                samples: u64,
            ) -> Result<u64, Fault> {
                match self { $( $(#[cfg($cfg)])? Body::$name(form) => {
                    form.cells_bytes(tx, row, samples)
                } )* }
            }

            /// As [`Form::content`].
            pub(crate) fn content(
                &self,
                tx: &Tx<'_>,
                row: &Row,
                check: CheckSize<'_>,
            ) -> Result<RowContent, EvalError> {
                match self { $( $(#[cfg($cfg)])? Body::$name(form) => {
                    form.content(tx, row, check)
                } )* }
            }

            /// As [`Form::encoding`].
            pub(crate) fn encoding(&self, tx: &Tx<'_>, row: &Row) -> Result<&'static str, Fault> {
                match self { $( $(#[cfg($cfg)])? Body::$name(form) => form.encoding(tx, row), )* }
            }
        }

        /// As [`Form::expire_members`]; a row that is not live has none.
        pub(crate) fn expire_members(
            tx: &mut Tx<'_>,
            step: &mut ExpiryStep,
            row: Row,
            found: &DueMembers,
        ) -> Result<usize, EvalError> {
            match row.head().map(|head| &head.body) {
                $( $(#[cfg($cfg)])? Some(Body::$name(_)) => {
                    <$form as Form>::expire_members(tx, step, row, found)
                } )*
                None => Ok(0),
            }
        }
    };
}

bodies! {
    /// A string, whole.
    String(Bytes) = 0x01,
    /// A hash, whose members are in cells.
    Hash(CollectionHead<Hash>) of Hash = 0x02,
    /// A collection of tests.
    #[cfg(test)]
    Tags(CollectionHead<Tags>) of Tags = 0x0f,
}

/// The parts of a head that all rows with cells have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CollectionSummary<'a> {
    /// The generation of the row's cells.
    pub generation: u64,
    /// The number of members stored, expired ones not yet purged included.
    pub count: u64,
    /// The summary of their expiries; `None` for a kind whose members never expire.
    pub expiries: Option<&'a Expiries>,
}

/// The head of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionHead<K> {
    /// The generation of the row's cells.
    pub generation: u64,
    /// The number of members stored, expired ones not yet purged included; never 0.
    pub count: u64,
    /// The kind's own part.
    pub own: K,
}

/// A kind of rows with cells. It is implemented by the kind's own part of the head, which
/// stands behind generation and count.
pub(crate) trait Collection: InBody + Clone + Default + PartialEq {
    /// The kind.
    const KIND: RowKind;

    /// The space of its members, or of the cells that hold them.
    const SPACE: KeySpace;

    /// The exact size of the encoding, bytes.
    fn encoded_len(&self) -> usize;

    /// Appends the encoding.
    fn encode(&self, out: &mut BytesMut);

    /// Decodes all of `rest`, as [`Form::decode`].
    fn decode(rest: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Option<Self>;

    /// The summary of the members' expiries, if the kind has them.
    fn expiries(&self) -> Option<&Expiries>;

    /// As [`Collection::expiries`], to be changed.
    fn expiries_mut(&mut self) -> Option<&mut Expiries>;

    /// As [`Form::content`].
    fn content(
        members: &Members<Self>,
        tx: &Tx<'_>,
        check: CheckSize<'_>,
    ) -> Result<RowContent, EvalError>;

    /// As [`Form::encoding`].
    fn encoding(members: &Members<Self>, tx: &Tx<'_>) -> Result<&'static str, Fault>;

    /// As [`Form::cells_bytes`].
    fn cells_bytes(members: &Members<Self>, tx: &Tx<'_>, samples: u64) -> Result<u64, Fault>;

    /// As [`Form::expire_members`].
    fn expire_members(
        tx: &mut Tx<'_>,
        step: &mut ExpiryStep,
        row: Writer<Self>,
        found: &DueMembers,
    ) -> Result<usize, Fault>;
}

/// A collection in which each member is a cell, found by the member's name.
pub(crate) trait NamedMembers: Collection {
    /// Appends the sortkey of a member to the prefix of its space.
    fn push_sortkey(key: &mut KeyBuf, generation: u64, name: &[u8]);

    /// The name of the member that has a sortkey.
    fn name_of(sortkey: &[u8]) -> &[u8];
}

impl<K: Collection> Form for CollectionHead<K> {
    const KIND: RowKind = K::KIND;
    const IS_VALUE: bool = false;

    fn encoded_len(&self) -> usize {
        16 + self.own.encoded_len()
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.generation);
        out.put_u64(self.count);
        self.own.encode(out);
    }

    fn decode(mut rest: &[u8], keep: impl Fn(&[u8]) -> Bytes) -> Option<Self> {
        let generation = rest.try_get_u64().ok()?;
        let count = rest.try_get_u64().ok()?;
        let own = K::decode(rest, keep)?;
        let expiring = own.expiries().map_or(0, |expiries| expiries.expiring);
        (count >= expiring.max(1)).then_some(CollectionHead { generation, count, own })
    }

    fn len(&self) -> u64 {
        self.count
    }

    fn collection(&self) -> Option<CollectionSummary<'_>> {
        let (generation, count) = (self.generation, self.count);
        Some(CollectionSummary { generation, count, expiries: self.own.expiries() })
    }

    fn cells_bytes(&self, tx: &Tx<'_>, row: &Row, samples: u64) -> Result<u64, Fault> {
        K::cells_bytes(&Members::new(row, self.clone()), tx, samples)
    }

    fn content(
        &self,
        tx: &Tx<'_>,
        row: &Row,
        check: CheckSize<'_>,
    ) -> Result<RowContent, EvalError> {
        K::content(&Members::new(row, self.clone()), tx, check)
    }

    fn encoding(&self, tx: &Tx<'_>, row: &Row) -> Result<&'static str, Fault> {
        K::encoding(&Members::new(row, self.clone()), tx)
    }

    fn expire_members(
        tx: &mut Tx<'_>,
        step: &mut ExpiryStep,
        row: Row,
        found: &DueMembers,
    ) -> Result<usize, EvalError> {
        Ok(K::expire_members(tx, step, Writer::open(row)?, found)?)
    }
}
