//! RESTORE reads payloads of other Redis versions, and no payload makes it panic.

use bytes::Bytes;
use commands::rdb::{RdbError, dump, parse};
use proptest::prelude::*;
use row::op::RowContent;

fn unhex(text: &str) -> Bytes {
    if let Some((byte, times)) = text.split_once('*') {
        return unhex(byte).repeat(times.parse().expect("a number")).into();
    }
    let digits = if text == "-" { "" } else { text };
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex"))
        .collect()
}

/// `value`, or `field=value@expiry,...`.
fn content(text: &str) -> RowContent {
    if !text.contains('=') {
        return RowContent::String(unhex(text));
    }
    let field = |field: &str| {
        let (name, value) = field.split_once('=').expect("field=value");
        let (value, expiry) =
            value.split_once('@').map_or((value, None), |(value, expiry)| (value, Some(expiry)));
        (unhex(name), unhex(value), expiry.map(|expiry| expiry.parse().expect("a number")))
    };
    RowContent::Hash(text.split(',').map(field).collect())
}

/// Sorts the fields: the order of a hash is undefined.
fn sorted(content: RowContent) -> RowContent {
    match content {
        RowContent::Hash(mut fields) => {
            fields.sort();
            RowContent::Hash(fields)
        }
        string => string,
    }
}

#[test]
fn frozen_payloads() {
    let lines = [include_str!("rdb/redis-7.0"), include_str!("rdb/redis-others")];
    let lines: Vec<&str> =
        lines.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#')).collect();
    assert!(lines.len() > 20);
    for line in lines {
        let [name, payload, value] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        match (parse(&unhex(payload)).map(sorted), value) {
            (got, "!") => assert_eq!(got, Err(RdbError::Data), "{name}"),
            (got, value) => assert_eq!(got, Ok(sorted(content(value))), "{name}"),
        }
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..100),
        (any::<u8>(), 16_300usize..16_500).prop_map(|(byte, len)| vec![byte; len]),
        any::<i64>().prop_map(|number| number.to_string().into_bytes()),
    ]
    .prop_map(Bytes::from)
}

fn any_content() -> impl Strategy<Value = RowContent> {
    let expiry = prop::option::of(0u64..1 << 47);
    let fields = prop::collection::hash_map(bytes(), (bytes(), expiry), 1..10);
    prop_oneof![
        bytes().prop_map(RowContent::String),
        fields.prop_map(|fields| RowContent::Hash(
            fields.into_iter().map(|(field, (value, expiry))| (field, value, expiry)).collect()
        )),
    ]
}

proptest! {
    #[test]
    fn round_trip(content in any_content()) {
        prop_assert_eq!(parse(&dump(&content)), Ok(content));
    }

    /// Every changed byte of a payload is detected.
    #[test]
    fn changes_are_noticed(
        content in any_content(),
        at in any::<prop::sample::Index>(),
        change in 1u8..,
    ) {
        let mut payload = dump(&content).to_vec();
        let at = at.index(payload.len());
        payload[at] ^= change;
        prop_assert_eq!(parse(&payload.into()), Err(RdbError::Footer));
    }
}

/// Parsing terminates for any bytes before a valid footer, and a parsed value can be
/// written and read again.
#[test]
fn any_bytes() {
    const CRC: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_REDIS);
    let lines =
        include_str!("rdb/redis-7.0").lines().chain(include_str!("rdb/redis-others").lines());
    let seeds: Vec<Bytes> = lines
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|word| word.len() > 20)
        .map(unhex_or_empty)
        .collect();
    bolero::check!().with_type::<(u8, Vec<(u16, u8)>, Vec<u8>)>().for_each(
        |(seed, changes, body)| {
            // Half of the inputs are real payloads with a few bytes changed, the others
            // random bytes.
            let mut body = match seeds.get(usize::from(*seed) / 2) {
                Some(payload) if seed % 2 == 0 && payload.len() > 10 => {
                    payload[..payload.len() - 10].to_vec()
                }
                _ => body.clone(),
            };
            for (at, byte) in changes.iter().take(if body.is_empty() { 0 } else { 4 }) {
                let at = usize::from(*at) % body.len();
                body[at] = *byte;
            }
            body.extend(10u16.to_le_bytes());
            body.extend(CRC.checksum(&body).to_le_bytes());
            if let Ok(content) = parse(&body.into()) {
                assert_eq!(parse(&dump(&content)), Ok(content));
            }
        },
    );
}

fn unhex_or_empty(text: &str) -> Bytes {
    if text.bytes().all(|byte| byte.is_ascii_hexdigit()) { unhex(text) } else { Bytes::new() }
}
