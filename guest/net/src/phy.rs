//! The network card as `smoltcp` wants to see it: tokens for a frame that has come, and for one that may go. A safepoint before
//! each frame.

use crate::nic::{FRAME_MAX, Nic, Receiver, Transmitter};
use lockstep_runtime::safepoint;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// A frame that has come.
pub(crate) struct Incoming<'a>(&'a mut Receiver);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, use_frame: F) -> R {
        let mut connecting = false;
        let result = self.0.next(|frame| {
            connecting = asks_for_connection(frame);
            use_frame(frame)
        });
        self.0.connecting |= connecting;
        result
    }
}

/// Whether this is a TCP segment over IPv4 with SYN. What only looks like one does no harm.
fn asks_for_connection(frame: &[u8]) -> bool {
    const SYN: u8 = 2;
    let Some(&[.., kind, kind_low, length]) = frame.first_chunk::<15>() else { return false };
    let flags = 14 + 4 * usize::from(length & 15) + 13;
    (kind, kind_low, frame.get(23)) == (8, 0, Some(&6)) && frame.get(flags).is_some_and(|flags| flags & SYN != 0)
}

/// Room for a frame.
pub(crate) struct Outgoing<'a>(&'a mut Transmitter);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.0.send(length, write)
    }
}

impl Device for Nic {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    /// Only together with room for an answer, which the stack wants to give at once.
    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        safepoint();
        (self.receiver.has_frame() && self.transmitter.ready())
            .then_some((Incoming(&mut self.receiver), Outgoing(&mut self.transmitter)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        safepoint();
        self.transmitter.ready().then_some(Outgoing(&mut self.transmitter))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
        capabilities
    }
}
