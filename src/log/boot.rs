//! The payload of a boot frame, in file and on the channel: bincode, since it is read once and its
//! speed is that of copying the image. Bounded like everything that comes from outside.

use super::frame::FrameKind;
use crate::machine::snapshot::Boot;
use bincode::config::{Configuration, Fixint, LittleEndian, standard};

/// Why a boot cannot be written, or bytes are none.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// bincode refuses to write it.
    #[error("the boot record cannot be encoded")]
    Encode(#[source] bincode::error::EncodeError),
    /// More bytes than a boot frame holds.
    #[error("a boot record of {0} bytes ({max} are possible; is the guest's image that large?)", max = max_bytes())]
    TooLarge(usize),
    /// The bytes are no boot record.
    #[error("no valid boot record")]
    Decode(#[source] bincode::error::DecodeError),
    /// Bytes are left over behind the boot record.
    #[error("{0} bytes behind the boot record")]
    Trailing(usize),
}

/// Bytes of a boot frame's payload that are not the boot's: on the logging channel a token stands before it.
const RESERVED: usize = 8;

fn max_bytes() -> usize {
    FrameKind::Boot.max_payload() - RESERVED
}

/// The encoding: little endian, integers and lengths at their full width.
const CONFIG: Configuration<LittleEndian, Fixint> = standard().with_fixed_int_encoding();

/// The bytes of `boot`, as a boot frame carries them.
pub fn encode_boot(boot: &Boot) -> Result<Vec<u8>, BootError> {
    let bytes = bincode::encode_to_vec(boot, CONFIG).map_err(BootError::Encode)?;
    if bytes.len() > max_bytes() { Err(BootError::TooLarge(bytes.len())) } else { Ok(bytes) }
}

/// The boot in these bytes, all of them. Allocates no more than 128 KiB or sixteen times what is there.
pub fn decode_boot(bytes: &[u8]) -> Result<Boot, BootError> {
    // bincode's limit is part of the type, counts a little more than the bytes (elements of a list at
    // their size in memory), and is all that keeps a lying length from being allocated. So: the least of
    // a few limits that the honest bytes cannot reach.
    let decoded = match bytes.len() {
        length if length > max_bytes() => return Err(BootError::TooLarge(length)),
        0..0x1_0000 => bincode::decode_from_slice(bytes, CONFIG.with_limit::<0x2_0000>()),
        0x1_0000..0x8_0000 => bincode::decode_from_slice(bytes, CONFIG.with_limit::<0x10_0000>()),
        0x8_0000..0x40_0000 => bincode::decode_from_slice(bytes, CONFIG.with_limit::<0x80_0000>()),
        0x40_0000..0x200_0000 => bincode::decode_from_slice(bytes, CONFIG.with_limit::<0x400_0000>()),
        0x200_0000.. => bincode::decode_from_slice(bytes, CONFIG.with_limit::<0x600_0000>()),
    };
    let (boot, consumed) = decoded.map_err(BootError::Decode)?;
    if consumed < bytes.len() { Err(BootError::Trailing(bytes.len() - consumed)) } else { Ok(boot) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::machine::snapshot::CpuidLeaf;

    /// A boot with an image of `image_bytes`.
    pub(crate) fn boot(image_bytes: usize) -> Boot {
        let leaf = |leaf| CpuidLeaf { leaf, subleaf: (leaf % 2 == 0).then_some(leaf), registers: [leaf; 4] };
        Boot {
            name: "vm".into(),
            memory_bytes: 64 << 20,
            command_line: "shell".into(),
            boot_time_ns: 1_700_000_000_000_000_000,
            net: None,
            disk: None,
            cpuid: (0..100).map(leaf).collect(),
            image: (0..image_bytes).map(|i| i as u8).collect(),
        }
    }

    #[test]
    fn boots_of_every_size_class_come_back() {
        for image_bytes in
            [0, 0xf000, 0x1_0000, 0x7_f000, 0x8_0000, 0x3f_f000, 0x40_0000, 0x1ff_f000, 0x200_0000, 0x3ff_f000]
        {
            let boot = boot(image_bytes);
            assert_eq!(decode_boot(&encode_boot(&boot).unwrap()).unwrap(), boot);
        }
    }

    #[test]
    fn cut_long_lying_and_oversized_boots_are_refused_by_name() {
        let mut bytes = encode_boot(&boot(5)).unwrap();
        assert!(matches!(decode_boot(&bytes[..bytes.len() - 1]), Err(BootError::Decode(_))));
        bytes.push(0);
        assert!(matches!(decode_boot(&bytes), Err(BootError::Trailing(1))));
        bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert!(matches!(decode_boot(&bytes), Err(BootError::Decode(bincode::error::DecodeError::LimitExceeded))));
        assert!(matches!(encode_boot(&boot(64 << 20)), Err(BootError::TooLarge(_))));
        assert!(matches!(decode_boot(&vec![0; (64 << 20) + 1]), Err(BootError::TooLarge(_))));
    }
}
