//! Whose the image is: going live, handing over, coming to the end, and the stamps that say so.

use super::DiskPort;
use crate::console::hub::Protection;
use crate::disk::DiskError;
use crate::disk::engine::{Flaw, Stamping, State};
use crate::disk::spec::Mode;
use crate::disk::stamp::{ImageRole, Stamp, hex, random};

impl DiskPort {
    /// Primary: the VM's register at the arbiter holds this generation. An error if this image is not what the VM did last.
    pub fn check_generation(&self, register: Option<u64>) -> Result<(), DiskError> {
        let mut state = self.shared.state();
        let Some(stamp) = &state.stamp else { return Ok(()) };
        if self.mode == Mode::Separate && !self.force {
            let current = stamp.vm != self.vm || stamp.generation == 0 || Some(stamp.generation) >= register;
            match stamp.role {
                ImageRole::Copying => return Err(DiskError::Copying { path: self.path() }),
                // Its guest came to its end here as well, and nobody has gone on since.
                ImageRole::Following if stamp.clean && current && stamp.generation > 0 => {}
                ImageRole::Following => return Err(DiskError::Following { path: self.path() }),
                ImageRole::Live if current => {}
                ImageRole::Live => {
                    let (image, vm) = (stamp.generation, register.unwrap_or(0));
                    return Err(DiskError::Stale { path: self.path(), image, vm });
                }
            }
        }
        state.checked = true;
        Ok(())
    }

    /// Changes the stamp, here and durably beside the image.
    pub(super) fn put_stamp(&self, state: &mut State, change: impl FnOnce(&mut Stamp)) -> Result<(), DiskError> {
        if let Some(stamp) = self.changed_stamp(state, change) {
            stamp.write(&self.stamp_path)?;
            state.stamp = Some(stamp);
        }
        Ok(())
    }

    /// The stamp, changed. `None`: there is none, and there is to be none.
    fn changed_stamp(&self, state: &State, change: impl FnOnce(&mut Stamp)) -> Option<Stamp> {
        let mut stamp = state.stamp.clone().filter(|_| !self.read_only)?;
        if stamp.vm != self.vm {
            // Another VM counts anew.
            stamp.vm.clone_from(&self.vm);
            stamp.generation = 0;
        }
        stamp.mode = self.mode;
        change(&mut stamp);
        Some(stamp)
    }

    /// This host runs the machine from now on, in `generation`. What the replay has asked for and not got goes to the image
    /// (again), in order; changes of entries that `protection` holds wait. Those of a shared image wait in any case until the stamp of this generation was put, which the threads
    /// see to. A separate image is brought up to the end of the log first, and flushed, which may take as long as that takes.
    pub fn go_live(&self, generation: u64, protection: Protection) -> Result<(), DiskError> {
        let mut state = self.shared.state();
        if state.queue.is_live() {
            state.queue.protect(protection);
            drop(state);
            self.shared.something_is_ready();
            return Ok(());
        }
        if self.mode == Mode::Separate {
            if state.follows {
                state = self.shared.wait_while(state, |state| state.queue.is_behind());
                if !state.is_copy {
                    state.flaw = Some(Flaw::NotACopy);
                }
                if let Some(flaw) = state.flaw {
                    return Err(self.flaw(flaw));
                }
                drop(state);
                // What the guest saw flushed on the primary has to be so here.
                self.flush()?;
                state = self.shared.state();
            } else if !state.checked && !self.force {
                match state.stamp.as_ref().map(|stamp| stamp.role) {
                    Some(ImageRole::Following) => return Err(DiskError::Following { path: self.path() }),
                    Some(ImageRole::Copying) => return Err(DiskError::Copying { path: self.path() }),
                    Some(ImageRole::Live) | None => {}
                }
            }
        }
        match self.mode {
            Mode::Separate => {
                let contents = hex(state.contents);
                self.put_stamp(&mut state, |stamp| {
                    stamp.generation = stamp.generation.max(generation);
                    (stamp.role, stamp.clean, stamp.contents) = (ImageRole::Live, false, contents);
                })?;
            }
            Mode::Shared => {
                // A machine without a partner has no generations.
                let counts = !self.alone;
                let stamp = self.changed_stamp(&state, |stamp| {
                    stamp.generation = if counts { generation } else { stamp.generation };
                    (stamp.role, stamp.clean) = (ImageRole::Live, false);
                });
                state.queue.set_stamped(false);
                (state.lost, state.stamping) = (None, stamp.map(Stamping::of));
            }
        }
        state.queue.go_live(protection);
        self.shared.forbid(false);
        let done = state.queue.has_done();
        drop(state);
        self.shared.something_is_ready();
        if done {
            self.shared.wake();
        }
        Ok(())
    }

