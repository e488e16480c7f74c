//! The serial port: rust-vmm's 16550 with its interrupt and its output kept inside the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bincode::{Decode, Encode};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

/// The UART's interrupt line: remembers an edge until the machine carries it to the PIC. Atomic only because
/// the crate wants a shared reference; one thread uses it.
#[derive(Clone, Default)]
struct Edge(Arc<AtomicBool>);

impl Trigger for Edge {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.store(true, Relaxed);
        Ok(())
    }
}

/// The UART's registers and receive FIFO, for snapshots and digests.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct UartState {
    /// Divisor latch low and high, IER, IIR, LCR, LSR, MCR, MSR, scratch.
    registers: [u8; 9],
    /// Received bytes not read yet, at most 64.
    received: Vec<u8>,
    /// Transmitted bytes that wait to go out together.
    transmitted: Vec<u8>,
}

/// Bytes that a 16550's transmitter takes at a time.
const TRANSMIT_FIFO: usize = 16;

/// More than ever wait to go out together: the FIFO, and all that one exit can write beyond it.
const MAX_TRANSMITTED: usize = 8192;

/// A 16550 whose transmitter is always empty.
pub struct Uart {
    serial: Serial<Edge, NoEvents, Vec<u8>>,
    edge: Edge,
}

impl Default for Uart {
    fn default() -> Self {
        let edge = Edge::default();
        Uart { serial: Serial::new(edge.clone(), Vec::new()), edge }
    }
}

impl Uart {
    /// The UART in `state`; `None` if that holds more bytes than one can.
    pub fn from_state(state: &UartState) -> Option<Self> {
        if state.transmitted.len() > MAX_TRANSMITTED {
            return None;
        }
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        let serial = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.received.clone(),
        };
        let edge = Edge::default();
        let serial = Serial::from_state(&serial, edge.clone(), NoEvents, state.transmitted.clone()).ok()?;
        // The crate raises the line anew for interrupts that were raised, and carried to the PIC, long before.
        edge.0.store(false, Relaxed);
        Some(Uart { serial, edge })
    }

    /// Reads register `offset` (0–7).
    pub fn read(&mut self, offset: u8) -> u8 {
        self.serial.read(offset)
    }

    /// Writes register `offset` (0–7).
    pub fn write(&mut self, offset: u8, value: u8) {
        // Neither a Vec nor the edge can fail.
        self.serial.write(offset, value).expect("writing to a Vec");
    }

    /// Bytes the receive FIFO has room for.
    pub fn room(&self) -> usize {
        self.serial.fifo_capacity()
    }

    /// Receives `bytes`; what the FIFO has no room for is lost, as on a real line.
    pub fn receive(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && self.room() > 0 {
            let fits = bytes.len().min(self.room());
            // In loop-back mode the line is cut off and nothing is received: the crate answers 0 or FullFifo.
            let _ = self.serial.enqueue_raw_bytes(&bytes[..fits]);
        }
    }

    /// Whether the interrupt line rose since the last call.
    pub fn take_edge(&self) -> bool {
        self.edge.0.swap(false, Relaxed)
    }

    /// Bytes transmitted since they were last cleared.
    pub fn transmitted(&mut self) -> &mut Vec<u8> {
        self.serial.writer_mut()
    }

    /// Whether what was transmitted shall go out now: a whole line, or as much as a guest writes without asking for room.
    pub fn transmitted_enough(&self) -> bool {
        let bytes = self.serial.writer();
        bytes.len() >= TRANSMIT_FIFO || bytes.last() == Some(&b'\n')
    }

    /// The state, for snapshots and digests.
    pub fn state(&self) -> UartState {
        let s: SerialState = self.serial.state();
        let registers = [
            s.baud_divisor_low,
            s.baud_divisor_high,
            s.interrupt_enable,
            s.interrupt_identification,
            s.line_control,
            s.line_status,
            s.modem_control,
            s.modem_status,
            s.scratch,
        ];
        UartState { registers, received: s.in_buffer, transmitted: self.serial.writer().clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receives_with_interrupt_and_never_overfills() {
        let mut uart = Uart::default();
        uart.write(1, 1); // IER: received data
        assert!(!uart.take_edge());
        uart.receive(&[b'x'; 100]);
        assert!(uart.take_edge());
        assert_eq!(uart.room(), 0);
        uart.receive(b"lost");
        assert_eq!(uart.read(0), b'x');
        assert_eq!(uart.room(), 1);
    }

    #[test]
    fn transmits_at_once() {
        let mut uart = Uart::default();
        uart.write(0, b'a');
        uart.write(0, b'b');
        assert_eq!(std::mem::take(uart.transmitted()), b"ab");
    }

    #[test]
    fn a_line_or_a_full_fifo_goes_out_at_once() {
        let mut uart = Uart::default();
        assert!(!uart.transmitted_enough());
        uart.write(0, b'a');
        assert!(!uart.transmitted_enough());
        uart.write(0, b'\n');
        assert!(uart.transmitted_enough());
        uart.transmitted().clear();
        (0..TRANSMIT_FIFO).for_each(|_| uart.write(0, b'a'));
        assert!(uart.transmitted_enough());
    }
}
