//! Links the applications as a bootable image.

fn main() {
    lockstep_link::guest();
}
