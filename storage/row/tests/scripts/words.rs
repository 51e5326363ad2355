//! An op from the words of a line, by its declaration alone: a new op needs nothing here.
//!
//! `hash_put h a 1 b 2 --in=10` is `HashOp::Put`. The fields take the words in order:
//! a byte string or a signed number takes one, a list the rest. What else there is comes
//! from `--options`: numbers (`--count=10`) by the field's name, flags (`--replace`), times
//! (`--in=MS`, `--until=MS`, `--keep`, `--never`), conditions (`--nx`, `--xx`), ranges.

use std::cell::RefCell;
use std::rc::Rc;

use row::registry::OpFamily;
use row::{HashOp, Op, PartitionOp, RowOp, StringOp};
use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Value, json};

/// The words of one op: positional ones, and `--name=value` options.
pub(crate) struct Words<'a> {
    /// The positional words, the next one last.
    left: Vec<&'a str>,
    options: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    pub(crate) fn of(line: &'a str) -> Words<'a> {
        let is_option = |word: &&str| word.starts_with("--");
        let (options, mut left): (Vec<_>, Vec<_>) = line.split_whitespace().partition(is_option);
        left.reverse();
        let option = |word: &'a str| word[2..].split_once('=').unwrap_or((&word[2..], ""));
        Words { left, options: options.into_iter().map(option).collect() }
    }

    pub(crate) fn word(&mut self) -> &'a str {
        let word = self.left.pop().expect("a word is missing");
        if word == "\"\"" { "" } else { word }
    }

    pub(crate) fn pairs(&mut self) -> Vec<(&'a str, &'a str)> {
        std::iter::from_fn(|| (!self.left.is_empty()).then(|| (self.word(), self.word()))).collect()
    }

    pub(crate) fn option(&self, name: &str) -> Option<&'a str> {
        self.options.iter().find(|(option, _)| *option == name).map(|(_, value)| *value)
    }

    fn is_set(&self, name: &str) -> bool {
        self.option(name).is_some()
    }

    pub(crate) fn number(&self, name: &str, default: u64) -> u64 {
        self.option(name).map_or(default, |text| text.parse().expect("a number"))
    }

    fn deadline(&self) -> Option<Value> {
        let ms = |text: &str| text.parse::<i64>().expect("ms");
        let after = self.option("in").map(|text| json!({ "In": ms(text) }));
        after.or_else(|| self.option("until").map(|text| json!({ "At": ms(text) })))
    }

    /// The value of a struct or an enum.
    fn value_of(&mut self, name: &str, field: &str) -> Value {
        match name {
            "Deadline" => self.deadline().expect("--in or --until"),
            "Ttl" => match self.deadline() {
                Some(deadline) => json!({ "Until": deadline }),
                None if self.is_set("keep") => json!("Keep"),
                None if self.is_set("never") => json!("Never"),
                None => json!("Default"),
            },
            "WriteCondition" if self.is_set("nx") => json!("IfAbsent"),
            "WriteCondition" if self.is_set("xx") => json!("IfPresent"),
            "WriteCondition" => json!("Always"),
            "ExpireCondition" => json!({
                "none": self.is_set("nx"),
                "some": self.is_set("xx"),
                "later": self.is_set("gt"),
                "earlier": self.is_set("lt"),
            }),
            "Range" => json!({
                "start": self.option("start"),
                "start_inclusive": !self.is_set("after"),
                "stop": self.option("stop"),
                "stop_inclusive": !self.is_set("before"),
                "filter": self.option("prefix").map_or(json!("None"), |to| json!({ "Prefix": to })),
                "reverse": self.is_set("reverse"),
                "cells_max": self.number("cells_max", 0),
                "bytes_max": self.number("bytes_max", 0),
            }),
            "RowContent" => {
                let until = self.option("field_until").map(|at| at.parse::<u64>().expect("ms"));
                let fields =
                    self.pairs().into_iter().map(|(name, value)| json!([name, value, until]));
                json!({ "Hash": fields.collect::<Vec<_>>() })
            }
            // Any other enum is named by an option.
            _ => json!(self.option(field).expect("an option of the field's name")),
        }
    }

    fn unsigned(&mut self, field: &str) -> u64 {
        let (option, default) = match field {
            "samples" => ("samples", 5),
            "count" => ("count", 10),
            "seed" => ("seed", 1),
            "set_at_ms" => ("set_at", 0),
            other => (other, 0),
        };
        match self.option(option) {
            None if !self.left.is_empty() => self.word().parse().expect("a number"),
            _ => self.number(option, default),
        }
    }

    fn flag(&self, field: &str) -> bool {
        match field {
            "want_values" => !self.is_set("no_values"),
            "want_old" => self.is_set("old"),
            "only_new" => self.is_set("nx"),
            other => self.is_set(other),
        }
    }
}

