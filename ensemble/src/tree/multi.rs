//! Several operations, all or none.

use super::apply::{Outcome, Single, Txn};
use super::{Effect, Tree};
use crate::wire::code::Code;
use crate::wire::request::{Change, Create, op};

impl Tree {
    pub(super) fn multi(&mut self, txn: &Txn<'_>, operations: &[Change<'_>], effects: &mut Vec<Effect>) -> Outcome {
        // A copy shares everything with the original until one of them changes.
        let before = self.clone();
        let effects_before = effects.len();
        let mut done = Vec::with_capacity(operations.len());
        for operation in operations {
            match self.single(txn, &as_in_a_multi(operation), effects) {
                Ok(single) => done.push(single),
                Err(code) => {
                    *self = before;
                    effects.truncate(effects_before);
                    let mut codes = vec![0; done.len()];
                    codes.push(code.number());
                    codes.resize(operations.len(), Code::RuntimeInconsistency.number());
                    return Outcome::Failed(codes);
                }
            }
        }
        Outcome::Multi(done)
    }
}

/// In a multi, ZooKeeper goes by the flags and not by the type of a creation: with those of a container it makes one and answers
/// with its stat, with all others it makes what they say and answers with the path alone.
fn as_in_a_multi<'a>(operation: &Change<'a>) -> Change<'a> {
    const CONTAINER: i32 = 4;
    match operation {
        Change::Create(create) => {
            let op = match create.flags {
                CONTAINER => op::CREATE_CONTAINER,
                _ => op::CREATE,
            };
            Change::Create(Create { op, ..*create })
        }
        other => other.clone(),
    }
}

impl Single {
    /// The type that a multi's answer gives for it.
    pub fn multi_type(&self) -> i32 {
        match self {
            Single::Created(_, None) => op::CREATE,
            Single::Created(_, Some(_)) => op::CREATE2,
            Single::Deleted => op::DELETE,
            Single::DataSet(_) => op::SET_DATA,
            Single::AclSet(_) => op::SET_ACL,
            Single::Checked => op::CHECK,
        }
    }
}
