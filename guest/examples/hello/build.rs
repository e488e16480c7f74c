//! Links the example as a bootable image.

fn main() {
    lockstep_link::guest();
}
