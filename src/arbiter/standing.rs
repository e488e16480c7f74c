//! What a compare-and-set means, whatever keeps the register: which claims can be made, and how a claim stands to what the register holds.

use super::{ArbiterError, Claim, is_name};

/// How a claim stands to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The register holds the claim already: set by an earlier call.
    Held,
    /// It holds the generation that was expected: the claim may replace it.
    Next,
    /// It holds something else.
    Beaten,
}

impl Standing {
    /// Of `claim`, which is to follow the generation `expected`, where the register holds `held`.
    pub fn of(held: Option<&Claim>, expected: Option<u64>, claim: &Claim) -> Self {
        let key = |claim: &Claim| (claim.generation, claim.host, claim.shared_with);
        if held.is_some_and(|held| key(held) == key(claim)) {
            Standing::Held
        } else if held.map(|held| held.generation) == expected {
            Standing::Next
        } else {
            Standing::Beaten
        }
    }
}

/// Whether a VM's register can have this name.
pub(super) fn check_vm(vm: &str) -> Result<(), ArbiterError> {
    if !is_name(vm) || vm.contains('/') {
        return Err(ArbiterError::Name { name: vm.into() });
    }
    Ok(())
}

/// Whether this can be claimed after `expected`.
pub(super) fn check_claim(expected: Option<u64>, claim: &Claim) -> Result<(), ArbiterError> {
    if !is_name(&claim.host_name) {
        return Err(ArbiterError::Name { name: claim.host_name.clone() });
    }
    if expected.unwrap_or(0).checked_add(1) != Some(claim.generation) {
        return Err(ArbiterError::Order { expected: expected.unwrap_or(0), claimed: claim.generation });
    }
    Ok(())
}
