//! Primes by trial division: a computation whose cost is easy to choose.

/// The primes in ascending order, for ever; calls `poll` for every candidate.
pub fn primes<P: FnMut()>(mut poll: P) -> impl Iterator<Item = u64> {
    (2..).filter(move |&n| {
        poll();
        is_prime(n)
    })
}

/// Whether `n` is a prime.
pub fn is_prime(n: u64) -> bool {
    match n {
        0 | 1 => false,
        2 | 3 => true,
        _ if n.is_multiple_of(2) || n.is_multiple_of(3) => false,
        _ => (5..).step_by(6).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d) && !n.is_multiple_of(d + 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::{is_prime, primes};

    #[test]
    fn finds_the_first_primes() {
        assert_eq!(primes(|| {}).take(10).collect::<Vec<_>>(), [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert_eq!(primes(|| {}).nth(9_999), Some(104_729));
    }

    #[test]
    fn is_not_fooled_by_squares_and_pseudoprimes() {
        for n in [0, 1, 4, 9, 25, 49, 341, 561, 1_105, 25 * 25, 7_919 * 7_919, 3_215_031_751] {
            assert!(!is_prime(n), "{n}");
        }
        assert!(is_prime(2_147_483_647));
    }
}
