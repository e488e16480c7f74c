//! What a key of the server is, as a sequential object: the specification that histories are held against.

use stateright::semantics::SequentialSpec;

/// What a client asks of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// GET.
    Get,
    /// SET to a number.
    Set(u64),
    /// INCR.
    Incr,
    /// RPUSH of a number.
    Push(u64),
    /// LRANGE of the whole list.
    Range,
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// There is no such key.
    Nothing,
    /// OK.
    Done,
    /// The value, the counter's new value, the list's new length.
    Number(u64),
    /// The whole list.
    Items(Items),
    /// The key is of another kind.
    WrongKind,
}

/// A list, told apart from any other by its length and a hash over its items in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Items {
    length: u64,
    hash: u64,
}

impl Items {
    /// The list with one more item at its end.
    pub fn with(self, item: u64) -> Items {
        let mixed = (self.hash ^ item).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Items { length: self.length + 1, hash: mixed ^ mixed >> 29 }
    }
}

/// A key and what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Object {
    /// Nothing.
    #[default]
    Absent,
    /// A string that is a number.
    Number(u64),
    /// A list.
    List(Items),
}

impl SequentialSpec for Object {
    type Op = Ask;
    type Ret = Told;

    fn invoke(&mut self, ask: &Ask) -> Told {
        match (*ask, *self) {
            (Ask::Get | Ask::Range, Object::Absent) => Told::Nothing,
            (Ask::Get, Object::Number(value)) => Told::Number(value),
            (Ask::Range, Object::List(items)) => Told::Items(items),
            (Ask::Set(value), _) => {
                *self = Object::Number(value);
                Told::Done
            }
            (Ask::Incr, Object::Absent) => self.become_number(1),
            (Ask::Incr, Object::Number(value)) => self.become_number(value + 1),
            (Ask::Push(item), Object::Absent) => self.become_list(Items::default().with(item)),
            (Ask::Push(item), Object::List(items)) => self.become_list(items.with(item)),
            (Ask::Get | Ask::Incr, Object::List(_)) | (Ask::Push(_) | Ask::Range, Object::Number(_)) => Told::WrongKind,
        }
    }
}

impl Object {
    fn become_number(&mut self, value: u64) -> Told {
        *self = Object::Number(value);
        Told::Number(value)
    }

    fn become_list(&mut self, items: Items) -> Told {
        *self = Object::List(items);
        Told::Number(items.length)
    }
}
