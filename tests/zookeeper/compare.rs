//! Compares a result line with what the script says. Numbers that differ from run to run come marked (`z:17`, a zxid; `s:9`, a
//! session; `t:1700000000000`, a time) and stand in the script as symbols: `z1` is one zxid throughout, and no other symbol is
//! the same. Times stand there as `T`; they are held against the zxids beside them, for all changes of one transaction have one time.

use std::collections::BTreeMap;

/// What the symbols stand for, in one run.
#[derive(Default)]
pub struct Symbols {
    of_symbol: BTreeMap<String, String>,
    of_value: BTreeMap<String, String>,
    /// The symbols that were given out, by kind.
    given: BTreeMap<char, usize>,
    /// The time of each transaction that was seen, ms.
    times: BTreeMap<u64, u64>,
}

/// A marked number: what stands before it, its kind, and the number.
fn marked(word: &str) -> Option<(&str, char, &str)> {
    let colon = word.rfind(':')?;
    let (before, number) = (&word[..colon], &word[colon + 1..]);
    let kind = before.chars().next_back().filter(|kind| "zst".contains(*kind))?;
    let before = &before[..before.len() - 1];
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (before.ends_with('=') && is_number).then_some((before, kind, number))
}

/// The number of this name in a line of `name=value`s, without its mark.
fn number(line: &str, name: &str) -> Option<u64> {
    let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    word.rsplit(':').next()?.parse().ok()
}

impl Symbols {
    /// The line as the script would write it, with the symbols that it has, and new ones for numbers that are new.
    pub fn written(&mut self, actual: &str) -> String {
        let words = actual.split(' ').map(|word| match marked(word) {
            Some((before, 't', _)) => format!("{before}T"),
            Some((before, _, "0")) => format!("{before}0"),
            Some((before, kind, number)) => {
                let value = format!("{kind}:{number}");
                let symbol = self.of_value.get(&value).cloned().unwrap_or_else(|| {
                    let count = self.given.entry(kind).or_default();
                    *count += 1;
                    let symbol = format!("{kind}{count}");
                    self.bind(symbol.clone(), value);
                    symbol
                });
                format!("{before}{symbol}")
            }
            None => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn bind(&mut self, symbol: String, value: String) {
        self.of_value.insert(value.clone(), symbol.clone());
        self.of_symbol.insert(symbol, value);
    }

    /// Whether a result is what the script says. Symbols that are new stand for the numbers of this line from now on.
    pub fn fits(&mut self, expected: &str, actual: &str) -> bool {
        let (expected, actual) = (expected.split(' '), actual.split(' '));
        expected.clone().count() == actual.clone().count()
            && expected.zip(actual).all(|pair| self.word_fits(pair.0, pair.1))
    }

    fn word_fits(&mut self, expected: &str, actual: &str) -> bool {
        let Some((before, kind, number)) = marked(actual) else { return expected == actual };
        let Some(symbol) = expected.strip_prefix(before) else { return false };
        if kind == 't' || number == "0" {
            return symbol == if kind == 't' { "T" } else { "0" };
        }
        let value = format!("{kind}:{number}");
        match (self.of_symbol.get(symbol), self.of_value.get(&value)) {
            (Some(bound), _) => *bound == value,
            (None, Some(_)) => false,
            (None, None) if symbol.starts_with(kind) => {
                self.bind(symbol.to_owned(), value);
                true
            }
            (None, None) => false,
        }
    }

    /// Whether the times of a stat can be: each transaction has one, and later ones none that is earlier. `step_ms` is how exactly
    /// the client shows times.
    pub fn times_fit(&mut self, actual: &str, step_ms: u64) -> Result<(), String> {
        for (zxid, time) in [("czxid", "ctime"), ("mzxid", "mtime")] {
            let (Some(zxid), Some(time)) = (number(actual, zxid), number(actual, time)) else { continue };
            let time = time / step_ms * step_ms;
            if *self.times.entry(zxid).or_insert(time) != time {
                return Err(format!("transaction {zxid} had another time before: {actual}"));
            }
        }
        let mut last = 0;
        for (zxid, time) in &self.times {
            if *time < last {
                return Err(format!("transaction {zxid} is earlier than the one before it: {actual}"));
            }
            last = *time;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Symbols;

    #[test]
    fn a_symbol_is_one_number_and_a_number_is_one_symbol() {
        let mut symbols = Symbols::default();
        assert!(symbols.fits("czxid=z1 mzxid=z1 owner=s1", "czxid=z:7 mzxid=z:7 owner=s:9"));
        assert!(symbols.fits("czxid=z1 mzxid=z2", "czxid=z:7 mzxid=z:8"));
        assert!(!symbols.fits("czxid=z1", "czxid=z:8"), "z1 is 7");
        assert!(!symbols.fits("czxid=z3", "czxid=z:8"), "8 is z2");
        assert!(!symbols.fits("owner=none", "owner=s:9"));
        assert!(!symbols.fits("owner=s1", "owner=none"));
        assert!(!symbols.fits("version=1", "version=2"));
        assert!(!symbols.fits("a b", "a"));
        assert_eq!(symbols.written("czxid=z:8 mzxid=z:0 ctime=t:5"), "czxid=z2 mzxid=0 ctime=T");
    }

    #[test]
    fn a_transaction_has_one_time() {
        let mut symbols = Symbols::default();
        assert!(symbols.times_fit("czxid=z:7 mzxid=z:8 ctime=t:100 mtime=t:200", 1).is_ok());
        assert!(symbols.times_fit("czxid=z:7 mzxid=z:7 ctime=t:100 mtime=t:101", 1).is_err());
        assert!(symbols.times_fit("czxid=z:9 mzxid=z:9 ctime=t:150 mtime=t:150", 1).is_err());
    }
}
