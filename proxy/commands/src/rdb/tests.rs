//! Payloads read, written and refused.

use super::*;

/// A body with its footer.
fn sealed(body: &[u8]) -> Bytes {
    let mut out = BytesMut::from(body);
    out.put_u16_le(VERSION);
    let checksum = CRC.checksum(&out);
    out.put_u64_le(checksum);
    out.freeze()
}

fn parsed(body: &[u8]) -> Result<RowContent, RdbError> {
    parse(&sealed(body))
}

fn string(value: &str) -> RowContent {
    RowContent::String(Bytes::copy_from_slice(value.as_bytes()))
}

fn hash(fields: &[(&str, &str, Option<u64>)]) -> RowContent {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    RowContent::Hash(
        fields.iter().map(|(field, value, expiry)| (bytes(field), bytes(value), *expiry)).collect(),
    )
}

#[test]
fn checksum_is_jones() {
    assert_eq!(CRC.checksum(b"123456789"), 0xe9c6d914c4b8d9ca);
}

#[test]
fn written_payloads_are_frozen() {
    assert_eq!(
        dump(&string("foo"))[..],
        *b"\x00\x03foo\x0a\x00\x73\x49\x39\xdb\x4d\xc1\xba\x97".as_slice()
    );
    assert_eq!(
        dump(&hash(&[("f", "v", None)]))[..],
        *b"\x04\x01\x01f\x01v\x0a\x00\xad\xf2\x43\x56\xb1\x86\x0e\xfc".as_slice()
    );
    let expiring = dump(&hash(&[("f", "v", Some(1000)), ("g", "w", None), ("h", "x", Some(1063))]));
    assert_eq!(
        expiring[..],
        *b"\x18\xe8\x03\0\0\0\0\0\0\x03\x01\x01f\x01v\0\x01g\x01w\x40\x40\x01h\x01x\x0c\x00\
          \x17\x6f\xae\x5f\x0c\x52\x2c\x49"
            .as_slice()
    );
}

/// A length takes 6, 14 or 32 bits, the fewest that hold it.
#[test]
fn written_lengths_are_frozen() {
    for (len, header, checksum) in [
        (0x3f, &b"\x3f"[..], 0xfbaa_fbdf_5c79_0c14_u64),
        (0x40, b"\x40\x40", 0x7329_c53d_029d_6c37),
        (0x3fff, b"\x7f\xff", 0xbb3b_37ee_433a_74fa),
        (0x4000, b"\x80\0\0\x40\0", 0xb8b7_7549_29fa_b0fc),
    ] {
        let value = "x".repeat(len);
        let payload = dump(&string(&value));
        let footer = [&b"\x0a\0"[..], &checksum.to_le_bytes()].concat();
        assert_eq!(payload[..], [&b"\0"[..], header, value.as_bytes(), &footer].concat()[..]);
    }
}

#[test]
fn footer_is_checked() {
    let good = dump(&string("foo"));
    assert_eq!(parse(&good), Ok(string("foo")));
    for len in 0..FOOTER_BYTES {
        assert_eq!(parse(&good.slice(..len)), Err(RdbError::Footer), "{len} bytes");
    }
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        assert_eq!(parse(&bad.into()), Err(RdbError::Footer), "byte {at}");
    }
    let mut later = BytesMut::from(&b"\x00\x03foo\x0d\x00"[..]);
    later.put_u64_le(CRC.checksum(&later));
    assert_eq!(parse(&later.freeze()), Err(RdbError::Footer));
}

#[test]
fn integers_and_sizes_of_all_widths() {
    assert_eq!(parsed(b"\0\xc0\xff"), Ok(string("-1")));
    assert_eq!(parsed(b"\0\xc1\x39\x30"), Ok(string("12345")));
    assert_eq!(parsed(b"\0\xc2\0\0\0\x80"), Ok(string("-2147483648")));
    assert_eq!(parsed(b"\0\x40\x02ab"), Ok(string("ab")));
    assert_eq!(parsed(b"\0\x80\0\0\0\x02ab"), Ok(string("ab")));
    assert_eq!(parsed(b"\0\x81\0\0\0\0\0\0\0\x02ab"), Ok(string("ab")));
    for long in [63, 64, 16383, 16384, 70000] {
        let long = string(&"x".repeat(long));
        assert_eq!(parse(&dump(&long)), Ok(long));
    }
}

