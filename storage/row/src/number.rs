//! Numbers in strings, parsed and printed as Redis does.

use bytes::Bytes;
use rustc_apfloat::ieee::X87DoubleExtended;
use rustc_apfloat::{Float as _, Round};

/// Parses an integer as Redis's `string2ll`: decimal, no blanks, no `+`, no leading
/// zeros, no `-0`.
pub fn parse_int(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits == b"0" && digits.len() == text.len() {
        return Some(0);
    }
    if !matches!(digits.first(), Some(b'1'..=b'9')) || digits.len() > 19 {
        return None;
    }
    let mut n: u64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        n = n.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    if digits.len() < text.len() { 0i64.checked_sub_unsigned(n) } else { i64::try_from(n).ok() }
}

/// An integer as its decimal text.
pub fn print_int(n: i64) -> Bytes {
    Bytes::copy_from_slice(itoa::Buffer::new().format(n).as_bytes())
}

/// A `long double` of x86: 64 bits of mantissa. The results of INCRBYFLOAT show its
/// rounding (0.1 + 0.2 is 0.3), so it is computed in software, alike on every machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LongDouble(X87DoubleExtended);

/// The longest text that Redis parses as a float, bytes (its `MAX_LONG_DOUBLE_CHARS` less
/// the terminating zero). The largest number that it prints has 4,933.
const FLOAT_TEXT_MAX: usize = 5 * 1024 - 1;

impl LongDouble {
    /// Parses a float as Redis's `string2ld`, which is C's `strtold` on the whole text:
    /// decimal or hexadecimal, `inf`, but no leading blank, no NaN, and no number that
    /// overflows or underflows.
    pub fn parse(text: &[u8]) -> Option<LongDouble> {
        if text.len() > FLOAT_TEXT_MAX {
            return None;
        }
        let (negative, digits) = match text.split_first()? {
            (b'-', rest) => (true, rest),
            (b'+', rest) => (false, rest),
            _ => (false, text),
        };
        if digits.eq_ignore_ascii_case(b"inf") || digits.eq_ignore_ascii_case(b"infinity") {
            return Some(LongDouble(if negative {
                -X87DoubleExtended::INFINITY
            } else {
                X87DoubleExtended::INFINITY
            }));
        }
        let (mantissa, exponent, hex) = match digits {
            [b'0', b'x' | b'X', rest @ ..] => {
                let (mantissa, exponent) = split_exponent(rest, b'p')?;
                (mantissa, exponent, true)
            }
            _ => {
                let (mantissa, exponent) = split_exponent(digits, b'e')?;
                (mantissa, exponent, false)
            }
        };
        let is_digit = |b: &u8| if hex { b.is_ascii_hexdigit() } else { b.is_ascii_digit() };
        let points = mantissa.iter().filter(|b| **b == b'.').count();
        if points > 1
            || mantissa.len() == points
            || !mantissa.iter().all(|b| *b == b'.' || is_digit(b))
        {
            return None;
        }
        let zero = mantissa.iter().all(|b| matches!(b, b'0' | b'.'));
        let mantissa = std::str::from_utf8(mantissa).ok()?;
        let plain = match (zero, hex) {
            (true, _) => "0".to_owned(),
            (false, false) => format!("{mantissa}e{exponent}"),
            (false, true) => format!("0x{mantissa}p{exponent}"),
        };
        let value = X87DoubleExtended::from_str_r(&plain, Round::NearestTiesToEven).ok()?.value;
        if !value.is_finite() || (value.is_zero() && !zero) {
            return None;
        }
        Some(LongDouble(if negative { -value } else { value }))
    }

    /// The sum, rounded to the nearest.
    pub fn plus(self, other: LongDouble) -> LongDouble {
        LongDouble(self.0.add_r(other.0, Round::NearestTiesToEven).value)
    }

    /// True if it is neither infinite nor NaN.
    pub fn is_finite(self) -> bool {
        self.0.is_finite()
    }

    /// Prints a finite number as Redis does: C's `%.17Lf` without trailing zeros, never
    /// in exponent form.
    pub fn print(self) -> String {
        let bits = self.0.to_bits();
        let mantissa = bits as u64;
        let exponent = ((bits >> 64) & 0x7fff) as i32;
        let power = exponent.max(1) - 16383 - 63; // value = mantissa * 2^power
        let mut text = match u32::try_from(power) {
            Ok(power) => big_decimal(mantissa, power),
            Err(_) => fraction_decimal(mantissa, power.unsigned_abs()),
        };
        if bits >> 79 & 1 == 1 && text != "0" {
            text.insert(0, '-');
        }
        text
    }
}