/// The op of a line; `None` if no op has this name.
pub(crate) fn op(line: &str) -> Option<Op> {
    let mut words = Words::of(line);
    let name = words.word();
    let words = Rc::new(RefCell::new(words));
    match name.split_once('_') {
        Some(("string", name)) => family::<StringOp>(name, &words).map(Op::String),
        Some(("hash", name)) => family::<HashOp>(name, &words).map(Op::Hash),
        _ => None
            .or_else(|| family::<RowOp>(name, &words).map(Op::Row))
            .or_else(|| family::<PartitionOp>(name, &words).map(Op::Partition)),
    }
}

/// The op of a line, if it is one of a family with this prefix.
pub(crate) fn op_of<'a, F: OpFamily + Deserialize<'a>>(prefix: &str, line: &'a str) -> Option<F> {
    let mut words = Words::of(line);
    let name = words.word().strip_prefix(prefix)?;
    family(name, &Rc::new(RefCell::new(words)))
}

/// The op of a family with this name, such as `get_range`.
fn family<'a, F: OpFamily + Deserialize<'a>>(name: &str, words: &Shared<'a>) -> Option<F> {
    let (_, name) = F::OPS.iter().find(|(_, known)| snake_case(known) == name)?;
    let op = F::deserialize(OpWords { name, words: words.clone() }).expect("the words of the op");
    assert!(words.borrow().left.is_empty(), "more words than {name} takes");
    Some(op)
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for char in name.chars() {
        if char.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(char.to_ascii_lowercase());
    }
    out
}

type Shared<'de> = Rc<RefCell<Words<'de>>>;

/// An op, as the enum of its family sees it.
struct OpWords<'de> {
    name: &'static str,
    words: Shared<'de>,
}

impl<'de> Deserializer<'de> for OpWords<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("an op is an enum"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for OpWords<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for OpWords<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(Error::custom("an op's fields have names"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("an op's fields have names"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(FieldsOf { left: fields, words: self.words })
    }
}

/// The fields of an op.
struct FieldsOf<'de> {
    left: &'static [&'static str],
    words: Shared<'de>,
}

impl<'de> MapAccess<'de> for FieldsOf<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.left.first() else { return Ok(None) };
        let name: StrDeserializer<'_, Error> = (*name).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (name, left) = self.left.split_first().expect("a key came before");
        self.left = left;
        seed.deserialize(FieldWords { name, words: self.words.clone() })
    }
}

/// The words of one field, or of one element of a list.
struct FieldWords<'de> {
    name: &'static str,
    words: Shared<'de>,
}

impl<'de> FieldWords<'de> {
    fn word(&self) -> &'de str {
        self.words.borrow_mut().word()
    }
}

impl<'de> Deserializer<'de> for FieldWords<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom(format!("scripts do not know the type of {}", self.name)))
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bytes(self.word().as_bytes())
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i64(self.word().parse().expect("a number"))
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u64(self.words.borrow_mut().unsigned(self.name))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(self.words.borrow().flag(self.name))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let option = self.words.borrow().option(self.name);
        match option {
            Some(text) => visitor.visit_some(json!(text)),
            None => visitor.visit_none(),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let value = self.words.borrow_mut().value_of(name, self.name);
        value.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let value = self.words.borrow_mut().value_of(name, self.name);
        value.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { of: self, left: usize::MAX })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { of: self, left: len })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 u8 u16 u32 f32 f64 char str string bytes unit unit_struct newtype_struct
        tuple_struct map identifier ignored_any
    }
}

/// The elements of a list, which takes all words, or of a pair.
struct Elements<'de> {
    of: FieldWords<'de>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if self.left == 0 || self.of.words.borrow().left.is_empty() {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(FieldWords { name: self.of.name, words: self.of.words.clone() }).map(Some)
    }
}
