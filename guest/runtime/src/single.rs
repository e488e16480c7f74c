//! State of the runtime's own: one processor, and no interrupt handler ever runs Rust.

use core::cell::{RefCell, RefMut};

/// A static that the one processor borrows.
pub(crate) struct Single<T>(RefCell<T>);

// SAFETY: there is one processor and no preemption at ring 3, so no two borrows run at the same time; a nested
// one is caught by the `RefCell`.
unsafe impl<T: Send> Sync for Single<T> {}

impl<T> Single<T> {
    pub(crate) const fn new(value: T) -> Self {
        Single(RefCell::new(value))
    }

    pub(crate) fn borrow_mut(&self) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }

    /// `None` inside another borrow: a panic on the way.
    pub(crate) fn try_borrow_mut(&self) -> Option<RefMut<'_, T>> {
        self.0.try_borrow_mut().ok()
    }
}
