//! Patterns as in `KEYS` and `SCAN`: `*`, `?`, `[a-z]`, `[^a-z]`, `\` before a character that means itself.

/// Whether the whole text matches. Takes at most the product of both lengths in steps, which can be long.
pub(crate) fn matches(pattern: &[u8], text: &[u8], poll: fn()) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut steps = 0u32;
    // Behind the last star, and the text that it takes so far: there a mismatch goes on.
    let mut star: Option<(usize, usize)> = None;
    loop {
        steps = steps.wrapping_add(1);
        if steps.is_multiple_of(1024) {
            poll();
        }
        let step = match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                star = Some((p, t));
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some(_) => text.get(t).and_then(|&byte| one(&pattern[p..], byte)),
        };
        match (step, star) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            (None, Some((after, taken))) if taken < text.len() => {
                star = Some((after, taken + 1));
                (p, t) = (after, taken + 1);
            }
            (None, _) => return false,
        }
    }
}

/// Whether a byte matches the pattern's first element, and how long that is.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => class(rest, byte).map(|length| length + 1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [plain, ..] => (*plain == byte).then_some(1),
        [] => None,
    }
}

/// The same for what stands behind `[`.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match pattern.get(at..).unwrap_or_default() {
            // A class without its end ends with the pattern.
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [low, b'-', high, ..] => {
                found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                found |= *plain == byte;
                at += 1;
            }
        }
    }
    (found != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        let yes = [
            ("*", ""),
            ("*", "abc"),
            ("a*c", "abbc"),
            ("a?c", "abc"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hbllo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            ("\\*", "*"),
            ("**x**", "axb"),
            ("*a*b*c*", "xxaxxbxxcxx"),
            ("", ""),
            ("[abc", "b"),
            ("[\\]]", "]"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern.as_bytes(), text.as_bytes(), || {}), "{pattern} {text}");
        }
        let no = [
            ("", "a"),
            ("a", ""),
            ("?", ""),
            ("a*c", "abd"),
            ("h[^e]llo", "hello"),
            ("h[ae]llo", "hillo"),
            ("\\*", "a"),
            ("*a*b", "ba"),
            ("[]", "a"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern.as_bytes(), text.as_bytes(), || {}), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(40) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(2000).as_bytes(), || {}));
    }
}