/// Splits `1.5e-3` at its exponent, which is clamped to a value that is certain to
/// overflow or underflow.
fn split_exponent(text: &[u8], mark: u8) -> Option<(&[u8], i32)> {
    let Some(at) = text.iter().position(|b| b.to_ascii_lowercase() == mark) else {
        return Some((text, 0));
    };
    let (negative, digits) = match text[at + 1..].split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, &text[at + 1..]),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let size = digits.iter().fold(0i32, |n, d| (n * 10 + i32::from(d - b'0')).min(100_000));
    Some((&text[..at], if negative { -size } else { size }))
}

/// `mantissa * 2^-power` with 17 decimals, rounded half to even, trailing zeros cut off.
fn fraction_decimal(mantissa: u64, power: u32) -> String {
    const DECIMALS: u128 = 100_000_000_000_000_000;
    let scaled = u128::from(mantissa) * DECIMALS; // below 2^64 * 2^57
    let rounded = if power >= 127 {
        0
    } else {
        let (whole, rest, half) = (scaled >> power, scaled & ((1 << power) - 1), 1 << (power - 1));
        whole + u128::from(rest > half || (rest == half && whole & 1 == 1))
    };
    let text = format!("{}.{:017}", rounded / DECIMALS, rounded % DECIMALS);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `mantissa * 2^power` in decimal.
fn big_decimal(mantissa: u64, power: u32) -> String {
    const LIMB: u64 = 1_000_000_000;
    const STEP: u32 = 32;
    // The lowest limb first.
    let mut limbs = vec![mantissa % LIMB, mantissa / LIMB % LIMB, mantissa / LIMB / LIMB];
    let mut left = power;
    while left > 0 {
        let step = left.min(STEP);
        let mut carry = 0;
        for limb in &mut limbs {
            let n = (*limb << step) + carry; // below 2^30 * 2^32, plus a carry below 2^33
            *limb = n % LIMB;
            carry = n / LIMB;
        }
        while carry > 0 {
            limbs.push(carry % LIMB);
            carry /= LIMB;
        }
        left -= step;
    }
    let text: String = limbs.iter().rev().map(|limb| format!("{limb:09}")).collect();
    let text = text.trim_start_matches('0');
    if text.is_empty() { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_redis_reads_them() {
        for (text, n) in [
            ("0", 0),
            ("-1", -1),
            ("10", 10),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_int(text.as_bytes()), Some(n), "{text}");
            assert_eq!(print_int(n), text);
        }
        for text in [
            "",
            "-",
            "-0",
            "00",
            "01",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
        ] {
            assert_eq!(parse_int(text.as_bytes()), None, "{text}");
        }
    }

    fn sum(a: &str, b: &str) -> String {
        let (Some(a), Some(b)) = (LongDouble::parse(a.as_bytes()), LongDouble::parse(b.as_bytes()))
        else {
            return "not a float".to_owned();
        };
        let sum = a.plus(b);
        if sum.is_finite() { sum.print() } else { "infinite".to_owned() }
    }

    #[test]
    fn sums_as_redis_makes_them() {
        let vectors = include_str!("../tests/vectors/floats.txt");
        for line in vectors.lines().filter(|line| !line.starts_with('#')) {
            let [a, b, c] = line.split('|').collect::<Vec<_>>()[..] else {
                panic!("three columns: {line}")
            };
            assert_eq!(sum(a, b), c, "{a} + {b}");
        }
    }

    #[test]
    fn floats_that_redis_refuses() {
        for text in [
            "",
            "-",
            " 1",
            "1 ",
            "1.2.3",
            "nan",
            "1e",
            "1e5000",
            "1e-5000",
            "e5",
            ".",
            "0x",
            "0x.p1",
            "1_0",
            "1e99999999999999",
            "0x1pz",
        ] {
            assert_eq!(LongDouble::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(LongDouble::parse(&[b'0'; 5120]), None);
        assert!(LongDouble::parse(&[b'0'; 5119]).is_some());
        assert!(LongDouble::parse(&[b'1'; 4932]).is_some());
        assert_eq!(LongDouble::parse(&[b'1'; 5000]), None);
        assert!(!LongDouble::parse(b"-inf").expect("reads").is_finite());
        assert_eq!(LongDouble::parse(b"0e99999").expect("reads").print(), "0");
    }

    proptest::proptest! {
        #[test]
        fn whole_numbers_stay_what_they_are(
            n in -i64::MAX..i64::MAX,
            m in proptest::num::u32::ANY,
        ) {
            assert_eq!(sum(&n.to_string(), "0"), n.to_string());
            assert_eq!(sum(&m.to_string(), "0.5"), format!("{m}.5"));
        }

        #[test]
        fn no_text_panics(
            text in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
            tame in "[-+0-9.eExXpPa-f]{0,20}",
        ) {
            for text in [&text[..], tame.as_bytes()] {
                if let Some(n) = LongDouble::parse(text).filter(|n| n.is_finite()) {
                    n.print();
                }
                parse_int(text);
            }
        }
    }
}
