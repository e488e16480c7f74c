//! The interrupt controller: a cascaded pair of i8259s, edge triggered, as in a PC.
//!
//! Source: Intel 8259A data sheet (initialisation words ICW1–4, operation words OCW1–3). Not
//! modelled, since nothing can observe it here: level triggering, 8080 mode, buffered mode.

use bincode::{Decode, Encode};

/// One i8259. Its registers are its state; this struct is what snapshots and digests read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ChipState {
    /// Interrupt request register: lines that rose and were not acknowledged.
    irr: u8,
    /// In-service register.
    isr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// Upper five bits of the vectors (ICW2).
    vector_base: u8,
    /// The next initialisation word expected at the data port (2, 3 or 4); 0 outside initialisation.
    expects_icw: u8,
    /// ICW1 announced an ICW4.
    has_icw4: bool,
    /// ICW4: interrupts are taken out of service as they are acknowledged.
    auto_eoi: bool,
    /// OCW3: the command port reads as ISR instead of IRR.
    reads_isr: bool,
    /// OCW3: masked levels do not block lower ones.
    special_mask: bool,
    /// The line of highest priority (rotation).
    top: u8,
    /// Rotate priorities on automatic EOI.
    rotate_on_auto_eoi: bool,
}

impl ChipState {
    /// Whether a chip can be in this state.
    fn is_valid(&self) -> bool {
        self.top < 8 && matches!(self.expects_icw, 0 | 2..=4) && self.vector_base & 7 == 0
    }

    /// The line that the chip asks to be served: requested, not masked, of higher priority than all in service.
    fn request(&self) -> Option<u8> {
        let blocking = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let wanted = self.irr & !self.imr;
        (0..8)
            .map(|i| (self.top + i) & 7)
            .take_while(|line| blocking & (1 << line) == 0)
            .find(|l| wanted & (1 << l) != 0)
    }

    /// Puts `line` into service and returns its vector.
    fn acknowledge(&mut self, line: u8) -> u8 {
        self.irr &= !(1 << line);
        if !self.auto_eoi {
            self.isr |= 1 << line;
        } else if self.rotate_on_auto_eoi {
            self.top = (line + 1) & 7;
        }
        self.vector_base | line
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1 starts initialisation.
            *self = ChipState { expects_icw: 2, has_icw4: value & 1 != 0, ..ChipState::default() };
        } else if value & 0x08 != 0 {
            if value & 0x02 != 0 {
                self.reads_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value);
        }
    }

    /// OCW2.
    fn end_of_interrupt(&mut self, value: u8) {
        let highest = (0..8).map(|i| (self.top + i) & 7).find(|line| self.isr & (1 << line) != 0);
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            kind @ (1 | 5) => {
                if let Some(line) = highest {
                    self.isr &= !(1 << line);
                    if kind == 5 {
                        self.top = (line + 1) & 7;
                    }
                }
            }
            3 => self.isr &= !(1 << (value & 7)),
            6 => self.top = (value + 1) & 7,
            7 => {
                self.isr &= !(1 << (value & 7));
                self.top = (value + 1) & 7;
            }
            _ => {} // 2: no operation
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.expects_icw {
            2 => {
                self.vector_base = value & 0xf8;
                self.expects_icw = 3;
            }
            3 => self.expects_icw = if self.has_icw4 { 4 } else { 0 },
            4 => {
                self.auto_eoi = value & 2 != 0;
                self.expects_icw = 0;
            }
            _ => self.imr = value,
        }
    }

    fn read(&self, data: bool) -> u8 {
        match (data, self.reads_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

/// The line of the master at which the slave hangs.
const CASCADE: u8 = 2;

/// The pair: lines 0–7 at the master, 8–15 at the slave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Pic {
    master: ChipState,
    slave: ChipState,
}

impl Default for Pic {
    /// As after power-on: everything masked until a guest initialises the pair.
    fn default() -> Self {
        let chip = ChipState { imr: 0xff, ..ChipState::default() };
        Pic { master: chip, slave: chip }
    }
}

impl Pic {
    /// Whether the pair can be in this state.
    pub fn is_valid(&self) -> bool {
        self.master.is_valid() && self.slave.is_valid()
    }

    /// An edge on `line` (0–15).
    pub fn raise(&mut self, line: u8) {
        assert!(line < 16, "the PIC pair has 16 lines");
        if line < 8 {
            self.master.irr |= 1 << line;
        } else {
            self.slave.irr |= 1 << (line - 8);
        }
        self.cascade();
    }

    /// Whether the pair asks the processor to take an interrupt.
    pub fn pending(&self) -> bool {
        self.master.request().is_some()
    }

    /// The processor takes the interrupt: returns its vector. Without a request it is a spurious line 7, as the chip does it.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.master.request() else { return self.master.vector_base | 7 };
        let vector = self.master.acknowledge(line);
        if line != CASCADE {
            return vector;
        }
        let vector = match self.slave.request() {
            Some(line) => self.slave.acknowledge(line),
            None => self.slave.vector_base | 7,
        };
        self.cascade();
        vector
    }

    /// Reads a port; `offset` 0 is command, 1 data.
    pub fn read(&self, slave: bool, offset: u16) -> u8 {
        if slave { self.slave.read(offset == 1) } else { self.master.read(offset == 1) }
    }

    /// Writes a port; `offset` 0 is command, 1 data.
    pub fn write(&mut self, slave: bool, offset: u16, value: u8) {
        let chip = if slave { &mut self.slave } else { &mut self.master };
        if offset == 1 {
            chip.write_data(value);
        } else {
            chip.write_command(value);
        }
        self.cascade();
    }

    /// The slave's output is the master's line 2, and follows it.
    fn cascade(&mut self) {
        if self.slave.request().is_some() {
            self.master.irr |= 1 << CASCADE;
        } else {
            self.master.irr &= !(1 << CASCADE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initialised(icw4: u8) -> Pic {
        let mut pic = Pic::default();
        for (slave, base) in [(false, 0x20), (true, 0x28)] {
            pic.write(slave, 0, 0x11);
            pic.write(slave, 1, base);
            pic.write(slave, 1, if slave { 2 } else { 4 });
            pic.write(slave, 1, icw4);
            pic.write(slave, 1, 0);
        }
        pic
    }

    #[test]
    fn masked_until_initialised() {
        let mut pic = Pic::default();
        pic.raise(0);
        assert!(!pic.pending());
    }

    #[test]
    fn priority_and_end_of_interrupt() {
        let mut pic = initialised(1);
        pic.raise(4);
        pic.raise(0);
        assert_eq!(pic.acknowledge(), 0x20);
        assert!(!pic.pending(), "line 4 waits for line 0's end of interrupt");
        pic.write(false, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn automatic_end_of_interrupt_leaves_nothing_in_service() {
        let mut pic = initialised(3);
        pic.raise(0);
        assert_eq!(pic.acknowledge(), 0x20);
        pic.raise(0);
        assert!(pic.pending());
    }

    #[test]
    fn slave_lines_come_through_the_cascade() {
        let mut pic = initialised(3);
        pic.raise(12);
        assert!(pic.pending());
        assert_eq!(pic.acknowledge(), 0x2c);
        assert!(!pic.pending());
        assert_eq!(pic.acknowledge(), 0x27, "spurious");
    }

    #[test]
    fn a_masked_line_waits() {
        let mut pic = initialised(3);
        pic.write(false, 1, 1);
        pic.raise(0);
        assert!(!pic.pending());
        pic.write(false, 1, 0);
        assert!(pic.pending());
    }
}
