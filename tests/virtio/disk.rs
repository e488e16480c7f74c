//! The driver of a disk, and the world behind it: an image that is some bytes.

use std::collections::BTreeMap;

use lockstep::devices::virtio::blk::Blk;
use lockstep::machine::blocks::{Ask, Completion, Completions, Outcome, Request, Requests, SECTOR};
use lockstep::machine::snapshot::DiskConfig;
use virtio_bindings::bindings::virtio_blk::*;

use super::{Driver, EVENT_IDX, INDIRECT, VERSION_1, WRITE};

pub const SECTORS: u64 = 4096;
pub const DISK: DiskConfig =
    DiskConfig { sectors: SECTORS, read_only: false, serial: *b"a disk of the tests\0", identity: 7 };
pub const READ_ONLY: DiskConfig = DiskConfig { read_only: true, ..DISK };

pub const SIZE_MAX: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX;
pub const SEG_MAX: u64 = 1 << VIRTIO_BLK_F_SEG_MAX;
pub const RO: u64 = 1 << VIRTIO_BLK_F_RO;
pub const BLK_SIZE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
pub const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
pub const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
pub const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
/// What a disk that can be written offers.
pub const ALL: u64 = VERSION_1 | EVENT_IDX | INDIRECT | SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH | DISCARD | WRITE_ZEROES;

pub const OK: u8 = VIRTIO_BLK_S_OK as u8;
pub const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
pub const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// What a status byte is before the device has written it.
pub const UNTOUCHED: u8 = 0xee;

/// Where the headers and status bytes of requests are: 32 bytes for each.
const HEADERS: u64 = 0x4_0000;

/// A disk and its driver.
pub type DiskDriver = Driver<Blk, 1>;

/// A request that was made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    pub head: u16,
    pub status: u64,
}

impl DiskDriver {
    /// A driver that has agreed on `features` and started.
    pub fn ready(config: DiskConfig, features: u64) -> Self {
        let mut driver = Driver::of(Blk::new(config), 256);
        driver.start(features);
        driver
    }

    /// Makes a request available: `number` (below 4096) says where its header and its status are. Its data is read `from`
    /// these places, or written `into` those.
    pub fn ask(&mut self, number: u64, kind: u32, sector: u64, from: &[(u64, u32)], into: &[(u64, u32)]) -> Made {
        let header = HEADERS + 32 * number;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.put_bytes(header, &bytes);
        let status = header + 16;
        self.put_bytes(status, &[UNTOUCHED]);
        let mut chain = vec![(header, 16, 0)];
        chain.extend(from.iter().map(|&(address, length)| (address, length, 0)));
        chain.extend(into.iter().map(|&(address, length)| (address, length, WRITE)));
        chain.push((status, 1, WRITE));
        Made { head: self.offer_chain(0, chain.into_iter()), status }
    }

    pub fn status_of(&self, made: Made) -> u8 {
        self.bytes(made.status, 1)[0]
    }

    /// All that leaves the device now.
    pub fn taken(&mut self) -> Requests {
        let mut all = Requests::new();
        loop {
            let mut requests = Requests::new();
            self.device.take_requests(&self.memory, &mut requests);
            if requests.is_empty() {
                return all;
            }
            all.extend(requests);
        }
    }

    pub fn complete(&mut self, completions: Completions) {
        self.device.complete_requests(&self.memory, completions);
    }
}

/// What an image that is these bytes makes of a request.
pub fn carry_out(image: &mut [u8], request: &Request) -> Completion {
    let range = request.ask.extent().map_or(0..0, |(at, length)| at as usize..(at + length) as usize);
    let outcome = match &request.ask {
        Ask::Read { .. } => Outcome::Read(image[range].to_vec()),
        Ask::Write { data, .. } => {
            image[range].copy_from_slice(data);
            Outcome::Done
        }
        Ask::Flush => Outcome::Done,
        Ask::Discard { .. } | Ask::WriteZeroes { .. } => {
            image[range].fill(0);
            Outcome::Done
        }
    };
    Completion { id: request.id, outcome }
}

pub fn image() -> Vec<u8> {
    (0..SECTORS * SECTOR).map(|at| (at / SECTOR * 31 + at % 251) as u8).collect()
}

pub fn by_id(requests: &[Request]) -> BTreeMap<u64, Ask> {
    requests.iter().map(|request| (request.id, request.ask.clone())).collect()
}
