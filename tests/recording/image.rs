//! Guests of a few bytes: an ELF image with a PVH entry around hand-written machine code, for what no guest built with the
//! runtime would do.

const AT: u32 = 0x10_0000;

/// An image that is entered at the first byte of `code`: 32-bit flat protected mode at ring 0, interrupts off, no tables.
pub fn image(code: &[u8]) -> Vec<u8> {
    let (header_bytes, segment_bytes) = (64, 56);
    let note_at = header_bytes + 2 * segment_bytes;
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes()); // sizes of name and descriptor; XEN_ELFNOTE_PHYS32_ENTRY
    }
    note.extend(b"Xen\0");
    note.extend(AT.to_le_bytes());
    let code_at = note_at + note.len();

    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend([2, 0, 62, 0]); // executable, x86-64
    image.extend(1u32.to_le_bytes());
    for word in [u64::from(AT), header_bytes as u64, 0] {
        image.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    image.extend(0u32.to_le_bytes());
    for half in [header_bytes, segment_bytes, 2, 0, 0, 0] {
        image.extend((half as u16).to_le_bytes());
    }
    // Program headers: the note, and the code.
    for (kind, flags, offset, address, bytes, align) in
        [(4u32, 4u32, note_at, 0, note.len(), 4u64), (1, 5, code_at, AT, code.len(), 1)]
    {
        image.extend(kind.to_le_bytes());
        image.extend(flags.to_le_bytes());
        image.extend((offset as u64).to_le_bytes());
        image.extend(u64::from(address).to_le_bytes());
        image.extend(u64::from(address).to_le_bytes());
        image.extend((bytes as u64).to_le_bytes());
        image.extend((bytes as u64).to_le_bytes());
        image.extend(align.to_le_bytes());
    }
    image.extend(note);
    image.extend(code);
    image
}
