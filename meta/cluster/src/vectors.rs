//! Frozen bytes: examples held against the files in `tests/vectors/`.
//!
//! A line is a label and the bytes in hex. Lines are added for new versions and new
//! variants, never edited.

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor, value};
use serde::forward_to_deserialize_any;

/// Examples as lines.
#[derive(Default)]
pub(crate) struct Vectors(Vec<String>);

impl Vectors {
    /// Adds examples of a type, each with its label and its bytes. Of an enum, whose
    /// number stands at `variant_at` in the bytes, every variant must be among them.
    pub(crate) fn add<T: DeserializeOwned>(
        &mut self,
        kind: &str,
        variant_at: usize,
        examples: Vec<(&str, Vec<u8>)>,
    ) {
        for (number, name) in variants_of::<T>().iter().enumerate() {
            let is_shown = examples
                .iter()
                .any(|(_, bytes)| bytes.get(variant_at).copied() == u8::try_from(number).ok());
            assert!(is_shown, "{kind}: give an example of variant {number}, {name}");
        }
        for (label, bytes) in examples {
            self.push(&format!("{kind}.{label}"), &bytes);
        }
    }

    /// Adds one example.
    pub(crate) fn push(&mut self, label: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.push(format!("{label} {hex}"));
    }

    /// Fails if an example has no line in the file, or a line no example.
    pub(crate) fn hold(&self, file: &str, text: &str) {
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let missing: Vec<&str> =
            self.0.iter().map(String::as_str).filter(|line| !lines.contains(line)).collect();
        let unknown: Vec<&str> =
            lines.iter().copied().filter(|line| !self.0.iter().any(|own| own == line)).collect();
        assert!(
            missing.is_empty() && unknown.is_empty(),
            "tests/vectors/{file} lacks\n{}\nand has without an example\n{}",
            missing.join("\n"),
            unknown.join("\n")
        );
    }
}

/// The names of an enum's variants, as serde knows them; none for other types.
pub(crate) fn variants_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(value::Error::custom("no enum"))
        }

        fn deserialize_enum<V: Visitor<'de>>(
            self,
            _: &'static str,
            variants: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = variants;
            Err(value::Error::custom("only the names are wanted"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier
            ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    assert!(T::deserialize(Names(&mut names)).is_err(), "it has nothing to read");
    names
}
