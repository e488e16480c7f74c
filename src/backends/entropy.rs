//! Random numbers, from the host's kernel.

/// Eight random bytes.
pub fn random() -> Result<u64, getrandom::Error> {
    getrandom::u64()
}