#[test]
fn field_expiries_of_redis_7_4() {
    let absolute = hash(&[("f", "v", Some(1000)), ("g", "w", None)]);
    assert_eq!(parsed(b"\x16\x02\x43\xe8\x01f\x01v\0\x01g\x01w"), Ok(absolute.clone()));
    assert_eq!(
        parsed(b"\x18\xe8\x03\0\0\0\0\0\0\x02\x01\x01f\x01v\0\x01g\x01w"),
        Ok(absolute.clone())
    );
    let listpack =
        b"\x18\x18\0\0\0\x06\0\x81f\x02\x81v\x02\xc3\xe8\x02\x81g\x02\x81w\x02\0\x01\xff";
    let ex = [&b"\x19\xe8\x03\0\0\0\0\0\0"[..], listpack].concat();
    let rc = [&b"\x17"[..], listpack].concat();
    assert_eq!(parsed(&ex), Ok(absolute.clone()));
    assert_eq!(parsed(&rc), Ok(absolute));
    assert_eq!(
        parsed(b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x01f\x01v"),
        Err(RdbError::Data),
        "past the end of time"
    );
}

#[test]
fn zipmaps_of_redis_2_4() {
    let zipmap = b"\x02\x03foo\x03\x02bar__\x01a\x01\0b\xff";
    let body = [&[form::HASH_ZIPMAP, zipmap.len() as u8], &zipmap[..]].concat();
    assert_eq!(parsed(&body), Ok(hash(&[("foo", "bar", None), ("a", "b", None)])));
}

#[test]
fn malformed_values_are_refused() {
    for (why, body) in [
        ("no form", &b""[..]),
        ("unknown form", b"\x08"),
        ("unknown form", b"\xff"),
        ("no string", b"\0"),
        ("short string", b"\0\x04foo"),
        ("long string", b"\0\x02foo"),
        ("vast string", b"\0\x81\xff\xff\xff\xff\xff\xff\xff\xfffoo"),
        ("unknown size", b"\0\x82\0\0\0\x01f"),
        ("unknown encoding", b"\0\xc4\0"),
        ("no fields", b"\x04\0"),
        ("fewer fields", b"\x04\x02\x01f\x01v"),
        ("vast count", b"\x04\x81\xff\xff\xff\xff\xff\xff\xff\xff\x01f\x01v"),
        ("the same field twice", b"\x04\x02\x01f\x01v\x01f\x01w"),
        ("a number of fields that is special", b"\x04\xc0\x01\x01f\x01v"),
        ("compressed nothing", b"\0\xc3\0\x05"),
        ("empty listpack", b"\x10\x07\x07\0\0\0\0\0\xff"),
        ("odd listpack", b"\x10\x0a\x0a\0\0\0\x01\0\x81f\x02\xff"),
        ("listpack of another length", b"\x10\x0d\x0c\0\0\0\x02\0\x81f\x02\x81v\x02\xff"),
        ("listpack without end", b"\x10\x0c\x0c\0\0\0\x02\0\x81f\x02\x81v\x02"),
        ("listpack with a false back length", b"\x10\x0d\x0d\0\0\0\x02\0\x81f\x03\x81v\x02\xff"),
        ("listpack with a false count", b"\x10\x0d\x0d\0\0\0\x03\0\x81f\x02\x81v\x02\xff"),
    ] {
        assert_eq!(parsed(body), Err(RdbError::Data), "{why}");
    }
    assert_eq!(
        parsed(b"\x10\x0d\x0d\0\0\0\x02\0\x81f\x02\x81v\x02\xff"),
        Ok(hash(&[("f", "v", None)]))
    );
}

#[test]
fn bombs_are_refused() {
    let bomb = |packed: u32, inflated: u32| {
        let mut body = BytesMut::from(&b"\0\xc3"[..]);
        put_size(&mut body, u64::from(packed));
        put_size(&mut body, u64::from(inflated));
        body.resize(body.len() + packed as usize, 0);
        parsed(&body)
    };
    assert_eq!(bomb(10, u32::MAX), Err(RdbError::Data), "more than LZF can");
    assert_eq!(bomb(1 << 20, (64 << 20) + 1), Err(RdbError::TooLarge));
}

#[test]
fn other_kinds_are_named() {
    let refused = |form: u8| parsed(&[form]).unwrap_err().reply();
    assert_eq!(refused(18), Reply::error("ERR RESTORE of a list is not supported yet"));
    assert_eq!(refused(2), Reply::error("ERR RESTORE of a set is not supported yet"));
    assert_eq!(refused(5), Reply::error("ERR RESTORE of a sorted set is not supported yet"));
    assert_eq!(refused(21), Reply::error("ERR RESTORE of a stream is not supported yet"));
    assert_eq!(refused(7), Reply::error("ERR RESTORE of a module value is not supported yet"));
}
