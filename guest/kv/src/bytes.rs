//! Strings of bytes, and the numbers in them as Redis reads and writes them.

use alloc::vec::Vec;
use core::fmt::Write;
use smallvec::SmallVec;

/// A key, member or value; up to 24 bytes without an allocation.
pub(crate) type Bytes = SmallVec<[u8; 24]>;

/// So many bytes are copied without a pause.
pub(crate) const COPY_BYTES: usize = 128 << 10;

/// A string of its own, made with pauses if it is long.
#[inline]
pub(crate) fn copy(text: &[u8], poll: fn()) -> Bytes {
    if text.len() <= COPY_BYTES {
        return Bytes::from_slice(text);
    }
    let mut copy = Bytes::with_capacity(text.len());
    for piece in text.chunks(COPY_BYTES) {
        copy.extend_from_slice(piece);
        poll();
    }
    copy
}

/// Bytes of heap behind a string.
pub(crate) fn heap_bytes(bytes: &Bytes) -> usize {
    if bytes.spilled() { bytes.capacity() } else { 0 }
}

/// A whole number in its one canonical form: no sign but `-`, no leading zeros, nothing around it.
#[inline]
pub(crate) fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value = 0u64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // 19 digits cannot overflow 64 bits.
        value = value * 10 + u64::from(digit);
    }
    if negative { 0i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() }
}

/// A floating point number, or an infinity by one of its names; never NaN.
pub(crate) fn parse_f64(text: &[u8]) -> Option<f64> {
    let text = core::str::from_utf8(text).ok()?;
    let value: f64 = text.parse().ok()?;
    // A number too large for a double is refused; an infinity has to be asked for by name.
    let named = text.bytes().any(|byte| byte.eq_ignore_ascii_case(&b'n'));
    (!value.is_nan() && (named || value.is_finite())).then_some(value)
}

/// A stack buffer for a number's text.
pub(crate) type NumberText = SmallVec<[u8; 32]>;

struct Writer<'a>(&'a mut NumberText);

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// The shortest text that reads back as the same number, laid out as C's `%.17g` would.
pub(crate) fn f64_text(value: f64) -> NumberText {
    let mut text = NumberText::new();
    if value.is_infinite() {
        text.extend_from_slice(if value > 0.0 { b"inf" } else { b"-inf" });
        return text;
    }
    let magnitude = if value < 0.0 { -value } else { value };
    // Writing into a growing buffer cannot fail.
    let _ = if magnitude == 0.0 || (1e-4..1e17).contains(&magnitude) {
        write!(Writer(&mut text), "{value}")
    } else {
        let done = write!(Writer(&mut text), "{value:e}");
        if let Some(e) = text.iter().position(|&byte| byte == b'e') {
            let mut at = e + 1;
            if text.get(at) != Some(&b'-') {
                text.insert(at, b'+');
            }
            at += 1;
            if text.len() - at < 2 {
                text.insert(at, b'0');
            }
        }
        done
    };
    text
}

/// Digits behind the point in a [`Decimal`].
const DECIMALS: u32 = 17;

/// A decimal number with up to 17 digits behind the point, exactly: sums of prices come out as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decimal(i128);

impl Decimal {
    /// Reads plain notation (no exponent) with up to 20 digits before the point and 17 behind.
    pub(crate) fn parse(text: &[u8]) -> Option<Decimal> {
        let (negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        let point = text.iter().position(|&byte| byte == b'.').unwrap_or(text.len());
        let (whole, fraction) = (&text[..point], text.get(point + 1..).unwrap_or_default());
        if whole.len() > 20 || fraction.len() > DECIMALS as usize || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let mut value = 0i128;
        for digit in whole.iter().chain(fraction) {
            if !digit.is_ascii_digit() {
                return None;
            }
            value = value * 10 + i128::from(digit - b'0');
        }
        value *= 10i128.pow(DECIMALS - fraction.len() as u32);
        Some(Decimal(if negative { -value } else { value }))
    }

    pub(crate) fn plus(self, other: Decimal) -> Decimal {
        // Each is below 10^37 in size.
        Decimal(self.0 + other.0)
    }

    /// Plain notation without trailing zeros.
    pub(crate) fn text(self) -> NumberText {
        let unit = 10u128.pow(DECIMALS);
        let magnitude = self.0.unsigned_abs();
        let mut text = NumberText::new();
        let sign = if self.0 < 0 { "-" } else { "" };
        // Writing into a growing buffer cannot fail.
        let _ = write!(Writer(&mut text), "{sign}{}", magnitude / unit);
        let fraction = magnitude % unit;
        if fraction != 0 {
            let _ = write!(Writer(&mut text), ".{fraction:017}");
            while text.last() == Some(&b'0') {
                text.pop();
            }
        }
        text
    }
}

/// Appends a whole number's text.
#[inline]
pub(crate) fn push_i64(out: &mut Vec<u8>, value: i64) {
    if (0..10).contains(&value) {
        out.push(b'0' + value as u8);
    } else {
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_have_one_form() {
        for value in [0, 1, -1, 9, 10, i64::MAX, i64::MIN, 1234567890123456789] {
            assert_eq!(parse_i64(alloc::format!("{value}").as_bytes()), Some(value));
        }
        for text in [
            "",
            "-",
            "-0",
            "00",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
        ] {
            assert_eq!(parse_i64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn floating_point_texts() {
        let text = |value: f64| alloc::string::String::from_utf8(f64_text(value).to_vec()).unwrap();
        let expected = [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (1.5e300, "1.5e+300"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, expected) in expected {
            assert_eq!(text(value), expected);
        }
        assert_eq!(parse_f64(b"1e400"), None);
        assert_eq!(parse_f64(b"nan"), None);
        assert_eq!(parse_f64(b""), None);
        assert_eq!(parse_f64(b"-inf"), Some(f64::NEG_INFINITY));
        assert_eq!(parse_f64(b"+Infinity"), Some(f64::INFINITY));
        assert_eq!(parse_f64(b"3.0e3"), Some(3000.0));
    }

    #[test]
    fn decimals_are_exact() {
        let sum = |a: &str, b: &str| {
            let sum = Decimal::parse(a.as_bytes()).unwrap().plus(Decimal::parse(b.as_bytes()).unwrap());
            alloc::string::String::from_utf8(sum.text().to_vec()).unwrap()
        };
        assert_eq!(sum("0.1", "0.2"), "0.3");
        assert_eq!(sum("10.50", "0.1"), "10.6");
        assert_eq!(sum("5", "-5.25"), "-0.25");
        assert_eq!(sum("-0.5", "0.5"), "0");
        for text in ["", ".", "1e3", "0x1", "123456789012345678901", "--1"] {
            assert_eq!(Decimal::parse(text.as_bytes()), None, "{text}");
        }
    }
}