    /// The guest has come to its end, here or in the replay: makes the image whole, and its stamp says so. Takes as long as the requests under way.
    pub fn ended(&self) -> Result<(), DiskError> {
        let mut state = self.shared.state();
        let separate = self.mode == Mode::Separate;
        if self.read_only || !separate && !state.queue.is_live() {
            return Ok(());
        }
        if separate {
            state = self.shared.wait_while(state, |state| state.queue.unexecuted().0 > 0);
            if state.flaw.is_some() || state.follows && !state.is_copy {
                return Ok(());
            }
        }
        drop(state);
        self.flush()?;
        let mut state = self.shared.state();
        let (changed, last_entry) = (std::mem::take(&mut state.changed), state.last_entry);
        let before = state.contents;
        if changed && separate {
            // Both sides of a pair that come to the same end name it alike; a machine without a log knows of no other.
            state.contents = if self.alone || last_entry == 0 {
                random().map_err(|source| DiskError::Image {
                    what: "name the contents of",
                    path: self.path(),
                    source,
                })?
            } else {
                let bytes = [&before.to_le_bytes()[..], &last_entry.to_le_bytes()].concat();
                xxhash_rust::xxh3::xxh3_128(&bytes)
            };
        }
        let contents = hex(state.contents);
        if separate {
            return self.put_stamp(&mut state, |stamp| (stamp.clean, stamp.contents) = (true, contents));
        }
        state = self.shared.wait_while(state, |state| state.is_stamping);
        state.stamping = None;
        let (Some(stamp), None, seen) =
            (self.changed_stamp(&state, |stamp| stamp.clean = true), state.lost, state.seen)
        else {
            return Ok(());
        };
        drop(state);
        let raised = self.shared.raise(&stamp, seen)?;
        let mut state = self.shared.state();
        match raised {
            Ok(number) => (state.stamp, state.seen) = (Some(stamp), number),
            Err(generation) => state.lost = Some(generation),
        }
        Ok(())
    }

    /// Shared images: the generation in which the VM has gone live elsewhere, so that this host changes its image no more.
    pub fn lost(&self) -> Option<u64> {
        self.shared.state().lost
    }

    /// The other side goes on from here: returns when nothing is at work on the image any more, and nothing begins until this side is live again.
    /// May take as long as a request takes. What did not begin stays in flight.
    pub fn quiesce(&self) {
        self.shared.forbid(true);
        let mut state = self.shared.state();
        if self.mode == Mode::Separate {
            // The other side does what was asked for as well.
            state = self.shared.wait_while(state, |state| state.queue.unexecuted().0 > 0);
        }
        state.queue.not_live();
        state.stamping = None;
        state.follows = true;
        state.is_copy = true;
        drop(self.shared.wait_while(state, |state| state.queue.running() > 0));
    }

    /// After [`quiesce`](Self::quiesce): the other side runs the machine now, in `generation`, and this one is its backup, with all that the guest has done on
    /// its image.
    pub fn follow(&self, generation: u64) -> Result<(), DiskError> {
        if self.mode == Mode::Shared {
            return Ok(());
        }
        let mut state = self.shared.state();
        self.put_stamp(&mut state, |stamp| {
            (stamp.role, stamp.clean, stamp.generation) = (ImageRole::Following, false, generation);
        })
    }

    /// This host does not run the machine (any more). Nothing of what was asked for and has not begun is done, unless this side goes
    /// live again, and it is in flight until the log says what it came to.
    pub fn not_live(&self) {
        self.shared.forbid(true);
        let mut state = self.shared.state();
        state.stamping = None;
        state.queue.not_live();
    }
}
